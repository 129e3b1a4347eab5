"""List a run's checkpoints: `python -m jobs.checkpoints RUN [--storage URI] [--verify] [--json]`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from infra.storage.open import open_storage
from jobs.common.cli import run_main
from jobs.common.parsing import UsageError, parse
from pipeline.checkpoint.catalog import CheckpointRow, describe_checkpoints
from pipeline.config import check_run_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the listing."""

    run: Annotated[str, tyro.conf.Positional]
    """Name of the run."""
    storage: str = "runs"
    """The run's --storage: a folder or `s3://bucket/prefix`."""
    verify: bool = False
    """Read every file and compare its SHA-256 with the manifest's."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of a table."""


def main(argv: Sequence[str]) -> int:
    """Show the checkpoints of a run. Exit code 1: one of them is incomplete or corrupt."""
    options = parse(
        Options,
        argv,
        prog="python -m jobs.checkpoints",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    check_run_name(options.run)
    storage = open_storage(f"{options.storage}/{options.run}")
    rows = describe_checkpoints(storage, verify=options.verify)
    if not rows:
        raise UsageError(f"{storage.uri} holds no checkpoints: is --storage the one that the run was given?")
    if options.as_json:
        print(json.dumps([asdict(row) | {"valid": not row.problem} for row in rows], indent=1))
    else:
        Console(width=120).print(_table(storage.uri, rows))
        for row in rows:
            if row.problem:
                print(row.problem)
    return 1 if any(row.problem for row in rows) else 0


def _table(title: str, rows: Sequence[CheckpointRow]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("cursor", "stages done", "MB", "metrics", "state", "verified"):
        table.add_column(name, justify="right" if name in ("cursor", "stages done", "MB") else "left")
    for row in rows:
        metrics = ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in row.metrics.items())
        table.add_row(
            str(row.cursor),
            "" if row.stage is None else str(row.stage),
            f"{row.bytes / 1e6:.1f}",
            metrics,
            row.state,
            "yes" if row.verified else "no",
        )
    return table


if __name__ == "__main__":
    run_main(main)
