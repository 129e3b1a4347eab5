"""What the training loop tells the outside world: every rank the controller, rank 0 also MLflow and storage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import ray.train
from torch import Tensor

from datasets.loading.batch import Batch
from infra.cluster.logs import add_to_log
from infra.storage.base import Storage
from infra.storage.lease import Lease
from infra.tracking.mlflow_run import FINGERPRINT_TAG
from infra.tracking.system_metrics import NodeReporter
from infra.tracking.tracker import Tracker
from pipeline.checkpoint.async_writer import Saver
from pipeline.checkpoint.format import Snapshot
from pipeline.config import TrainConfig
from pipeline.run.checkpoint_listener import CheckpointListener
from pipeline.run.lineage import checkpoint_models, datasets_of
from pipeline.run.provenance import flat_values, recorded_config, run_fingerprint
from pipeline.run.rank import Rank, RunData
from pipeline.run.sample_log import SampleLog
from pipeline.run.schedule_picture import schedule_picture
from pipeline.run.summary import class_table, decision_table, describe, format_decision, stage_report, summary
from pipeline.schedule.decisions import Decision, DecisionRecord, Stop, leaving
from pipeline.schedule.policy import Progress
from pipeline.schedule.stages import StageSpan
from pipeline.training.class_scores import ClassRow
from pipeline.training.figures import grid_png
from pipeline.training.final_scores import FinalScores
from pipeline.training.hooks import TrainHooks

log = logging.getLogger(__name__)


class RankHooks(TrainHooks):
    """What every rank tells: the controller how far it is, and Ray Train a stage's end.

    Ray Train hears of the ends of the first `report_stages` stages. One rank of each node tells the node's load, but on
    rank 0's, where the tracker records it. `heartbeat` is the rank's watchdog's.
    """

    def __init__(self, rank: Rank, heartbeat: Callable[[], None]) -> None:
        tracking = rank.config.tracking
        self.controller, self.rank, self._heartbeat = rank.controller, rank.number, heartbeat
        self.report_stages, self.metric = rank.report_stages, rank.config.checkpoint.best_metric
        self.sample_log = SampleLog(rank.number, rank.world_size)
        reports_load = tracking.system_metrics and rank.writer is None and rank.local_number == 0
        tell = partial(rank.controller.loaded, rank.node)
        self._reporter = NodeReporter(tracking.system_interval_s, tell) if reports_load else None

    def heartbeat(self) -> None:
        """Tell this rank's watchdog."""
        self._heartbeat()

    def stage_started(self, span: StageSpan, images: Tensor) -> None:
        """Have log lines say the stage."""
        add_to_log(stage=span.index + 1)

    def stepped(self, batch: Batch, cursor: int) -> None:
        """Write down the step's samples, if somebody wants to know."""
        self.sample_log.add(batch, cursor)

    def reported(self, cursor: int, wait_share: float) -> None:
        """Tell the controller how far this rank is, without waiting for an answer."""
        self.controller.report(self.rank, cursor, wait_share)

    def stage_ended(self, span: StageSpan, result: dict[str, float]) -> None:
        """Tell Ray Train, and by it a sweep."""
        if span.index < self.report_stages:
            ray.train.report(stage_report(span.index + 1, result, self.metric))

    def close(self, status: str | None, timeout: float | None = None) -> None:
        """End what runs next to the loop."""
        if self._reporter is not None:
            self._reporter.close()


class TrackingHooks(RankHooks):
    """What rank 0 tells besides: MLflow the run, the controller its progress, storage the checkpoints."""

    def __init__(self, rank: Rank, data: RunData, storage: Storage, heartbeat: Callable[[], None]) -> None:
        super().__init__(rank, heartbeat)
        config, joined, writer = rank.config, rank.joined, rank.writer
        assert writer is not None
        self.num_stages, self.aspect_ratio = len(config.stages), config.data.aspect_ratio
        self.tracking_uri = joined.tracking_uri or config.tracking.uri
        self.tracker = _tracker(config, self.tracking_uri, storage, writer.epoch, rank.node)
        fingerprint = run_fingerprint(config, train=data.train_fingerprint, val=data.val.fingerprint)
        self.tracker.set_tags({FINGERPRINT_TAG: fingerprint} | dict(rank.origin))
        validation = datasets_of(data.val, "validation")
        self.tracker.log_inputs([*datasets_of(data.train, "training"), *validation])
        lease = Lease(storage, token=joined.lease_token)
        models = partial(checkpoint_models, where=storage.uri, config=config, validation=validation)
        listener = CheckpointListener(rank.controller, lease, self.tracker, storage, models)
        self.saver = Saver(storage, config.checkpoint, listener, writer=writer)

    def stage_started(self, span: StageSpan, images: Tensor) -> None:
        """Tag the stage and keep its first batch as a picture."""
        super().stage_started(span, images)
        number = span.index + 1
        shown = summary(span.stage, self.aspect_ratio)
        log.info("stage %d begins: %s", number, shown)
        self.tracker.set_tags({"stage": f"{number} of {self.num_stages}", f"stage.{number}": shown})
        self.tracker.log_image("samples", grid_png(images), step=span.start)

    def logged(self, metrics: dict[str, float], cursor: int) -> None:
        """Queue a row of metrics for MLflow; tell where they can be seen."""
        if self.tracker.url:
            self.controller.note(f"MLflow run {self.tracker.url}")  # the same line is not repeated
            self.controller.note(f"MLflow charts {self.tracker.charts_url}")
        self.tracker.log_metrics(metrics, step=cursor)

    def decide(self, progress: Progress) -> tuple[Decision, ...]:
        """Ask the controller; move the record to another MLflow server if an operator has named one."""
        reply = self.controller.decide(progress)
        if reply.tracking_uri and reply.tracking_uri != self.tracking_uri:
            self.tracking_uri = reply.tracking_uri
            self.tracker.set_uri(reply.tracking_uri)
        for node, values in reply.loads:
            self.tracker.log_load(node, values)
        if isinstance(leaving(reply.decisions), Stop) and reply.taken_over:
            self.tracker.abandon()
        return reply.decisions

    def decided(self, records: Sequence[DecisionRecord]) -> None:
        """Show in MLflow what was decided: as a table, and the newest as a tag."""
        if records:
            self.tracker.log_table("control.json", decision_table(records))
            self.tracker.set_tags({"control": format_decision(records[-1])})

    def noted(self, line: str) -> None:
        """Log it, and tell the controller for the run's status."""
        log.info(line)
        self.controller.note(line)

    def profiled(self, trace: bytes) -> None:
        """Keep the trace."""
        self.tracker.log_artifact_bytes("profile/trace.json.gz", trace)

    def ended(self, pictures: Mapping[str, bytes]) -> None:
        """Keep pictures of what was learned."""
        for name, picture in pictures.items():
            self.tracker.log_artifact_bytes(name, picture)

    def weights_compared(self, scores: FinalScores) -> None:
        """Name the better ones in a tag and to the user."""
        self.tracker.set_tags({"final.better": scores.better})
        log.info(scores.line)
        self.controller.note(scores.line)

    def classes_evaluated(self, rows: Sequence[ClassRow]) -> None:
        """Keep them as a table."""
        self.tracker.log_table("classes.json", class_table(rows))

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        """Hand a snapshot to the saver's thread: rank 0's state is every rank's."""
        self.saver.take(snapshot())

    def close(self, status: str | None, timeout: float | None = None) -> None:
        """Wait for what is still on its way; end the MLflow run with `status`, or leave it running for the next.

        A run that failed, as one whose last checkpoint was never written, is recorded as failed whatever its loop did.
        """
        self.saver.wait(timeout)
        if self.controller.error():
            status = "FAILED"
        if status == "FINISHED":
            self.saver.catch_up()
        if status is not None:
            self.tracker.close(status)
        else:
            self.tracker.persist(timeout=30)


def _tracker(config: TrainConfig, uri: str, storage: Storage, epoch: int, node: str) -> Tracker:
    """Return the run's tracker, with the config as its params."""
    tracker = Tracker(replace(config.tracking, uri=uri), config.name, storage=storage, epoch=epoch, node=node)
    own = replace(config, tracking=replace(config.tracking, extra_params=()))  # those have names of their own
    tracker.log_params(flat_values(recorded_config(own)) | dict(config.tracking.extra_params))
    tracker.set_description(describe(config))
    tracker.log_artifact_bytes("schedule.png", schedule_picture(config.stages))
    return tracker
