from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import pipeline.exported
from jobs.export import main
from pipeline.exported import ExportError, open_exported, write_exported
from pipeline.saved import SavedModel, open_saved
from tests.trained import TrainedRun

NAMES = ("classifier.onnx", "classifier.pt2", "segmenter.onnx", "segmenter.pt2")


def test_only_what_was_compared_is_there(exported: dict[str, Path]) -> None:
    assert sorted(exported) == sorted(NAMES)  # and no temporary file beside


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_gives_the_checkpoints_logits(
    exported: dict[str, Path], name: str, count: int, request: pytest.FixtureRequest
) -> None:
    run: TrainedRun = request.getfixturevalue(f"trained_{name.partition('.')[0]}")
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 48, 48), dtype=np.uint8)
    logits = open_exported(exported[name])[1](images)
    expected = open_saved(str(run.folder)).logits(images)
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_inside(exported: dict[str, Path], name: str) -> None:
    facts, _ = open_exported(exported[name])
    of_masks = name.startswith("segmenter")
    assert facts["task"] == ("segmentation" if of_masks else "classification")
    assert facts["classes"] == (["low", "middle", "high"] if of_masks else [f"class {i}" for i in range(4)])
    assert facts["checkpoint"]["weights"] == "ema"
    view = facts["preprocessing"]
    assert (view["image_size"], view["pixel_mean"], view["pixel_std"]) == (48, 128.0, 128.0)
    assert (view["crop_fraction"], view["channel_order"]) == (1.0, "RGB")


def test_the_onnx_file_is_whole_and_its_batch_has_a_name(exported: dict[str, Path]) -> None:
    onnx.checker.check_model(exported["classifier.onnx"], full_check=True)
    model = onnx.load(exported["classifier.onnx"], load_external_data=False)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 3, 48, 48]
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["classes"])[0] == "class 0"


def test_a_model_with_other_results_is_not_kept(
    trained_classifier: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_mean(saved: SavedModel, path: Path) -> None:
        write_exported(replace(saved, preprocessing=replace(saved.preprocessing, pixel_mean=0.0)), path)

    monkeypatch.setattr(pipeline.exported, "write_exported", without_mean)
    kept = tmp_path / "wrong.pt2"
    kept.write_bytes(b"an earlier export")
    with pytest.raises(ExportError, match="is not written: the exported model's logits differ"):
        main([str(trained_classifier.folder), "--to", str(kept)])
    assert kept.read_bytes() == b"an earlier export"
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.pt2"]


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["sample_inputs", "use_pickle"])
def test_nothing_in_a_pt2_file_is_unpickled(exported: dict[str, Path], tmp_path: Path, place: str) -> None:
    forged, touched = tmp_path / "forged.pt2", tmp_path / "touched"
    torch.save((_Evil(touched),), tmp_path / "evil.pt")
    with zipfile.ZipFile(exported["classifier.pt2"]) as old, zipfile.ZipFile(forged, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if place == "sample_inputs" and "sample_inputs" in name:
                data = (tmp_path / "evil.pt").read_bytes()
            elif place == "use_pickle" and name.endswith("weights_config.json"):
                config = json.loads(data)
                next(iter(config["config"].values()))["use_pickle"] = True
                data = json.dumps(config).encode()
            elif place == "use_pickle" and name.endswith("weights/weight_0"):
                data = pickle.dumps(_Evil(touched))
            new.writestr(name, data)
    with pytest.raises(ExportError, match="forged"):
        open_exported(forged)
    assert not touched.exists()


def test_mistakes_are_one_line(trained_classifier: TrainedRun, tmp_path: Path) -> None:
    run = str(trained_classifier.folder)
    for arguments, message in (
        ([run, "--to", "model.pb"], r"to is 'model\.pb': name a file that ends in \.onnx or \.pt2"),
        ([run, "--to", str(tmp_path / "no/model.onnx")], "no doesn't exist; make it first"),
        (
            [run, "--to", str(tmp_path / "m.onnx"), "--data", str(tmp_path)],
            "name shards for the comparison with --data",
        ),
        ([str(tmp_path), "--to", str(tmp_path / "m.onnx")], "holds no whole checkpoint"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            main(arguments)
        assert "\n" not in str(error.value)
    for name in ("text.onnx", "text.pt2"):
        (tmp_path / name).write_text("no model")
        with pytest.raises(ExportError, match=name):
            open_exported(tmp_path / name)
