"""The whole schedule, as a run trains it: fed by the loader, every stage for some steps and with its evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.benchmark.gpu.options import Options, manifests, with_stages
from jobs.benchmark.gpu.trainers import make_trainer
from pipeline.config import TrainConfig
from pipeline.schedule.stages import StageSpan
from pipeline.training.hooks import TrainHooks


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """One stage."""

    image_size: int
    batch_size: int
    micro_batch: int
    """Images of a forward pass, as they fit into memory."""
    loader_workers: int
    images_per_s: float
    """Of training, without the first interval."""
    data_wait_share: float
    """Share of that time in which training waited for the loader."""
    peak_gib: float
    """Most memory that PyTorch used on the device in this stage, or that the process had on a CPU."""
    eval_size: int
    eval_images_per_s: float
    """Of the stage's evaluation, with the loader."""


class _Intervals(TrainHooks):
    """Keeps the rate and the wait share of each stage's intervals, and each stage's result."""

    def __init__(self) -> None:
        self.results: list[dict[str, float]] = []
        self.intervals: list[list[tuple[float, float]]] = []

    def stage_started(self, span: StageSpan, images: object) -> None:
        """Begin a stage."""
        self.intervals.append([])

    def logged(self, metrics: dict[str, float], cursor: int) -> None:
        """Keep an interval's rate and wait share."""
        if "train/images_per_s" in metrics:
            self.intervals[-1].append((metrics["train/images_per_s"], metrics["train/data_wait_share"]))

    def stage_ended(self, span: StageSpan, result: dict[str, float]) -> None:
        """Keep a stage's result."""
        self.results.append(result)


def measure_schedule(config: TrainConfig, options: Options) -> list[StageRow]:
    """Train every stage of a config for some steps and evaluate it, in one go: memory is released between stages."""
    config = with_stages(config, config.stages, options.steps * (options.rounds + 1))
    hooks = _Intervals()
    trainer = make_trainer(config, hooks)
    trainer.evaluate(config.trainer.eval_size(config.stages[0]))  # the first one imports, and starts loaders
    trainer.run()
    _, val = manifests(config)
    rows = []
    for stage, result, intervals in zip(config.stages, hooks.results, hooks.intervals, strict=True):
        counted = intervals[1:] or intervals  # loaders start in the first
        seconds = [1 / rate for rate, _ in counted]
        rows.append(
            StageRow(
                image_size=stage.image_size,
                batch_size=stage.batch_size,
                micro_batch=int(result["micro_batch"]),
                loader_workers=config.data.num_loaders,
                images_per_s=len(seconds) / sum(seconds),
                data_wait_share=sum(s * wait for s, (_, wait) in zip(seconds, counted, strict=True)) / sum(seconds),
                peak_gib=result["peak_bytes"] / 2**30,
                eval_size=config.trainer.eval_size(stage),
                eval_images_per_s=val.num_samples / result["eval_s"],
            )
        )
    return rows
