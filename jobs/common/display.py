"""What a user sees of a run: its stages as a table, its progress as a line."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from datasets.shards.manifest import DatasetManifest
from datasets.transforms.shape import format_size
from pipeline.config import TrainConfig
from pipeline.control.run_status import RunStatus
from pipeline.schedule.stages import TrainingStage, worker_range

SCORES = ("val/accuracy", "val/miou", "val/map", "val/mae")
"""What a user is shown of an evaluation: whichever of them the task measures."""
POLL_S = 0.5
PLAIN_LINE_EVERY_S = 10.0


def wide_console() -> Console:
    """Return a console that doesn't fold or cut tables where there is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def say(console: Console, line: str, *, style: str | None = None) -> None:
    """Print a line as it is: not folded, and nothing in it taken for Rich's markup or coloured as a number."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


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


def progress_line(config: TrainConfig, status: RunStatus) -> str:
    """Return one line on where a run is, with what is known of it."""
    progress, seen = status.progress, status.metrics
    if progress is None:
        return f"{config.name}: {status.phase}{', ' if status.waits else ''}{status.waits}"
    stage = config.stages[progress.stage]
    epoch, epochs = (at / progress.samples_per_epoch for at in (progress.cursor, progress.spans[-1].stop))
    parts = [
        f"stage {progress.stage + 1}/{len(config.stages)}",
        f"{format_size(stage.image_size, config.data.aspect_ratio)} px",
        f"epoch {epoch:.1f}/{epochs:.0f}",
    ]
    if "train/loss" in seen:  # else it was paused before its first step
        parts += [f"{seen['train/images_per_s']:.0f} images/s", f"loss {seen['train/loss']:.3f}"]
    parts += [f"{name.removeprefix('val/')} {seen[name]:.3f}" for name in SCORES if name in seen]
    if status.phase == "paused":
        parts.append("paused")
    elif status.left_s:
        parts.append(f"{duration(sum(status.left_s))} left")
    if status.recoveries:
        parts.append(f"recovered {status.recoveries}x")
    return " | ".join(parts)


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
    metric = next((name for name in SCORES if any(name in result for result in results)), "val/accuracy")
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
        asked = worker_range(config.workers_of(stage))
        size = format_size(stage.image_size, config.data.aspect_ratio)
        table.add_row(
            *(str(index + 1), size, f"{stage.randaugment_magnitude:.1f}", f"{stage.mixup_alpha:.2f}"),
            *(f"{stage.dropout:.2f}", *("-".join(map(str, dict.fromkeys(asked))) for _ in workers)),
            *(f"{epochs:.3g}", f"{rate:.0f}", score, took),
        )
    return table


@contextlib.contextmanager
def shown_progress(title: str, *, unit: str = "images") -> Iterator[Callable[..., None]]:
    """Yield a function of (done, total) that shows a bar in a terminal and a line now and then elsewhere.

    A third argument says what was done to them, where there are several passes: `checked`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    last = time.monotonic()
    with Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(title, total=None, visible=False)

        def show(done: int, total: int, what: str = "") -> None:
            nonlocal last
            bar.update(task, completed=done, total=total, visible=True, description=f"{title} {what}".rstrip())
            if bar.disable and time.monotonic() - last > PLAIN_LINE_EVERY_S:
                last = time.monotonic()
                print(f"{title}: {done} of {total} {unit} {what}".rstrip(), flush=True)

        yield show


def summary(manifest: DatasetManifest) -> str:
    """Return counts and size of a split in a few words."""
    shards = f"{len(manifest.shards)} shard{'s' if len(manifest.shards) > 1 else ''}"
    size = f"{manifest.num_bytes / 1e6:.1f} MB" if manifest.num_bytes >= 1e5 else f"{manifest.num_bytes / 1e3:.1f} kB"
    images = f"{manifest.num_samples} image{'s' if manifest.num_samples > 1 else ''}"
    copies = f", copies of short side {', '.join(map(str, manifest.copies))}" if manifest.copies else ""
    return f"{images} of {manifest.outputs} in {shards}, {size}{copies}"
