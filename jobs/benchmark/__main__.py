"""Measure this project's parts: `python -m jobs.benchmark NAME [--option value ...]`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jobs.common.cli import run_main
from jobs.common.parsing import UsageError

NAMES = {
    "controller": "cost of a run's controller with 1,000 workers and 10 operators",
    "gpu": "a run on one GPU, without Ray: speed beside a plain loop and timm's model, waits, memory, compile, resume",
    "loader": "images/s of one core, compared with webdataset + Pillow + torchvision and with decoding alone",
    "memory": "memory and start-up time with a billion samples, and memory of a loader process",
    "overhead": "steps/s of a run, compared with a plain torchrun loop",
    "growth": "how costs grow with ranks, checkpoints, shards and readers, simulated",
    "scaling": "speed of one and of R workers on this machine, and the parts of a step",
    "stages": "time of a stage switch, in place and with a new worker group",
    "checkpoint": "training time lost to checkpoints, and host memory",
    "recovery": "seconds from the loss of a worker or a node to the next training step",
    "model": "forward and backward against torchvision's and timm's models of the same name",
}


def main(argv: Sequence[str]) -> int:
    """Run one benchmark's `main`."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m jobs.benchmark NAME [--option value ...]\n")
        print("\n".join(f"  {name:12} {summary}" for name, summary in NAMES.items()))
        return 0 if argv else 2
    name, *rest = argv
    if name not in NAMES:
        raise UsageError(f"there is no benchmark {name!r}: there are {', '.join(NAMES)}")
    sys.argv[0] = f"jobs.benchmark {name}"
    return int(importlib.import_module(f"jobs.benchmark.{name}").main(rest) or 0)


if __name__ == "__main__":
    run_main(main)
