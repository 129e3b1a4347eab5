"""A registered model as MLflow serves it: encoded images in, labels and scores out. Logged as a script.

It stands on its own but for `datasets.transforms`, of which the registered model holds a copy.
"""

from __future__ import annotations

import json
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas

from datasets.transforms.decode import decode_crop, eval_crop, image_header
from datasets.transforms.formats import PixelFormat
from datasets.transforms.shape import image_shape


class ServedImages(mlflow.pyfunc.PythonModel):
    """Classifies encoded images with an exported ONNX file: a class for each, or several."""

    def load_context(self, context: Any) -> None:
        """Open the file."""
        import onnxruntime

        self.session = onnxruntime.InferenceSession(context.artifacts["model"], providers=["CPUExecutionProvider"])
        facts = self.session.get_modelmeta().custom_metadata_map
        self.classes, self.rules = json.loads(facts["classes"]), json.loads(facts["preprocessing"])
        scores = json.loads(facts["scores"])
        self.thresholds, self.are_numbers = scores.get("thresholds"), scores["activation"] == "none"

    def predict(self, context: Any, model_input: pandas.DataFrame, params: Any = None) -> pandas.DataFrame:
        """Return label, confidence and the scores of all classes for each image of the column `image`.

        Multi-label: the labels that it has, and the scores. Regression: the scores, which are the numbers.
        """
        images = np.stack([self.pixels(data) for data in model_input["image"]]).transpose(0, 3, 1, 2)
        logits = self.session.run(["logits"], {"images": np.ascontiguousarray(images)})[0]
        if self.are_numbers:
            return pandas.DataFrame({"scores": logits.astype(float).tolist()})
        if self.thresholds is not None:
            scores = 1 / (1 + np.exp(-logits.astype(float)))
            there = scores >= np.array(self.thresholds)
            labels = [[self.classes[index] for index in np.flatnonzero(row)] for row in there]
            return pandas.DataFrame({"labels": labels, "scores": scores.tolist()})
        shares = np.exp(logits - logits.max(1, keepdims=True))
        scores = shares / shares.sum(1, keepdims=True)
        return pandas.DataFrame(
            {
                "label": [self.classes[index] for index in scores.argmax(1)],
                "confidence": scores.max(1).astype(float),
                "scores": [row.astype(float).tolist() for row in scores],
            }
        )

    def pixels(self, data: bytes) -> np.ndarray:
        """Return what the model looks at, uint8 [H, W, 3] or float32 [H, W, C]."""
        rules = self.rules  # older files have fewer of them
        shape = image_shape(rules["image_size"], rules.get("aspect_ratio", 1.0))
        pixels = PixelFormat(rules.get("pixel_type", "rgb"), rules.get("channels", 3))
        header = image_header(data, pixels)
        return decode_crop(data, header, eval_crop(header, shape, rule=rules["eval_crop"]), shape, pixels)


mlflow.models.set_model(ServedImages())
