"""What a run tells MLflow of its data and its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.shards.resolve import load_manifest
from infra.storage.open import open_storage
from pipeline.checkpoint.catalog import describe_checkpoints
from pipeline.checkpoint.format import write_checkpoint
from pipeline.checkpoint.state import TrainState
from pipeline.run.lineage import checkpoint_models, datasets_of
from tests.support.configs import MakeConfig
from tests.support.shards import write_mask_shards, write_multilabel_shards, write_shards
from tests.support.snapshots import snapshot


def test_one_folder_is_one_dataset_with_the_data_s_own_fingerprint(tmp_path: Path) -> None:
    manifest = load_manifest(str(write_shards(tmp_path / "cells" / "train", [6, 6])))
    (data,) = datasets_of(manifest, "training")
    assert (data.name, data.digest, data.context) == ("cells/train", manifest.fingerprint, "training")
    assert data.source == str(tmp_path / "cells" / "train")
    assert data.columns == {"image": "binary", "label": "long"}
    assert (data.profile["num_rows"], data.profile["num_shards"]) == (12, 2)


def test_a_mixture_is_a_dataset_for_each_folder_in_its_order(tmp_path: Path) -> None:
    parts = [write_shards(tmp_path / name, [count]) for name, count in (("z", 6), ("a", 8))]
    data = datasets_of(load_manifest("::".join(map(str, parts)), weights=(1.0, 0.5)), "training")
    assert [one.source for one in data] == [str(part) for part in parts]
    assert [one.digest for one in data] == [load_manifest(str(part)).fingerprint for part in parts]
    assert [one.profile.get("weight") for one in data] == [None, "0.5"]


@pytest.mark.parametrize(
    ("write", "column"), [(write_mask_shards, "mask"), (write_multilabel_shards, "list of labels")]
)
def test_the_columns_are_the_kind_s(tmp_path: Path, write: type, column: str) -> None:
    (data,) = datasets_of(load_manifest(str(write(tmp_path / "some", [6]))), "validation")
    assert column in data.columns


@pytest.mark.parametrize(
    ("starts", "cursor", "trained"),
    [([0], 0, 0), ([0], 24, 0), ([0, 24], 24, 0), ([0, 24], 25, 1), ([0, 24, 24], 24, 0)],
)
def test_the_stage_that_was_trained_last_is_known(starts: list[int], cursor: int, trained: int) -> None:
    assert TrainState(cursor=cursor, stage_starts=starts).trained_stage == trained


def test_valid_checkpoints_become_models(tmp_path: Path, make_config: MakeConfig) -> None:
    config, storage = make_config(), open_storage(tmp_path)
    for cursor in (24, 48):
        write_checkpoint(storage, snapshot(cursor))
    storage.delete("checkpoints/000000000000048/manifest.json")
    rows = describe_checkpoints(storage)
    (model,) = checkpoint_models(rows, storage.uri, config, [])
    assert (model.name, model.step) == (f"{config.name}-24", 24)
    assert model.uri == f"{storage.uri}/{rows[0].key}"
    assert (model.params["stage"], model.params["image_size"]) == ("1", str(config.stages[0].image_size))
