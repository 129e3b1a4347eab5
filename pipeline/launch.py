"""From a checked config to a running controller: the edge where plain classes meet Ray."""

from __future__ import annotations

from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from infra.cluster import connect, start_actor
from infra.storage import open_storage, pyarrow_filesystem
from pipeline.config import TrainConfig
from pipeline.controller import Segment, StageController
from pipeline.worker import train_worker


def start_controller(config: TrainConfig) -> Any:
    """Connect to the cluster and start the run's controller actor; `controller.run` then trains.

    Raises:
        ClusterError: no cluster, not enough room, or the run is going on already.
    """
    workers = [stage.num_workers or config.cluster.num_workers for stage in config.stages]
    connect(config.cluster, num_workers=max(workers))
    name = f"run-{config.name}"
    fit = SegmentRunner(config)
    return start_actor(StageController, config.stages, config.cluster.num_workers, fit, name=name)


class SegmentRunner:
    """Trains a segment as one Ray Train worker group. Lives in the controller's actor."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def __call__(self, segment: Segment) -> None:
        """Return when the segment is trained; raise when Ray Train gives up."""
        cluster = self.config.cluster
        resources = {"CPU": cluster.cpus_per_worker}
        if cluster.gpus_per_worker:
            resources["GPU"] = cluster.gpus_per_worker
        filesystem, path = pyarrow_filesystem(self.config.storage)
        # Ray's own list of checkpoints may name some that were pruned since; which one to resume from is ours to find.
        open_storage(f"{self.config.storage}/{self.config.name}").delete("checkpoint_manager_snapshot.json")
        TorchTrainer(
            train_worker,
            train_loop_config={
                "config": self.config,
                "controller": ray.get_runtime_context().current_actor,
                "last_stage": segment.last,
            },
            scaling_config=ScalingConfig(
                num_workers=segment.num_workers,
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=self.config.name,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=cluster.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=None),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        ).fit()
