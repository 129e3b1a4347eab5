"""A multi-label run after training: evaluated, reported, predicted with, exported, served."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

from datasets.errors import DataError
from datasets.loading.reader import SampleReader
from datasets.shards.resolve import load_manifest
from infra.storage.open import open_storage
from jobs.evaluate import main as evaluate
from jobs.export import main as export
from jobs.predict import main as predict
from pipeline.checkpoint.catalog import describe_checkpoints
from pipeline.checkpoint.recorded_config import config_from
from pipeline.config import TrainConfig
from pipeline.inference.exported_model import open_exported
from pipeline.inference.predictor import open_predictor
from pipeline.inference.trained_model import open_saved
from pipeline.run.preflight import check_run
from pipeline.task_config import ClassificationConfig
from pipeline.training.multilabel import MultilabelTask
from tests.support.runs import TrainedRun, train_multilabel
from tests.support.shards import labels_of, multilabel_image, png, write_shards

CLASSES = ("stripes", "spots", "waves")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train_multilabel(tmp_path_factory.mktemp("multilabel"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        (folder / f"{number:02}.png").write_bytes(png(multilabel_image(labels_of(number), number + 100)))
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], run: TrainedRun, model: str = "") -> dict:
    place = ["--data", str(run.data / "val"), "--loader-workers", "0", "--batch-size", "16"]
    assert evaluate([model or str(run.folder), *place, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_has_learned_and_every_checkpoint_gives_what_training_recorded(
    run: TrainedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in describe_checkpoints(open_storage(run.folder)) if row.metrics]
    for row in rows:
        report = evaluated(capsys, run, f"{run.folder}/{row.key}")
        assert {f"val/{name}": value for name, value in report["metrics"].items()} == pytest.approx(row.metrics)
    report = evaluated(capsys, run)
    assert report["metrics"]["map"] > 0.9
    assert report["metrics"]["macro_f1"] > 0.8
    assert "confusion" not in report
    by_name = {row["name"]: row for row in report["classes"]}
    assert [*by_name] == [*CLASSES]
    assert np.mean([row["average_precision"] for row in by_name.values()]) == pytest.approx(report["metrics"]["map"])
    for name, row in by_name.items():
        assert row["threshold"] == report["metrics"][f"threshold_{name}"]
        assert row["count"] == sum(CLASSES.index(name) in labels_of(number) for number in range(27))


def test_thresholds_are_recorded_with_the_checkpoint_and_not_chosen_again(run: TrainedRun) -> None:
    saved = open_saved(str(run.folder))
    assert isinstance(saved.task, MultilabelTask)
    assert saved.task.thresholds == tuple(saved.state.evaluation[f"val/threshold_{name}"] for name in CLASSES)


def test_tables_and_report_need_no_confusion_matrix(
    run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [str(run.folder), "--data", str(run.data / "val"), "--loader-workers", "0"]
    assert evaluate([*told, "--report", str(tmp_path / "r"), "--pictures", str(tmp_path / "p"), "--tta", "flip"]) == 0
    shown = capsys.readouterr().out
    assert "average precision" in shown
    assert "threshold_" not in shown
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["predictions.png"]
    page = (tmp_path / "r/report.html").read_text()
    for part in ("mean average precision", "Worst mistakes", "Calibration", "Classes", "Mistakes by class"):
        assert part in page
    assert "Confusions" not in page
    used = {one for value in re.findall(r'class="picture (s\d+)"', page) for one in value.split()}
    assert used == set(re.findall(r"\.(s\d+) \{ background-image: url\(data:image/", page))


def test_predictions_are_the_classes_whose_thresholds_are_reached(
    run: TrainedRun, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = open_predictor(str(run.folder))
    files = sorted(images.iterdir())
    assert predict([str(run.folder), str(images), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert predict([str(run.folder), str(images), "--out", str(tmp_path / "t.parquet")]) == 0
    table = pq.read_table(tmp_path / "t.parquet")
    assert json.loads(table.schema.metadata[b"thresholds"]) == list(predictor.thresholds)
    found = predictor.predict([file.read_bytes() for file in files])
    right = 0
    for number, (answer, row, one) in enumerate(zip(answers, table.to_pylist(), found, strict=True)):
        assert not isinstance(one, ValueError)
        expected = [name for name, p, t in zip(CLASSES, one.scores, predictor.thresholds, strict=True) if p >= t]
        assert row["labels"] == expected
        assert _labels(answer) == {*expected}
        assert row["scores"] == pytest.approx(one.scores.tolist())
        right += expected == [CLASSES[label] for label in labels_of(number)]
    assert right >= 6
    capsys.readouterr()
    assert predict([str(run.folder), str(files[7])]) == 0
    assert "predicted" in capsys.readouterr().out


def test_the_driver_takes_the_recorded_config_and_knows_its_metrics(run: TrainedRun) -> None:
    config = config_from(TrainConfig, open_saved(str(run.folder)).config, "here")
    assert check_run(config).config.kind == "multilabel"
    rules = replace(config.checkpoint, best_metric="val/accuracy")
    with pytest.raises(ValueError, match=r"'val/accuracy', which this task doesn't measure: there are val/map, "):
        check_run(replace(config, checkpoint=rules))
    with pytest.raises(DataError, match="is for multilabel, but the recipe's task is classification"):
        check_run(replace(config, task=ClassificationConfig()))


@pytest.mark.soak  # an export takes longer than all the rest
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_exported_model_says_how_its_logits_become_labels(
    run: TrainedRun,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    path = tmp_path / f"model{suffix}"
    assert export([str(run.folder), "--to", str(path)]) == 0
    facts, _ = open_exported(path)
    ours, theirs = open_predictor(str(run.folder)), open_predictor(str(path))
    assert (facts["task"], facts["classes"]) == ("multilabel", [*CLASSES])
    assert facts["scores"] == {"activation": "sigmoid", "thresholds": list(ours.thresholds)}
    capsys.readouterr()
    answers = []
    for model in (str(run.folder), str(path)):
        assert predict([model, str(images), "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    for one, other in zip(*answers, strict=True):
        for a, b in zip(one["labels"], other["labels"], strict=True):
            assert (a["label"], a["predicted"]) == (b["label"], b["predicted"])
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)
    assert theirs.thresholds == ours.thresholds
    if suffix == ".onnx":
        _check_served(path, images, answers[0])
    else:
        monkeypatch.chdir(images)
        monkeypatch.setattr(sys, "argv", ["use.py", *sorted(file.name for file in images.iterdir())])
        exec(_documented_consumer().replace("cells.pt2", str(path)), {})
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [{*row[1:]} for row in rows] == [_labels(answer) for answer in answers[0]]


def _documented_consumer() -> str:
    """Return the ten lines of the docs, with the last two for several labels an image."""
    text = (Path(__file__).parents[2] / "docs/models.md").read_text()
    whole, end = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "".join([*whole.splitlines(keepends=True)[:-2], *end.splitlines(keepends=True)[-2:]])


def _labels(answer: dict) -> set[str]:
    return {label["label"] for label in answer["labels"] if label["predicted"]}


def _check_served(path: Path, images: Path, answers: list[dict]) -> None:
    """Check that the script which MLflow serves gives the same labels."""
    from pipeline.inference.served_images import ServedImages

    served = ServedImages()
    served.load_context(SimpleNamespace(artifacts={"model": str(path)}))
    data = [file.read_bytes() for file in sorted(images.iterdir())]
    rows = served.predict(None, pandas.DataFrame({"image": data}))
    assert [*rows.columns] == ["labels", "scores"]
    for labels, answer in zip(rows["labels"], answers, strict=True):
        assert {*labels} == _labels(answer)


def test_a_table_of_labels_gives_what_the_shards_give(
    run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, reader = evaluated(capsys, run), SampleReader(load_manifest(str(run.data / "val")))
    rows = ["path,label"]
    for number in range(27):
        (tmp_path / f"{number}.jpg").write_bytes(reader.read(number).data)
        names = [CLASSES[label] if number % 2 else str(label) for label in labels_of(number)]
        rows.append(f"{number}.jpg,{'; '.join(names)}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    told = [str(run.folder), "--data", str(tmp_path / "t.csv"), "--loader-workers", "0", "--batch-size", "16"]
    assert evaluate([*told, "--label-separator", ";", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == pytest.approx(expected["metrics"])
    said = r"3.jpg: the label 'stripes; spots' is none of the model's 3 classes .* with --label-separator$"
    with pytest.raises(DataError, match=said):
        evaluate(told)


def test_data_of_another_kind_is_refused_in_one_line(run: TrainedRun, tmp_path: Path, images: Path) -> None:
    single = str(write_shards(tmp_path / "single", [24], classes=3))
    for place, said in (
        (single, "is for classification, but .* was trained for multilabel"),
        (str(images), "only shards and tables"),
    ):
        with pytest.raises(DataError, match=said) as error:
            evaluate([str(run.folder), "--data", place, "--loader-workers", "0"])
        assert "\n" not in str(error.value)
