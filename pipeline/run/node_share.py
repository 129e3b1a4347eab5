"""A worker's share of its node: CPUs and loader processes, and whether they can feed a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.config import DEFAULT_LOADERS
from datasets.shards.copies import choose_copy
from datasets.transforms.shape import format_size
from pipeline.config import TrainConfig
from pipeline.schedule.stages import TrainingStage

Resources = Mapping[str, float]
"""What a node has, as Ray names it."""

REFERENCE_RATE, REFERENCE_MULTIPLY_ADDS = 950.0, 5.31e9
"""Images/s that one A100 trains with automatic mixed precision, and the multiply-adds of one: EfficientNetV2-S at
300 px (NVIDIA DeepLearningExamples). Another model is taken to need as much time for a
multiply-add, and for a pixel of any size as much as for one of its last stage."""
MOST_RATE = 20_000.0
"""Images/s beyond which a GPU isn't limited by its multiply-adds, so that nothing follows from them."""
DECODED = {0: {128: 742.0, 192: 684.0, 300: 562.0}, 160: {128: 2474.0}, 256: {192: 1403.0}}
"""Images/s that one loader process makes of photographs of 500 x 375 px, or of copies with a short side, by the side of
the crops (docs/results.md, data loader)."""


def cpu_share(cluster_gpus: float, nodes: Sequence[Resources]) -> float:
    """Return the CPUs that a worker with so many GPUs may have on any of the nodes with GPUs; 0: there is none yet.

    One CPU of each node is left for Ray and the driver.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= cluster_gpus > 0]
    shares = [math.floor((node.get("CPU", 0) - 1) / node["GPU"] * cluster_gpus) for node in with_gpus]
    return float(max(1, min(shares))) if shares else 0.0


def with_node_share(config: TrainConfig, nodes: Sequence[Resources]) -> TrainConfig:
    """Return the config with the CPUs and the loader processes of a worker, where the user has left them to us.

    While no node with GPUs is up, as on a cluster that starts them when they are asked for, they are 1 CPU and
    `DEFAULT_LOADERS`: `unknown_share` says so.
    """
    cluster, data = config.cluster, config.data
    if not cluster.cpus_per_worker:
        share = cpu_share(cluster.gpus_per_worker, nodes) or cluster.reserved_cpus
        cluster = replace(cluster, cpus_per_worker=share)
    if data.loader_workers is None:
        known = cluster.gpus_per_worker and cluster.reserved_cpus > 1
        data = replace(data, loader_workers=cluster.threads_per_worker - 1 if known else DEFAULT_LOADERS)
    return replace(config, cluster=cluster, data=data)


def unknown_share(config: TrainConfig, nodes: Sequence[Resources]) -> str:
    """Say that a worker's share of its node can't be known yet, and what to do; empty: it can, or is given."""
    if (
        not config.cluster.gpus_per_worker
        or config.cluster.cpus_per_worker
        or cpu_share(config.cluster.gpus_per_worker, nodes)
    ):
        return ""
    return (
        f"no node with GPUs is up yet, so each worker gets 1 CPU and {with_node_share(config, nodes).data.num_loaders} "
        "loader processes, which may starve its GPU: give --cluster.cpus-per-worker, its share of a node's CPUs"
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """The stage that asks most of the loader."""

    image_size: int
    gpu_rate: float
    """Images/s that a GPU takes."""
    loader_rate: float
    """Images/s that a loader process makes."""

    @property
    def is_plausible(self) -> bool:
        """Whether a GPU can take so many images: small ones of a small network are not limited by multiply-adds."""
        return self.gpu_rate <= MOST_RATE

    @property
    def loaders(self) -> int:
        """Loader processes that a GPU needs."""
        return math.ceil(self.gpu_rate / self.loader_rate)

    @property
    def cpus(self) -> int:
        """CPUs that a GPU needs: for its loader processes and the training thread."""
        return self.loaders + 1


def loader_demand(config: TrainConfig, copies: Sequence[int] = ()) -> Demand:
    """Return the demand of the stage with the most loader processes a GPU; `copies` are the data's, by short side.

    What a GPU takes is a published rate, what a process makes a measured one: both are of other machines.
    """
    from model.cost import multiply_adds  # with PyTorch, for which a driver that only submits doesn't wait

    used = copies if config.data.pyramid and config.data.pixels.is_rgb else ()
    last = config.data.shape(config.stages[-1].image_size)
    pixel_rate = REFERENCE_RATE * REFERENCE_MULTIPLY_ADDS * math.prod(last) / multiply_adds(config.model, last)
    demands = [_demand(config, stage, used, pixel_rate) for stage in config.stages]
    return max(demands, key=lambda one: one.gpu_rate / one.loader_rate)


def _demand(config: TrainConfig, stage: TrainingStage, copies: Sequence[int], pixel_rate: float) -> Demand:
    decoded = stage.low_frequency_of or stage.image_size
    copy = choose_copy(copies, decoded, stage.crop_area, config.data.crop_area)
    measured = DECODED.get(copy) or DECODED[0]
    rate = float(np.interp(decoded, list(measured), list(measured.values())))
    return Demand(stage.image_size, pixel_rate / math.prod(config.data.shape(stage.image_size)), rate)


def feeding_line(config: TrainConfig, demand: Demand) -> str:
    """Say for a plan what its GPUs need of their nodes."""
    size = format_size(demand.image_size, config.data.aspect_ratio)
    return (
        f"an A100 takes about {demand.gpu_rate:,.0f} images/s at {size} px (a published rate, by multiply-adds), a "
        f"loader process makes about {demand.loader_rate:,.0f}: a node needs {demand.cpus:,} CPUs a GPU"
        f"{_left(config, demand)}"
    )


def _left(config: TrainConfig, demand: Demand) -> str:
    """Say if the config itself gives a GPU less."""
    loaders = config.data.loader_workers
    if loaders is None or loaders * demand.loader_rate >= demand.gpu_rate:
        return ""
    return f", but data.loader_workers is {loaders}: leave it out, or set it to {demand.loaders}"


def feeding_finding(config: TrainConfig, node: Resources, demand: Demand) -> tuple[str, str]:
    """Return what a node with GPUs can feed them with, in words, and a cure where that is too little."""
    ready = with_node_share(config, [node])
    loaders, gpus = ready.data.num_loaders, node["GPU"]
    made, taken = loaders * demand.loader_rate, demand.gpu_rate * ready.cluster.gpus_per_worker
    text = f"{node.get('CPU', 0):g} CPUs for {gpus:g} GPUs: {loaders} loader processes a worker"
    if made >= taken:
        return text, ""
    return text, (
        f"they make about {made:,.0f} images/s at {demand.image_size} px, an A100 takes {taken:,.0f}: give the node "
        f"{math.ceil(gpus * demand.cpus) + 1} CPUs, or write smaller copies of the shards (jobs.pyramid)"
        f"{_left(config, demand)}"
    )
