"""The driver's checks before any worker starts: bad input ends here, with one clear line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets.checks import check_data, data_fingerprint
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.sample_order import sample_order
from datasets.shards.manifest import DatasetManifest
from infra.cluster.connect import in_submitted_job
from infra.storage.base import Storage
from infra.storage.open import open_storage
from infra.tracking import config as tracking
from model.checks import check_image_size, check_model
from model.pretrained import NAMED_WEIGHTS
from pipeline.checkpoint.catalog import CheckpointError
from pipeline.checkpoint.resume import Start, planned_start
from pipeline.checkpoint.state import TrainState
from pipeline.config import TrainConfig
from pipeline.run.class_weights import with_class_weights
from pipeline.run.provenance import breaking, described, resume_differences
from pipeline.run.reachability import check_reachable
from pipeline.run.target_numbers import with_target_numbers
from pipeline.schedule.decisions import records_of
from pipeline.schedule.schedule import TrainingSchedule
from pipeline.schedule.stages import with_batch_sizes
from pipeline.task_config import RegressionConfig, TaskConfig
from pipeline.training_config import TIMM_OPTIMIZERS, OptimizerConfig

LOWEST = ("val/loss", "val/calibration_error", "val/mae", "val/rmse")
"""Metrics of which a model has little when it is good."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """A run that may start."""

    config: TrainConfig
    """With absolute paths, as workers need them, and numbers in place of what is automatic."""
    train: DatasetManifest
    val: DatasetManifest
    samples_per_epoch: int
    data_fingerprint: str
    """What a checkpoint's data fingerprint must be for the run to resume from it."""
    resume_from: TrainState | None
    """The state of the newest checkpoint of the same run name."""
    notes: tuple[str, ...] = ()
    """Lines for the user: checkpoints that were skipped, and why."""

    @property
    def fingerprints(self) -> tuple[str, str]:
        """Of the training samples and their order, and of the validation samples, as they are at the run's start."""
        return self.data_fingerprint, self.val.fingerprint

    @property
    def total_samples(self) -> int:
        """Samples of the whole run."""
        return TrainingSchedule(self.config.stages, self.samples_per_epoch).total_samples

    @property
    def finished(self) -> bool:
        """Whether the run has nothing left to train."""
        return self.resume_from is not None and len(self.resume_from.stage_starts) > len(self.config.stages)


def preflight(config: TrainConfig, *, prepare_tracking: bool = True) -> Preflight:
    """Check everything that can be known on the driver.

    `prepare_tracking`: prepare MLflow too, which takes seconds; else it was prepared already, or is by
    `start_controller`.

    Raises:
        ValueError: (or a subclass) as `check_run`; storage, or a run of this name that another config made.
    """
    ready = check_run(config)
    open_storage(ready.config.folder).check_writable()
    ready = with_start(ready)
    if prepare_tracking:
        tracking.prepare(ready.config.tracking)
    else:
        tracking.check_file(ready.config.tracking)
    return ready


def check_run(config: TrainConfig) -> Preflight:
    """Check the config and the data; looks neither at the run's storage nor at MLflow.

    Raises:
        ValueError: (or a subclass) data, image sizes, worker counts, metrics; one line each, with the cure.
    """
    if in_submitted_job():
        check_reachable(config)
    config = with_numbers(absolute(config))
    check_model(config.model)
    _check_optimizer(config.optimizer)
    for size in {size for stage in config.stages for size in (*stage.image_sizes, config.trainer.eval_size(stage))}:
        check_image_size(config.model, size, config.data.shape)
    train, val = check_data(
        config.data,
        batch_sizes=[stage.batch_size for stage in config.stages],
        worker_counts=config.worker_counts,
    )
    for count in config.possible_workers:
        config.trainer.check_workers(count)
    if train.kind != config.kind:
        raise DataError(f"{config.data.train} is for {train.kind}, but the recipe's task is {config.kind}")
    config = replace(config, task=with_numbers_of_data(config.task, config.data, train))
    _check_mixup(config)
    _check_metrics(config, train.classes)
    order = sample_order(config.data, train, seed=config.seed)
    return Preflight(config, train, val, order.samples_per_epoch, data_fingerprint(order, train), None)


def with_numbers_of_data(task: TaskConfig, data: DataConfig, train: DatasetManifest) -> TaskConfig:
    """Return the task with the numbers in it that follow from the training data.

    Raises:
        ValueError: (or a subclass) they don't fit the data, or don't follow from these.
    """
    if isinstance(task, RegressionConfig):
        return with_target_numbers(task, train)
    return with_class_weights(task, data, train)


def with_start(ready: Preflight) -> Preflight:
    """Look in storage for what the run starts from. Again once the run's lease is held: only then does it last.

    Raises:
        ValueError: what is there doesn't fit the config.
    """
    config = ready.config
    storage = open_storage(config.folder)
    start = planned_start(config, storage)
    config = with_statistics(config, start.metadata.config, ready.train)
    ready = replace(ready, config=config)
    notes = start.notes + _check_start(ready, start, storage)
    if start.state is not None and start.source:
        _check_something_is_left(config, start.state, ready.samples_per_epoch)
    return replace(ready, resume_from=start.state, notes=notes)


def with_numbers(config: TrainConfig) -> TrainConfig:
    """Put a number in place of each automatic batch size."""
    # Where the rate is for a batch, it follows an automatic one as it does any other.
    rules = replace(config.adaptive, batch_lr_rule="none") if config.optimizer.lr_per_batch else config.adaptive
    stages = with_batch_sizes(config.stages, rules, multiple=config.data.num_lanes)
    return replace(config, stages=stages)


def with_statistics(config: TrainConfig, recorded: Mapping[str, Any], train: DatasetManifest) -> TrainConfig:
    """Fill in each channel's mean and deviation where they are needed and not given: recorded ones before estimated.

    Raises:
        DataError: the images that they are estimated from can't be read.
    """
    trainer = config.trainer
    if config.data.pixels.is_rgb or trainer.channel_mean:
        return config
    from datasets.loading.statistics import channel_statistics

    known = recorded.get("trainer", {})
    mean, std = (tuple(known.get(name, ())) for name in ("channel_mean", "channel_std"))
    if len(mean) != config.data.channels:
        mean, std = channel_statistics(config.data, train)
    return replace(config, trainer=replace(trainer, channel_mean=mean, channel_std=std))


def absolute(config: TrainConfig) -> TrainConfig:
    """Make local paths absolute: workers have another working directory."""
    cache = config.data.cache_dir if config.data.cache_dir == "none" else _absolute(config.data.cache_dir)
    data = replace(config.data, train=_absolute(config.data.train), val=_absolute(config.data.val), cache_dir=cache)
    weights = config.model.init_from
    model = (
        config.model if weights in NAMED_WEIGHTS else replace(config.model, init_from=_absolute(weights or "") or None)
    )
    return replace(
        config,
        storage=_absolute(config.storage),
        resume_from=_absolute(config.resume_from),
        data=data,
        model=model,
        tracking=config.tracking.absolute(),
    )


def _absolute(location: str) -> str:
    parts = location.split("::")
    return "::".join(part if "://" in part or not part else str(Path(part).absolute()) for part in parts)


def _check_optimizer(config: OptimizerConfig) -> None:
    if config.optimizer in TIMM_OPTIMIZERS and find_spec("timm") is None:
        raise ValueError(f"optimizer.optimizer is {config.optimizer}, which timm has: `uv pip install timm` adds it")


def _check_mixup(config: TrainConfig) -> None:
    for index, stage in enumerate(config.stages):
        if stage.cutmix_alpha and config.kind == "regression":
            raise ValueError(
                f"stage {index + 1}: cutmix_alpha is {stage.cutmix_alpha:g}, but a part of an image hasn't that part "
                "of its number: leave it at 0, or use Mixup"
            )
        if (stage.mixup_alpha or stage.cutmix_alpha) and stage.batch_size < 2 * config.data.num_lanes:
            name = "Mixup" if stage.mixup_alpha else "CutMix"
            raise ValueError(
                f"stage {index + 1}: {name} pairs samples of one lane, so batch_size {stage.batch_size} must be at "
                f"least twice data.num_lanes={config.data.num_lanes}: raise it to {2 * config.data.num_lanes}, "
                "or use fewer lanes"
            )


def _check_metrics(config: TrainConfig, classes: Sequence[str]) -> None:
    """Refuse a metric that no evaluation gives: it would be missed only when the run has been trained."""
    known = [f"val/{name}" for name in config.task.metric_names(classes)]
    asked = [("checkpoint.best_metric", "checkpoint.best_is", config.checkpoint.best_metric, config.checkpoint.best_is)]
    if config.adaptive.plateau:
        asked.append(("adaptive.metric", "adaptive.better", config.adaptive.metric, config.adaptive.better))
    for field, direction, name, best in asked:
        flags = [f"--{one.replace('_', '-')}" for one in (field, direction)]
        if name and name not in known:
            shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
            raise ValueError(
                f"{field} is {name!r}, which this task doesn't measure: there are {shown}; name one by {flags[0]}, and "
                f"by {flags[1]} whether its highest or lowest value is the best"
            )
        if name.startswith(LOWEST) and best == "highest":
            raise ValueError(
                f"{field} is {name!r}, of which the lowest is the best, but {direction} is 'highest': give "
                f"{flags[1]} lowest"
            )


def _compare_configs(config: TrainConfig, start: Start, storage: Storage) -> tuple[str, ...]:
    """Refuse what would make another run of it; return a line on what may change and did."""
    changes = resume_differences(start.metadata.config, config)
    serious = breaking(changes)
    if serious:
        raise CheckpointError(
            f"{storage.uri} holds a run of this name with another config ({described(serious)}): "
            "start a new run with --name, or submit the same config to resume"
            + (
                "; a finished run is trained further by --extend"
                if any(key.endswith(".epochs") for key in serious)
                else ""
            )
        )
    return (f"resumes with a changed config: {described(changes, limit=8)}",) if changes else ()


def _check_something_is_left(config: TrainConfig, state: TrainState, samples_per_epoch: int) -> None:
    """Refuse to resume from a run that has trained all that this one is to train."""
    records = records_of(state.decisions)
    schedule = TrainingSchedule(config.stages, samples_per_epoch, records, config.adaptive.max_epochs)
    if len(state.stage_starts) > len(config.stages) or state.cursor >= schedule.total_samples:
        raise CheckpointError(
            f"resume_from is {config.resume_from}: it is trained up to cursor {state.cursor}, and this run's stages "
            f"end at {schedule.total_samples}: give the last one more epochs "
            f"(--stages.{len(config.stages) - 1}.epochs), or take a recipe with a further stage"
        )


def _check_start(ready: Preflight, start: Start, storage: Storage) -> tuple[str, ...]:
    """Check that what a run starts from fits it; return lines for the user."""
    config = ready.config
    if start.state is None:
        return (f"starts with the weights of {start.source}",) if start.source else ()
    notes = () if start.source else _compare_configs(config, start, storage)
    if start.metadata.data != ready.data_fingerprint:
        whose = f"resume_from is {start.source}: it" if start.source else storage.uri
        cure = "start from its weights alone with --model.init-from" if start.source else "give this run another --name"
        raise CheckpointError(
            f"{whose} was trained on different data than {config.data.train}, or in another order: {cure}, or, if the "
            "data was indexed again, index it as before"
        )
    if not start.source and start.metadata.val not in (ready.val.fingerprint, ""):
        raise CheckpointError(
            f"{storage.uri} was evaluated on different data than {config.data.val}: continue it under another --name "
            f"with --resume-from {storage.uri}, or, if the data was indexed again, index it as before"
        )
    return (*notes, f"resumes from {start.source}{_forked(config, start)}") if start.source else notes


def _forked(config: TrainConfig, start: Start) -> str:
    """Return the fields in which a run differs from the one whose state it takes, in words."""
    changes = resume_differences(start.metadata.config, config)
    serious = breaking({key: change for key, change in changes.items() if key != "name"})
    return f", with other values: {described(serious, limit=12)}" if serious else ", with the same config"
