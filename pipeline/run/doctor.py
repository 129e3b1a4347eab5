"""Checks what a run needs, one by one: storage, MLflow, data, and each node of the cluster."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.cache.shard_cache import cache_folder
from datasets.checks import check_data
from datasets.shards.resolve import load_manifest
from infra.cluster.connect import connect
from infra.redact import redacted
from infra.storage.base import Storage
from infra.storage.lease import check_conditional_writes
from infra.storage.open import open_storage
from infra.tracking import config as tracking
from pipeline.config import TrainConfig
from pipeline.run.node_share import Resources, feeding_finding, loader_demand, with_node_share
from pipeline.run.preflight import absolute
from pipeline.run.provenance import versions
from pipeline.run.shared_memory import ranks_of, shared_memory_bytes

LARGE_BYTES = 18 << 20
"""Above the size from which objects go in parts."""
CLOCK_LIMIT_S = 60.0
"""S3 refuses requests of clocks that are 15 minutes off; certificates and logs suffer earlier."""
NODE_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome."""

    name: str
    text: str
    """What was found."""
    cure: str = ""
    """What to do about it; empty: all is well."""


def diagnose(config: TrainConfig, *, cluster: bool) -> Iterator[Finding]:
    """Check storage, MLflow and data from here, then, with `cluster`, every node of the cluster."""
    config = absolute(config)
    yield from _tried("storage", lambda: _storage(open_storage(f"{config.storage}/.doctor-{uuid.uuid4().hex[:8]}")))
    yield from _tried("MLflow", lambda: _mlflow(config))
    yield from _tried("data", lambda: _data(config))
    disk_gb = _disk_gb(config)
    if cluster:
        yield from _tried("Ray", lambda: _cluster(config, disk_gb))
    else:
        shared = shared_memory_bytes(config, max(config.worker_counts))
        yield from node_findings("this machine", node_facts(config), versions(), disk_gb=disk_gb, shared=shared)


def _tried(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Run a check; what it raises for a user to cure is its finding."""
    try:
        yield from check()
    except ValueError as error:
        yield Finding(name, "doesn't work", cure=str(error))


def _storage(storage: Storage) -> Iterator[Finding]:
    started = time.perf_counter()
    storage.check_writable()
    yield Finding("storage", f"{storage.uri.rpartition('/')[0]}: write, read and delete in {_ms(started)}")
    content = os.urandom(LARGE_BYTES)
    started = time.perf_counter()
    try:
        storage.write("large", content)
        took = time.perf_counter() - started
        same = hashlib.sha256(storage.read("large")).digest() == hashlib.sha256(content).digest()
    finally:
        storage.delete("large")
    cure = "" if same else "the server returned different bytes than were written: don't use it for checkpoints"
    yield Finding("storage, in parts", f"{LARGE_BYTES >> 20} MiB at {LARGE_BYTES / took / 1e6:.0f} MB/s", cure)
    guarded = check_conditional_writes(storage)
    cure = "" if guarded else "submit a run only once: two submissions in the same second would both train"
    text = "honoured: one submission of a run at a time" if guarded else "ignored by this server"
    yield Finding("storage, conditional writes", text, cure)


def _mlflow(config: TrainConfig) -> Iterator[Finding]:
    started = time.perf_counter()
    tracking.check(config.tracking)
    yield Finding("MLflow", f"{redacted(config.tracking.uri)} answers in {_ms(started)}")


def _data(config: TrainConfig) -> Iterator[Finding]:
    train, val = check_data(
        config.data, batch_sizes=[stage.batch_size for stage in config.stages], worker_counts=config.worker_counts
    )
    text = f"{train.num_samples} training and {val.num_samples} validation images of {train.outputs}"
    yield Finding("data", f"{text} in {len(train.shard_counts)} and {len(val.shard_counts)} shards")


def _disk_gb(config: TrainConfig) -> float:
    """Return how much a node's shard cache may come to hold."""
    if config.data.cache_dir == "none":
        return 1.0
    try:
        places = [place for place in (config.data.train, config.data.val) if "s3://" in place]
        return 1.0 + min(config.data.cache_gb, sum(load_manifest(place).num_bytes for place in places) / 1e9)
    except ValueError:  # said by the check of the data
        return 1.0


def _cluster(config: TrainConfig, disk_gb: float) -> Iterator[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    connect(config.cluster, num_workers=1)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    total = ray.cluster_resources()
    yield Finding("Ray", f"{len(nodes)} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs")
    ask = ray.remote(num_cpus=0)(node_facts)
    here = versions()
    calls = {
        f"node {node['NodeManagerAddress']}": ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(config)
        for node in nodes
    }
    shared = {f"node {node['NodeManagerAddress']}": _shared_memory(config, node["Resources"]) for node in nodes}
    yield from _loaders(config, {f"node {node['NodeManagerAddress']}": node["Resources"] for node in nodes})
    for name, call in calls.items():
        try:
            facts = ray.get(call, timeout=NODE_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            yield Finding(name, f"no answer in {NODE_TIMEOUT_S:.0f} s", "inspect it with `ray status` and `ray logs`")
        except ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[-1]
            yield Finding(name, "can't run our code", f"{cause}: install requirements.lock there")
        else:
            yield from node_findings(name, facts, here, disk_gb=disk_gb, shared=shared[name])


def _shared_memory(config: TrainConfig, resources: dict[str, float]) -> float:
    """Return the bytes of /dev/shm that a node needs: for its ranks' loaders, and for Ray's object store."""
    ready = with_node_share(config, [resources])
    return shared_memory_bytes(ready, ranks_of(ready, resources)) + resources.get("object_store_memory", 0.0)


def _loaders(config: TrainConfig, nodes: Mapping[str, Resources]) -> Iterator[Finding]:
    """Say of each node with GPUs for this run whether its CPUs can feed them."""
    with_gpus = {name: node for name, node in nodes.items() if node.get("GPU", 0) >= config.cluster.gpus_per_worker > 0}
    if with_gpus:
        copies: tuple[int, ...] = ()
        with suppress(ValueError):  # said by the check of the data
            copies = load_manifest(config.data.train, weights=config.data.train_weights).copies
        demand = loader_demand(config, copies)
        for name, node in with_gpus.items() if demand.is_plausible else ():
            yield Finding(f"{name}, loaders", *feeding_finding(config, node, demand))


def node_facts(config: TrainConfig) -> dict[str, Any]:
    """Return what a node has; called on it."""
    folder = cache_folder(config.data) or Path("/tmp")
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    shared = Path("/dev/shm")
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "time": time.time(),
        "disk_free": shutil.disk_usage(existing).free,
        "disk": str(existing),
        "shared_memory": shutil.disk_usage(shared).total if shared.exists() else None,
        "storage": _problem(lambda: open_storage(f"{config.storage}/.doctor-{uuid.uuid4().hex}").check_writable()),
        "tracking": _problem(lambda: tracking.check(config.tracking)),
    }


def _problem(check: Callable[[], None]) -> str:
    try:
        check()
    except ValueError as error:
        return str(error)
    return ""


def node_findings(
    name: str, facts: dict[str, Any], here: dict[str, str], *, disk_gb: float, shared: float
) -> Iterator[Finding]:
    """Judge a node's facts; `here` are the versions of this process, `shared` the bytes of /dev/shm that it needs."""
    other = {key: value for key, value in facts["versions"].items() if here.get(key) != value}
    differ = ", ".join(f"{key} {value} (here {here.get(key)})" for key, value in other.items())
    yield Finding(
        f"{name}, versions",
        differ or f"as here: torch {here['torch']}, ray {here['ray']}",
        "install the same requirements.lock there" if other else "",
    )
    skew = facts["time"] - time.time()
    cure = f"its clock differs by {skew:.0f} s: switch time synchronization on (chrony)" if _far(skew) else ""
    yield Finding(f"{name}, clock", "within a minute of this one" if not cure else "differs", cure)
    free = facts["disk_free"] / 1e9
    cure = (
        "" if free >= disk_gb else f"{disk_gb:.0f} GB are needed: free some, lower data.cache_gb or set data.cache_dir"
    )
    yield Finding(f"{name}, disk", f"{free:.0f} GB free in {facts['disk']}", cure)
    if (there := facts["shared_memory"]) is not None:
        yield Finding(f"{name}, shared memory", f"{there / 1e9:.1f} GB in /dev/shm", _shared_cure(there, shared))
    for what in ("storage", "tracking"):
        yield Finding(f"{name}, {what}", "reached" if not facts[what] else "not reached", facts[what])


def _shared_cure(there: float, needed: float) -> str:
    if there >= needed:
        return ""
    return (
        f"its loaders may come to hold {needed / 1e9:.1f} GB: enlarge it (a container's --shm-size, in Kubernetes the "
        "volume shm), or lower data.loader_workers or data.prefetch_batches"
    )


def _far(skew_s: float) -> bool:
    return abs(skew_s) > CLOCK_LIMIT_S


def _ms(started: float) -> str:
    return f"{1000 * (time.perf_counter() - started):.0f} ms"
