"""What a worker process runs first, also a spare one that waits for its use: the imports of training."""

from __future__ import annotations

from infra.cluster.prestart import import_all

HOOK = "pipeline.run.worker_imports.warm_up"

MODULES = (
    "ray.train.v2._internal.execution.worker_group.worker",
    "ray.train.v2.torch.train_loop_utils",
    "ray.train.torch.config",
    "pipeline.run.worker",
    "torch._dynamo",  # the first optimizer imports it
    "torchmetrics.classification",
    "mlflow.tracking",
    "boto3",
)


def warm_up() -> None:
    """Import what training will import."""
    import_all(*MODULES)
