"""A regression after training: evaluated, predicted with, exported, served."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets.errors import DataError
from infra.storage.open import open_storage
from jobs.evaluate import main as evaluate
from jobs.export import main as export
from jobs.predict import main as predict
from pipeline.checkpoint.catalog import describe_checkpoints
from pipeline.inference.exported_model import open_exported
from pipeline.inference.predictor import open_predictor
from tests.support.pages import Page
from tests.support.runs import TrainedRun, train_regression
from tests.support.shards import png, target_image, targets_of, write_shards

NAMES = ["light", "height"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train_regression(tmp_path_factory.mktemp("regression"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        (folder / f"{number:02}.png").write_bytes(png(target_image(number)))
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], run: TrainedRun, model: str = "") -> dict:
    place = ["--data", str(run.data / "val"), "--loader-workers", "0", "--batch-size", "16"]
    assert evaluate([model or str(run.folder), *place, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_has_learned_and_every_checkpoint_gives_what_training_recorded(
    run: TrainedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in [row for row in describe_checkpoints(open_storage(run.folder)) if row.metrics]:
        report = evaluated(capsys, run, f"{run.folder}/{row.key}")
        assert {f"val/{name}": value for name, value in report["metrics"].items()} == pytest.approx(
            row.metrics, rel=1e-3
        )
    report = evaluated(capsys, run)
    assert report["metrics"]["r2_light"] > 0.8
    assert report["metrics"]["r2_height"] > 0.5
    assert report["metrics"]["mae_light"] < 0.02
    assert "confusion" not in report
    for row in report["classes"]:
        assert row["mae"] == pytest.approx(report["metrics"][f"mae_{row['name']}"])
        assert row["count"] == 27


def test_tables_and_pictures(run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = [str(run.folder), "--data", str(run.data / "val"), "--loader-workers", "0"]
    assert evaluate([*told, "--pictures", str(tmp_path / "p"), "--tta", "flip"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("target", "mae", "rmse", "r2", *NAMES))
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["predictions.png", "scatter.png"]
    with Image.open(tmp_path / "p/scatter.png") as picture:
        blue = (np.asarray(picture) == (37, 99, 235)).all(2)
    assert blue[:, : picture.width // 2].any()
    assert blue[:, picture.width // 2 :].any()


def test_the_report_shows_each_target_and_its_largest_errors(run: TrainedRun, tmp_path: Path) -> None:
    told = [str(run.folder), "--data", str(run.data / "val"), "--loader-workers", "0"]
    assert evaluate([*told, "--report", str(tmp_path), "--json", str(tmp_path / "scores.json")]) == 0
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    for score in json.loads((tmp_path / "scores.json").read_text())["classes"]:
        assert f"{score['r2']:.4f}" in page.text
    assert re.findall(r"<h2>(.*)</h2>", text) == ["Targets", "Worst errors", *NAMES]
    used = {one for value in page.values("class") for one in value.split() if re.fullmatch(r"s\d+", one)}
    assert used == set(re.findall(r"\.(s\d+) \{ background-image: url\(data:image/", text))
    assert "http" not in text.replace("http-equiv", "")
    circles = re.findall(r"<circle ", text)
    assert len(circles) == 2 * (27 + 12)  # each image, and the worst once more
    captions = re.findall(r"truth ([\d.,]+)<br>predicted ([-\d.,]+)<br><b>([-+][\d.,]+) \(", text)
    assert len(captions) == 2 * 12
    for truth, predicted, error in [[float(one.replace(",", "")) for one in caption] for caption in captions]:
        assert error == pytest.approx(predicted - truth, abs=2e-4 if truth < 1 else 2)


def test_predictions_are_numbers_in_the_targets_units(
    run: TrainedRun, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([str(run.folder), str(images), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    for number, answer in enumerate(answers):
        values = {one["label"]: one["value"] for one in answer["labels"]}
        assert [*values] == NAMES
        assert values["light"] == pytest.approx(targets_of(number)[0], abs=0.05)
        assert values["height"] == pytest.approx(targets_of(number)[1], abs=2500)
    assert predict([str(run.folder), str(images), "--out", str(tmp_path / "t.parquet")]) == 0
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column_names == ["path", "scores", "error"]
    assert json.loads(table.schema.metadata[b"classes"]) == NAMES
    for row, answer in zip(table.to_pylist(), answers, strict=True):
        assert row["scores"] == pytest.approx([one["value"] for one in answer["labels"]], rel=1e-4)
    capsys.readouterr()
    assert predict([str(run.folder), str(images / "03.png")]) == 0
    assert "height" in capsys.readouterr().out


@pytest.mark.soak  # an export takes longer than all the rest
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_exported_model_gives_numbers_in_the_targets_units(
    run: TrainedRun, images: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    assert export([str(run.folder), "--to", str(path)]) == 0
    facts, _ = open_exported(path)
    assert (facts["task"], facts["classes"], facts["scores"]) == ("regression", NAMES, {"activation": "none"})
    data = [file.read_bytes() for file in sorted(images.iterdir())]
    expected = np.array([one.scores for one in open_predictor(str(run.folder)).predict(data)])  # type: ignore[union-attr]
    found = np.array([one.scores for one in open_predictor(str(path)).predict(data)])  # type: ignore[union-attr]
    assert found == pytest.approx(expected, rel=1e-3)
    if suffix == ".onnx":
        from pipeline.inference.served_images import ServedImages

        served = ServedImages()
        served.load_context(SimpleNamespace(artifacts={"model": str(path)}))
        rows = served.predict(None, pandas.DataFrame({"image": data}))
        assert [*rows.columns] == ["scores"]
        assert np.array(rows["scores"].tolist()) == pytest.approx(expected, rel=1e-3)


def test_data_of_another_kind_is_refused_in_one_line(run: TrainedRun, tmp_path: Path, images: Path) -> None:
    single = str(write_shards(tmp_path / "single", [24], classes=2))
    for place, said in (
        (single, "is for classification, but .* was trained for regression"),
        (str(images), "only shards and tables"),
    ):
        with pytest.raises(DataError, match=said) as error:
            evaluate([str(run.folder), "--data", place, "--loader-workers", "0"])
        assert "\n" not in str(error.value)
