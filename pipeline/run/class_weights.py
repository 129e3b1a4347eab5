"""The numbers that `auto` weights of classes stand for: a function of the counts that the training data carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.class_sampling import class_sampling
from datasets.shards.labels import class_counts
from datasets.shards.manifest import DatasetManifest
from pipeline.task_config import ClassWeights, MultilabelConfig, RegressionConfig, SegmentationConfig, TaskConfig

_MOST_NAMES = 10


def with_class_weights(task: TaskConfig, data: DataConfig, train: DatasetManifest) -> TaskConfig:
    """Return the task with a number for each class in place of `auto`; one without classes as it is.

    Raises:
        ValueError: (or a subclass) numbers for other classes than the data's, or data that don't tell the counts.
    """
    if isinstance(task, RegressionConfig):
        return task
    if isinstance(task, MultilabelConfig):
        weights = _checked("positive_weights", task.positive_weights, train.classes)
        if weights == "auto":
            weights = positive_weights(class_counts(train), train.num_samples, most=task.max_positive_weight)
        return replace(task, positive_weights=weights)
    weights = _checked("class_weights", task.class_weights, train.classes)
    if weights == "auto" and isinstance(task, SegmentationConfig):
        shares = _pixel_shares(train)
        counted = [0.0 if index == task.ignore_index else share for index, share in enumerate(shares)]
        weights = inverse_frequencies(counted)
    elif weights == "auto":
        sampling = class_sampling(data, train, seed=0)  # whose shares depend on no seed
        weights = inverse_frequencies(class_counts(train) if sampling is None else sampling.taken.tolist())
    return replace(task, class_weights=weights)


def weight_lines(task: TaskConfig, classes: Sequence[str]) -> list[str]:
    """Return the weights for a reader; nothing where there are none."""
    name = "positive_weights" if isinstance(task, MultilabelConfig) else "class_weights"
    weights: ClassWeights = getattr(task, name, "none")
    if not isinstance(weights, tuple):
        return []
    ranked = sorted(zip(weights, classes, strict=True), reverse=True)
    shown = ", ".join(f"{class_name} {weight:g}" for weight, class_name in ranked[:_MOST_NAMES])
    more = f" and {len(ranked) - _MOST_NAMES:,} more, down to {ranked[-1][0]:g}" if len(ranked) > _MOST_NAMES else ""
    return [f"task.{name}: {shown}{more}"]


def inverse_frequencies(counts: Sequence[float]) -> tuple[float, ...]:
    """Return n / (K n_c) for each class c, where n_c of n samples are of it and K classes have any: their mean over the
    samples is 1, and each class's sum is the same. 1 for a class without samples.

    As `class_weight="balanced"` of scikit-learn, which has it from King and Zeng, Logistic Regression in Rare Events
    Data, 2001.
    """
    there = [count for count in counts if count > 0]
    return tuple(_rounded(sum(there) / (len(there) * count)) if count > 0 else 1.0 for count in counts)


def positive_weights(counts: Sequence[float], samples: int, *, most: float) -> tuple[float, ...]:
    """Return (n - n_c) / n_c for each class c, at most `most`, where n_c of n samples have it; 1 where none or all do.

    As the documentation of PyTorch's `BCEWithLogitsLoss` suggests it for `pos_weight`.
    """
    return tuple(_rounded(min((samples - n) / n, most)) if 0 < n < samples else 1.0 for n in counts)


def _rounded(weight: float) -> float:
    return float(f"{weight:.4g}")


def _checked(name: str, weights: ClassWeights, classes: Sequence[str]) -> ClassWeights:
    if isinstance(weights, tuple) and len(weights) != len(classes):
        shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        raise ValueError(
            f"task.{name} has {len(weights)} numbers for {len(classes)} classes: give one each, in this order: {shown}"
        )
    return weights


def _pixel_shares(train: DatasetManifest) -> list[float]:
    """Return each class's share of the pixels of all masks, as `jobs.prepare` counted them: of the data, whatever
    `data.sampling` takes of them, since pixels are not counted by image."""
    pixels: Mapping[str, Mapping[str, float]] = train.source.get("report", {}).get("pixels", {})
    folders = {shard.index_folder for shard in train.shards}
    shares = pixels.get(PurePath(min(folders)).name, pixels.get("train", {}))
    if len(folders) > 1 or not shares:
        raise DataError(
            f"task.class_weights is auto, but {' and '.join(sorted(folders))} have no one count of the pixels of each "
            "class, which `python -m jobs.prepare` makes: give the weights as numbers"
        )
    return [shares.get(name, 0.0) for name in train.classes]
