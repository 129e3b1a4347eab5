"""Export a checkpoint's model as ONNX or `.pt2`: `python -m jobs.export CHECKPOINT --to model.onnx`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from infra.storage.failures import reworded
from jobs.common.cli import run_main
from jobs.common.model_flags import ModelFlags
from jobs.common.parsing import check_local, parse

if TYPE_CHECKING:
    import numpy as np

    from pipeline.inference.evaluation_data import EvaluationData
    from pipeline.inference.trained_model import SavedModel

CALIBRATED = 256
"""Training images from which int8 takes its ranges."""
_ALIAS = re.compile(r"[\w-]+")
"""Aliases that MLflow takes: refused here, they cost no export and no version without its alias."""
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)
TOLERANCE = 1e-4
"""Largest difference of logits that is rounding, in the unit of `difference_unit` (measured: up to 1e-6)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(ModelFlags):
    """Options of the export."""

    checkpoint: Annotated[str, tyro.conf.Positional] = ""
    """A run's name or folder (for its latest valid checkpoint), or FOLDER/checkpoints/CURSOR; local or s3://. Left out
    with --best-of."""
    best_of: str = ""
    """In place of a checkpoint: an MLflow experiment, for the best of all checkpoints that its runs keep."""
    metric: str = ""
    """With --best-of: metric that the best checkpoint is the best by; empty: the newest run's
    `checkpoint.best_metric`."""
    to: str
    """File to write: NAME.onnx or NAME.pt2 (torch.export). It is written only if its results match the checkpoint's."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """Numbers that the exported model computes with. fp16 and int8 are written only if they lose no more than
    `max_drop` of the checkpoint's score; int8 is for .onnx files, and takes its ranges from training images."""
    max_drop: float = 0.01
    """With fp16 and int8: how much worse the exported model's score may be than the checkpoint's, by the run's
    `checkpoint.best_metric`: how much lower, in the metric's own unit (0.01: one point of accuracy), or of a metric
    whose lowest value is the best, such as a loss or an error, how much higher as a share of the checkpoint's (0.01:
    1 %)."""
    scored: int = 1000
    """With fp16 and int8: number of images on which the two are scored, evenly spaced over the data; 0: all."""
    data: str = ""
    """Labelled images with which the two models are compared, as `jobs.evaluate --data` takes them; empty: the run's
    own validation data."""
    compared: int = 8
    """Number of images with which the two models are compared."""
    register: str = ""
    """Also log the ONNX file with the run in MLflow, and register it as a new version of the model of this name, with
    a description and the tags checkpoint, sha256, size_bytes, classes_sha256 (of the classes' names, one a line) and,
    where it is known, score."""
    register_as: Literal["tensors", "images"] = "tensors"
    """What the registered model takes. tensors: the ONNX file as it is (MLflow's onnx flavor); images: encoded images,
    as a pyfunc for `mlflow models serve` that has this project's decoder in it (classification)."""
    alias: str = ""
    """With --register: alias that the new version gets, such as champion; another version loses it. None is ever set
    unasked: which version is served stays your decision."""
    tracking_uri: str = ""
    """With --register: URI of the MLflow server; empty: the one that recorded the run. With --best-of: empty:
    MLFLOW_TRACKING_URI, or else sqlite:///runs/mlflow.db."""

    def __post_init__(self) -> None:
        ModelFlags.__post_init__(self)  # super() doesn't find the class that slots made anew
        if bool(self.checkpoint) == bool(self.best_of):
            given = f"both {self.checkpoint!r} and --best-of" if self.checkpoint else "neither"
            raise ValueError(f"a checkpoint or --best-of EXPERIMENT is needed, and there is {given}: name one")
        if self.metric and not self.best_of:
            raise ValueError(f"metric is {self.metric!r}: it needs --best-of EXPERIMENT")
        check_local(to=self.to)
        if not self.to.endswith((".onnx", ".pt2")):
            raise ValueError(f"to is {self.to!r}: name a file that ends in .onnx or .pt2")
        if self.register and not self.to.endswith(".onnx"):
            raise ValueError(f"to is {self.to!r}: only .onnx files are registered in MLflow")
        if self.precision == "int8" and not self.to.endswith(".onnx"):
            raise ValueError(f"to is {self.to!r}: int8 is for .onnx files")
        if self.alias and not self.register:
            raise ValueError(f"alias is {self.alias!r}: it needs --register NAME")
        if {*"/:"} & {*self.register}:
            raise ValueError(f"register is {self.register!r}: MLflow's names have no '/' and no ':'")
        if self.alias and (not _ALIAS.fullmatch(self.alias) or _RESERVED.fullmatch(self.alias)):
            raise ValueError(f"alias is {self.alias!r}: MLflow takes letters, digits, '_' and '-', and keeps `latest` "
                             "and versions such as v1 for itself")  # fmt: skip
        if not 0 <= self.max_drop <= 1:
            raise ValueError(f"max_drop is {self.max_drop}: it must be from 0 to 1")
        if self.scored < 0:
            raise ValueError(f"scored is {self.scored}: it must be 0 (all) or more")
        if self.compared < 1:
            raise ValueError(f"compared is {self.compared}: at least 1 image must be compared")


def main(argv: Sequence[str]) -> int:
    """Write under a temporary name, compare, and only then rename."""
    options = parse(
        Options, argv, prog="python -m jobs.export", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)
    )
    import torch

    from pipeline.inference.export_check import latency_ms
    from pipeline.inference.exported_model import difference_unit, open_exported
    from pipeline.inference.trained_model import find_run

    saved = options.open(best_of(options) if options.best_of else find_run(options.checkpoint, options.storage))
    for line in saved.notes:
        print(f"note: {line}")
    options.reestimate(saved, device=torch.device("cpu"), batch_size=64, loader_workers=0)
    if options.register_as == "images" and saved.kind == "segmentation":
        raise ValueError(f"register_as is 'images': that isn't for {saved.kind}, which {saved.uri} is for")
    data = _data(saved, options)
    images = _real_images(saved, data, options.compared)
    if options.precision == "fp32":
        difference = export_compared(saved, Path(options.to), images)
        unit = difference_unit(saved.task)
        verdict = f"its logits on {len(images)} real images match {saved.uri} to {difference:.1e} of {unit}"
    else:
        verdict = export_scored(saved, options, data)
    _, run = open_exported(Path(options.to))
    outputs = "targets" if saved.kind == "regression" else "classes"
    threads = torch.get_num_threads()
    print(
        f"{options.to}: {saved.model_config.name} at {saved.preprocessing.size_text} px, "
        f"{len(saved.task.classes)} {outputs}, {options.precision}, {Path(options.to).stat().st_size / 1e6:.1f} MB\n"
        f"{verdict}\n"
        f"one image takes {latency_ms(run, images[:1]):.1f} ms on the CPU, the checkpoint "
        f"{latency_ms(saved.logits, images[:1]):.1f} ms ({threads} {'thread' if threads == 1 else 'threads'})"
    )
    if options.register:
        from jobs.common.registration import register_exported

        version = register_exported(
            saved,
            Path(options.to),
            name=options.register,
            alias=options.alias,
            tracking_uri=options.tracking_uri,
            precision=options.precision,
            takes_images=options.register_as == "images",
            is_as_evaluated=not (options.image_size or options.reestimate_bn),
        )
        print(f"MLflow: logged with its run, and registered as version {version} of {options.register!r}")
    return 0


def best_of(options: Options) -> str:
    """Return the URI of the experiment's best checkpoint, and tell it."""
    from infra.tracking.config import TrackingConfig
    from infra.tracking.ranking import best_checkpoint

    config = TrackingConfig(experiment=options.best_of)
    config = replace(config, uri=options.tracking_uri or config.uri)
    found = best_checkpoint(config, options.metric, is_there=_is_checkpoint)
    for uri in found.gone:
        print(f"note: {uri} is better by {found.metric}, but is not there any more")
    print(f"best of {options.best_of!r}: {found.uri}, {found.metric} {found.value:.4f}")
    return found.uri


def _is_checkpoint(uri: str) -> bool:
    from pipeline.checkpoint.catalog import CheckpointError, read_manifest
    from pipeline.checkpoint.resume import locate

    try:
        storage, key = locate(uri)
        return key is not None and bool(read_manifest(storage, key))
    except CheckpointError:
        return False


def export_scored(saved: SavedModel, options: Options, data: EvaluationData) -> str:
    """Write a model file of fp16 or int8 that is worth about what the checkpoint is; return a line on that.

    Raises:
        ExportError: it loses too much, or can't be made; then there is no new file.
    """
    from pipeline.inference.export_check import compare_scores
    from pipeline.inference.exported_model import ExportError, open_exported, write_exported

    path = _checked_folder(Path(options.to))
    unproven, plain = (path.with_name(f".{path.stem}-{name}-{os.getpid()}{path.suffix}") for name in ("new", "fp32"))
    try:
        if options.precision == "int8":
            write_exported(saved, plain, options.precision)
            _quantize(saved, options, plain, unproven)
        else:
            write_exported(saved, unproven, options.precision)
        found = compare_scores(saved, open_exported(unproven)[1], data, samples=options.scored or data.num_samples)
        line = f"{found}, on {found.samples} images of {data.config.val}"
        if not found.loss <= options.max_drop:
            allowed = f"{options.max_drop:g}" if found.highest else f"{100 * options.max_drop:g} % more"
            raise ExportError(f"{path} is not written: {line}; --max-drop allows {allowed}")
        unproven.replace(path)
    finally:
        unproven.unlink(missing_ok=True)
        plain.unlink(missing_ok=True)
    return line


def _quantize(saved: SavedModel, options: Options, source: Path, target: Path) -> None:
    """Quantize by the ranges that evenly spaced training images give.

    Raises:
        DataError: they can't be read.
    """
    import numpy as np

    from datasets.errors import DataError
    from pipeline.inference.evaluation_data import open_data
    from pipeline.inference.export_check import quantize

    url = options.train_data or saved.config["data"]["train"]
    try:
        data = open_data(saved, url, loader_workers=0)
    except DataError as error:
        raise reworded(error, f"{error}; int8 needs training images: name them with --train-data") from error
    batches = data.batches(image_size=saved.preprocessing.image_size, batch_size=32, samples=CALIBRATED)
    quantize(source, target, (np.ascontiguousarray(batch.images.numpy()) for batch in batches if len(batch.labels)))


def export_compared(saved: SavedModel, path: Path, images: np.ndarray) -> float:
    """Write a model file that was run on `images` [B, C, H, W]; return its logits' largest difference.

    Raises:
        ExportError: it doesn't run, or gives other logits; then there is no new file.
    """
    from pipeline.inference.exported_model import (
        ExportError,
        difference_unit,
        largest_difference,
        open_exported,
        write_exported,
    )

    path = _checked_folder(path)
    unproven = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write_exported(saved, unproven)
        _, run = open_exported(unproven)
        difference = largest_difference(saved, run, images)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{path} is not written: the exported model's logits differ from the checkpoint's by {difference:.1e} "
                f"of {difference_unit(saved.task)}; {TOLERANCE:.0e} would be rounding"
            )
        unproven.replace(path)
    finally:
        unproven.unlink(missing_ok=True)
    return difference


def _checked_folder(path: Path) -> Path:
    from pipeline.inference.exported_model import ExportError

    if not path.parent.is_dir():
        raise ExportError(f"{path}: the folder {path.parent} doesn't exist; make it first")
    return path


def _data(saved: SavedModel, options: Options) -> EvaluationData:
    """Open what the two models are compared on.

    Raises:
        DataError: it can't be read from here.
    """
    from datasets.errors import DataError
    from pipeline.inference.evaluation_data import open_data

    try:
        return open_data(saved, options.data or saved.config["data"]["val"], loader_workers=0)
    except DataError as error:
        raise reworded(error, f"{error}; name data for the comparison with --data") from error


def _real_images(saved: SavedModel, data: EvaluationData, count: int) -> np.ndarray:
    """Return images of the data as the model takes them, [B, C, H, W]."""
    import numpy as np

    batches = data.batches(image_size=saved.preprocessing.image_size, batch_size=count)
    return np.ascontiguousarray(next(batch for batch in batches if len(batch.labels)).images.numpy())


if __name__ == "__main__":
    run_main(main)
