"""Train a recipe: `python -m jobs.train RECIPE [--field value ...]`. Running it again resumes the run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from infra.redact import redacted
from infra.storage.failures import is_transient
from infra.storage.lease import LeaseError
from jobs.common.cli import parse_recipe, rate_notes, resolve, run_main
from jobs.common.display import result_table, say, wide_console
from jobs.common.extension import ExtendFlags
from jobs.common.facts import record_facts
from jobs.common.follow import follow_to_end
from pipeline.config import TrainConfig
from pipeline.run.preflight import Preflight, preflight, with_start
from pipeline.run.summary import format_workers
from pipeline.schedule.decisions import records_of
from pipeline.schedule.schedule import TrainingSchedule
from pipeline.schedule.stages import TrainingStage

if TYPE_CHECKING:
    from infra.tracking.ended import RecordState


def main(argv: Sequence[str]) -> int:
    """Check, start or resume, follow, and show the result. Exit code 1: the run failed, or MLflow lacks a part of its
    record; 75: it was lost."""
    command = resolve(argv)
    config, flags = parse_recipe(command.argv, prog="python -m jobs.train", extra=ExtendFlags)
    assert flags is not None
    config = flags.of(config)
    console = wide_console()
    say(console, f"{config.name}: checking data, storage and earlier checkpoints")
    from pipeline.run.record import synced_record  # after the first line, which it would delay

    ready = preflight(config, prepare_tracking=False)
    for line in (*command.notes, *rate_notes(command.argv, config), *ready.notes):
        say(console, f"note: {line}")
    if ready.finished:  # what it has given is shown, whatever is lacking to complete its record
        _show_finished(console, ready)
        if (record := synced_record(ready.config)) != "open":
            return _show_record(console, ready.config, record)
        console.print("its record in MLflow was left open: completing it")
    else:
        _announce(console, ready)
    try:
        begin = partial(record_facts, command.argv, ready.config.storage, config.name)
        status = follow_to_end(console, ready, begin=begin, prepare_tracking=True)
    except RuntimeError as error:
        say(console, f"error: {config.name} failed: {error}", style="red")
        return os.EX_TEMPFAIL if is_transient(error) else 1
    except LeaseError as error:
        if not ready.finished:
            raise
        say(console, f"it is being completed: {error}")
        return 0
    if (progress := status.progress) is not None:
        _show_result(console, ready, [span.stage for span in progress.spans], progress.stage_results)
        if status.phase == "stopped":
            console.print(f"stopped at cursor {progress.cursor}; run the same command again to resume it")
        return 0
    if status.phase == "stopped":
        console.print(f"{config.name} was stopped before {'its record was complete' if ready.finished else 'it began'}")
        return 0
    if not ready.finished:  # another submission has finished it meanwhile
        _show_finished(console, with_start(ready))
    return _show_record(console, ready.config, synced_record(ready.config))


def _announce(console: Console, ready: Preflight) -> None:
    config, resume = ready.config, ready.resume_from
    at = f"resumes at cursor {resume.cursor}" if resume else "starts"
    mixed = f" ({ready.samples_per_epoch} per epoch)" if config.data.train_weights else ""
    say(
        console,
        f"{config.name} {at}: {config.model.name}, {ready.train.num_samples} training{mixed} and "
        f"{ready.val.num_samples} validation images of {ready.train.outputs}, "
        f"{len(config.stages)} stages, {format_workers(config.cluster.num_workers)}",
    )


def _show_finished(console: Console, ready: Preflight) -> None:
    """Show what a run that is trained to its end has given."""
    config, state = ready.config, ready.resume_from
    assert state is not None
    console.print(f"{config.name} is finished; --extend EPOCHS trains it further, another --name trains again")
    most, records = config.adaptive.max_epochs, records_of(state.decisions)
    spans = TrainingSchedule(config.stages, ready.samples_per_epoch, records, most).spans
    _show_result(console, ready, [span.stage for span in spans], state.stage_results)


def _show_record(console: Console, config: TrainConfig, record: RecordState) -> int:
    """Say how the record of a run that is trained to its end is. Exit code 1: MLflow lacks a part of it, or may."""
    where = redacted(config.tracking.uri)
    line = {
        "complete": "its record in MLflow is complete",
        "sent": f"its missing metrics are now at {where}",
        "unsent": f"error: {where} still lacks some of its metrics: run the same command again",
        "open": f"error: its record at {where} is incomplete: run the same command again",
        "unknown": f"error: {where} gives no answer: whether its record is complete is not known",
    }[record]
    say(console, line)
    return 0 if record in ("complete", "sent") else 1


def _show_result(
    console: Console, ready: Preflight, stages: Sequence[TrainingStage], results: Sequence[dict[str, float]]
) -> None:
    config = ready.config
    console.print(result_table(config, stages, results, ready.samples_per_epoch))
    say(console, f"checkpoints: {config.storage}/{config.name}/checkpoints")
    say(console, f"MLflow UI:   {config.tracking.ui_command()}")


if __name__ == "__main__":
    run_main(main)
