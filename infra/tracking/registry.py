"""Exported models in MLflow: logged with their run, and as a version of a registered model."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.redact import redacted
from infra.storage.base import Storage
from infra.tracking.config import TrackingConfig, explained
from infra.tracking.errors import TrackingError
from infra.tracking.mlflow_run import make_client, run_by_key
from infra.tracking.spool import stored_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """A new version of a registered model."""

    name: str
    alias: str
    """That the version gets; empty: none."""
    description: str
    """Of the version, in Markdown."""
    tags: Mapping[str, str]
    """Of the version."""
    image_shape: tuple[int, int]
    """Height and width of the model's input, in pixels."""
    num_outputs: int
    step: int
    """Of the run, at which the model was saved."""
    dtype: str
    """Of the model's input."""
    channels: int
    """Of the model's input."""
    bands: bool
    """Images hold values that are read as they are stored: they may be TIFFs of bands."""
    dense: bool
    """The logits are [-1, K, H, W], not [-1, K]."""
    labels: Literal["one", "several", "none"]
    """How many labels an image has; none: numbers."""
    serves: Path | None
    """Script that makes the file a pyfunc of encoded images; None: the ONNX file as it is."""
    code: tuple[Path, ...]
    """Folders of packages that the script imports, as they are named from the root of the code."""


def register_model(path: Path, config: TrackingConfig, storage: Storage, what: Registration) -> str:
    """Log an ONNX file with the run whose folder `storage` is, and register it as a version of a model.

    Its signature says images [-1, C, H, W] -> logits, float32 [-1, K], or [-1, K, H, W] where dense; as a pyfunc of
    images, a column `image` of bytes -> columns `label`, `confidence` and `scores`, or `labels` and `scores`, or
    `scores` alone, which are numbers then.

    Returns:
        The version that it has become.

    Raises:
        TrackingError: MLflow doesn't know the run, or can't be written.
    """
    import mlflow
    from mlflow.models import Model

    key = stored_key(storage)
    client = make_client(config.uri)
    mlflow.set_tracking_uri(config.uri)
    mlflow.set_registry_uri(config.uri)
    try:
        run = _run(client, config, key)
        # Without an experiment of its own, a model would be logged into MLflow's default one.
        model = mlflow.initialize_logged_model(
            name="model", source_run_id=run.info.run_id, experiment_id=run.info.experiment_id
        )
        with tempfile.TemporaryDirectory() as folder:
            options = _onnx_options(path, what) if what.serves is None else image_options(path, what, Path(folder))
            with _without_hints():
                logged = Model.log(
                    artifact_path=None,
                    model_id=model.model_id,
                    run_id=run.info.run_id,
                    step=what.step,
                    registered_model_name=what.name,
                    **options,
                )
        version = str(logged.registered_model_version)
        client.update_model_version(what.name, version, what.description)
        for tag, value in what.tags.items():
            client.set_model_version_tag(what.name, version, tag, value)
        if what.alias:
            client.set_registered_model_alias(what.name, what.alias, version)
    except Exception as error:
        raise explained(config, error) from None
    return version


@contextlib.contextmanager
def _without_hints() -> Iterator[None]:
    """Leave out what MLflow prints for authors of models: a hint at examples, which a given signature makes needless,
    and bars of the artifacts."""
    from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR as BARS

    shown = BARS.get_raw()
    BARS.set(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"(?s).*An input example was not provided")
            yield
    finally:
        BARS.unset() if shown is None else BARS.set(shown)


def _onnx_options(path: Path, what: Registration) -> dict[str, Any]:
    import mlflow
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    outputs = (-1, what.num_outputs, *(what.image_shape if what.dense else ()))
    return {
        "flavor": mlflow.onnx,
        "onnx_model": onnx.load(path),
        "signature": ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(what.dtype), (-1, what.channels, *what.image_shape), "images")]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), outputs, "logits")]),
        ),
        "pip_requirements": ["onnx", "onnxruntime"],
        "save_as_external_data": False,
    }


def image_options(path: Path, what: Registration, folder: Path) -> dict[str, Any]:
    """Return the options of a pyfunc; of the packages that its script imports, a copy is made in `folder`."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    for code in what.code:
        copy = folder / code.parent.name / code.name
        shutil.copytree(code, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy.parent / "__init__.py").touch()
    columns = {
        "one": [ColSpec(DataType.string, "label"), ColSpec(DataType.double, "confidence")],
        "several": [ColSpec(Array(DataType.string), "labels")],
        "none": [],
    }
    outputs = [*columns[what.labels], ColSpec(Array(DataType.double), "scores")]
    return {
        "flavor": mlflow.pyfunc,
        "python_model": str(what.serves),
        "artifacts": {"model": str(path)},
        "code_paths": [str(folder / code.parent.name) for code in what.code],
        "signature": ModelSignature(inputs=Schema([ColSpec(DataType.binary, "image")]), outputs=Schema(outputs)),
        "pip_requirements": [
            *("numpy", "onnxruntime", "pandas", "pillow", "simplejpeg", "torch"),
            *(("tifffile", "imagecodecs") if what.bands else ()),
        ],
    }


def _run(client: MlflowClient, config: TrackingConfig, key: str) -> Run:
    experiment = client.get_experiment_by_name(config.experiment)
    run: Run | None = run_by_key(client, experiment.experiment_id, key) if experiment and key else None
    if run is None:
        raise TrackingError(
            f"no run of the experiment {config.experiment!r} at {redacted(config.uri)} has this checkpoint's key: name "
            "the MLflow server that recorded it with --tracking-uri"
        )
    return run
