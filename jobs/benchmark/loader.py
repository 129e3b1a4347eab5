"""Images/s of one core: this loader and its parts alone, and the baseline loader, in turn, on the same photographs."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.table import Table

from datasets.config import DataConfig
from datasets.loading.loader import build_loader
from datasets.loading.processes import blas_kernel, limit_blas, simd_features
from datasets.loading.reader import SampleReader
from datasets.loading.samples import RESIZED_TOGETHER, View
from datasets.prepare.pyramid import write_copies
from datasets.prepare.sources.photographs import Photographs
from datasets.prepare.writer import WriterConfig, prepare
from datasets.shards.copies import choose_copy, copy_folder
from datasets.shards.resolve import expand_urls, load_manifest
from datasets.transforms.decode import CROP_DRAWS, Crop, cut_out, random_crop
from datasets.transforms.pixels import read_header
from datasets.transforms.randomness import Purpose, uniforms
from jobs.benchmark.baseline import usual_batches
from jobs.benchmark.flags import check_at_least, read_flags
from jobs.common.display import wide_console
from jobs.common.parsing import UsageError
from pipeline.run.provenance import machine

SIDES = (256, 160)
MAGNITUDE = 10.0
LAYERS = 2
_LANES = 8
_ENDLESS = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    data: Path = field(default_factory=lambda: Path("data/photographs"))
    """Folder with the photographs as shards; created if missing."""
    images: int = 1024
    """Number of photographs, of 500x375 px."""
    image_sizes: tuple[int, ...] = (128, 192, 300)
    """Image sizes, in pixels."""
    batch_size: int = 64
    """Images per batch."""
    batches: int = 3
    """Batches per contender and round."""
    rounds: int = 7
    """Timed rounds; in each, every contender runs once, in alternating order."""
    clock: Literal["cpu", "wall"] = "cpu"
    """cpu: CPU time of the process, which is less sensitive to other load; wall: elapsed time."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "images", "batch_size", "batches", "rounds")
        if not self.image_sizes or min(self.image_sizes) < 1:
            raise UsageError(f"--image-sizes {' '.join(map(str, self.image_sizes))}: give numbers of at least 1")
        if self.batch_size % _LANES:
            raise UsageError(f"--batch-size {self.batch_size}: must be a multiple of {_LANES}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderRate:
    """One contender at one image size."""

    image_size: int
    source: str
    """What is read: the `shards` themselves, or the `pyramid`, with the short side of the copy."""
    contender: str
    images_per_s: float
    """Median over the rounds, of one core."""
    to_usual: float
    """Median over the rounds of the ratio to the usual recipe (the faster one) from the shards themselves."""
    to_ceiling: float
    """Median over the rounds of the ratio to decoding and resizing alone, from the same source."""


Batches = Iterator[object]
"""Endless batches of one contender"""
_Key = tuple[int, str, str]
"""image size, source, contender"""
_USUAL = ("usual, Pillow", "usual, tensors")
_OURS, _UNCHANGED = "this loader", "... no RandAugment"
_DECODE, _CEILING = "decode", "decode + resize"


def run(options: Options) -> list[LoaderRate]:
    """Make the photographs if they are missing, and time all contenders."""
    torch.set_num_threads(1)
    limit_blas(1)
    folder = _photographs(options)
    contenders = {key: batches for size in options.image_sizes for key, batches in _contenders(folder, size, options)}
    rates: dict[_Key, list[float]] = {key: [] for key in contenders}
    shuffle = random.Random(0)
    for round_number in range(-1, options.rounds):
        for key in shuffle.sample(list(contenders), len(contenders)):
            rate = _rate(contenders[key], options)
            if round_number >= 0:  # the first round fills buffers
                rates[key].append(rate)
    return [_measured(key, rates) for key in contenders]


def _photographs(options: Options) -> Path:
    """Return a folder with the shards and their copies."""
    source = Photographs(train_images=options.images, val_images=1)
    prepare(source, options.data, WriterConfig(samples_per_shard=256))
    folder = options.data / "train"
    if set(load_manifest(str(folder)).copies) != set(SIDES):
        write_copies(folder, SIDES, workers=WriterConfig().workers)
    return folder


def _contenders(folder: Path, size: int, options: Options) -> Iterator[tuple[_Key, Batches]]:
    """Yield every contender at one image size, from the shards and from the copy that this size reads."""
    short_side = choose_copy(SIDES, size)
    for side in dict.fromkeys((0, short_side)):
        source = f"pyramid, {side} px" if side else "shards"
        place = folder / copy_folder(side) if side else folder
        yield (size, source, _OURS), _ours(place, size, options, MAGNITUDE)
        yield (size, source, _UNCHANGED), _ours(place, size, options, 0)
        yield (size, source, _CEILING), _decoded(place, size, options, resized=True)
        yield (size, source, _DECODE), _decoded(place, size, options, resized=False)
        for name, on in zip(_USUAL, ("pil", "tensor"), strict=True):
            yield (
                (size, source, name),
                usual_batches(
                    expand_urls(str(place)),
                    image_size=size,
                    batch_size=options.batch_size,
                    magnitude=MAGNITUDE,
                    layers=LAYERS,
                    on=on,
                ),
            )


def _ours(folder: Path, size: int, options: Options, magnitude: float) -> Batches:
    config = DataConfig(train=str(folder), num_lanes=_LANES, loader_workers=0, randaugment_layers=LAYERS, pyramid=False)
    loader = build_loader(
        config,
        View(image_size=size, magnitude=magnitude, training=True),
        batch_size=options.batch_size,
        cursor=0,
        stop=_ENDLESS // options.batch_size * options.batch_size,
        rank=0,
        world_size=1,
    )
    return iter(loader)


def _decoded(folder: Path, size: int, options: Options, *, resized: bool) -> Batches:
    """Decode and resize the same random crops in the order of the shards, as the loader does, and do nothing else."""
    manifest = load_manifest(str(folder))
    reader, config = SampleReader(manifest), DataConfig()
    samples = itertools.cycle(range(manifest.num_samples))
    draws = uniforms(0, Purpose.AUGMENT, np.arange(manifest.num_samples), CROP_DRAWS).tolist()
    crops: list[Crop] = []
    while True:
        for last in range(options.batch_size - 1, -1, -1):
            number = next(samples)
            data = reader.read(number).data
            header = read_header(data)
            box = random_crop(header, draws[number], area=config.crop_area, ratio=config.crop_ratio)
            crops.append(cut_out(data, header, box, (size, size)))
            if not last or sum(crop.pixels.nbytes for crop in crops) >= RESIZED_TOGETHER:
                for crop in crops if resized else ():
                    crop.resized((size, size))
                crops.clear()
        yield None


def _rate(batches: Batches, options: Options) -> float:
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    start = clock()
    for _ in range(options.batches):
        next(batches)
    return options.batches * options.batch_size / (clock() - start)


def _measured(key: _Key, rates: dict[_Key, list[float]]) -> LoaderRate:
    size, source, contender = key
    usual = max((rates[size, "shards", name] for name in _USUAL), key=statistics.median)
    ceiling = rates[size, source, _CEILING]
    return LoaderRate(
        image_size=size,
        source=source,
        contender=contender,
        images_per_s=statistics.median(rates[key]),
        to_usual=statistics.median(one / other for one, other in zip(rates[key], usual, strict=True)),
        to_ceiling=statistics.median(one / other for one, other in zip(rates[key], ceiling, strict=True)),
    )


def hardware() -> dict[str, str]:
    """Return the processor, and of which of its features NumPy and its BLAS make use."""
    return {
        "machine": machine(),
        "simd": f"NumPy with {simd_features()}",
        "blas": f"BLAS kernel {blas_kernel()}, one thread",  # the baseline may call it; this loader doesn't
    }


def as_table(measured: Sequence[LoaderRate], options: Options) -> Table:
    """The results for the terminal."""
    manifest = load_manifest(str(options.data / "train"))
    table = Table(
        title=f"images/s of one core: {manifest.num_samples} photographs of 500x375 px, "
        f"{manifest.num_bytes / manifest.num_samples / 1000:.0f} kB each, in shards; copies of short side "
        f"{', '.join(map(str, SIDES))} px\nRandAugment {LAYERS} x {MAGNITUDE:g}, batch {options.batch_size}; "
        f"medians of {options.rounds} rounds, {options.clock} time\n{', '.join(hardware().values())}",
        title_justify="left",
    )
    for name in ("px", "from", "contender", "images/s", "to usual", "to ceiling"):
        table.add_column(name, justify="left" if name in ("from", "contender") else "right")
    for last, row in zip([None, *measured], measured, strict=False):
        if last is not None and (last.image_size, last.source) != (row.image_size, row.source):
            table.add_section()
        table.add_row(
            *(str(row.image_size), row.source, row.contender, f"{row.images_per_s:.0f}"),
            *(f"{row.to_usual:.2f}", f"{row.to_ceiling:.0%}"),
        )
    return table


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = read_flags(Options, argv, __doc__)
    measured = run(options)
    if options.json:
        print(json.dumps(hardware() | {"rates": [asdict(row) for row in measured]}, indent=1))
    else:
        wide_console().print(as_table(measured, options))
    return 0
