"""Cost of a run from its parts: a pure model of time and S3 traffic against data size, workers and image size.

A step of n workers with b = batch / n images each takes

    compute(b, size) = fixed + b * per_image(size)
    all_reduce(n)    = 2 (n - 1) / n * gradient_bytes / bandwidth + 2 (n - 1) * latency            (a ring)
    train            = compute + max(0, all_reduce - overlap * compute)

and the loader works beside it: an epoch takes the longest of its steps, of decoding its images on the nodes' cores, and
of fetching what the nodes' caches lack from S3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from datasets.config import DataConfig
from datasets.shards.copies import choose_copy
from pipeline.schedule.stages import TrainingStage

Points = tuple[tuple[int, float], ...]
"""(side of the image in pixels, seconds an image), at least one"""


def seconds_at(points: Points, image_size: int, *, hold_below: bool = False) -> float:
    """Return the seconds an image at a size: linear in its pixels between two points, in proportion to them outside.

    With `hold_below`, sizes below the smallest point take as long as that: decoding has a part that never shrinks.
    """
    ordered = sorted(points)
    pixels = image_size**2
    if image_size <= ordered[0][0]:
        size, seconds = ordered[0]
        return seconds if hold_below else seconds * pixels / size**2
    for (low, low_s), (high, high_s) in pairwise(ordered):
        if image_size <= high:
            return low_s + (high_s - low_s) * (pixels - low**2) / (high**2 - low**2)
    size, seconds = ordered[-1]
    return seconds * pixels / size**2


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """Forward, backward and update of one worker."""

    fixed_s: float
    """Seconds of a step that don't depend on its images: kernel launches, the optimizer."""
    points: Points
    """Seconds of each further image."""

    def step_s(self, image_size: int, images: float) -> float:
        """Return the seconds of a step with so many images on one worker, without communication."""
        return self.fixed_s + images * seconds_at(self.points, image_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """What a ring of workers sends over."""

    bytes_per_s: float
    """Of the slowest hop, in one direction."""
    latency_s: float
    """Of one hop."""

    def all_reduce_s(self, workers: int, num_bytes: float) -> float:
        """Return the seconds in which a ring adds up `num_bytes` of every worker; one worker needs none."""
        hops = 2 * (workers - 1)
        return hops / workers * num_bytes / self.bytes_per_s + hops * self.latency_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Equal nodes and what they read from."""

    gpus_per_node: int
    """Workers of a node."""
    cores_per_node: float
    """CPU cores of a node that decode, shared by its workers."""
    in_node: Link
    """Between the workers of one node."""
    between: Link
    """Between nodes: a node's network card."""
    overlap: float = 0.0
    """Share of a step's compute behind which the all-reduce hides; the backward pass is about 2/3 of it."""
    s3_node_bytes_per_s: float = math.inf
    """From S3 into one node."""
    s3_total_bytes_per_s: float = math.inf
    """From S3 altogether."""
    cache_bytes: float = 0.0
    """Of each node's cache of shards; 0: none, every image is read by a range."""
    decodes_beside: bool = True
    """Loader processes decode beside the steps; otherwise the worker does it between them."""

    def nodes(self, gpus: int) -> int:
        """Return how many nodes so many GPUs take."""
        return -(-gpus // self.gpus_per_node)

    def link(self, gpus: int) -> Link:
        """Return the slowest hop of a ring over so many GPUs."""
        return self.in_node if gpus <= self.gpus_per_node else self.between


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The training set in shards."""

    samples_per_epoch: int
    """Images that an epoch uses."""
    blocks_per_shard: int
    """Pieces of a shard that the sample order deals out to the lanes one by one."""
    bytes_per_image: Mapping[int, float]
    """Of the shards (0) and of their copies, by short side in pixels."""
    decode: Mapping[int, Points]
    """Seconds an image of one core, decoding and augmentation, from the shards (0) and from each copy."""
    crop_area: tuple[float, float] = DataConfig().crop_area
    """Share of an image's area that a crop takes, of stages that have none of their own."""

    def copy_for(self, stage: TrainingStage) -> int:
        """Return the copy that a stage reads, by its short side; 0: the shards themselves."""
        sides = [side for side in self.bytes_per_image if side]
        return choose_copy(sides, stage.image_size, stage.crop_area, self.crop_area)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """What one stage costs."""

    image_size: int
    images: int
    """Over all steps and workers."""
    batch_per_gpu: float
    copy: int
    """Short side of the copy that is read; 0: the shards themselves."""
    per_image_s: float
    """Part of a step that grows with its images."""
    fixed_s: float
    """Part of a step that doesn't."""
    exposed_s: float
    """Part of the all-reduce that doesn't hide behind the compute."""
    decode_s: float
    """Decoding of a step's images on the cores that a GPU has."""
    cores_per_gpu: float
    """Cores that would decode as fast as the GPU trains."""
    first_s3_bytes: float
    """Fetched from S3 in the stage's first epoch, all nodes together."""
    s3_bytes: float
    """Fetched in the whole stage."""
    s3_s: float
    """That S3 needs for it."""
    seconds: float
    """Of the whole stage."""
    limit: str
    """What takes the most of it: `compute`, `all-reduce`, `batch per GPU`, `decode cores` or `S3`."""

    @property
    def train_s(self) -> float:
        """Seconds of a step that waits for no data."""
        return self.fixed_s + self.per_image_s + self.exposed_s

    @property
    def images_per_s(self) -> float:
        """Images a second, all GPUs together."""
        return self.images / self.seconds


def predict(
    stages: Sequence[TrainingStage], gpus: int, *, compute: Compute, gradient_bytes: float, data: Data, cluster: Cluster
) -> list[StageCost]:
    """Return what each stage of a run on so many GPUs costs; evaluation, checkpoints and starts are not in it."""
    costs: list[StageCost] = []
    held = 0.0
    for stage in stages:
        if not costs or data.copy_for(stage) != costs[-1].copy:
            held = 0.0  # another copy has other shards, and they evict those of the last
        traffic, held = stage_traffic(stage, held, gpus, data, cluster)
        costs.append(_stage_cost(stage, gpus, compute, gradient_bytes, data, cluster, traffic))
    return costs


def stage_traffic(
    stage: TrainingStage, held: float, gpus: int, data: Data, cluster: Cluster
) -> tuple[list[tuple[float, float]], float]:
    """Return (epochs, bytes from S3) for every epoch of a stage, the last maybe a part, and the share then held.

    A node fetches whole shards. Of N nodes each uses a 1 / N of the blocks, so of shards with k blocks it touches a
    share 1 - (1 - 1/N)^k in an epoch; those that its cache doesn't hold come from S3. The cache is as likely to hold
    one shard as another: it evicts by plan, and does better.

    Args:
        stage: its image size says which copy is read.
        held: share of that copy's shards that a node's cache holds at the stage's beginning.
        gpus: of the run.
        data: sizes.
        cluster: nodes and their cache.
    """
    num_bytes = data.samples_per_epoch * data.bytes_per_image[data.copy_for(stage)]
    nodes = cluster.nodes(gpus)
    room = min(1.0, cluster.cache_bytes / num_bytes) if num_bytes else 1.0
    left = stage.num_samples(data.samples_per_epoch) / data.samples_per_epoch
    rows = []
    while left > 1e-12:
        epochs = min(1.0, left)
        left -= epochs
        if cluster.cache_bytes:
            touched = 1 - (1 - 1 / nodes) ** (data.blocks_per_shard * epochs) if nodes > 1 else epochs
            rows.append((epochs, nodes * num_bytes * touched * (1 - held)))
            held = min(room, held + (1 - held) * touched)
        else:
            rows.append((epochs, num_bytes * epochs))
    return rows, held


def _stage_cost(
    stage: TrainingStage,
    gpus: int,
    compute: Compute,
    gradient_bytes: float,
    data: Data,
    cluster: Cluster,
    traffic: list[tuple[float, float]],
) -> StageCost:
    images, copy = stage.num_samples(data.samples_per_epoch), data.copy_for(stage)
    on_gpu = stage.batch_size / gpus
    step_s = compute.step_s(stage.image_size, on_gpu)
    exposed_s = max(0.0, cluster.link(gpus).all_reduce_s(gpus, gradient_bytes) - cluster.overlap * step_s)
    train_s = step_s + exposed_s
    core_s = on_gpu * seconds_at(data.decode[copy], stage.image_size, hold_below=True)
    decode_s = core_s * min(gpus, cluster.gpus_per_node) / cluster.cores_per_node
    s3 = min(cluster.nodes(gpus) * cluster.s3_node_bytes_per_s, cluster.s3_total_bytes_per_s)
    steps_per_epoch = data.samples_per_epoch / stage.batch_size
    worked_s = steps_per_epoch * (max(train_s, decode_s) if cluster.decodes_beside else train_s + decode_s)
    parts = {"compute": step_s - compute.fixed_s, "all-reduce": exposed_s, "batch per GPU": compute.fixed_s}
    s3_s = sum(num_bytes for _, num_bytes in traffic) / s3
    steps = images / stage.batch_size
    waits = {"decode cores": steps * decode_s, "S3": s3_s, max(parts, key=lambda name: parts[name]): steps * train_s}
    return StageCost(
        image_size=stage.image_size,
        images=images,
        batch_per_gpu=on_gpu,
        copy=copy,
        per_image_s=step_s - compute.fixed_s,
        fixed_s=compute.fixed_s,
        exposed_s=exposed_s,
        decode_s=decode_s,
        cores_per_gpu=core_s / train_s,
        first_s3_bytes=traffic[0][1],
        s3_bytes=sum(num_bytes for _, num_bytes in traffic),
        s3_s=s3_s,
        seconds=sum(max(epochs * worked_s, num_bytes / s3) for epochs, num_bytes in traffic),
        limit=max(waits, key=lambda name: waits[name]),
    )
