"""Check what a run needs before it is submitted: `python -m jobs.doctor RECIPE [--field value ...]`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from infra.cluster.connect import in_submitted_job
from jobs.common.cli import parse_recipe, run_main
from jobs.common.display import wide_console
from pipeline.run.doctor import Finding, diagnose


def main(argv: Sequence[str]) -> int:
    """Check all, show each finding as it comes. Exit code 1: something is to be done."""
    config, _ = parse_recipe(argv, prog="python -m jobs.doctor")
    console = wide_console()
    cluster = bool(config.cluster.address or os.environ.get("RAY_ADDRESS") or in_submitted_job())
    if not cluster:
        show(console, Finding("Ray", "no RAY_ADDRESS and no cluster.address: a run starts a cluster on this machine"))
    to_do = 0
    for finding in diagnose(config, cluster=cluster):
        show(console, finding)
        to_do += bool(finding.cure)
    console.print("no problems found" if not to_do else f"{to_do} problem{'' if to_do == 1 else 's'} found")
    return 1 if to_do else 0


def show(console: Console, finding: Finding) -> None:
    """Print a finding: a mark, what was checked, what was found, and the cure."""
    mark = Text("fix " if finding.cure else "ok  ", style="bold red" if finding.cure else "green")
    console.print(mark + Text(f"{finding.name:34} {finding.text}", style=""), soft_wrap=True)
    if finding.cure:
        console.print(Text(f"      {finding.cure}"), soft_wrap=True)


if __name__ == "__main__":
    run_main(main)
