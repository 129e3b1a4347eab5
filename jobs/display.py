"""What a user sees of a run: its stages as a table, its progress as a line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

import ray
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infra.cluster.config import worker_range
from pipeline.config import TrainConfig
from pipeline.stages import TrainingStage

POLL_S = 0.5
PLAIN_LINE_EVERY_S = 10.0


def wide_console() -> Console:
    """Return a console that doesn't fold or cut tables where there is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def titled(title: str, table: Table) -> Group:
    """Return a table below its title; Rich folds a table's own title at the table's width."""
    return Group(Text(title, style="italic", no_wrap=True, overflow="ellipsis"), table)


def duration(seconds: float) -> str:
    """Return 75 as `1m15s`, 3700 as `1h01m`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def progress_line(config: TrainConfig, status: dict[str, Any]) -> str:
    """Return one line on where a run is, with what is known of it."""
    progress = status["progress"]
    if progress is None:
        return f"{config.name}: {status['phase']}"
    seen = status["metrics"]
    stage = config.stages[progress["stage"]]
    epoch, epochs = (at / progress["samples_per_epoch"] for at in (progress["cursor"], progress["spans"][-1]["stop"]))
    parts = [
        f"stage {progress['stage'] + 1}/{len(config.stages)}",
        f"{stage.image_size} px",
        f"epoch {epoch:.1f}/{epochs:.0f}",
    ]
    if "train/loss" in seen:  # else it was paused before its first step
        parts += [f"{seen['train/images_per_s']:.0f} images/s", f"loss {seen['train/loss']:.3f}"]
    parts += [f"{name.removeprefix('val/')} {seen[name]:.3f}" for name in ("val/accuracy", "val/miou") if name in seen]
    if status["phase"] == "paused":
        parts.append("paused")
    elif status["left_s"]:
        parts.append(f"{duration(sum(status['left_s']))} left")
    if status["recoveries"]:
        parts.append(f"recovered {status['recoveries']}x")
    return " | ".join(parts)


class Follower:
    """Shows a run's progress and notes: live in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, config: TrainConfig, controller: Any, run: Any) -> None:
        self.console, self.config, self.controller, self.run = console, config, controller, run
        self._noted = 0
        self._last_line, self._last_printed = "", 0.0

    def follow(self) -> dict[str, Any]:
        """Show progress until the run ends; return its last status, or raise what it raises. May be called again."""
        live = Live(console=self.console, refresh_per_second=4, transient=True)
        with live if self.console.is_terminal else nullcontext() as shown:
            while not ray.wait([self.run], timeout=POLL_S)[0]:
                with suppress(ray.exceptions.ActorUnavailableError):  # for a moment, as on a very busy head
                    self._show(ray.get(self.controller.status.remote()), shown)
            with suppress(ray.exceptions.RayError):  # the controller itself may be what was lost
                self._show_notes(ray.get(self.controller.status.remote()))
            try:
                status: dict[str, Any] = ray.get(self.run)
            except ray.exceptions.ActorUnavailableError:  # its answer is lost, but the run goes on
                status = self._follow_status(shown)
        return status

    def _follow_status(self, live: Live | None) -> dict[str, Any]:
        """Show progress until the controller says that the run has ended."""
        while True:
            with suppress(ray.exceptions.ActorUnavailableError):
                status: dict[str, Any] = ray.get(self.controller.status.remote())
                self._show(status, live)
                if status["phase"] == "failed":
                    raise RuntimeError(status["error"])
                if status["phase"] in ("finished", "stopped"):
                    return status
            time.sleep(POLL_S)

    def _show(self, status: dict[str, Any], live: Live | None) -> None:
        self._show_notes(status)
        line = progress_line(self.config, status)
        if live is not None:
            live.update(Text(line))
        elif line != self._last_line and time.monotonic() - self._last_printed > PLAIN_LINE_EVERY_S:
            self.console.print(line, highlight=False, soft_wrap=True)
            self._last_line, self._last_printed = line, time.monotonic()

    def _show_notes(self, status: dict[str, Any]) -> None:
        new = status["noted"] - self._noted
        for note in status["notes"][-new:] if new else ():
            self.console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        self._noted = status["noted"]


def result_table(
    config: TrainConfig, stages: Sequence[TrainingStage], results: Sequence[dict[str, float]], samples_per_epoch: int
) -> Table:
    """Return the table that a run ends with: a row a stage, with the epochs that it was really trained for, and the
    workers that it asked for if any stage names its own.

    Args:
        config: of the run.
        stages: as they were trained, which a closed loop makes other than the config's.
        results: of each stage.
        samples_per_epoch: samples of an epoch.
    """
    metric = "val/miou" if any("val/miou" in result for result in results) else "val/accuracy"
    table = Table(
        title=f"{config.name}: {config.model.name}, seed {config.seed}", title_justify="left", box=SIMPLE_HEAD
    )
    workers = ["workers"] if any(stage.num_workers for stage in stages) else []
    rest = ("epochs", "images/s", metric.removeprefix("val/"), "time")
    for name in ("stage", "px", "RandAug", "Mixup", "dropout", *workers, *rest):
        table.add_column(name, justify="right", no_wrap=True)
    for index, (stage, result) in enumerate(zip(stages, results, strict=False)):
        if not result:
            continue
        rate, epochs = result["samples"] / result["train_s"], result["samples"] / samples_per_epoch
        score = f"{result[metric]:.3f}" if metric in result else ""  # it ended before its first evaluation
        took = duration(result["train_s"] + result.get("eval_s", 0.0))
        asked = worker_range(stage.num_workers or config.cluster.num_workers)
        table.add_row(
            *(str(index + 1), f"{stage.image_size}", f"{stage.randaugment_magnitude:.1f}", f"{stage.mixup_alpha:.2f}"),
            *(f"{stage.dropout:.2f}", *("-".join(map(str, dict.fromkeys(asked))) for _ in workers)),
            *(f"{epochs:.3g}", f"{rate:.0f}", score, took),
        )
    return table
