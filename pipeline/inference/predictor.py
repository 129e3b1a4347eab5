"""Prediction with a checkpoint or an exported file, with the run's own preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets.transforms.decode import Box, nearest
from datasets.transforms.formats import IGNORED
from datasets.transforms.pixels import MAX_PIXELS, Header
from datasets.transforms.shape import image_shape
from pipeline.inference.exported_model import SUFFIXES, Inference, open_exported, score_facts
from pipeline.inference.preprocessing import Preprocessing
from pipeline.inference.tiling import tiled_classes
from pipeline.inference.trained_model import find_run, open_saved


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one image."""

    scores: np.ndarray
    """float32 [K]: probabilities; in segmentation the share of the pixels that each class has; in regression the
    numbers."""
    mask: np.ndarray | None = None
    """uint8 [H, W] of the image's own size: each pixel's class, 255 outside of what the model looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A model with its classes and its preprocessing."""

    name: str
    kind: str
    """`classification`, `multilabel`, `segmentation` or `regression`."""
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    run: Inference
    thresholds: tuple[float, ...] = ()
    """Multi-label: the probability from which on an image has a class, by class."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""
    tile: int = 0
    """Segmentation: short side in pixels of the tiles that an image is predicted in, which have the model's aspect
    ratio; 0: the evaluation's crop at once."""
    overlap: float = 0.25
    """Share of a tile's side that it has in common with the next one."""

    def predict(self, images: Sequence[bytes], *, max_pixels: int = MAX_PIXELS) -> list[Prediction | ValueError]:
        """Return for each encoded image what the model says of it, or what is wrong with it."""
        if self.tile:
            return [self._tiled(data, max_pixels) for data in images]
        views: list[tuple[np.ndarray, Header, Box] | ValueError] = []
        for data in images:
            try:
                views.append(self.preprocessing.pixels(data, max_pixels=max_pixels))
            except ValueError as error:
                views.append(error)
        good = [view for view in views if not isinstance(view, ValueError)]
        if not good:
            return [view for view in views if isinstance(view, ValueError)]
        pixels = np.ascontiguousarray(np.stack([view[0] for view in good]).transpose(0, 3, 1, 2))
        rows = iter(self.run(pixels))
        return [
            view if isinstance(view, ValueError) else self._prediction(next(rows), view[1], view[2]) for view in views
        ]

    def labels_of(self, prediction: Prediction) -> list[str]:
        """Return the classes that an image has by a multi-label model."""
        chosen = prediction.scores >= np.array(self.thresholds)
        return [name for name, is_there in zip(self.classes, chosen, strict=True) if is_there]

    def _tiled(self, data: bytes, max_pixels: int) -> Prediction | ValueError:
        try:
            pixels = self.preprocessing.whole(data, max_pixels=max_pixels)
        except ValueError as error:
            return error
        view = self.preprocessing
        tile = image_shape(self.tile, view.aspect_ratio)
        return self._segmented(tiled_classes(self.run, pixels, shape=view.shape, tile=tile, overlap=self.overlap))

    def _segmented(self, classes: np.ndarray, header: Header | None = None, box: Box | None = None) -> Prediction:
        shares = (np.bincount(classes.ravel(), minlength=len(self.classes)) / classes.size).astype(np.float32)
        placed = classes if header is None or box is None else _placed(classes, header, box)
        return Prediction(shares, placed)

    def _prediction(self, logits: np.ndarray, header: Header, box: Box) -> Prediction:
        if self.kind == "classification":
            return Prediction(torch.from_numpy(logits).softmax(0).numpy())
        if self.kind == "multilabel":
            return Prediction(torch.from_numpy(logits).sigmoid().numpy())
        if self.kind == "regression":
            return Prediction(logits)
        assert self.kind == "segmentation", self.kind
        return self._segmented(logits.argmax(0).astype(np.uint8), header, box)


def _placed(classes: np.ndarray, header: Header, box: Box) -> np.ndarray:
    """Return a mask [H, W] in the place, and the size, of the part of the image that it is of."""
    top, left, height, width = box
    rows, columns = nearest(classes.shape[0], height), nearest(classes.shape[1], width)
    mask = np.full((header.height, header.width), IGNORED, dtype=np.uint8)
    mask[top : top + height, left : left + width] = classes[rows[:, None], columns]
    return mask


def open_predictor(
    model: str, *, storage: str = "runs", best: bool = False, image_size: int = 0, ema: bool = True
) -> Predictor:
    """Open a run (its latest valid checkpoint, or its best one), a checkpoint, an `.onnx` or a `.pt2` file.

    Raises:
        ValueError: there is no such model, or it can't be used.
    """
    if model.endswith(SUFFIXES):
        if image_size:
            raise ValueError(
                f"image_size is {image_size}: {model} has a fixed image size; export it again for another size"
            )
        if best:
            raise ValueError(f"best is True: {model} holds one model; leave --best out, or name the run")
        if not ema:
            raise ValueError(
                f"ema is False: {model} holds the weights it was exported with; export it again with --no-ema"
            )
        facts, run = open_exported(Path(model))
        preprocessing = Preprocessing.from_facts(facts["preprocessing"])
        return Predictor(
            name=model,
            kind=facts["task"],
            classes=tuple(facts["classes"]),
            thresholds=tuple(facts.get("scores", {}).get("thresholds", ())),
            preprocessing=preprocessing,
            run=run,
        )
    saved = open_saved(find_run(model, storage), ema=ema, best=best, image_size=image_size)
    return Predictor(
        name=saved.uri,
        kind=saved.kind,
        classes=saved.task.classes,
        thresholds=tuple(score_facts(saved.task).get("thresholds", ())),
        preprocessing=saved.preprocessing,
        run=saved.logits,
        notes=saved.notes,
    )
