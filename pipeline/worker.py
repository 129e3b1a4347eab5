"""One rank of a run: wires data, model, trainer, storage and tracking. The only place where all of them meet."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import ray.train
import torch
from torch import Tensor
from torchvision.utils import make_grid

from datasets.checks import check_data, data_fingerprint
from datasets.errors import DataAwayError
from datasets.loading.batch import Batch
from datasets.loading.loader import sample_order
from infra.cluster.logs import add_to_log, log_as_json
from infra.cluster.prestart import current_environment, start_standby
from infra.storage.base import Storage, StorageAwayError
from infra.storage.lease import Lease, LeaseError
from infra.storage.open import open_storage
from infra.tracking.mlflow_run import FINGERPRINT_TAG
from infra.tracking.tracker import Tracker
from model.factory import build_model
from model.weights import load_weights
from pipeline.checkpoint import Snapshot
from pipeline.config import TrainConfig
from pipeline.decisions import Decision, NewGroup, Stop, leaving
from pipeline.description import checkpoint_table, decision_table, describe, in_words, stage_report, summary
from pipeline.hooks import TrainHooks
from pipeline.memory import OutOfMemoryError
from pipeline.parallel import gathered
from pipeline.policy import Progress
from pipeline.provenance import flat_values, machine, recorded_config, run_fingerprint, versions
from pipeline.relay import relay_log
from pipeline.resume import find_start
from pipeline.sample_log import SampleLog
from pipeline.saver import Saver, SaverStoppedError
from pipeline.stages import StageSpan
from pipeline.state import CheckpointError, describe_checkpoints
from pipeline.task import build_task
from pipeline.trainer import Trainer

log = logging.getLogger(__name__)


class DifferentStartError(RuntimeError):
    """The ranks begin at different cursors; another worker group can do better."""


PASSING = (StorageAwayError, DataAwayError, DifferentStartError)
"""What a worker group that is started later may be spared."""
STANDBY_DELAY_S = 20.0
"""A group that has trained for this long gets its spare processes."""
FAILED_TIMEOUT_S = 60.0
"""For how long a run that failed waits for its last checkpoint."""


def train_worker(config: TrainConfig, controller: Any, last_stage: int, report_stages: int = 0) -> None:
    """Train one rank up to the end of `last_stage`. Ray Train calls this in every worker, again after every failure.

    An error that trying again doesn't cure is told to the controller (an actor's handle), which ends the run. One that
    may pass, as storage that is away for minutes, is left to Ray Train, which tries again with a new group. Ray Train
    hears of the ends of the first `report_stages` stages.
    """
    # A process that imported PyTorch before Ray gave it its CPUs computes with all cores: slower, and other last bits.
    torch.set_num_threads(config.cluster.threads_per_worker)
    rank = ray.train.get_context().get_world_rank()
    log_as_json(run=config.name, rank=rank)
    node = ray.get_runtime_context().get_node_id()
    world_size = ray.train.get_context().get_world_size()
    if ray.get(controller.joined.remote(rank, node, current_environment(), world_size)):
        return
    try:
        _train(config, controller, last_stage, rank, report_stages)
    except PASSING as error:
        controller.note.remote(f"tries again in a new worker group: {error}")
        raise
    except OutOfMemoryError as error:  # the other ranks wait for this one: all start anew, with smaller passes
        ray.get(controller.ran_out_of_memory.remote(error.stage, error.limit))
        raise
    except ValueError as error:  # what a user can cure: data, storage, a loss that isn't finite
        ray.get(controller.failed.remote(str(error)))
        raise


def _train(config: TrainConfig, controller: Any, last_stage: int, rank: int, report_stages: int) -> None:
    torch.manual_seed(config.seed)
    relay_log("datasets", controller.note.remote)
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
            controller.note.remote(line)
    hooks = WorkerHooks(config, controller, storage, rank, report_stages)
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
            controller.goes_on.remote(start.source or storage.uri, state.cursor, len(state.stage_starts) - 1, taken_s)
    if config.cluster.standby:
        start_standby(STANDBY_DELAY_S)
    if len(set(gathered(trainer.state.cursor))) > 1:
        raise DifferentStartError("the workers read different checkpoints: one was written or lost meanwhile")
    trainer.course.lower_limits(ray.get(controller.out_of_memory.remote()), context.get_world_size())
    try:
        decision = trainer.run(last_stage)
    except ValueError as error:
        if not isinstance(error, PASSING):
            hooks.close("FAILED", timeout=FAILED_TIMEOUT_S)
        raise
    done = last_stage == len(config.stages) - 1
    going_on = isinstance(decision, NewGroup) or not done
    hooks.close("KILLED" if isinstance(decision, Stop) else None if going_on else "FINISHED")
    if rank == 0:
        ray.get(controller.ended.remote(decision))


class WorkerHooks(TrainHooks):
    """What a rank tells the controller, MLflow and storage."""

    def __init__(
        self, config: TrainConfig, controller: Any, storage: Storage, rank: int, report_stages: int = 0
    ) -> None:
        self.controller, self.rank, self.num_stages = controller, rank, len(config.stages)
        self.report_stages, self.metric = report_stages, config.checkpoint.best_metric
        self.tracking_uri = ray.get(controller.tracking_uri.remote()) or config.tracking.uri
        tracking = replace(config.tracking, uri=self.tracking_uri)
        self.tracker = Tracker(tracking, config.name, storage=storage) if rank == 0 else None
        if self.tracker is not None:
            own = replace(config, tracking=replace(config.tracking, extra_params=()))  # those have names of their own
            self.tracker.log_params(flat_values(recorded_config(own)) | dict(config.tracking.extra_params))
            self.tracker.set_description(describe(config))
        self.lease = Lease(storage, token=ray.get(controller.lease_token.remote()))
        self.saver = Saver(storage, config.checkpoint, self)
        self.sample_log = SampleLog(rank, ray.train.get_context().get_world_size())

    def stage_started(self, span: StageSpan, images: Tensor) -> None:
        """On rank 0, tag the stage and keep its first batch as a picture."""
        number = span.index + 1
        add_to_log(stage=number)
        if self.tracker is None:
            return
        log.info("stage %d begins: %s", number, summary(span.stage))
        self.tracker.set_tags({"stage": f"{number} of {self.num_stages}", f"stage.{number}": summary(span.stage)})
        self.tracker.log_artifact_bytes(f"samples/stage-{number}.png", _grid_png(images))

    def stepped(self, batch: Batch, cursor: int) -> None:
        """Write down the step's samples, if somebody wants to know."""
        self.sample_log.add(batch, cursor)

    def logged(self, metrics: dict[str, float], cursor: int) -> None:
        """Queue a row of metrics for MLflow; tell where they can be seen."""
        assert self.tracker is not None
        if self.tracker.url:
            self.controller.note.remote(f"MLflow run {self.tracker.url}")  # the same line is not repeated
        self.tracker.log_metrics(metrics, step=cursor)

    def reported(self, cursor: int, wait_share: float) -> None:
        """Tell the controller how far this rank is, without waiting for an answer."""
        self.controller.report.remote(self.rank, cursor, wait_share)

    def decide(self, progress: Progress) -> tuple[Decision, ...]:
        """Ask the controller, also for the MLflow server's address: an operator may have named another one."""
        assert self.tracker is not None
        decisions: tuple[Decision, ...]
        decisions, uri = ray.get([self.controller.decide.remote(progress), self.controller.tracking_uri.remote()])
        if uri and uri != self.tracking_uri:
            self.tracking_uri = uri
            self.tracker.set_uri(uri)
        if isinstance(leaving(decisions), Stop) and ray.get(self.controller.taken_over.remote()):
            self.tracker.abandon()
        return decisions

    def decided(self, decisions: Sequence[dict[str, Any]]) -> None:
        """Show in MLflow what was decided: as a table, and the newest as a tag."""
        assert self.tracker is not None
        if decisions:
            self.tracker.log_table("control.json", decision_table(decisions))
            self.tracker.set_tags({"control": in_words(decisions[-1])})

    def stage_ended(self, span: StageSpan, result: dict[str, float]) -> None:
        """Tell Ray Train, and by it a sweep."""
        if span.index < self.report_stages:
            ray.train.report(stage_report(span.index + 1, result, self.metric))

    def profiled(self, trace: bytes) -> None:
        """Keep the trace."""
        assert self.tracker is not None
        self.tracker.log_artifact_bytes("profile/trace.json.gz", trace)

    def ended(self, pictures: Mapping[str, bytes]) -> None:
        """Keep pictures of what was learned."""
        assert self.tracker is not None
        for name, picture in pictures.items():
            self.tracker.log_artifact_bytes(name, picture)

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        """Hand a snapshot to the saver's thread, on rank 0: its state is every rank's."""
        if self.rank == 0:
            self.saver.take(snapshot())

    # From the saver, in its thread ------------------------------------------------------------------------------------

    def before_whole(self) -> None:
        """Make the rows up to a checkpoint outlive this process: a resumed run won't make them again.

        A run that has ended, as by losing its lease to another submission, makes no checkpoint whole any more.
        """
        if error := ray.get(self.controller.error.remote()):
            raise SaverStoppedError(error)
        try:
            self.lease.check()  # the controller may not have heard of it yet
        except LeaseError as error:
            raise SaverStoppedError(str(error)) from error
        if self.tracker is not None:
            self.tracker.persist()

    def saved(self, uri: str, cursor: int) -> None:
        """Tell the controller of the newest checkpoint, and tag the MLflow run with it."""
        log.info("checkpoint %s is whole", uri, extra={"cursor": cursor})
        self.controller.saved.remote(uri, cursor)
        if self.tracker is not None:
            self.tracker.set_tags({"checkpoint": uri})

    def pruned(self) -> None:
        """List in MLflow the checkpoints that are kept."""
        if self.tracker is not None:
            table = checkpoint_table(describe_checkpoints(self.saver.storage), self.saver.storage.uri)
            self.tracker.log_table("checkpoints.json", table)

    def waits(self, line: str) -> None:
        """Tell the user, once for each fault."""
        log.warning(line)
        self.controller.not_saved.remote(line)

    def gave_up(self, line: str) -> None:
        """End the run with this line."""
        ray.get(self.controller.failed.remote(line))

    def close(self, status: str | None, timeout: float | None = None) -> None:
        """Wait for what is still on its way; end the MLflow run with `status`, or leave it running for the next.

        A run that failed, as one whose last checkpoint was never written, is recorded as failed whatever its loop did.
        """
        self.saver.wait(timeout)
        if self.tracker is None:
            return
        if ray.get(self.controller.error.remote()):
            status = "FAILED"
        if status is not None:
            self.tracker.close(status)
        else:
            self.tracker.persist(timeout=30)


def _grid_png(images: Tensor, count: int = 32) -> bytes:
    """Return a PNG of the first `count` of normalized float images [B, 3, H, W]."""
    from PIL import Image

    shown = images[:count].float().cpu()
    low, high = shown.amin(), shown.amax()
    grid = make_grid((shown - low) / (high - low).clamp_min(1e-6), nrow=8, padding=2)
    out = io.BytesIO()
    Image.fromarray((grid * 255).byte().permute(1, 2, 0).numpy()).save(out, format="PNG")
    return out.getvalue()
