"""A run's status for the terminal: its stages as a table, then speed, checkpoints and decisions."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.common.display import SCORES, duration
from pipeline.control.run_status import GroupStatus, RunStatus
from pipeline.run.summary import format_decision
from pipeline.schedule.decisions import records_of
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import TrainingStage, worker_range

SHOWN = 4
"""Newest decisions and notes that are shown."""
SELDOM: dict[str, tuple[str, float | None]] = {
    "CutMix": ("cutmix_alpha", 0.0),
    "depth": ("stochastic_depth", None),
    "crop": ("crop_area", None),
    "LR x": ("lr_factor", 1.0),
    "FixRes": ("fixres", False),
}
"""Columns that are there if a stage has another value than the usual one: name -> (field, the usual value)."""


def run_view(status: RunStatus) -> RenderableType:
    """Return a run's status for the terminal."""
    head = Text(f"{status.run.name}: {status.phase}", style="bold")
    progress = status.progress
    if status.workers is None:
        return Group(head, Text("  its controller runs another version of this program: nothing more is known"))
    if progress is None:
        return Group(head, *_lines(status, status.workers))
    per_epoch, spans = progress.samples_per_epoch, progress.spans
    epoch, epochs = progress.cursor / per_epoch, spans[-1].stop / per_epoch
    head.append(
        f", stage {min(progress.stage + 1, len(spans))} of {len(spans)}, epoch {epoch:.1f} of {epochs:.1f}, "
        f"cursor {progress.cursor:,} of {spans[-1].stop:,}"
    )
    if status.left_s and status.phase == "training":
        head.append(f", {duration(sum(status.left_s))} left")
    return Group(head, _stages(status, progress), *_lines(status, status.workers))


def _stages(status: RunStatus, progress: Progress) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    stages = [span.stage for span in progress.spans]
    seldom = {name: at for name, (at, usual) in SELDOM.items() if any(getattr(one, at) != usual for one in stages)}
    first, last = ("", "px", "RandAug", "Mixup", "dropout"), ("batch", "workers", "epochs", "images/s", "score", "time")
    for name in (*first, *seldom, *last):
        table.add_column(name, justify="right", no_wrap=True)
    for span in progress.spans:
        index, stage = span.index, span.stage
        result = progress.stage_results[index] if index < len(progress.stage_results) else {}
        left = status.left_s[index] if status.left_s else 0.0
        table.add_row(
            f"{'>' if index == progress.stage else ' '} {index + 1}",
            *(f"{stage.image_size}", f"{stage.randaugment_magnitude:.2g}", f"{stage.mixup_alpha:.2g}"),
            *(f"{stage.dropout:.2g}", *(_value(getattr(stage, field)) for field in seldom.values())),
            *(f"{stage.batch_size}", _workers(stage, progress)),
            f"{(span.stop - span.start) / progress.samples_per_epoch:.3g}",
            f"{result['samples'] / result['train_s']:.0f}" if result.get("train_s") else "",
            _score(result),
            _time(result, left, index, progress.stage),
            style="" if index == progress.stage else "dim",
        )
    return table


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _value(value: float | tuple[float, float] | None) -> str:
    """Return a value in words; nothing for what a stage leaves to the recipe."""
    if isinstance(value, tuple | list):
        return "-".join(f"{part:.2g}" for part in value)
    if isinstance(value, bool):
        return "yes" if value else ""
    return "" if value is None else f"{value:.3g}"


def _workers(stage: TrainingStage, progress: Progress) -> str:
    return "-".join(str(count) for count in dict.fromkeys(worker_range(stage.workers(progress.num_workers))))


def _score(result: dict[str, float]) -> str:
    return next((f"{result[name]:.3f}" for name in SCORES if name in result), "")


def _time(result: dict[str, float], left_s: float, index: int, now: int) -> str:
    took = duration(result.get("train_s", 0.0) + result.get("eval_s", 0.0)) if result else ""
    if index < now:
        return took
    left = f"{duration(left_s)} left" if left_s else ""
    return ", ".join(filter(None, (took if index == now else "", left)))


def _lines(status: RunStatus, workers: GroupStatus) -> list[Text]:
    progress = status.progress
    rows = [_speed(progress, status.metrics, workers) if progress else "", _safety(status, workers)]
    rows += [status.waits] if status.waits else []
    rows += [_settings(progress)] if progress else []
    rows += [f"requested: {', '.join(status.pending)}"] if status.pending else []
    decided = records_of(progress.decisions[-SHOWN:]) if progress else ()
    rows += [f"decided: {format_decision(record)}" for record in decided]
    rows += [f"note: {line}" for line in status.notes[-SHOWN:]]
    rows += [f"error: {status.error}"] if status.error else []
    return [Text(f"  {row}") for row in rows if row]


def _speed(progress: Progress, metrics: dict[str, float], workers: GroupStatus) -> str:
    if "train/images_per_s" not in metrics:
        return ""
    rate = metrics["train/images_per_s"]
    parts = [
        f"{rate:.0f} images/s total, {rate / progress.num_workers:.0f} per worker",
        f"{_counted(progress.num_workers, 'worker')} on {_counted(workers.nodes, 'node')}",
        f"{metrics.get('train/data_wait_share', 0):.0%} of the time waiting for data",
        f"loss {metrics['train/loss']:.3f}",
    ]
    parts += [
        f"{name.removeprefix('val/') if name in SCORES else 'val loss'} {metrics[name]:.3f}"
        for name in (*SCORES, "val/loss")
        if name in metrics
    ]
    return " | ".join(parts)


def _safety(status: RunStatus, workers: GroupStatus) -> str:
    saved = status.checkpoint
    at = f"checkpoint at cursor {saved.cursor:,}" if saved else "no checkpoint yet"
    if saved and saved.age_s is not None:
        at += f", {duration(saved.age_s)} old"
    faults = status.recoveries
    parts = [at, f"{faults} fault{'' if faults == 1 else 's'} survived", f"last report {duration(status.age_s)} ago"]
    quiet = workers.quietest
    if quiet and quiet.age_s > 30 and status.phase == "training":
        parts.append(f"rank {quiet.rank} has not reported for {duration(quiet.age_s)}")
    return " | ".join(parts)


def _settings(progress: Progress) -> str:
    scale = progress.settings.get("lr_scale", 1.0)
    return f"learning rate x {scale:g}" if scale != 1.0 else ""
