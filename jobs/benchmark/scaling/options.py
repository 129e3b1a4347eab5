"""Flags of `jobs.benchmark scaling`, and the model's parts that are made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.config import DataConfig
from jobs.benchmark.flags import check_above_0, check_at_least, flag
from jobs.benchmark.scaling.model import Cluster, Compute, Link, Points
from jobs.common.cli import UsageError
from jobs.recipes.catalog import RECIPES

ASSUMED_SPEED = ("300:700",)
"""An example, measured nowhere: images/s that one GPU trains EfficientNetV2-S with, until the user says."""
DECODE = ("128:742", "192:684", "300:562", "128/160:2474", "192/256:1403")
"""Images/s of one core, where nothing is measured: `jobs.benchmark loader`, as docs/data.md has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Flags of the benchmark itself; the recipe's fields are flags as well."""

    parts: Literal["all", "measure", "predict"] = "all"
    """measure: this machine; predict: a cluster, with --decode as given; all: both, decoding as measured here."""
    here: str = "demo"
    """Recipe that is measured on this machine; its data must be here."""
    workers: int = 2
    """R, training processes of this machine, one thread each."""
    steps: int = 4
    """Steps that are timed of each stage and part in a round."""
    rounds: int = 3
    """How often the parts, one worker and all workers are measured, in turns; the fastest step counts."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall: the time that passes; cpu: CPU time of rank 0, for a machine that others use too: waiting isn't in it."""
    photographs: Path = Path("data/photographs")
    """Folder with photographs as shards, on which decoding is measured; made there if missing."""
    gpus: tuple[int, ...] = (8, 64, 512)
    """Sizes of the cluster."""
    images_per_s: tuple[str, ...] = ()
    """PX:RATE, images a second that one of your GPUs trains at an image size, in large batches. Other sizes: in
    proportion to their pixels, or linear in them between two of yours. Default: 300:700, an assumption."""
    step_ms: tuple[str, ...] = ()
    """PX:BATCH:MS, the same as milliseconds of a step with a batch on one GPU, in place of --images-per-s."""
    fixed_ms: float = 10.0
    """Milliseconds of a step that don't shrink with its images (an assumption: kernel launches, the optimizer)."""
    gpus_per_node: int = 8
    """GPUs of a node."""
    cores_per_node: int = 96
    """CPU cores of a node that decode."""
    node_gbit: float = 100.0
    """Network of a node towards other nodes, in Gbit/s."""
    nvlink_gbit: float = 2400.0
    """Between the GPUs of a node, in Gbit/s and direction."""
    latency_us: float = 10.0
    """Of one hop of the all-reduce, in microseconds."""
    overlap: float = 0.5
    """Share of a step's compute behind which the all-reduce hides (0 to 1)."""
    s3_node_gbit: float = 10.0
    """From S3 into one node, in Gbit/s."""
    s3_total_gbit: float = 100.0
    """From S3 altogether, in Gbit/s."""
    decode: tuple[str, ...] = ()
    """PX:RATE, images a second that one core decodes and augments from the shards, or PX/SIDE:RATE from the copy of a
    short side. Default: as measured here, or docs/data.md's figures."""
    copies: tuple[str, ...] = ()
    """SIDE:KB, short side of each smaller copy of the shards and its kB an image; none by default."""
    samples: int = 0
    """Training images where the recipe's data can't be read from here; 0: its manifest, or ImageNet's."""
    bytes_per_sample: int = 0
    """Bytes of a stored image, with `samples`."""
    samples_per_shard: int = 1000
    """Images of a shard, as `jobs.prepare` writes them."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        if self.here not in RECIPES:
            raise UsageError(f"--here {self.here}: no recipe is named so: there are {', '.join(RECIPES)}")
        check_at_least(self, 1, "workers", "steps", "rounds", "gpus_per_node", "cores_per_node", "samples_per_shard")
        check_above_0(self, "node_gbit", "nvlink_gbit", "s3_node_gbit", "s3_total_gbit")
        check_at_least(self, 0, "fixed_ms", "latency_us", "samples", "bytes_per_sample")
        if bool(self.samples) != bool(self.bytes_per_sample):
            raise UsageError("--samples and --bytes-per-sample: give both or neither")
        if not self.gpus or min(self.gpus) < 1:
            raise UsageError(f"--gpus {' '.join(map(str, self.gpus))}: give numbers of at least 1")
        if not 0 <= self.overlap <= 1:
            raise UsageError(f"--overlap {self.overlap}: must be from 0 to 1")
        if self.images_per_s and self.step_ms:
            raise UsageError("--images-per-s and --step-ms say the same: give one of them")
        compute(self)
        copies(self)
        decoding(self)

    @property
    def is_assumed(self) -> bool:
        """Whether the GPU's speed is the example, not the user's."""
        return not self.images_per_s and not self.step_ms


def compute(options: Options) -> Compute:
    """Return a GPU's part of the model; the fixed part of a step is taken out of --step-ms.

    Raises:
        UsageError: a speed isn't of its form, or a step shorter than its fixed part.
    """
    if not options.step_ms:
        speeds = options.images_per_s or ASSUMED_SPEED
        return Compute(fixed_s=options.fixed_ms / 1000, points=_points("images_per_s", speeds))
    points = {}
    for text in options.step_ms:
        px, batch, step = _numbers("step_ms", text, r"(\d+):(\d+):([\d.]+)", "PX:BATCH:MS, such as 300:64:95")
        if step <= options.fixed_ms:
            raise UsageError(
                f"--step-ms {text}: the step is no longer than --fixed-ms {options.fixed_ms:g}: lower that"
            )
        points[int(px)] = (step - options.fixed_ms) / 1000 / batch
    return Compute(fixed_s=options.fixed_ms / 1000, points=tuple(sorted(points.items())))


def decoding(options: Options) -> dict[int, Points]:
    """Return the seconds an image of one core as given, or docs/data.md's figures, from the shards and each copy.

    Raises:
        UsageError: a rate isn't of its form, or there is none from the shards or from a copy.
    """
    texts: dict[int, list[str]] = {}
    for text in options.decode or DECODE:
        px, slash, rest = text.partition("/")
        side, _, rate = rest.partition(":")
        if slash and not side.isdigit():
            raise UsageError(f"--decode {text}: give PX:RATE or PX/SIDE:RATE, such as 128/160:2474")
        texts.setdefault(int(side) if slash else 0, []).append(f"{px}:{rate}" if slash else text)
    found = {side: _points("decode", given) for side, given in texts.items()}
    if missing := {0, *copies(options)} - set(found):
        first = min(missing)
        raise UsageError(
            f"--decode: no rate from {f'the copy of short side {first}' if first else 'the shards'}; add "
            f"PX{f'/{first}' if first else ''}:RATE"
        )
    return found


def copies(options: Options) -> dict[int, float]:
    """Return the bytes an image of each smaller copy.

    Raises:
        UsageError: one isn't of its form.
    """
    pairs = [_numbers("copies", text, r"(\d+):([\d.]+)", "SIDE:KB, such as 160:13") for text in options.copies]
    return {int(side): 1000 * kilobytes for side, kilobytes in pairs}


def cluster(options: Options, data: DataConfig) -> Cluster:
    """Return the flags' cluster, with the cache of the recipe's data."""
    gbit, hop_s = 1e9 / 8, options.latency_us / 1e6
    return Cluster(
        gpus_per_node=options.gpus_per_node,
        cores_per_node=options.cores_per_node,
        in_node=Link(bytes_per_s=options.nvlink_gbit * gbit, latency_s=hop_s),
        between=Link(bytes_per_s=options.node_gbit * gbit, latency_s=hop_s),
        overlap=options.overlap,
        s3_node_bytes_per_s=options.s3_node_gbit * gbit,
        s3_total_bytes_per_s=options.s3_total_gbit * gbit,
        cache_bytes=0.0 if data.cache_dir == "none" else data.cache_gb * 1e9,
    )


def as_flags(points: Mapping[int, Points]) -> list[str]:
    """Return measured decoding as values of --decode."""
    return [
        f"{size}{f'/{side}' if side else ''}:{1 / seconds:.0f}"
        for side, rows in points.items()
        for size, seconds in rows
    ]


def _points(name: str, texts: Sequence[str]) -> Points:
    pairs = [_numbers(name, text, r"(\d+):([\d.]+)", "PX:RATE, such as 300:700") for text in texts]
    return tuple(sorted((int(size), 1 / rate) for size, rate in pairs))


def _numbers(name: str, text: str, pattern: str, form: str) -> list[float]:
    match = re.fullmatch(pattern, text)
    try:
        numbers = [float(group) for group in match.groups()] if match else []
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise UsageError(f"{flag(name)} {text}: give {form}, all above 0")
    return numbers
