"""The imports that a worker process runs first, spare processes included."""

from __future__ import annotations

import threading

from infra.cluster.prestart import import_all, is_spare
from infra.cluster.ray_private import WORKER_MODULES
from pipeline.run.eager_torch import defer_compiler

FIRST = (*WORKER_MODULES, "pipeline.run.worker")
"""What every worker needs before its first step."""
LATER = ("torchmetrics.classification", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "boto3")
"""What a worker needs later, or rank 0 alone, in a thread of its own: it would hold up the first step."""
SPARE_AFTER_S = 5.0
"""A process that nobody has taken for so long is a spare one."""


def hook(*, compiles: bool) -> str:
    """Return what a worker process runs first, as Ray wants it named; `compiles`: its model is to be compiled."""
    return f"{__name__}.{(warm_up if compiles else warm_up_eager).__name__}"


def warm_up_eager() -> None:
    """Import what the first step needs where nothing is compiled."""
    defer_compiler()
    warm_up()


def warm_up() -> None:
    """Import what the first step needs; a spare process, which has the time, imports the rest."""
    import_all(*FIRST)
    timer = threading.Timer(SPARE_AFTER_S, _warm_up_spare)
    timer.daemon = True
    timer.start()


def _warm_up_spare() -> None:
    if is_spare():
        import_all(*LATER)
