"""A segment as one Ray Train worker group. Light to import: Ray's and the run's controllers need no model code."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datasets.files.s3 import PATIENCE_S
from infra.cluster.config import ClusterConfig
from infra.cluster.ray_private import HOOK_VARIABLE
from pipeline.run.worker_imports import hook

if TYPE_CHECKING:
    from pipeline.config import TrainConfig
    from pipeline.schedule.stages import Segment, Workers


MARGIN_S = 300.0


class SegmentRunner:
    """Trains a segment as one worker group. Lives in the run's controller, which never opens the config it carries.

    `fingerprints` are those of the run's data when it was started, which every group must find again. `origin` are
    tags on where the run comes from. `own_cluster` says that nothing but this run's driver uses the cluster.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        fingerprints: tuple[str, str],
        callbacks: tuple[Any, ...],
        report_stages: int,
        origin: Mapping[str, str],
        own_cluster: bool,
    ) -> None:
        self.fingerprints, self.origin, self.own_cluster = fingerprints, dict(origin), own_cluster
        self.callbacks, self.report_stages = callbacks, report_stages
        self.name, self.cluster, self.num_lanes = config.name, config.cluster, config.data.num_lanes
        self.hook = hook(compiles=config.trainer.compile)
        self.sealed_config = pickle.dumps(config)

    def __call__(self, segment: Segment) -> None:
        """Return when the segment is trained; raise when Ray Train gives up."""
        import ray
        from ray.train import FailureConfig, LoggingConfig, RunConfig

        from pipeline.run.controller_client import ControllerClient
        from pipeline.run.process_group import ProcessGroupConfig
        from pipeline.run.ray_policies import GroupTrainer

        # Checkpoints are the workers' own; Ray Train wants a folder, and must not depend on the run's storage.
        scratch = tempfile.mkdtemp(prefix="ray-train-")
        controller = ControllerClient(ray.get_runtime_context().current_actor)
        trainer = GroupTrainer(
            train_entry,
            num_lanes=self.num_lanes,
            controller=controller,
            standby=self.cluster.standby,
            own_cluster=self.own_cluster,
            train_loop_config={
                "sealed_config": self.sealed_config,
                "controller": controller,
                "last_stage": segment.last,
                "report_stages": self.report_stages,
                "fingerprints": self.fingerprints,
                "origin": self.origin,
            },
            scaling_config=_scaling(self.cluster, segment.num_workers),
            backend_config=ProcessGroupConfig(
                backend="nccl" if self.cluster.gpus_per_worker else "gloo",
                timeout_s=group_timeout_s(self.cluster.step_timeout_s),
            ),
            run_config=RunConfig(
                name=self.name,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=self.cluster.max_failures),
                callbacks=list(self.callbacks),
                logging_config=LoggingConfig(log_level="WARNING"),
                worker_runtime_env={"env_vars": {HOOK_VARIABLE: self.hook}},
            ),
        )
        try:
            trainer.fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def group_timeout_s(step_timeout_s: float) -> int:
    """Return after how long a collective that one rank doesn't come to ends the group; a rank that died does at once.

    Ranks that wait for one that hangs leave their stacks first (`cluster.step_timeout_s`). Without that limit, a rank
    may still wait for its samples for the whole of `PATIENCE_S`, and the others for it.
    """
    return round((step_timeout_s or PATIENCE_S) + MARGIN_S)


def train_entry(loop_config: dict[str, Any]) -> None:
    """What Ray Train calls in each worker: only there the config is opened and the model code imported."""
    from pipeline.run.worker import train_worker

    given = dict(loop_config)
    config = pickle.loads(given.pop("sealed_config"))  # from this run's own driver, through Ray
    train_worker(config, **given)


def _scaling(cluster: ClusterConfig, num_workers: Workers) -> Any:
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=num_workers if isinstance(num_workers, int) else tuple(num_workers),
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker=cluster.resources_per_worker,
        # Not Ray's `accelerator_type`: that is a thousandth of a resource, and such shares it can't count.
        label_selector=cluster.labels or None,
        elastic_resize_monitor_interval_s=cluster.grow_check_s,
    )
