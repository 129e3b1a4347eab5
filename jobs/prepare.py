"""`python -m jobs.prepare SOURCE --out DIR`: WebDataset shards for training and validation, with their manifests."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datasets.shards import DatasetManifest
from datasets.sources.bluemarble import BlueMarble
from datasets.sources.elpv import Elpv
from datasets.sources.fonts import Fonts
from datasets.sources.image_folder import ImageFolder
from datasets.writer import WriterConfig, prepare

PLAIN_LINE_EVERY_S = 10.0

AnySource = (
    Annotated[ImageFolder, tyro.conf.subcommand("image-folder"), tyro.conf.PositionalRequiredArgs]
    | Annotated[Elpv, tyro.conf.subcommand("elpv")]
    | Annotated[BlueMarble, tyro.conf.subcommand("bluemarble")]
    | Annotated[Fonts, tyro.conf.subcommand("fonts")]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Write the images of a source as WebDataset shards to OUT/train and OUT/val, each with a manifest.

    Interrupt it at any time: the same command goes on where it was. `jobs.prepare SOURCE --help` lists the options.
    """

    source: tyro.conf.OmitArgPrefixes[AnySource]
    """Where the images come from."""
    out: Path
    """Folder for the shards, made if missing."""
    writer: tyro.conf.OmitArgPrefixes[WriterConfig] = field(default_factory=WriterConfig)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 for what the user can put right, 130 when interrupted."""
    settings = (tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitSubcommandPrefixes)
    try:
        config = tyro.cli(PrepareConfig, args=arguments, prog="python -m jobs.prepare", config=settings)
        run(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; what is finished is kept: put it right and run again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is finished", file=sys.stderr)
        return 130
    return 0


def run(config: PrepareConfig) -> None:
    """Write the shards with a progress bar, then say what is there."""
    if config.source.notice:
        print(config.source.notice)
    start = time.monotonic()
    with shown_progress(f"{config.source.name} -> {config.out}") as progress:
        manifests = prepare(config.source, config.out, config.writer, progress=progress)
    for split, manifest in manifests.items():
        print(f"{config.out / split}: {summary(manifest)}")
    print(f"{time.monotonic() - start:.1f} s")


@contextlib.contextmanager
def shown_progress(title: str, *, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that shows a bar in a terminal and a line now and then elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    last = time.monotonic()
    with Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(title, total=None, visible=False)

        def show(done: int, total: int) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total, visible=True)
            if bar.disable and time.monotonic() - last > PLAIN_LINE_EVERY_S:
                last = time.monotonic()
                print(f"{title}: {done} of {total} {unit}", flush=True)

        yield show


def summary(manifest: DatasetManifest) -> str:
    """Return counts and size of a split in a few words."""
    shards = f"{len(manifest.shards)} shard{'s' if len(manifest.shards) > 1 else ''}"
    size = f"{manifest.num_bytes / 1e6:.1f} MB"
    return f"{manifest.num_samples} images of {len(manifest.classes)} classes in {shards}, {size}"


if __name__ == "__main__":
    sys.exit(main())
