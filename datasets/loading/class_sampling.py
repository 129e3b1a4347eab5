"""Which samples an epoch takes, and how often, where classes are to have other shares than the data give them.

Every class gets a fixed number of an epoch's places. Its samples, in an order that the seed draws once, fill them in
turn, and the next epoch continues where this one ended: so the shares are exact in every epoch, all samples of a class
are used equally often, and everything is a function of (seed, epoch, sample).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datasets.config import DataConfig, Sampling
from datasets.errors import DataError
from datasets.shards.labels import labels_of
from datasets.shards.manifest import DatasetManifest, ShardInfo
from datasets.transforms.randomness import Purpose, permutation

_WEIGHTS: dict[Sampling, Callable[[int], int]] = {
    "uniform": lambda count: count,
    "sqrt": lambda count: math.isqrt(count << 40),
    "balanced": lambda count: 1,
}
"""A class's share of an epoch is proportional to this of its number of samples: class-balanced and square-root sampling
of Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, 2020 (arXiv 1910.09217)."""
_OTHER_WAYS = {
    "multilabel": "weigh the classes instead, with task.positive_weights",
    "regression": "leave it at uniform",
}
_MOST_NAMES = 10


@dataclass(frozen=True, slots=True, eq=False)
class ClassSampling:
    """How often each epoch takes each sample."""

    labels: np.ndarray
    """Class of each sample, [samples]."""
    counts: np.ndarray
    """Samples of each class, int64 [classes]."""
    taken: np.ndarray
    """Places of an epoch that each class has, int64 [classes]; their sum is the number of samples."""
    places: np.ndarray
    """Place of each sample in its class's order, [samples]."""

    @classmethod
    def make(cls, labels: np.ndarray, num_classes: int, *, rule: Sampling, seed: int) -> ClassSampling:
        """Draw the classes' orders."""
        counts = np.bincount(labels, minlength=num_classes)
        order = permutation(len(labels), seed, Purpose.CLASS_ORDER)
        order = order[np.argsort(labels[order], kind="stable")]
        places = np.empty(len(labels), dtype=np.min_scalar_type(len(labels)))
        starts = np.cumsum(counts) - counts
        places[order] = np.arange(len(labels)) - np.repeat(starts, counts)
        return cls(labels, counts, epoch_counts(counts.tolist(), rule), places)

    def uses_before(self, epoch: int, samples: np.ndarray | slice) -> np.ndarray:
        """Return how often the epochs before this one have used each of some samples, int64."""
        labels = self.labels[samples]
        counts = self.counts[labels]
        return (epoch * self.taken[labels] - self.places[samples].astype(np.int64) + counts - 1) // counts

    def uses_in(self, epoch: int, samples: np.ndarray | slice) -> np.ndarray:
        """Return how often an epoch uses each of some samples, int64."""
        return self.uses_before(epoch + 1, samples) - self.uses_before(epoch, samples)


def epoch_counts(counts: Sequence[int], rule: Sampling) -> np.ndarray:
    """Return how many of an epoch's places each class has, int64 [classes]: as many in all as there are samples.

    They are proportional to the rule's weights up to rounding, 0 for a class without samples. In whole numbers, so that
    they are the same on any machine.
    """
    weights = [_WEIGHTS[rule](int(count)) if count else 0 for count in counts]
    whole, rests = zip(*(divmod(int(sum(counts)) * weight, sum(weights)) for weight in weights), strict=True)
    places, left = np.array(whole, dtype=np.int64), int(sum(counts)) - sum(whole)
    places[sorted(range(len(rests)), key=lambda label: -rests[label])[:left]] += 1
    return places


def class_sampling(config: DataConfig, manifest: DatasetManifest, *, seed: int) -> ClassSampling | None:
    """Return how a run takes the samples of its classes; None: each of them once an epoch.

    Raises:
        DataError: the samples don't have one class each, in segmentation one that they are sampled by, or are of a
            weighted mixture; or the index can't be read.
    """
    if config.sampling == "uniform":
        return None
    if config.train_weights:
        raise DataError(f"data.sampling is {config.sampling} and data.train_weights is given: leave out one of the two")
    if manifest.kind in _OTHER_WAYS:
        raise DataError(
            f"data.sampling is {config.sampling}: it needs one class an image, and {config.train} is for "
            f"{manifest.kind}; {_OTHER_WAYS[manifest.kind]}"
        )
    return _made(manifest.shards, manifest.classes, manifest.kind, config.sampling, seed)


@lru_cache(maxsize=2)
def _made(
    shards: tuple[ShardInfo, ...], classes: tuple[str, ...], kind: str, rule: Sampling, seed: int
) -> ClassSampling:
    labels = labels_of(DatasetManifest(shards=shards, classes=classes, kind=kind))
    return ClassSampling.make(labels, len(classes), rule=rule, seed=seed)


def sampling_lines(config: DataConfig, manifest: DatasetManifest, *, seed: int) -> list[str]:
    """Return what an epoch takes of each class, for a reader; nothing where it is every sample once.

    Raises:
        DataError: as `class_sampling`.
    """
    sampling = class_sampling(config, manifest, seed=seed)
    if sampling is None:
        return []
    if np.array_equal(sampling.taken, sampling.counts):
        return [
            f"data.sampling {config.sampling} changes nothing here: classes are equal, an epoch has each image once"
        ]
    total = int(sampling.counts.sum())
    there = np.flatnonzero(sampling.counts)
    by_size = there[np.argsort(sampling.counts[there], kind="stable")]
    shown = by_size if len(there) <= _MOST_NAMES else by_size[[0, len(there) // 2, -1]]
    head = f"data.sampling {config.sampling}: what an epoch takes"
    if manifest.kind == "segmentation":
        head += ", each image counted to the rarest class in its mask"
    if len(shown) < len(there):
        head += f", of {len(there):,} classes the rarest, one in the middle and the most frequent"
    return [
        head,
        *(
            f"  {manifest.classes[label]}: {sampling.counts[label] / total:.2%} of the images, "
            f"{sampling.taken[label] / total:.2%} of an epoch, "
            f"each image {_times(sampling.taken[label] / sampling.counts[label])}"
            for label in shown
        ),
    ]


def _times(uses: float) -> str:
    return "once" if f"{uses:.3g}" == "1" else f"{uses:.3g} times"
