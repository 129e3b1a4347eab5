"""One rank of a run: wires data, model, trainer, storage and tracking. The only place where all of them meet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import ray
import ray.train
import torch

from datasets.cache.download import is_downloading
from datasets.cache.shard_cache import cache_folder
from datasets.checks import check_data, data_fingerprint
from datasets.errors import DataError
from datasets.loading.processes import limit_blas
from datasets.loading.sample_order import sample_order
from infra.cluster.logs import log_as_json
from infra.cluster.prestart import current_environment, start_standby
from infra.storage.base import Storage
from infra.storage.failures import FailureClass, failure_class
from infra.storage.lease import Lease
from infra.storage.open import open_storage
from model.factory import build_model
from model.weights import load_weights
from pipeline.checkpoint.catalog import CheckpointError
from pipeline.checkpoint.head import claim
from pipeline.checkpoint.metadata import RunMetadata
from pipeline.checkpoint.resume import Start, find_start
from pipeline.config import TrainConfig
from pipeline.run.controller_client import ControllerClient
from pipeline.run.log_relay import relay_log
from pipeline.run.provenance import machine, recorded_config, versions
from pipeline.run.rank import Rank, RunData
from pipeline.run.stacks import Stacks
from pipeline.run.watchdog import TELL_TIMEOUT_S, Watchdog, end_stuck_rank
from pipeline.run.worker_hooks import RankHooks, TrackingHooks
from pipeline.schedule.decisions import Decision, NewGroup, Stop
from pipeline.training.device import accelerator, choose_algorithms
from pipeline.training.distributed import agreed, gathered
from pipeline.training.memory import OutOfMemoryError
from pipeline.training.task import build_task
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


class DifferentStartError(RuntimeError):
    """The ranks begin at different cursors; another worker group can do better."""

    failure = FailureClass.TRANSIENT


CURABLE = (FailureClass.OPERATOR, FailureClass.DATA)
"""What no later worker group is spared: it ends the run, with one line for the user."""
STANDBY_DELAY_S = 60.0
"""A group that has trained for this long gets its spare processes, one after the other, if CPUs are idle."""
FAILED_TIMEOUT_S = 60.0
"""For how long a run that failed waits for its last checkpoint."""


def train_worker(
    config: TrainConfig,
    controller: ControllerClient,
    *,
    last_stage: int,
    report_stages: int,
    fingerprints: tuple[str, str],
    origin: Mapping[str, str],
) -> None:
    """Train one rank up to the end of `last_stage`. Ray Train calls this in every worker, again after every failure.

    An error that trying again doesn't cure is told to the controller, which ends the run. One that may pass, as storage
    that is away for minutes, is left to Ray Train, which tries again with a new group. The arguments are fields of
    `Rank`.
    """
    # A process that imported PyTorch before Ray gave it its CPUs computes with all cores: slower, and other last bits.
    torch.set_num_threads(config.cluster.threads_per_worker)
    limit_blas(config.cluster.threads_per_worker)
    choose_algorithms(deterministic=config.trainer.deterministic)
    context = ray.train.get_context()
    number, world_size = context.get_world_rank(), context.get_world_size()
    log_as_json(run=config.name, rank=number)
    node = ray.get_runtime_context().get_node_id()
    joined = controller.join(number, node, current_environment(), world_size)
    if joined.error:
        return
    rank = Rank(
        config=config,
        controller=controller,
        joined=joined,
        number=number,
        world_size=world_size,
        last_stage=last_stage,
        report_stages=report_stages,
        fingerprints=fingerprints,
        origin=origin,
        node=str(context.get_node_rank()) if context.get_local_world_size() < world_size else "",
        local_number=context.get_local_rank(),
    )
    try:
        _train(rank)
    except OutOfMemoryError as error:  # the other ranks wait for this one: all restart with smaller passes
        controller.ran_out_of_memory(error.stage, error.limit)
        raise
    except Exception as error:
        failure = failure_class(error)
        if failure is FailureClass.TRANSIENT:
            controller.note(f"retrying in a new worker group: {error}")
        elif failure in CURABLE:
            controller.failed(str(error))
        raise  # Ray Train tries again unless the run has failed; a bug so often as `max_failures` allows


def _train(rank: Rank) -> None:
    torch.manual_seed(rank.config.seed)
    for package in ("datasets", "infra.storage"):
        relay_log(package, rank.controller.note)
    storage = open_storage(rank.config.folder)
    with watch(rank, storage) as watchdog:
        data = load_data(rank)
        watchdog.heartbeat()
        rank = claimed(rank, storage)
        start = find_start(rank.config, storage)
        watchdog.heartbeat()
        trainer, hooks = build_trainer(rank, data, start, storage, watchdog.heartbeat)
        restore(rank, trainer, start, start.source or storage.uri)
        decision = run(rank, trainer, hooks)
    # What follows waits for storage, MLflow and the controller, each with a limit of its own.
    end(rank, hooks, decision)


def watch(rank: Rank, storage: Storage) -> Watchdog:
    """Return what ends this rank when it hangs: from the data's check to its last step. Before loaders are started."""
    timeout_s = rank.config.cluster.step_timeout_s
    tell = rank.controller.within(TELL_TIMEOUT_S).tell
    stuck = partial(end_stuck_rank, storage, rank.number, timeout_s, Stacks(), tell)
    cache = cache_folder(rank.config.data)
    return Watchdog(timeout_s, stuck, elsewhere=lambda: cache is not None and is_downloading(cache))


def claimed(rank: Rank, storage: Storage) -> Rank:
    """Have rank 0 claim the run's checkpoints, before any rank reads what to resume from.

    Nothing that an earlier group still writes becomes valid any more, so all ranks find the same.

    Raises:
        LeaseError: another submission has the run.
        FencedError: a newer group of this submission has it.
    """
    if rank.number == 0:
        rank = replace(rank, writer=claim(storage, Lease(storage, token=rank.joined.lease_token), rank.joined.group))
    gathered(rank.number)
    return rank


def load_data(rank: Rank) -> RunData:
    """Check the data, as the driver did: they may have changed since, or be others on this node.

    Raises:
        ValueError: (or a subclass) they don't fit the config, or are not those that the run was started with.
    """
    config = rank.config
    train, val = check_data(
        config.data,
        batch_sizes=[stage.batch_size for stage in config.stages],
        worker_counts=[rank.world_size],
    )
    order = sample_order(config.data, train, seed=config.seed)
    data = RunData(train=train, val=val, train_fingerprint=data_fingerprint(order, train))
    places = (config.data.train, config.data.val)
    for place, now, pinned in zip(places, data.fingerprints, rank.fingerprints, strict=True):
        if pinned not in (now, ""):
            raise DataError(
                f"{place} was indexed again, or its shards changed, since this run was started: index it as before and "
                "run the same command again, or give the run another --name"
            )
    return data


def build_trainer(
    rank: Rank, data: RunData, start: Start, storage: Storage, heartbeat: Callable[[], None]
) -> tuple[Trainer, RankHooks]:
    """Build task, model (with the weights that the run starts from), hooks (which tell each `heartbeat`) and trainer.

    Raises:
        ValueError: (or a subclass) the weights don't fit the model.
    """
    config = rank.config
    task = build_task(config.task, data.train.classes)
    model = build_model(config.model, num_classes=task.num_outputs)
    notes = start.notes
    if start.weights is not None:
        notes += tuple(f"{start.source}: {line}" for line in load_weights(model, start.weights))
    if rank.number == 0:
        for line in notes:
            log.info(line)
            rank.controller.note(line)
    hooks = RankHooks(rank, heartbeat) if rank.writer is None else TrackingHooks(rank, data, storage, heartbeat)
    device = ray.train.torch.get_device()
    trainer = Trainer(
        config,
        model=model,
        task=task,
        train=data.train,
        val=data.val,
        hooks=hooks,
        metadata=RunMetadata(
            config=recorded_config(config),
            data=data.train_fingerprint,
            val=data.val.fingerprint,
            versions=versions(),
            machine=", ".join(filter(None, (machine(), accelerator(device)))),
            classes=data.train.classes,
        ),
        device=device,
    )
    return trainer, hooks


def restore(rank: Rank, trainer: Trainer, start: Start, source: str) -> None:
    """Have the trainer resume from the checkpoint at `source`, if there is one, with all ranks at the same cursor.

    Raises:
        CheckpointError: it was trained on other data, or doesn't fit the model.
        DifferentStartError: the ranks found different checkpoints.
    """
    if start.snapshot is not None:
        if start.metadata.data != trainer.metadata.data:
            raise CheckpointError(f"{source} was trained on different data or with another sample order")
        trainer.restore(start.snapshot)
        if rank.number == 0:
            state = trainer.state
            rank.controller.on_resume(source, state.cursor, len(state.stage_starts) - 1, start.metadata.taken_s)
    if len(set(gathered(trainer.state.cursor))) > 1:
        raise DifferentStartError("the workers read different checkpoints: one was written or lost meanwhile")
    trainer.progress.lower_limits(agreed(rank.joined.out_of_memory, trainer.device), rank.world_size)


def run(rank: Rank, trainer: Trainer, hooks: RankHooks) -> Decision:
    """Train to the end of the last stage, or to the decision with which the group ends; return that."""
    if rank.config.cluster.standby:
        start_standby(STANDBY_DELAY_S * (1 + rank.local_number))
    try:
        return trainer.run(rank.last_stage)
    except Exception as error:
        if failure_class(error) in CURABLE:
            hooks.close("FAILED", timeout=FAILED_TIMEOUT_S)
        raise


def end(rank: Rank, hooks: RankHooks, decision: Decision) -> None:
    """Wait for what is on its way; end the record as the run has ended, or leave it to the next group."""
    done = rank.last_stage == len(rank.config.stages) - 1
    going_on = isinstance(decision, NewGroup) or not done
    hooks.close("KILLED" if isinstance(decision, Stop) else None if going_on else "FINISHED")
    if rank.number == 0:
        rank.controller.ended(decision)
