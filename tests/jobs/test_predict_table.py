"""Predictions into a Parquet table, here and by a cluster's workers."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from datasets.files.urls import read_file, write_file
from datasets.images.listing import find_images
from datasets.prepare.layout import LeftOut
from jobs.predict import main
from pipeline.inference.cluster_predictions import predict_on_cluster
from pipeline.inference.prediction_table import PredictorSpec
from pipeline.inference.predictor import open_predictor
from tests.support.runs import TrainedRun
from tests.support.shards import image_of, png

COUNT = 11


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(COUNT):
        path = tmp_path / "images" / f"class {number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image_of(number % 4, number)))
    (tmp_path / "images/class 0/04.png").write_bytes(b"no image")
    return tmp_path / "images"


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def check(found: list[dict], run: TrainedRun, images: Path) -> None:
    files = sorted(images.rglob("*.png"))
    assert [row["path"] for row in found] == [str(file) for file in files]
    predictor = open_predictor(str(run.folder))
    for row, expected in zip(found, predictor.predict([file.read_bytes() for file in files]), strict=True):
        if isinstance(expected, ValueError):
            assert (row["label"], row["scores"], row["error"]) == (None, None, str(expected))
        else:
            assert row["error"] is None
            assert row["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-5)
            assert row["label"] == predictor.classes[expected.scores.argmax()]
            assert row["confidence"] == pytest.approx(max(row["scores"]))


def test_a_table_has_a_row_for_each_image(
    trained_classifier: TrainedRun, images: Path, tmp_path: Path, s3_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [str(trained_classifier.folder), str(images), "--batch-size", "3", "--out"]
    assert main([*told, str(tmp_path / "p.parquet")]) == 1
    shown = capsys.readouterr()
    assert f"{COUNT} images, 1 of them can't be read" in shown.out
    assert "04.png: corrupt" in shown.err
    check(rows(tmp_path / "p.parquet"), trained_classifier, images)
    classes = pq.read_schema(tmp_path / "p.parquet").metadata[b"classes"]
    assert json.loads(classes) == [f"class {number}" for number in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "p.parquet"]
    assert main([*told, f"{s3_uri}/p.parquet"]) == 1
    (tmp_path / "there.parquet").write_bytes(read_file(f"{s3_uri}/p.parquet"))
    assert rows(tmp_path / "there.parquet") == rows(tmp_path / "p.parquet")


@pytest.mark.soak
def test_a_clusters_workers_give_the_same_rows(
    trained_classifier: TrainedRun, images: Path, tmp_path: Path, ray_cluster: None
) -> None:
    out = tmp_path / "p.parquet"
    assert main([str(trained_classifier.folder), str(images), "--out", str(out), "--workers", "2"]) == 1
    check(rows(out), trained_classifier, images)


@pytest.mark.soak
def test_a_lost_worker_is_replaced_and_its_chunk_predicted_again(
    trained_classifier: TrainedRun, images: Path, ray_cluster: None
) -> None:
    chunks = predict_on_cluster(
        PredictorSpec(model=str(trained_classifier.folder)),
        find_images(str(images), LeftOut()),
        workers=1,
        batch_size=2,
        max_pixels=10**6,
        chunk=2,
    )
    first = next(chunks)
    every = psutil.process_iter(["cmdline"])  # of one that ends meanwhile it is None
    (worker,) = [one for one in every if "ray::PredictionWorker" in " ".join(one.info["cmdline"] or ())]
    worker.kill()
    found = [*first, *(row for chunk in chunks for row in chunk)]
    assert [row.path for row in found] == [str(file) for file in sorted(images.rglob("*.png"))]
    assert sum(row.error is not None for row in found) == 1


def test_mistakes_are_one_line(
    trained_classifier: TrainedRun, trained_segmenter: TrainedRun, images: Path, tmp_path: Path
) -> None:
    run = str(trained_classifier.folder)
    for arguments, message in (
        ([run, str(images), "--workers", "2"], r"a cluster predicts into a table; name it with --out NAME\.parquet"),
        ([run, str(images), "--workers", "-1", "--out", "a.parquet"], "workers is -1"),
        ([run, str(images), "--out", str(tmp_path / "no/a.parquet")], "no doesn't exist; make it first"),
        ([str(trained_segmenter.folder), str(images), "--out", "a.parquet"], "a table is for classification"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            main(arguments)
        assert "\n" not in str(error.value)


def test_an_unwritten_table_leaves_nothing(trained_classifier: TrainedRun, tmp_path: Path, s3_uri: str) -> None:
    write_file(f"{s3_uri}/0.png", png(image_of(1, 1)))
    (tmp_path / "gone.csv").write_text("path,note\n" + f"{s3_uri}/0.png,\n" + ",\n")
    with pytest.raises(ValueError, match=r"line 3: the column 'path' is empty"):
        main([str(trained_classifier.folder), str(tmp_path / "gone.csv"), "--out", str(tmp_path / "a.parquet")])
    assert [path.name for path in tmp_path.iterdir()] == ["gone.csv"]
