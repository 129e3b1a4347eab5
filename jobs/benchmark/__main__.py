"""Measure this project's parts: `python -m jobs.benchmark NAME [--option value ...]`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jobs.common.cli import UsageError, run_main

NAMES = {
    "controller": "what a run's controller costs with 1,000 workers and 10 operators",
    "loader": "images a second of one core, beside webdataset with Pillow and torchvision, and beside decoding alone",
    "memory": "memory and time of a start at a billion samples, and the memory of a loader process",
    "overhead": "steps a second of a run beside a plain torchrun loop",
    "scaling": "one and R workers of this machine beside the parts of a step",
    "stages": "what a stage switch costs, in place and with a new worker group",
    "checkpoint": "time that training steps lose to checkpoints, and host memory",
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
        raise UsageError(f"no benchmark is named {name!r}: there are {', '.join(NAMES)}")
    sys.argv[0] = f"jobs.benchmark {name}"
    return int(importlib.import_module(f"jobs.benchmark.{name}").main(rest) or 0)


if __name__ == "__main__":
    run_main(main)
