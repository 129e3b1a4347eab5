"""`python -m jobs.pyramid URL --short-side 256,160`: smaller copies of an indexed dataset, local or in S3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from datasets.cpus import usable_cpus
from datasets.files.urls import absolute
from datasets.prepare.pyramid import write_copies
from jobs.common.cli import ShortSides, run_main
from jobs.common.display import shown_progress, summary
from jobs.common.parsing import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class PyramidConfig:
    """Write smaller copies of a dataset's shards, which stages of small images then read by themselves.

    URL holds the manifest of the shards (`jobs.index`); the copies are written to URL/short-SIDE. Interrupt it at any
    time: run the same command again to resume.
    """

    url: Annotated[str, tyro.conf.Positional]
    """Folder or s3://BUCKET/PREFIX of shards with a manifest."""
    short_side: ShortSides
    """Short sides in pixels, as in `256,160`: a stage reads the smallest copy whose short side is at least 1.25 times
    its image size."""
    workers: int = field(default_factory=usable_cpus)
    """Number of processes; each has one shard from S3 on disk at a time."""

    def __post_init__(self) -> None:
        if not self.short_side or any(side < 16 for side in self.short_side):
            raise ValueError(f"short_side is {self.short_side} px; each must be at least 16")
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; it must be at least 1")


def main(argv: Sequence[str]) -> int:
    """Write the copies with a progress bar, and say what is there."""
    config = parse(PyramidConfig, argv, prog="python -m jobs.pyramid")
    place = absolute(config.url)
    with shown_progress(f"copies of short side {', '.join(map(str, config.short_side))}") as progress:
        manifest = write_copies(place, config.short_side, workers=config.workers, progress=progress)
    print(f"{place}: {summary(manifest)}")
    return 0


if __name__ == "__main__":
    run_main(main)
