"""The command: parse, measure each part in a process of its own, print."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from jobs.benchmark.gpu.compilation import measure_compilation
from jobs.benchmark.gpu.determinism import measure_determinism
from jobs.benchmark.gpu.options import Options, Part, device_config, prepared, shrunk
from jobs.benchmark.gpu.out_of_memory import measure_memory
from jobs.benchmark.gpu.peaks import peak_tflops
from jobs.benchmark.gpu.schedule import measure_schedule
from jobs.benchmark.gpu.speed import measure_speed
from jobs.benchmark.gpu.tables import tables
from jobs.benchmark.gpu.trainers import begin, first_device
from jobs.benchmark.gpu.waits import measure_waits
from jobs.common.cli import parse_recipe
from jobs.common.display import wide_console
from pipeline.config import TrainConfig
from pipeline.run.provenance import machine, versions
from pipeline.training.device import accelerator

Rows = list[dict[str, Any]]
MEASURES: Mapping[Part, Callable[[TrainConfig, Options], Sequence[Any]]] = {
    "speed": measure_speed,
    "schedule": measure_schedule,
    "waits": measure_waits,
    "compile": measure_compilation,
    "memory": measure_memory,
    "determinism": measure_determinism,
}
_DEFAULT = "efficientnetv2_s_google"


def main(argv: Sequence[str]) -> int:
    """Measure and show; returns 1 if a part failed."""
    words = list(argv)
    if not words or words[0].startswith("-"):
        words.insert(0, _DEFAULT)
    config, options = parse_recipe(words, prog="python -m jobs.benchmark gpu", extra=Options)
    assert options is not None
    options = shrunk(options)
    prepared(options)
    report = measure(device_config(config, options), options)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        for table in tables(report):
            wide_console().print(table)
    return int(any("error" in part for part in report["parts"].values()))


def measure(config: TrainConfig, options: Options) -> dict[str, Any]:
    """Return what was measured: facts about the machine, and for each part its `rows` or its `error`."""
    parts: dict[str, dict[str, Any]] = {}
    for part in options.parts:
        try:
            parts[part] = {"rows": (run_part if options.tiny else run_in_a_process)(part, config, options)}
        except Exception as error:  # what the others found isn't lost
            parts[part] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    device = first_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "machine": machine(),
        "gpu": accelerator(device),
        "peak_tflops": options.peak_tflops or peak_tflops(name),
        "versions": versions(),
        "model": config.model.name,
        "recipe": config.name,
        "steps": options.steps,
        "rounds": options.rounds,
        "tiny": options.tiny,
        "parts": parts,
    }


def run_part(part: Part, config: TrainConfig, options: Options) -> Rows:
    """Measure one part in this process."""
    begin(config)
    return [asdict(row) for row in MEASURES[part](config, options)]


def run_in_a_process(part: Part, config: TrainConfig, options: Options) -> Rows:
    """Measure one part in a new process: with memory, caches and algorithms of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_fork_loaders) as processes:
        return processes.submit(run_part, part, config, options).result()


def _fork_loaders() -> None:
    """Have this process fork its loader processes, as a worker does; a spawned one would spawn them."""
    multiprocessing.set_start_method("fork", force=True)
