"""The imports that a worker process runs first, spare processes included."""

from __future__ import annotations

from infra.cluster.prestart import import_all
from infra.cluster.ray_private import WORKER_MODULES

HOOK = "pipeline.run.worker_imports.warm_up"

MODULES = (
    *WORKER_MODULES,
    "pipeline.run.worker",
    "torch._dynamo",  # the first optimizer imports it
    "torchmetrics.classification",
    "mlflow.tracking",
    "boto3",
)


def warm_up() -> None:
    """Import what training will import."""
    import_all(*MODULES)
