"""The mean and deviation of each target, by which a regression's targets are standardized."""

from __future__ import annotations

from dataclasses import replace

from datasets.errors import DataError
from datasets.shards.manifest import DatasetManifest
from pipeline.task_config import RegressionConfig


def with_target_numbers(task: RegressionConfig, train: DatasetManifest) -> RegressionConfig:
    """Return the task with each target's mean and deviation in the training data, where they aren't given.

    Raises:
        ValueError: (or a subclass) numbers for other targets than the data's, data that don't tell them, or a target
            that is always the same.
    """
    names = train.classes
    if task.target_mean:
        if len(task.target_mean) != len(names):
            raise ValueError(
                f"task.target_mean has {len(task.target_mean)} numbers for the {len(names)} targets "
                f"{', '.join(names[:8])}: give one each, or none"
            )
        return task
    if not train.targets:
        raise DataError(
            f"{train.shards[0].url}: targets are counted for a whole folder only, not for some of its shards or a "
            "mixture: give --task.target-mean and --task.target-std"
        )
    for name, (mean, deviation) in zip(names, train.targets, strict=True):
        if not deviation > 0:
            raise DataError(f"{train.shards[0].index_folder}: the target {name!r} is always {mean:g}: nothing to learn")
    means, deviations = zip(*train.targets, strict=True)
    return replace(task, target_mean=means, target_std=deviations)
