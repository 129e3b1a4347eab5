"""An exported model beside its checkpoint: what counts as rounding, as a loss, and what int8 leaves alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.config import ModelConfig
from pipeline.checkpoint.state import TrainState
from pipeline.inference.export_check import Scored, quantize, scaling_nodes
from pipeline.inference.exported_model import largest_difference, open_exported, write_exported
from pipeline.inference.preprocessing import Preprocessing
from pipeline.inference.trained_model import SavedModel, in_units
from pipeline.task_config import ClassificationConfig, RegressionConfig, TaskConfig
from pipeline.training.task import build_task

NUMBERS = RegressionConfig(target_mean=(1e6, 0.1), target_std=(1e5, 0.02))


def saved_model(config: TaskConfig) -> SavedModel:
    """A small network of two outputs, with weights that give the images different ones."""
    torch.manual_seed(0)
    task = build_task(config, ("a", "b"), {})
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    nn.init.normal_(net[-1].weight, std=4)  # type: ignore[arg-type]
    return SavedModel(
        uri="run",
        weights="model",
        state=TrainState(),
        config={},
        model_config=ModelConfig(name="efficientnet_v2_tiny"),
        model=in_units(net.eval(), task),
        task=task,
        preprocessing=Preprocessing(image_size=16, eval_crop="whole", pixel_mean=128.0, pixel_std=128.0),
    )


def pictures(count: int) -> np.ndarray:
    """Images of every brightness, so that outputs differ."""
    images = np.random.default_rng(0).integers(0, 60, (count, 3, 16, 16))
    return (images + np.linspace(0, 190, count).astype(int)[:, None, None, None]).astype(np.uint8)


@pytest.mark.parametrize("changed", [0, 1])
def test_a_target_that_is_wrong_shows_however_large_the_others_are(changed: int) -> None:
    saved, images = saved_model(NUMBERS), pictures(4)

    def wrong(images: np.ndarray) -> np.ndarray:
        values = saved.logits(images).copy()
        values[:, changed] += 3 * NUMBERS.target_std[changed]
        return values

    assert largest_difference(saved, saved.logits, images) == 0
    assert largest_difference(saved, wrong, images) == pytest.approx(3, rel=0.01)


def test_rounding_of_numbers_far_from_0_is_no_difference_and_a_nan_is_one() -> None:
    saved, images = saved_model(RegressionConfig(target_mean=(1.7e9, 0.0), target_std=(100.0, 1.0))), pictures(4)
    assert largest_difference(saved, lambda images: np.nextafter(saved.logits(images), np.float32(0)), images) == 0
    for config in (NUMBERS, ClassificationConfig()):
        saved = saved_model(config)
        assert math.isnan(largest_difference(saved, lambda images: saved.logits(images) * np.nan, images))  # noqa: B023


def scored(checkpoint: float, exported: float, *, highest: bool = False) -> Scored:
    return Scored(metric="mae", checkpoint=checkpoint, exported=exported, samples=9, highest=highest)


@given(mae=st.floats(1e-9, 1e9), unit=st.floats(1e-9, 1e9), worse=st.floats(0, 2))
def test_the_loss_of_an_error_does_not_depend_on_its_unit(mae: float, unit: float, worse: float) -> None:
    assert scored(mae * unit, mae * unit * (1 + worse)).loss == pytest.approx(worse, rel=1e-6, abs=1e-6)


def test_the_loss_of_an_accuracy_is_what_is_missing() -> None:
    assert scored(0.8, 0.7, highest=True).loss == pytest.approx(0.1)
    assert [scored(0.0, exported).loss for exported in (0.0, 0.1)] == [0.0, math.inf]
    assert math.isnan(scored(1.0, math.nan).loss)


def graph_of(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    """A graph from `x` to `logits` with the constants `w` and `c`."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "logits")]
    constants = [onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [2.0]) for name in ("w", "c")]
    return onnx.helper.make_graph([*nodes], "graph", ends[:1], ends[1:], constants)


def node(kind: str, inputs: str, output: str) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, [*inputs], [output], name=f"{kind} {output}")


def test_only_what_scales_the_last_layers_outputs_is_left_alone_in_int8() -> None:
    layers = node("Gemm", "xw", "a"), node("Mul", "ac", "b")
    assert scaling_nodes(graph_of(*layers, node("Add", "bc", "logits"))) == ["Add logits", "Mul b"]
    assert scaling_nodes(graph_of(*layers, node("Gemm", "bw", "logits"))) == []
    assert scaling_nodes(graph_of(*layers, node("Add", "ab", "logits"))) == []  # a sum of two branches


@pytest.mark.soak  # the exporter alone takes ten seconds to import
def test_int8_leaves_the_targets_units_as_they_are(tmp_path: Path) -> None:
    saved = saved_model(RegressionConfig(target_mean=(2000.0, 0.1), target_std=(5.0, 1e-3)))
    images = pictures(64)
    write_exported(saved, tmp_path / "plain.onnx", "int8")
    quantize(tmp_path / "plain.onnx", tmp_path / "int8.onnx", iter([images]))
    expected, found = saved.logits(images), open_exported(tmp_path / "int8.onnx")[1](images)
    for index, deviation in enumerate((5.0, 1e-3)):
        assert len(np.unique(found[:, index])) > 20
        assert np.abs(found - expected)[:, index].mean() < 0.1 * deviation
