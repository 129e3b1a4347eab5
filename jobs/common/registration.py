"""Registers an exported model in MLflow, with what a user of the registry wants to know of a version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from infra.storage.base import Storage
    from pipeline.inference.trained_model import SavedModel

_LABELS: dict[str, Literal["one", "several", "none"]] = {
    "classification": "one",
    "segmentation": "one",
    "multilabel": "several",
    "regression": "none",
}
"""kind -> labels of an image that a registered model tells."""
ROOT = Path(__file__).parents[2]
SERVED, DECODER = ROOT / "pipeline/inference/served_images.py", ROOT / "datasets/transforms"
"""What a registered model of images is made of: its script, and the package that decodes for it."""


def register_exported(
    saved: SavedModel,
    path: Path,
    *,
    name: str,
    alias: str,
    tracking_uri: str,
    precision: str,
    takes_images: bool,
    is_as_evaluated: bool,
) -> str:
    """Register an ONNX file as a new version of a model; return the version.

    Args:
        saved: the checkpoint that it was exported from.
        path: of the file.
        name: of the registered model.
        alias: that the version gets; empty: none.
        tracking_uri: of the MLflow server; empty: the one that recorded the run.
        precision: numbers that it computes with.
        takes_images: it takes encoded images, not tensors.
        is_as_evaluated: at the size and with the statistics by which the run's own score was measured.

    Raises:
        TrackingError: MLflow doesn't know the run, or can't be written.
    """
    from infra.tracking.config import TrackingConfig
    from infra.tracking.registry import Registration, register_model
    from pipeline.checkpoint.resume import locate

    recorded, storage = saved.config["tracking"], locate(saved.uri)[0]
    content = path.read_bytes()
    score = _recorded_score(saved, storage) if is_as_evaluated else {}
    return register_model(
        path,
        TrackingConfig(uri=tracking_uri or recorded["uri"], experiment=recorded["experiment"]).absolute(),
        storage,
        Registration(
            name=name,
            alias=alias,
            description=_description(saved, precision, score),
            tags={
                "checkpoint": saved.uri,
                "sha256": hashlib.sha256(content).hexdigest(),
                "size_bytes": str(len(content)),
                "classes_sha256": hashlib.sha256("\n".join(saved.task.classes).encode()).hexdigest(),
                "precision": precision,
                **score,
            },
            image_shape=saved.preprocessing.shape,
            num_outputs=saved.task.num_outputs,
            dtype=saved.preprocessing.dtype.__name__,
            channels=saved.preprocessing.channels,
            bands=not saved.preprocessing.format.is_rgb,
            step=saved.state.cursor,
            dense=saved.kind == "segmentation",
            labels=_LABELS[saved.kind],
            serves=SERVED if takes_images else None,
            code=(DECODER,) if takes_images else (),
        ),
    )


def _description(saved: SavedModel, precision: str, score: Mapping[str, str]) -> str:
    """Return a sentence in Markdown on what a version is, since its page shows the tags last."""
    outputs = f"{len(saved.task.classes)} {'numbers' if saved.kind == 'regression' else 'classes'}"
    measured = f"; {score['score_metric']} {score['score']}" if score else ""
    return (
        f"**{saved.model_config.name}** at {saved.preprocessing.size_text} px, {outputs} ({saved.kind}), "
        f"{precision}{measured}. Exported from `{saved.uri}`."
    )


def _recorded_score(saved: SavedModel, storage: Storage) -> dict[str, str]:
    """Return the metric that the run was judged by, as it was recorded with the checkpoint, as a tag."""
    from pipeline.checkpoint.catalog import describe_checkpoints

    metric = saved.config["checkpoint"]["best_metric"]
    for row in describe_checkpoints(storage):
        if saved.uri.endswith(row.key) and metric in row.metrics:
            return {"score": f"{row.metrics[metric]:.6g}", "score_metric": metric}
    return {}
