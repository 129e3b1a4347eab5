"""Exported models in MLflow: logged with their run, and as a version of a registered model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.redact import redacted
from infra.storage.base import Storage
from infra.tracking.config import TrackingConfig, explained
from infra.tracking.mlflow_run import TrackingError, make_client, run_by_key
from infra.tracking.spool import stored_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def register_onnx(
    path: Path,
    config: TrackingConfig,
    storage: Storage,
    *,
    name: str,
    image_size: int,
    num_outputs: int,
    step: int,
    dense: bool,
) -> str:
    """Log an ONNX file with the run whose folder `storage` is, and register it as a model of this name.

    Its signature says images, uint8 [-1, 3, S, S] -> logits, float32 [-1, K], or [-1, K, S, S] where `dense`.

    Returns:
        The version that it has become.

    Raises:
        TrackingError: MLflow doesn't know the run, or can't be written.
    """
    import mlflow
    import numpy as np
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    key = stored_key(storage)
    client = make_client(config.uri)
    mlflow.set_tracking_uri(config.uri)
    mlflow.set_registry_uri(config.uri)
    side = (image_size, image_size)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 3, *side), "images")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, num_outputs, *(side if dense else ())), "logits")]),
    )
    try:
        run = _run(client, config, key)
        # Without an experiment of its own, a model would be logged into MLflow's default one.
        model = mlflow.initialize_logged_model(
            name="model", source_run_id=run.info.run_id, experiment_id=run.info.experiment_id
        )
        logged = Model.log(
            artifact_path=None,
            flavor=mlflow.onnx,
            model_id=model.model_id,
            run_id=run.info.run_id,
            step=step,
            onnx_model=onnx.load(path),
            signature=signature,
            registered_model_name=name,
            pip_requirements=["onnx", "onnxruntime"],
            save_as_external_data=False,
        )
    except Exception as error:
        raise explained(config, error) from None
    return str(logged.registered_model_version)


def _run(client: MlflowClient, config: TrackingConfig, key: str) -> Run:
    experiment = client.get_experiment_by_name(config.experiment)
    run: Run | None = run_by_key(client, experiment.experiment_id, key) if experiment and key else None
    if run is None:
        raise TrackingError(
            f"no run of the experiment {config.experiment!r} at {redacted(config.uri)} has this checkpoint's key: name "
            "the MLflow server that recorded it with --tracking-uri"
        )
    return run
