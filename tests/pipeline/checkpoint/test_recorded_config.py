"""Configs read back from their recorded values."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.cluster.config import ClusterConfig
from model.config import ModelConfig
from model.tables import Block
from pipeline.checkpoint.catalog import CheckpointError
from pipeline.checkpoint.recorded_config import config_from, task_config_from
from pipeline.run.provenance import recorded_config
from pipeline.schedule.stages import TrainingStage
from pipeline.task_config import ClassificationConfig, MultilabelConfig, SegmentationConfig, TaskConfig

numbers = st.integers(1, 64)
blocks = st.builds(
    Block,
    operator=st.sampled_from(["MBConv", "Fused-MBConv"]),
    expansion=numbers,
    kernel=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    channels=numbers,
    layers=numbers,
)
models = st.one_of(
    st.builds(ModelConfig, rows=st.lists(blocks, min_size=1).map(tuple), norm_momentum=st.sampled_from([None, 0.1])),
    st.builds(ModelConfig, fused_rows=st.lists(numbers).map(tuple), init_from=st.sampled_from([None, "a.pt"])),
)
areas = st.tuples(st.floats(0.1, 0.5), st.floats(0.5, 1.0))
stages = st.builds(
    TrainingStage,
    image_size=st.just(64),
    epochs=st.just(1.0),
    batch_size=st.just(24),
    crop_area=st.one_of(st.none(), areas),
    num_workers=st.one_of(st.just(0), numbers, st.tuples(st.just(1), numbers)),
)
clusters = st.builds(ClusterConfig, num_workers=st.one_of(numbers, st.tuples(st.just(1), numbers)))


@given(st.one_of(models, stages, clusters))
def test_values_of_every_type_are_read_back_as_they_were(config: ModelConfig | TrainingStage | ClusterConfig) -> None:
    assert config_from(type(config), json.loads(json.dumps(recorded_config(config))), "here") == config


def test_missing_fields_are_defaults_and_unknown_ones_are_refused_by_name() -> None:
    assert config_from(ModelConfig, {"name": "resnet50"}, "x") == ModelConfig(name="resnet50")
    for values, said in (({"wings": 2}, "wings"), ({"rows": 3}, "int"), ({"rows": [{"kernel": 3}]}, "operator")):
        with pytest.raises(CheckpointError, match=rf"^x .*{said}.*use the version"):
            config_from(ModelConfig, values, "x")


@pytest.mark.parametrize("config", [ClassificationConfig(), MultilabelConfig(), SegmentationConfig()])
def test_a_tasks_values_are_of_its_kind(config: TaskConfig) -> None:
    values = json.loads(json.dumps(recorded_config(config)))
    assert task_config_from(values, "here") == config
    own = [name for name in values if all(len({name} & {*recorded_config(kind())}) == 0 for kind in others(config))]
    assert own, "a kind without a field of its own can't be told from the others"


def others(config: TaskConfig) -> list[type[TaskConfig]]:
    return [kind for kind in get_args(TaskConfig) if kind is not type(config)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"label_smoothing": 0.2}, ClassificationConfig),  # before there was a focal loss
        ({"label_smoothing": 0.2, "focal_gamma": 0.0}, ClassificationConfig),
        ({"dice_weight": 0.5, "ignore_index": 255}, SegmentationConfig),  # before Tversky's weights
    ],
)
def test_tasks_that_earlier_versions_wrote_are_read(values: dict[str, float], kind: type[TaskConfig]) -> None:
    assert task_config_from(values, "here") == kind(**values)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="that this version doesn't know"):
        task_config_from(values | {"wings": 2}, "here")
