"""Starts the controller of a checked run: here the plain class becomes an actor."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from infra.cluster.config import ClusterConfig
from infra.cluster.connect import (
    ACTOR_PREFIX,
    connect,
    free_reservations,
    has_own_cluster,
    resources_of_nodes,
    start_actor,
)
from infra.cluster.prometheus import export_status
from infra.redact import last_line
from infra.storage.base import Storage
from infra.storage.lease import Lease, check_conditional_writes
from infra.storage.open import open_storage
from infra.tracking.prepare_process import prepared_meanwhile
from pipeline.checkpoint.state import TrainState
from pipeline.config import TrainConfig
from pipeline.control.controller import StageController
from pipeline.control.journal import Journal, JournalWriter
from pipeline.control.node_requests import NodesAhead
from pipeline.control.plan import RunPlan
from pipeline.control.queue import ClusterView, Place, QueuePlace
from pipeline.control.run_status import RunIdentity
from pipeline.run.controller_client import ControllerClient, ControllerError, find_controllers
from pipeline.run.node_share import unknown_share, with_node_share
from pipeline.run.origin import origin_tags
from pipeline.run.preflight import Preflight, with_start
from pipeline.run.provenance import recorded_config
from pipeline.run.record import close_record
from pipeline.run.worker_group import SegmentRunner
from pipeline.schedule.decisions import records_of
from pipeline.schedule.stages import Segment, worker_range

CONFIG_FILE = "config.json"
LOOK_PATIENCE_S = 5.0
"""For how long a run in the queue waits for an answer of another one, in seconds."""
RECORD_S = 15.0
"""For how long the controller of a failed run waits for MLflow, in seconds."""
UNFINISHED_S = 86400.0
"""Age of an upload that is nobody's any more, in seconds."""


def start_controller(
    ready: Preflight,
    *,
    num_stages: int | None = None,
    callbacks: tuple[Any, ...] = (),
    origin: Mapping[str, str] | None = None,
    begin: Callable[[], None] = lambda: None,
    prepare_tracking: bool = False,
) -> ControllerClient:
    """Take the run's lease, connect to the cluster and start the controller actor; `controller.run` then trains.

    A run that was finished when it was checked is started for its record, which was left open: its last stage's group
    has nothing to train, and completes the record.

    Args:
        ready: the checked run.
        num_stages: train only so many stages; the run can continue, or be forked, from there. None: all.
        callbacks: Ray Train's, which hear of each stage's end but the last one's: that is the run's, and not over
            before the run is whole.
        origin: tags on where the run comes from; None: from this process.
        begin: called once the lease is held: writes what only its holder may write into the run's folder.
        prepare_tracking: prepare MLflow, which `preflight` was told not to, while Ray is started.

    Raises:
        TrackingError: MLflow can't be prepared.
        LeaseError: the run is in progress already.
        ClusterError: no cluster, or not enough room.
    """
    config = ready.config
    storage = open_storage(config.folder)
    guarded = check_conditional_writes(storage)
    with held(storage) as lease:
        resume = with_start(ready).resume_from  # another submission may have trained until we got the lease
        least = max(worker_range(config.workers_of(stage))[0] for stage in config.stages)
        with prepared_meanwhile(config.tracking) if prepare_tracking else nullcontext():
            lack = connect(config.cluster, num_workers=least)
        begin()
        config, notes = settled(config, storage)
        plan = RunPlan(
            identity=RunIdentity(name=config.name, model=config.model.name, seed=config.seed, storage=storage.uri),
            stages=config.stages,
            num_workers=config.cluster.num_workers,
            rules=config.adaptive,
            num_stages=num_stages or len(config.stages),
            first_stage=len(resume.stage_starts) - 1 - ready.finished if resume else 0,
        )
        handle = start_actor(
            StageController,
            plan,
            SegmentRunner(
                config,
                fingerprints=ready.fingerprints,
                origin=origin_tags() if origin is None else origin,
                callbacks=callbacks,
                report_stages=plan.num_stages - 1 if callbacks else 0,
                own_cluster=has_own_cluster(),
            ),
            lease=lease,
            journal=_journal(storage, lease, resume),
            nodes_ahead=NodesAhead(
                plan.segments, partial(ask_nodes, config.cluster, config.name), config.cluster.ask_ahead_s
            ),
            queue=place_in_queue(config, plan.first_stage),
            record_failure=partial(_record_failure, config),
            observe=export_status,
            name=f"{ACTOR_PREFIX}{config.name}",
        )
        controller = ControllerClient(handle)
        for line in (lack, *notes) if lack else notes:
            controller.note(line)
        if not guarded:
            controller.note(
                f"{storage.uri} ignores conditional writes: two submissions of this run in the same second would both "
                "train"
            )
    return controller


@contextmanager
def held(storage: Storage) -> Iterator[Lease]:
    """Hold a run's lease until its controller, which is started meanwhile, renews it; give it back on failure.

    Raises:
        LeaseError: the run is in progress already.
    """
    lease = Lease(storage)
    lease.take()
    lease.keep(lambda _: None)
    try:
        yield lease
    except BaseException:
        lease.release()
        raise
    lease.rest()


def settled(config: TrainConfig, storage: Storage) -> tuple[TrainConfig, tuple[str, ...]]:
    """Make a run's folder and its cluster ready; return the config with a worker's share of its node, and lines for the
    user. Called by the lease's holder."""
    storage.write(CONFIG_FILE, json.dumps(recorded_config(config), indent=1).encode())
    unfinished = drop_unfinished(storage, max(UNFINISHED_S, config.checkpoint.give_up_s))
    nodes = resources_of_nodes(config.cluster)
    free_reservations()  # of an earlier submission whose controller was killed
    return with_node_share(config, nodes), tuple(filter(None, (unknown_share(config, nodes), unfinished)))


def place_in_queue(config: TrainConfig, stage: int) -> QueuePlace:
    """Return the place in its cluster's queue of a run that begins at a stage."""
    workers = worker_range(config.workers_of(config.stages[min(stage, len(config.stages) - 1)]))[0]
    needs = {name: workers * amount for name, amount in config.cluster.resources_per_worker.items()}
    return QueuePlace(Place(name=config.name, since_s=time.time(), needs=needs), partial(look, config.name))


def look(run: str) -> ClusterView:
    """Return what a run sees of its cluster; a controller that doesn't answer is left out."""
    import ray

    others = []
    for name, controller in find_controllers(patience_s=LOOK_PATIENCE_S).items():
        if name != run:
            with suppress(ControllerError):
                others.append(controller.status())
    return ClusterView(others=others, total=ray.cluster_resources(), free=ray.available_resources())


def drop_unfinished(storage: Storage, older_than_s: float) -> str:
    """Remove what killed writers of a run left in its storage; return a line for the user, if there is one.

    Called by the lease's holder before its workers start. A writer of an earlier submission may be alive, but no upload
    is so old: the run of one that takes longer than `checkpoint.give_up_s` ends.
    """
    try:
        count = storage.drop_unfinished(older_than_s)
    except Exception as error:  # as a missing permission: no reason for a run not to start
        return f"what killed uploads have left may stay: {last_line(error)}"
    return f"removed what {count} killed uploads to {storage.uri} had left" if count else ""


def _journal(storage: Storage, lease: Lease, resume: TrainState | None) -> Journal:
    done = [record for record in records_of(resume.decisions if resume else ()) if record.decision.replayed]
    writer = JournalWriter(storage, lease)
    return Journal(writer.open(done), writer)


def ask_nodes(cluster: ClusterConfig, run: str, segment: Segment, num_workers: int) -> None:
    """Ask the cluster's autoscaler for a segment's workers, besides so many that are there."""
    from pipeline.run.ray_policies import request_workers  # in the controller: the driver needs none of Ray Train's

    request_workers(cluster, worker_range(segment.num_workers)[0] - num_workers, requester=f"{ACTOR_PREFIX}{run}")


def _record_failure(config: TrainConfig, uri: str) -> None:
    close_record(config, "FAILED", uri=uri, timeout=RECORD_S)
