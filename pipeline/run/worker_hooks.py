"""What the training loop tells the outside world: the controller, MLflow, storage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray.train
from torch import Tensor

from datasets.loading.batch import Batch
from infra.cluster.logs import add_to_log
from infra.storage.base import Storage
from infra.storage.lease import Lease, LeaseError
from infra.tracking.tracker import Tracker
from pipeline.checkpoint.async_writer import Saver, SaverStoppedError
from pipeline.checkpoint.catalog import describe_checkpoints
from pipeline.checkpoint.format import Snapshot
from pipeline.config import TrainConfig
from pipeline.control.replies import JoinReply
from pipeline.run.controller_client import ControllerClient
from pipeline.run.provenance import flat_values, recorded_config
from pipeline.run.sample_log import SampleLog
from pipeline.run.summary import checkpoint_table, decision_table, describe, format_decision, stage_report, summary
from pipeline.schedule.decisions import Decision, Stop, leaving
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan
from pipeline.training.figures import grid_png
from pipeline.training.hooks import TrainHooks

log = logging.getLogger(__name__)


class WorkerHooks(TrainHooks):
    """What a rank tells the controller, MLflow and storage."""

    def __init__(
        self,
        config: TrainConfig,
        controller: ControllerClient,
        joined: JoinReply,
        storage: Storage,
        rank: int,
        report_stages: int = 0,
    ) -> None:
        self.controller, self.rank, self.num_stages = controller, rank, len(config.stages)
        self.report_stages, self.metric = report_stages, config.checkpoint.best_metric
        self.tracking_uri = joined.tracking_uri or config.tracking.uri
        tracking = replace(config.tracking, uri=self.tracking_uri)
        self.tracker = Tracker(tracking, config.name, storage=storage) if rank == 0 else None
        if self.tracker is not None:
            own = replace(config, tracking=replace(config.tracking, extra_params=()))  # those have names of their own
            self.tracker.log_params(flat_values(recorded_config(own)) | dict(config.tracking.extra_params))
            self.tracker.set_description(describe(config))
        self.lease = Lease(storage, token=joined.lease_token)
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
        self.tracker.log_artifact_bytes(f"samples/stage-{number}.png", grid_png(images))

    def stepped(self, batch: Batch, cursor: int) -> None:
        """Write down the step's samples, if somebody wants to know."""
        self.sample_log.add(batch, cursor)

    def logged(self, metrics: dict[str, float], cursor: int) -> None:
        """Queue a row of metrics for MLflow; tell where they can be seen."""
        assert self.tracker is not None
        if self.tracker.url:
            self.controller.note(f"MLflow run {self.tracker.url}")  # the same line is not repeated
        self.tracker.log_metrics(metrics, step=cursor)

    def reported(self, cursor: int, wait_share: float) -> None:
        """Tell the controller how far this rank is, without waiting for an answer."""
        self.controller.report(self.rank, cursor, wait_share)

    def decide(self, progress: Progress) -> tuple[Decision, ...]:
        """Ask the controller, also for the MLflow server's address: an operator may have named another one."""
        assert self.tracker is not None
        reply = self.controller.decide(progress)
        if reply.tracking_uri and reply.tracking_uri != self.tracking_uri:
            self.tracking_uri = reply.tracking_uri
            self.tracker.set_uri(reply.tracking_uri)
        if isinstance(leaving(reply.decisions), Stop) and reply.taken_over:
            self.tracker.abandon()
        return reply.decisions

    def decided(self, decisions: Sequence[dict[str, Any]]) -> None:
        """Show in MLflow what was decided: as a table, and the newest as a tag."""
        assert self.tracker is not None
        if decisions:
            self.tracker.log_table("control.json", decision_table(decisions))
            self.tracker.set_tags({"control": format_decision(decisions[-1])})

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
        if ended := self.controller.error():
            raise SaverStoppedError(ended)
        try:
            self.lease.check()  # the controller may not have heard of it yet
        except LeaseError as error:
            raise SaverStoppedError(str(error)) from error
        if self.tracker is not None:
            self.tracker.persist()

    def saved(self, uri: str, cursor: int) -> None:
        """Tell the controller of the newest checkpoint, and tag the MLflow run with it."""
        log.info("checkpoint %s is whole", uri, extra={"cursor": cursor})
        self.controller.saved(uri, cursor)
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
        self.controller.not_saved(line)

    def gave_up(self, line: str) -> None:
        """End the run with this line."""
        self.controller.failed(line)

    def close(self, status: str | None, timeout: float | None = None) -> None:
        """Wait for what is still on its way; end the MLflow run with `status`, or leave it running for the next.

        A run that failed, as one whose last checkpoint was never written, is recorded as failed whatever its loop did.
        """
        self.saver.wait(timeout)
        if self.tracker is None:
            return
        if self.controller.error():
            status = "FAILED"
        if status is not None:
            self.tracker.close(status)
        else:
            self.tracker.persist(timeout=30)
