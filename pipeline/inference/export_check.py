"""Exported models of fp16 and int8: quantized, scored beside their checkpoint, and timed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from pipeline.inference.evaluation_data import EvaluationData
from pipeline.inference.exported_model import ExportError, Inference
from pipeline.inference.trained_model import SavedModel

if TYPE_CHECKING:
    from onnx import GraphProto

Precision = Literal["fp32", "fp16", "int8"]
_WARM_UP, _TIMED = 3, 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What an exported model is worth beside its checkpoint."""

    metric: str
    """By which they are compared."""
    checkpoint: float
    exported: float
    samples: int
    highest: bool
    """Whether the metric's highest value is the best."""

    @property
    def loss(self) -> float:
        """How much worse the exported model is; where the lowest value is the best, as a share of the checkpoint's.

        Such a metric may be in any unit, as a target's is.
        """
        if self.highest:
            return self.checkpoint - self.exported
        worse = self.exported - self.checkpoint
        return worse / self.checkpoint if self.checkpoint else worse * math.inf if worse else 0.0

    def __str__(self) -> str:
        digits = ".4f" if self.highest else ".4g"
        return f"{self.metric} {self.exported:{digits}}, the checkpoint's {self.checkpoint:{digits}}"


def compare_scores(saved: SavedModel, run: Inference, data: EvaluationData, *, samples: int) -> Scored:
    """Evaluate checkpoint and exported model on the same samples, evenly spaced over the data.

    They are compared by the run's own `checkpoint.best_metric`, or by the loss where it names none.
    """
    rules = saved.config["checkpoint"]
    metric, highest = rules["best_metric"].removeprefix("val/"), rules["best_is"] == "highest"
    ours, theirs, count = saved.task.metrics(), saved.task.metrics(), 0
    for batch in data.batches(image_size=saved.preprocessing.image_size, batch_size=32, samples=samples):
        if len(batch.labels):
            images = np.ascontiguousarray(batch.images.numpy())
            saved.task.update(ours, torch.from_numpy(saved.logits(images)), batch)
            saved.task.update(theirs, torch.from_numpy(run(images)), batch)
            count += len(images)
    values, others = ours.compute(), theirs.compute()
    if metric not in values:
        metric, highest = "loss", False
    return Scored(
        metric=metric,
        checkpoint=float(values[metric]),
        exported=float(others[metric]),
        samples=count,
        highest=highest,
    )


def latency_ms(run: Callable[[np.ndarray], Any], image: np.ndarray) -> float:
    """Return the median time of one image, uint8 [1, 3, H, W], in milliseconds."""
    times = []
    for _ in range(_WARM_UP + _TIMED):
        began = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - began)
    return 1000 * median(times[_WARM_UP:])


def quantize(source: Path, target: Path, batches: Iterator[np.ndarray]) -> None:
    """Write an ONNX file of 8-bit integers: weights by channel, activations by the ranges that these images give.

    Args:
        source: the file in fp32.
        target: the file to write.
        batches: images as the model takes them, uint8 [B, 3, H, W].

    Raises:
        ExportError: it can't be quantized.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Images(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch}

    original = onnx.load(source, load_external_data=False)
    logging.disable(logging.WARNING)  # it advises what changes nothing here
    try:
        quantize_static(
            source,
            target,
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=scaling_nodes(original.graph),
        )
    except Exception as error:  # onnxruntime's own types have no common base
        raise ExportError(f"{target}: it can't be quantized: {str(error).splitlines()[0]}") from error
    finally:
        logging.disable(logging.NOTSET)
    model = onnx.load(target)
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    onnx.save(model, target)


def scaling_nodes(graph: GraphProto) -> list[str]:
    """Return the names of the nodes behind the last layer, which bring its outputs into the units of the targets.

    8 bits for all outputs together are too few there: a target of 2000 with deviation 5 would have steps of 8.
    """
    constants = {tensor.name for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    names, node = [], made_by.get(graph.output[0].name)
    while node is not None and node.op_type in ("Mul", "Add", "Cast"):
        inputs = [name for name in node.input if name not in constants]
        if len(inputs) != 1:
            break
        names.append(node.name)
        node = made_by.get(inputs[0])
    return names
