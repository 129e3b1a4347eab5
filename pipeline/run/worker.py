"""One rank of a run: wires data, model, trainer, storage and tracking. The only place where all of them meet."""

from __future__ import annotations

import logging

import ray
import ray.train
import torch

from datasets.checks import check_data, data_fingerprint
from datasets.loading.loader import sample_order
from infra.cluster.logs import log_as_json
from infra.cluster.prestart import current_environment, start_standby
from infra.storage.failures import FailureClass, failure_class
from infra.storage.open import open_storage
from infra.tracking.mlflow_run import FINGERPRINT_TAG
from model.factory import build_model
from model.weights import load_weights
from pipeline.checkpoint.catalog import CheckpointError
from pipeline.checkpoint.resume import find_start
from pipeline.config import TrainConfig
from pipeline.control.replies import JoinReply
from pipeline.run.controller_client import ControllerClient
from pipeline.run.log_relay import relay_log
from pipeline.run.provenance import machine, recorded_config, run_fingerprint, versions
from pipeline.run.worker_hooks import WorkerHooks
from pipeline.schedule.decisions import NewGroup, Stop
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
STANDBY_DELAY_S = 20.0
"""A group that has trained for this long gets its spare processes."""
FAILED_TIMEOUT_S = 60.0
"""For how long a run that failed waits for its last checkpoint."""


def train_worker(config: TrainConfig, controller: ControllerClient, last_stage: int, report_stages: int = 0) -> None:
    """Train one rank up to the end of `last_stage`. Ray Train calls this in every worker, again after every failure.

    An error that trying again doesn't cure is told to the controller, which ends the run. One that
    may pass, as storage that is away for minutes, is left to Ray Train, which tries again with a new group. Ray Train
    hears of the ends of the first `report_stages` stages.
    """
    # A process that imported PyTorch before Ray gave it its CPUs computes with all cores: slower, and other last bits.
    torch.set_num_threads(config.cluster.threads_per_worker)
    rank = ray.train.get_context().get_world_rank()
    log_as_json(run=config.name, rank=rank)
    node = ray.get_runtime_context().get_node_id()
    world_size = ray.train.get_context().get_world_size()
    joined = controller.join(rank, node, current_environment(), world_size)
    if joined.error:
        return
    try:
        _train(config, controller, joined, last_stage, rank, report_stages)
    except OutOfMemoryError as error:  # the other ranks wait for this one: all start anew, with smaller passes
        controller.ran_out_of_memory(error.stage, error.limit)
        raise
    except Exception as error:
        failure = failure_class(error)
        if failure is FailureClass.TRANSIENT:
            controller.note(f"tries again in a new worker group: {error}")
        elif failure in CURABLE:
            controller.failed(str(error))
        raise  # Ray Train tries again unless the run has failed; a bug so often as `max_failures` allows


def _train(
    config: TrainConfig, controller: ControllerClient, joined: JoinReply, last_stage: int, rank: int, report_stages: int
) -> None:
    torch.manual_seed(config.seed)
    for package in ("datasets", "infra.storage"):
        relay_log(package, controller.note)
    context = ray.train.get_context()
    manifest, val = check_data(
        config.data,
        batch_sizes=[stage.batch_size for stage in config.stages],
        worker_counts=[context.get_world_size()],
    )
    order = sample_order(config.data, manifest.shard_counts, seed=config.seed)
    data = data_fingerprint(order, manifest)
    task = build_task(config.task, manifest.classes)
    storage = open_storage(f"{config.storage}/{config.name}")
    start = find_start(config, storage)
    model = build_model(config.model, num_classes=task.num_outputs)
    notes = start.notes
    if start.weights is not None:
        notes += tuple(f"{start.source}: {line}" for line in load_weights(model, start.weights))
    if rank == 0:
        for line in notes:
            log.info(line)
            controller.note(line)
    hooks = WorkerHooks(config, controller, joined, storage, rank, report_stages)
    if hooks.tracker is not None:
        found_by = run_fingerprint(config, train=data, val=val.fingerprint)
        hooks.tracker.set_tags({FINGERPRINT_TAG: found_by})
    trainer = Trainer(
        config,
        model=model,
        task=task,
        samples_per_epoch=order.samples_per_epoch,
        hooks=hooks,
        facts={
            "config": recorded_config(config),
            "data": data,
            "val": val.fingerprint,
            "versions": versions(),
            "machine": machine(),
            "classes": list(manifest.classes),
        },
        device=ray.train.torch.get_device(),
    )
    if start.snapshot is not None:
        if start.facts["data"] != data:
            raise CheckpointError(f"{start.source or storage.uri} was trained on other data or another sample order")
        trainer.restore(start.snapshot)
        if rank == 0:
            state = trainer.state
            taken_s = start.facts.get("taken_s")  # older versions didn't write it
            controller.on_resume(start.source or storage.uri, state.cursor, len(state.stage_starts) - 1, taken_s)
    if config.cluster.standby:
        start_standby(STANDBY_DELAY_S)
    if len(set(gathered(trainer.state.cursor))) > 1:
        raise DifferentStartError("the workers read different checkpoints: one was written or lost meanwhile")
    trainer.progress.lower_limits(agreed(joined.out_of_memory, trainer.device), context.get_world_size())
    try:
        decision = trainer.run(last_stage)
    except Exception as error:
        if failure_class(error) in CURABLE:
            hooks.close("FAILED", timeout=FAILED_TIMEOUT_S)
        raise
    done = last_stage == len(config.stages) - 1
    going_on = isinstance(decision, NewGroup) or not done
    hooks.close("KILLED" if isinstance(decision, Stop) else None if going_on else "FINISHED")
    if rank == 0:
        controller.ended(decision)
