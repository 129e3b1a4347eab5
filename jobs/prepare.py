"""`python -m jobs.prepare SOURCE --out DIR`: WebDataset shards for training and validation, with their manifests."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, get_args

import tyro

from datasets.files.s3 import is_remote
from datasets.files.urls import check_writable, place_to_write
from datasets.prepare.publish import staging_folder, upload_folder
from datasets.prepare.pyramid import write_copies
from datasets.prepare.report import report_of
from datasets.prepare.sources.bluemarble import BlueMarble
from datasets.prepare.sources.csv_table import CsvTable
from datasets.prepare.sources.elpv import Elpv
from datasets.prepare.sources.fonts import Fonts
from datasets.prepare.sources.hf_parquet import HfParquet
from datasets.prepare.sources.image_folder import ImageFolder
from datasets.prepare.sources.masks import Masks
from datasets.prepare.sources.torchvision_set import TorchvisionData
from datasets.prepare.writer import WriterConfig, prepare
from jobs.common.cli import ShortSides, run_main
from jobs.common.display import shown_progress, summary
from jobs.common.parsing import UsageError, nearest, parse
from jobs.common.run_classes import names_of

AnySource = (
    Annotated[ImageFolder, tyro.conf.subcommand("image-folder"), tyro.conf.PositionalRequiredArgs]
    | Annotated[CsvTable, tyro.conf.subcommand("csv")]
    | Annotated[HfParquet, tyro.conf.subcommand("parquet")]
    | Annotated[Masks, tyro.conf.subcommand("masks")]
    | Annotated[TorchvisionData, tyro.conf.subcommand("torchvision")]
    | Annotated[Elpv, tyro.conf.subcommand("elpv")]
    | Annotated[BlueMarble, tyro.conf.subcommand("bluemarble")]
    | Annotated[Fonts, tyro.conf.subcommand("fonts")]
)
_SOURCES = tuple(get_args(kind)[0].name for kind in get_args(AnySource))


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Write the images of a source as WebDataset shards to OUT/train and OUT/val, each with a manifest, and report on
    them: images of each class and split, files that were left out and why, images that stand twice.

    Interrupt it at any time: run the same command again to resume. `jobs.prepare SOURCE --help` lists the options.
    """

    source: tyro.conf.OmitArgPrefixes[AnySource]
    """Where the images come from."""
    out: str
    """Folder for the shards, created if missing, or s3://BUCKET/PREFIX: they are written on this machine first, then
    uploaded."""
    also_short_side: ShortSides = ()
    """Short sides in pixels of smaller copies of the training shards, as in `256,160`: a stage reads the smallest copy
    whose short side is at least 1.25 times its image size, and so reads and decodes less."""
    storage: str = "runs"
    """Folder or s3://BUCKET/PREFIX of the runs, if --classes is a run's name."""
    writer: tyro.conf.OmitArgPrefixes[WriterConfig] = field(default_factory=WriterConfig)

    def __post_init__(self) -> None:
        if any(side < 16 for side in self.also_short_side):
            raise ValueError(
                f"--also-short-side is {','.join(map(str, self.also_short_side))} px; each must be at least 16"
            )
        if self.also_short_side and getattr(self.source, "split", "train") not in ("", "train"):
            raise ValueError(
                "--also-short-side is for training shards, and --split leaves them out; use one of the two"
            )


def main(argv: Sequence[str]) -> int:
    """Write the shards, and say what is there."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what clusters send means the same as Ctrl-C
    settings = (tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitSubcommandPrefixes)
    _check_source(argv)
    run(parse(PrepareConfig, argv, prog="python -m jobs.prepare", config=settings))
    return 0


def run(config: PrepareConfig) -> None:
    """Write the shards with a progress bar, then say what is there."""
    if config.source.notice:
        print(config.source.notice)
    start, out = time.monotonic(), place_to_write(config.out, "--out")
    source = _resolved(config)
    if is_remote(out):
        check_writable(out)
    folder = staging_folder(out) if is_remote(out) else Path(out)
    with shown_progress(f"{source.name} -> {out}") as progress:
        manifests = prepare(source, folder, config.writer, progress=progress)
    if config.also_short_side:
        with shown_progress(f"copies of short side {', '.join(map(str, config.also_short_side))}") as progress:
            workers = config.writer.workers
            manifests["train"] = write_copies(
                folder / "train", config.also_short_side, workers=workers, progress=progress
            )
    if is_remote(out):
        with shown_progress(f"upload -> {out}", unit="files") as progress:
            upload_folder(folder, out, progress=progress)
        shutil.rmtree(folder)
    for split, manifest in manifests.items():
        print(f"{out.rstrip('/')}/{split}: {summary(manifest)}")
    for line in report_of(next(iter(manifests.values()))):
        print(line)
    print(f"{time.monotonic() - start:.1f} s")


def _check_source(argv: Sequence[str]) -> None:
    """Refuse a command line without a source.

    Raises:
        UsageError: it has none.
    """
    if not {*argv} & {*_SOURCES, "-h", "--help"}:
        given = argv[0] if argv and not argv[0].startswith("-") else ""
        hint = nearest(given, _SOURCES, "", cutoff=0.5)
        said = f"{given!r} is no source{f' ({hint})' if hint else ''}" if given else ""
        raise UsageError(f"{said or 'no source is named'}; there are {', '.join(_SOURCES)}: jobs.prepare SOURCE --help")


def _resolved(config: PrepareConfig) -> AnySource:
    """Return the source with the names of its classes where --classes is a run."""
    source = config.source
    if isinstance(source, CsvTable | HfParquet) and source.mask_column:
        return source
    if isinstance(source, ImageFolder | CsvTable | HfParquet):
        return replace(source, classes=names_of(source.classes, config.storage))
    return source


if __name__ == "__main__":
    run_main(main, resumes="what is finished is kept: run the same command again to resume")
