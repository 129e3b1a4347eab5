"""Exported models for other programs: ONNX and PyTorch's `.pt2`, with the metadata that their use needs.

The input is `images`, uint8 [B, 3, H, W] in RGB, for any B: an image as it is decoded, so no scale can be mistaken. Of
a model for other pixels it is float32 [B, C, H, W]: the values as they are stored. Mean and std are inside the graph.
The output is `logits`, float32 [B, K] or, of a U-Net, [B, K, H, W].
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from pipeline.inference.preprocessing import Preprocessing
from pipeline.inference.safe_pt2 import UnsafeArchiveError, safe_archive
from pipeline.inference.trained_model import SavedModel
from pipeline.training.multilabel import MultilabelTask
from pipeline.training.regression import RegressionTask
from pipeline.training.task import Task

SUFFIXES = (".onnx", ".pt2")
FACTS_FILE = "facts.json"
Inference = Callable[[np.ndarray], np.ndarray]
"""From images, uint8 [B, 3, H, W] or float32 [B, C, H, W], to logits, float32 [B, K, ...]."""


class ExportError(ValueError):
    """A model can't be exported, or an exported file can't be used."""


class Deployed(nn.Module):
    """A model that takes images as they are decoded -> float32 logits; with `half` it computes in fp16 between them."""

    def __init__(self, model: nn.Module, view: Preprocessing, *, half: bool) -> None:
        super().__init__()
        self.model = deepcopy(model).half() if half else model
        self.mean, self.std = view.pixel_mean, view.pixel_std
        if view.channel_mean:
            for name, values in (("mean", view.channel_mean), ("std", view.channel_std)):
                delattr(self, name)
                self.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1))
        self.dtype = torch.float16 if half else torch.float32

    def forward(self, images: Tensor) -> Tensor:
        """Normalize and run."""
        return self.model(((images.to(torch.float32) - self.mean) / self.std).to(self.dtype)).float()


def facts_of(saved: SavedModel, precision: str) -> dict[str, Any]:
    """Return what an exported file says of itself, as JSON values by name."""
    return {
        "crescendo": 1,
        "task": saved.kind,
        "model": saved.model_config.name,
        "precision": precision,
        "classes": list(saved.task.classes),
        "scores": score_facts(saved.task),
        "preprocessing": saved.preprocessing.facts(),
        "checkpoint": {"uri": saved.uri, "cursor": saved.state.cursor, "weights": saved.weights},
    }


def score_facts(task: Task) -> dict[str, Any]:
    """Return how logits become scores, as JSON values; multi-label: also from which one on a class is there.

    In regression they are the numbers themselves, in the units of the targets, whose names are the classes'.
    """
    if isinstance(task, RegressionTask):
        return {"activation": "none"}
    if isinstance(task, MultilabelTask):
        return {"activation": "sigmoid", "thresholds": list(task.thresholds or ())}
    return {"activation": "softmax"}


def write_exported(saved: SavedModel, path: Path, precision: str = "fp32") -> None:
    """Write the model as ONNX or `.pt2`, by the name's end; `int8` is written as `fp32`, to be quantized then."""
    view, facts = saved.preprocessing, facts_of(saved, precision)
    half = precision == "fp16"
    model = Deployed(saved.model, view, half=half).eval()
    # Two images, not one: a batch of one would be taken for a constant. Zeros, since `.pt2` keeps them.
    dtype = torch.uint8 if view.format.is_rgb else torch.float32
    images = torch.zeros(2, view.channels, *view.shape, dtype=dtype)
    with torch.no_grad(), _quiet():
        program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch", min=1)},))
        if path.suffix == ".pt2":
            torch.export.save(program, path, extra_files={FACTS_FILE: json.dumps(facts)})
        else:
            _write_onnx(program, path, facts)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    _require("onnx", "onnxscript", "onnxruntime")
    made = torch.onnx.export(program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False)
    assert made is not None
    images: Any = made.model.graph.inputs[0]
    made.rename_axes({images.shape[0]: "batch"})
    made.model.metadata_props.update({name: _text(value) for name, value in facts.items()})
    made.save(path, external_data=False)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def open_exported(path: Path) -> tuple[dict[str, Any], Inference]:
    """Return an exported model's facts, and the function that runs it on the CPU.

    Raises:
        ExportError: it can't be read, or `jobs.export` didn't write it.
    """
    if not path.is_file():
        raise ExportError(f"{path}: there is no such file")
    return _open_onnx(path) if path.suffix == ".onnx" else _open_pt2(path)


def _open_onnx(path: Path) -> tuple[dict[str, Any], Inference]:
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types have no common base
        raise ExportError(f"{path}: onnxruntime can't load it: {str(error).splitlines()[0]}") from error
    texts = session.get_modelmeta().custom_metadata_map
    if "crescendo" not in texts:
        raise ExportError(f"{path}: lacks the metadata that `python -m jobs.export` writes into a model")
    facts = {name: text if name in ("task", "model", "precision") else json.loads(text) for name, text in texts.items()}
    return facts, lambda images: session.run(["logits"], {"images": images})[0]


def _open_pt2(path: Path) -> tuple[dict[str, Any], Inference]:
    extra = {FACTS_FILE: ""}
    try:
        with _quiet():
            program = torch.export.load(safe_archive(path), extra_files=extra)
    except UnsafeArchiveError as error:
        raise ExportError(f"{path}: is not loaded: {error}") from None
    except Exception as error:  # of the many parts of an archive, each fails in a way of its own
        raise ExportError(f"{path}: torch.export can't load it: {str(error).splitlines()[0]}") from error
    if not extra[FACTS_FILE]:
        raise ExportError(f"{path}: lacks the metadata that `python -m jobs.export` writes into a model")
    model = program.module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits: Tensor = model(torch.from_numpy(images))
        return logits.numpy()

    return json.loads(extra[FACTS_FILE]), run


def largest_difference(saved: SavedModel, run: Inference, images: np.ndarray) -> float:
    """Return how far an exported model's logits are from the checkpoint's, in the unit of `difference_unit`.

    Asks for one image and for all of them, so that a fixed batch can't pass. NaN where either gives NaN.

    Raises:
        ExportError: it doesn't run, or gives another shape.
    """
    found = []
    for count in sorted({1, len(images)}):
        expected = saved.logits(images[:count])
        try:
            got = run(images[:count])
        except Exception as error:  # of either runtime
            raise ExportError(f"the exported model fails on {count} images: {str(error).splitlines()[0]}") from error
        if got.shape != expected.shape:
            raise ExportError(f"the exported model gives {got.shape} instead of {expected.shape}")
        found.append(_difference(saved.task, got, expected))
    return float(np.max(found))  # which, unlike max(), keeps a NaN


def difference_unit(task: Task) -> str:
    """Return what `largest_difference` is measured in."""
    return "a target's standard deviation" if isinstance(task, RegressionTask) else "the largest"


def _difference(task: Task, got: np.ndarray, expected: np.ndarray) -> float:
    errors = np.abs(got.astype(np.float64) - expected)
    if not isinstance(task, RegressionTask):
        return float(errors.max() / np.abs(expected).max())
    # Each target has a unit of its own, and may be so far from 0 that float32 rounds it by much of its deviation.
    largest = np.maximum(np.abs(expected), np.abs(np.array(task.config.target_mean, np.float32)))
    beyond_rounding = np.maximum(errors - 2 * np.spacing(largest).astype(np.float64), 0)
    return float((beyond_rounding / np.array(task.config.target_std)).max())


def _require(*names: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX needs {', '.join(missing)}: `uv pip install onnx onnxscript onnxruntime` adds them")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks, on which no user can act."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
