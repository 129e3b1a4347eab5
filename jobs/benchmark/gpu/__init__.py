"""A run on this machine's GPU, measured: speed beside a plain loop and timm, waits, memory, compilation, determinism.

`python -m jobs.benchmark gpu [RECIPE]`. No Ray: `Trainer`, the loader and the evaluation of a run, in processes of this
machine. A CPU takes a GPU's place where there is none; `--tiny` is the size for that.
"""

from jobs.benchmark.gpu.command import main

__all__ = ["main"]
