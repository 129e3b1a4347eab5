"""One rank of a run: wires data, model, trainer, storage and tracking. The only place where all of them meet."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import torch
from ray.train import CheckpointUploadMode
from torch import Tensor
from torchvision.utils import make_grid

from datasets.config import check_data
from datasets.loader import sample_order
from infra.storage import Storage, StorageError, open_storage
from infra.tracking import Tracker
from model.factory import build_model
from pipeline.checkpoint import Snapshot, newest_whole, write_checkpoint
from pipeline.config import TrainConfig
from pipeline.description import describe, summary
from pipeline.hooks import TrainHooks
from pipeline.policy import Decision, Progress
from pipeline.provenance import config_values, flat_values, versions
from pipeline.stages import StageSpan
from pipeline.state import CheckpointError, prune
from pipeline.task import build_task
from pipeline.trainer import Trainer

log = logging.getLogger(__name__)

SAVE_RETRY_S = 5.0
"""Pause between two tries to write a checkpoint that storage didn't take."""
SAVE_GIVE_UP_S = 900.0
"""A checkpoint that storage hasn't taken for this long ends the worker: what would be lost grows too large."""


def train_worker(config: TrainConfig, controller: Any, last_stage: int) -> None:
    """Train one rank up to the end of `last_stage`. Ray Train calls this in every worker, again after every failure.

    An error that trying again doesn't cure is told to the controller (an actor's handle), which ends the run.
    """
    rank = ray.train.get_context().get_world_rank()
    if ray.get(controller.joined.remote(rank)):
        return
    try:
        _train(config, controller, last_stage, rank)
    except ValueError as error:  # what a user can cure: data, storage, a loss that isn't finite
        ray.get(controller.failed.remote(str(error)))
        raise


def _train(config: TrainConfig, controller: Any, last_stage: int, rank: int) -> None:
    torch.manual_seed(config.seed)
    context = ray.train.get_context()
    manifest, _ = check_data(
        config.data,
        batch_sizes=[stage.batch_size for stage in config.stages],
        worker_counts=[context.get_world_size()],
    )
    order = sample_order(config.data, manifest.shard_counts, seed=config.seed)
    task = build_task(config.task, manifest.classes)
    storage = open_storage(f"{config.storage}/{config.name}")
    snapshot, skipped = newest_whole(storage)
    for line in skipped:
        log.warning("skipped a checkpoint: %s", line)
    hooks = WorkerHooks(config, controller, storage, rank)
    trainer = Trainer(
        config,
        model=build_model(config.model, num_classes=task.num_outputs),
        task=task,
        samples_per_epoch=order.samples_per_epoch,
        hooks=hooks,
        facts={"config": config_values(config), "data": order.fingerprint, "versions": versions()},
        device=ray.train.torch.get_device(),
    )
    if snapshot is not None:
        if snapshot.facts["data"] != order.fingerprint:
            raise CheckpointError(f"{storage.uri}/{snapshot.key} was trained on other data or another sample order")
        trainer.restore(snapshot)
    decision = trainer.run(last_stage)
    done = last_stage == len(config.stages) - 1
    hooks.close("KILLED" if decision is Decision.STOP else "FINISHED" if done else None)


class WorkerHooks(TrainHooks):
    """What a rank tells the controller, MLflow and storage."""

    def __init__(self, config: TrainConfig, controller: Any, storage: Storage, rank: int) -> None:
        self.controller, self.rank, self.num_stages = controller, rank, len(config.stages)
        self.tracker = Tracker(config.tracking, config.name, storage=storage) if rank == 0 else None
        if self.tracker is not None:
            self.tracker.log_params(flat_values(config_values(config)))
            self.tracker.set_description(describe(config))
        self.saver = Saver(storage, config.checkpoint.keep, self._before_whole, self._saved)

    def stage_started(self, span: StageSpan, images: Tensor) -> None:
        """Tag the stage and keep its first batch as a picture."""
        assert self.tracker is not None
        number = span.index + 1
        self.tracker.set_tags({"stage": f"{number} of {self.num_stages}", f"stage.{number}": summary(span.stage)})
        self.tracker.log_artifact_bytes(f"samples/stage-{number}.png", _grid_png(images))

    def logged(self, metrics: dict[str, float], cursor: int) -> None:
        """Queue a row of metrics for MLflow."""
        assert self.tracker is not None
        self.tracker.log_metrics(metrics, step=cursor)

    def decide(self, progress: Progress) -> Decision:
        """Ask the controller."""
        return ray.get(self.controller.decide.remote(progress))

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        """Report to Ray Train, with a checkpoint from rank 0 that its upload thread writes."""
        checkpoint = self.saver.take(snapshot()) if self.rank == 0 else None
        ray.train.report(
            {},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self.saver.upload,
            delete_local_checkpoint_after_upload=False,
        )

    def _before_whole(self) -> None:
        """Make the rows up to a checkpoint outlive this process: a resumed run won't make them again."""
        if self.tracker is not None:
            self.tracker.persist()

    def _saved(self, uri: str) -> None:
        if self.tracker is not None:
            self.tracker.set_tags({"checkpoint": uri})

    def close(self, status: str | None) -> None:
        """Wait for what is still on its way; end the MLflow run with `status`, or leave it running for the next."""
        self.saver.wait()
        if self.tracker is not None and status is not None:
            self.tracker.close(status)
        elif self.tracker is not None:
            self.tracker.persist(timeout=30)


class Saver:
    """Writes snapshots in Ray Train's upload thread: one in flight, and a newer one replaces the one that waits."""

    def __init__(
        self, storage: Storage, keep: int, before_whole: Callable[[], None], saved: Callable[[str], None]
    ) -> None:
        self.storage, self.keep, self.before_whole, self.saved = storage, keep, before_whole, saved
        self._waiting: Snapshot | None = None
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._written = ""

    def take(self, snapshot: Snapshot) -> ray.train.Checkpoint:
        """Make `snapshot` the next one to be written; returns the checkpoint that it will be."""
        with self._lock:
            self._waiting = snapshot
            self._idle.clear()
        return self._checkpoint(snapshot.key)

    def upload(self, checkpoint: ray.train.Checkpoint, _: str) -> ray.train.Checkpoint:
        """Write the newest snapshot that waits, if there is one. Ray Train calls this, one call at a time."""
        give_up = time.monotonic() + SAVE_GIVE_UP_S
        while (snapshot := self._take_waiting()) is not None:
            try:
                self._written = write_checkpoint(self.storage, snapshot, self.before_whole)
                prune(self.storage, self.keep)
                self.saved(f"{self.storage.uri}/{self._written}")
            except StorageError as error:
                if time.monotonic() > give_up:
                    raise
                log.warning("checkpoint %s not written, will try again: %s", snapshot.key, error)
                self._put_back(snapshot)
                time.sleep(SAVE_RETRY_S)
        return self._checkpoint(self._written) if self._written else checkpoint

    def wait(self) -> None:
        """Return when nothing waits or is being written."""
        self._idle.wait(SAVE_GIVE_UP_S)

    def _take_waiting(self) -> Snapshot | None:
        with self._lock:
            snapshot, self._waiting = self._waiting, None
            if snapshot is None:
                self._idle.set()
            return snapshot

    def _put_back(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._waiting = self._waiting or snapshot

    def _checkpoint(self, key: str) -> ray.train.Checkpoint:
        place = ray.train.get_context().get_storage()
        return ray.train.Checkpoint(path=f"{place.experiment_fs_path}/{key}", filesystem=place.storage_filesystem)


def _grid_png(images: Tensor, count: int = 32) -> bytes:
    """Return a PNG of the first `count` of normalized float images [B, 3, H, W]."""
    from PIL import Image

    shown = images[:count].float().cpu()
    low, high = shown.amin(), shown.amax()
    grid = make_grid((shown - low) / (high - low).clamp_min(1e-6), nrow=8, padding=2)
    out = io.BytesIO()
    Image.fromarray((grid * 255).byte().permute(1, 2, 0).numpy()).save(out, format="PNG")
    return out.getvalue()
