"""The cost of a variant's model: counted, and its inference timed where a training worker would run."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from infra.storage.base import MissingKeyError, Storage
from pipeline.compare.remote import on_worker
from pipeline.config import TrainConfig
from pipeline.run.provenance import config_values, machine

FILE = "costs.json"
"""What was measured, in the comparison's storage: a report that is made again has the same figures."""
BATCH, REPEATS = 16, 15


@dataclass(frozen=True, slots=True)
class Cost:
    """A model's cost at the size at which the run ends."""

    parameters: int
    multiply_adds: int
    image_size: int
    """Of the last evaluation, in pixels."""
    images_per_s: float
    """Inference, in batches of `BATCH`; on a CPU by its own time, with one thread, which others disturb less."""


def costs(variants: Mapping[str, TrainConfig], num_classes: int, storage: Storage) -> dict[str, Cost]:
    """Return each variant's cost; measure what storage doesn't know yet, on a worker of the cluster.

    Equal models are measured once.
    """
    try:
        known = json.loads(storage.read(FILE))
    except MissingKeyError:
        known = {}
    keys = {name: _key(config, num_classes) for name, config in variants.items()}
    missing = {keys[name]: config for name, config in variants.items() if keys[name] not in known}
    if missing:
        for key, config in missing.items():
            known[key] = asdict(on_worker(config.cluster, "timing a model", measure_cost, config, num_classes))
        storage.write(FILE, json.dumps(known, indent=1).encode())
    return {name: Cost(**known[key]) for name, key in keys.items()}


def eval_size(config: TrainConfig) -> int:
    """Return the image size of a run's last evaluation."""
    return config.trainer.eval_size(config.stages[-1])


def _key(config: TrainConfig, num_classes: int) -> str:
    """Return what a cost follows from. The machine is the one that asks: a worker's is known only by asking it."""
    cluster = config.cluster
    worker = [machine(), cluster.reserved_cpus, cluster.gpus_per_worker]
    ratio = config.data.aspect_ratio
    size = [eval_size(config)] if ratio == 1 else [eval_size(config), ratio]
    return json.dumps([config_values(config.model), num_classes, *size, config.trainer.precision, worker])


def measure_cost(config: TrainConfig, num_classes: int) -> Cost:
    """Count and time a model, in a process that has what a training worker has."""
    import torch

    from model.cost import count_multiply_adds, count_parameters
    from model.factory import build_model
    from pipeline.training.evaluation import autocast

    torch.set_num_threads(config.cluster.threads_per_worker)
    device = torch.device("cuda" if torch.cuda.is_available() and config.cluster.gpus_per_worker else "cpu")
    model = build_model(config.model, num_classes=num_classes).to(device).to(memory_format=torch.channels_last).eval()
    size = eval_size(config)
    shape, channels = config.data.shape(size), config.model.in_channels
    images = torch.randn(BATCH, channels, *shape, device=device).to(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode(), autocast(config.trainer, device):
        for repeat in range(REPEATS + 2):
            started = _now(device)
            model(images)
            if repeat >= 2:
                seconds.append(_now(device) - started)
    multiply_adds = count_multiply_adds(model, shape, in_channels=channels)
    return Cost(count_parameters(model), multiply_adds, size, BATCH / statistics.median(seconds))


def _now(device: object) -> float:
    import torch

    if str(device).startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
