"""Scaling: 1 to R workers of this machine beside a model of their cost, and what the model predicts for a cluster.

`python -m jobs.benchmark scaling [RECIPE] [--gpus 8 64 512] [--step-ms PX:BATCH:MS ...]`: see docs/scaling.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from datasets.config import check_divisibility
from datasets.errors import DataError
from datasets.loading.sample_order import sample_order
from jobs.benchmark.scaling.model import Data, Points, StageCost, predict
from jobs.benchmark.scaling.options import Options, as_flags, cluster, compute, copies, decoding
from jobs.common.cli import UsageError, parse_recipe
from jobs.common.data_size import PlanFlags, data_size
from jobs.common.display import wide_console
from jobs.recipes.catalog import RECIPES
from pipeline.config import TrainConfig
from pipeline.run.preflight import with_numbers

if TYPE_CHECKING:
    from jobs.benchmark.scaling.measure import Here

_RECIPE = "efficientnetv2_s_paper"


def main(argv: Sequence[str]) -> int:
    """Measure this machine, predict a cluster, or both; returns the exit code."""
    words = list(argv)
    if not words or words[0].startswith("-"):
        words.insert(0, _RECIPE)
    config, options = parse_recipe(words, prog="python -m jobs.benchmark scaling", extra=Options)
    assert options is not None
    config = with_numbers(config)
    found: dict[str, Any] = {}
    decode = decoding(options)
    if options.parts != "predict":
        measured = _measure(config, options, found)
        decode = measured | decode if options.decode else decode | measured
    if options.parts != "measure":
        _predict(config, options, decode, found)
    if options.json:
        print(json.dumps(found, indent=1))
    return 0


# This machine ---------------------------------------------------------------------------------------------------------


def _measure(config: TrainConfig, options: Options, found: dict[str, Any]) -> dict[int, Points]:
    """Measure and show this machine's parts; return its decoding."""
    from jobs.benchmark.scaling.decode import measure_decoding
    from jobs.benchmark.scaling.measure import Effort, measure_here

    effort = Effort(workers=options.workers, steps=options.steps, rounds=options.rounds, clock=options.clock)
    here = measure_here(with_numbers(RECIPES[options.here]()), effort)
    decoded = measure_decoding(options.photographs, config.stages, options.steps)
    rows = [asdict(stage) | {"efficiency": stage.efficiency} for stage in here.stages]
    weights = {str(side): size for side, size in decoded.bytes_per_image.items()}
    found["here"] = asdict(here) | {"stages": rows, "decode": as_flags(decoded.points), "bytes_per_image": weights}
    if options.json:
        return dict(decoded.points)
    console = wide_console()
    console.print(_speed_table(here, options))
    console.print(f"decode + augment, images/s of one core: --decode {' '.join(as_flags(decoded.points))}")
    sizes = ", ".join(
        f"{size / 1000:.1f} ({f'short side {side}' if side else 'the shards'})"
        for side, size in decoded.bytes_per_image.items()
    )
    console.print(f"kB an image in shards, photographs of 500x375 px: {sizes}\n")
    return dict(decoded.points)


def _speed_table(here: Here, options: Options) -> Table:
    reduced = f"all-reduce of {here.gradient_bytes / 1e6:.1f} MB: {here.all_reduce_ms:.1f} ms"
    table = Table(
        title=f"{options.here}, 1 and {options.workers} workers of this machine, images/s ({options.clock} time)\n"
        f"fastest of {options.steps} steps x {options.rounds} rounds; {reduced}",
        title_justify="left",
    )
    many = f"{options.workers} workers"
    for name in ("px", "compute ms", "decode ms", "1 worker", "model", many, "efficiency", "model"):
        table.add_column(name, justify="right")
    for row in here.stages:
        table.add_row(
            *(str(row.image_size), f"{row.compute_ms:.0f}", f"{row.decode_ms:.0f}"),
            *(f"{row.one:.1f}", f"{row.predicted_one:.1f} ({row.predicted_one / row.one - 1:+.0%})"),
            *(f"{row.all:.1f}", f"{row.efficiency:.0%}"),
            f"{row.predicted_all:.1f} ({row.predicted_all / row.all - 1:+.0%})",
        )
    return table


# A cluster ------------------------------------------------------------------------------------------------------------


def _predict(config: TrainConfig, options: Options, decode: dict[int, Points], found: dict[str, Any]) -> None:
    from jobs.benchmark.scaling.measure import gradient_bytes

    notes, costs = _notes(options), {}
    planned = data_size(config, _sizes(options))
    size, images = gradient_bytes(config.model, planned.classes), planned.samples
    notes += _cache_note(config, _data(config, options, decode))
    for gpus in options.gpus:
        of_size = _with_lanes(config, gpus)
        if (lanes := of_size.data.num_lanes) != config.data.num_lanes:
            notes.append(f"{gpus} GPUs need --data.num-lanes {lanes}, and are predicted with it.")
        costs[gpus] = predict(
            config.stages,
            gpus,
            compute=compute(options),
            gradient_bytes=size,
            data=_data(of_size, options, decode),
            cluster=cluster(options, config.data),
        )
    found["prediction"] = {
        "gpu_speed_is_assumed": options.is_assumed,
        "gradient_bytes": size,
        "notes": notes,
        "clusters": {str(gpus): [_row(cost) for cost in rows] for gpus, rows in costs.items()},
    }
    if not options.json:
        console = wide_console()
        console.print(_table(f"{config.name} on {images:,} images", costs, options))
        console.print("\n".join(notes))


def _sizes(options: Options) -> PlanFlags:
    return PlanFlags(samples=options.samples, bytes_per_sample=options.bytes_per_sample)


def _with_lanes(config: TrainConfig, gpus: int) -> TrainConfig:
    """Return the config with lanes that so many workers can share.

    Raises:
        UsageError: the lanes don't divide a batch.
    """
    lanes = math.lcm(config.data.num_lanes, gpus)
    data = replace(config.data, num_lanes=lanes)
    try:
        check_divisibility(data, batch_sizes=[stage.batch_size for stage in config.stages], worker_counts=[gpus])
    except DataError as error:
        raise UsageError(f"--gpus {gpus}: {error}") from error
    return replace(config, data=data)


def _data(config: TrainConfig, options: Options, decode: dict[int, Points]) -> Data:
    size = data_size(config, _sizes(options))
    shards = -(-size.samples // options.samples_per_shard)
    counts = np.full(shards, size.samples // shards) + (np.arange(shards) < size.samples % shards)
    block = sample_order(config.data, counts, seed=config.seed).block_size
    return Data(
        samples_per_epoch=size.samples_per_epoch,
        blocks_per_shard=-(-int(counts.max()) // block),
        bytes_per_image={0: size.bytes_per_sample} | copies(options),
        decode=decode,
        crop_area=config.data.crop_area,
    )


def _notes(options: Options) -> list[str]:
    """Return what the reader must know of the prediction."""
    notes = ["Not in it: evaluation, checkpoints, starts, stage switches, stragglers."]
    if options.is_assumed:
        notes.append(
            "ASSUMED, not measured: a GPU trains 700 images/s at 300 px; give your own --step-ms PX:BATCH:MS or "
            "--images-per-s PX:RATE."
        )
    points = compute(options).points
    if len(points) == 1:
        notes.append(f"Other sizes than {points[0][0]} px: in proportion to their pixels.")
    return notes


def _cache_note(config: TrainConfig, data: Data) -> list[str]:
    most = data.samples_per_epoch * max(data.bytes_per_image[data.copy_for(s)] for s in config.stages) / 1e9
    if config.data.cache_dir == "none" or config.data.cache_gb >= most:
        return []
    return [f"A node's cache of {config.data.cache_gb:g} GB doesn't hold all: give --data.cache-gb {math.ceil(most)}."]


def _row(cost: StageCost) -> dict[str, Any]:
    return asdict(cost) | {"images_per_s": cost.images_per_s, "train_s": cost.train_s}


def _table(title: str, costs: dict[int, list[StageCost]], options: Options) -> Table:
    speed = "ASSUMED speed of a GPU" if options.is_assumed else "speed of a GPU as given"
    table = Table(title=f"{title}: predicted, {speed}", title_justify="left")
    names = ("GPUs", "px", "copy", "batch/GPU", "step ms", "images/s", "hours", "S3 first epoch, GB", "S3, GB")
    for name in (*names, "cores/GPU", "limit"):
        table.add_column(name, justify="left" if name == "limit" else "right")
    for gpus, rows in costs.items():
        for cost in rows:
            table.add_row(
                *(str(gpus), str(cost.image_size), str(cost.copy or "-"), f"{cost.batch_per_gpu:g}"),
                *(f"{1000 * cost.train_s:.1f}", f"{cost.images_per_s:,.0f}", f"{cost.seconds / 3600:.2f}"),
                *(f"{cost.first_s3_bytes / 1e9:,.0f}", f"{cost.s3_bytes / 1e9:,.0f}"),
                *(f"{cost.cores_per_gpu:.1f}", cost.limit),
            )
        seconds = sum(cost.seconds for cost in rows)
        table.add_row(
            *(str(gpus), "all", "", "", "", f"{sum(cost.images for cost in rows) / seconds:,.0f}"),
            *(f"{seconds / 3600:.2f}", f"{rows[0].first_s3_bytes / 1e9:,.0f}"),
            *(f"{sum(cost.s3_bytes for cost in rows) / 1e9:,.0f}", f"{max(cost.cores_per_gpu for cost in rows):.1f}"),
            max(rows, key=lambda cost: cost.seconds).limit,
            style="bold",
            end_section=True,
        )
    return table
