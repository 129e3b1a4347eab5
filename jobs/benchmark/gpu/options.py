"""What is measured, and the config of a recipe's run on one device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from datasets.checks import check_data
from datasets.loading.sample_order import sample_order
from datasets.prepare.sources.photographs import Photographs
from datasets.prepare.writer import WriterConfig, prepare
from datasets.shards.manifest import DatasetManifest
from jobs.benchmark.flags import check_above_0, check_at_least, flag
from jobs.common.parsing import UsageError
from pipeline.config import AdaptiveConfig, TrainConfig
from pipeline.run.preflight import with_numbers, with_numbers_of_data
from pipeline.schedule.stages import TrainingStage
from pipeline.task_config import ClassificationConfig
from pipeline.training_config import CheckpointConfig

Part = Literal["speed", "schedule", "waits", "compile", "memory", "determinism"]
PARTS: tuple[Part, ...] = ("speed", "schedule", "waits", "compile", "memory", "determinism")
NEVER = 1e6
"""Epochs between two evaluations or checkpoints that aren't wanted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Flags of the benchmark itself; the recipe's fields are flags as well."""

    parts: tuple[Part, ...] = PARTS
    """What to measure: speed beside a plain loop and timm's model; the whole schedule fed by the loader; waits of the
    host; compilation; memory that runs out; determinism of a resumed run. Each in a process of its own."""
    shards: Path = field(default_factory=lambda: Path("data/photographs-gpu"))
    """Folder with `train` and `val` shards of images with one class each; if missing, photographs of 500x375 px are
    prepared there."""
    images: int = 2048
    """Training photographs to prepare, and an eighth as many for validation."""
    per_gpu_batch: int = 256
    """Images per step, in every stage: the share of one GPU."""
    steps: int = 20
    """Steps per round."""
    rounds: int = 5
    """Timed rounds; in each, every contender runs once. One more comes first and isn't counted."""
    peak_tflops: float = 0.0
    """The device's peak in 10^12 dense bf16 operations a second, for the utilization; 0: that of a known GPU."""
    tiny: bool = False
    """Measure nothing that means anything, in seconds and in this process: efficientnet_v2_tiny, the first and the last
    stage at 32 and 48 px, steps of 8 images, one size compiled. Shows that all of it works."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "rounds", "images")
        check_at_least(self, 2, "steps", "per_gpu_batch")
        if self.peak_tflops:
            check_above_0(self, "peak_tflops")
        if not self.parts:
            raise UsageError(f"{flag('parts')}: name at least one of {', '.join(PARTS)}")


def shrunk(options: Options) -> Options:
    """Return the options with the sizes of `--tiny`, if it is on."""
    return replace(options, images=64, per_gpu_batch=8, steps=2, rounds=2) if options.tiny else options


def prepared(options: Options) -> None:
    """Make the photographs where there are no shards.

    Raises:
        DataError: the photographs can't be fetched.
    """
    if not (options.shards / "train").exists():
        source = Photographs(train_images=options.images, val_images=max(1, options.images // 8))
        prepare(source, options.shards, WriterConfig(samples_per_shard=256))


def device_config(config: TrainConfig, options: Options) -> TrainConfig:
    """Return a recipe as it is measured: its model and stages on one device, on the benchmark's images.

    Raises:
        UsageError: the recipe's task is another one than a class an image.
        DataError: the shards can't be read.
    """
    if not isinstance(config.task, ClassificationConfig):
        raise UsageError(f"{config.name}: only recipes of classification are measured, on images with one class each")
    if not config.data.pixels.is_rgb:
        raise UsageError(f"data.pixel_type is {config.data.pixel_type}: only rgb is measured")
    stages, model = config.stages, config.model
    if options.tiny:
        stages = tuple(
            replace(one, image_size=size) for one, size in zip((stages[0], stages[-1]), (32, 48), strict=True)
        )
        model = replace(model, name="efficientnet_v2_tiny", rows=(), fused_rows=())
    half, odd = divmod(options.per_gpu_batch, 2)
    lanes = 1 if odd else math.gcd(config.data.num_lanes, half)  # two samples of each lane at least: they are mixed
    data = replace(config.data, train=str(options.shards / "train"), val=str(options.shards / "val"), num_lanes=lanes)
    if options.tiny:
        data = replace(data, loader_workers=0, block_size=8)
    config = replace(
        with_numbers(replace(config, data=data)),
        stages=tuple(replace(stage, batch_size=options.per_gpu_batch, num_workers=0) for stage in stages),
        model=model,
        adaptive=AdaptiveConfig(),
        trainer=replace(config.trainer, log_every=options.steps, eval_every_epochs=NEVER, profile_steps=0),
        checkpoint=CheckpointConfig(every_epochs=NEVER, every_s=0),
    )
    train, _ = manifests(config)
    return replace(config, task=with_numbers_of_data(config.task, config.data, train))


def manifests(config: TrainConfig) -> tuple[DatasetManifest, DatasetManifest]:
    """Return the manifests of a config's data, checked against it."""
    return check_data(config.data, batch_sizes=[stage.batch_size for stage in config.stages], worker_counts=[1])


def with_stages(config: TrainConfig, stages: Sequence[TrainingStage], steps: int) -> TrainConfig:
    """Return a config of these stages alone, each of so many steps."""
    train, _ = manifests(config)
    epoch = sample_order(config.data, train, seed=config.seed).samples_per_epoch
    return replace(config, stages=tuple(replace(stage, epochs=steps * stage.batch_size / epoch) for stage in stages))


def unmixed(stage: TrainingStage) -> TrainingStage:
    """Return a stage as the plain loop trains it: all images of one size, and none of them mixed."""
    return replace(
        stage,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
        random_sizes=(),
        random_size_share=0.0,
        low_frequency_of=0,
        fixres=False,
    )
