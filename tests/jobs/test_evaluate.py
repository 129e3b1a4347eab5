from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from datasets.errors import MissingDataError
from datasets.loading.reader import SampleReader
from datasets.shards.resolve import load_manifest
from infra.storage.open import open_storage
from jobs.evaluate import main
from jobs.prepare import main as prepare_main
from pipeline.checkpoint.catalog import CheckpointError, describe_checkpoints
from tests.support.odd_folders import put
from tests.support.runs import TrainedRun
from tests.support.shards import image_of, png, write_shards


def evaluated(capsys: pytest.CaptureFixture[str], run: TrainedRun, *more: str, model: str = "") -> dict:
    arguments = [model or str(run.folder), "--data", str(run.data / "val"), "--loader-workers", "0", "--json", "-"]
    assert main([*arguments, *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_every_checkpoint_gives_the_metrics_that_training_recorded(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run: TrainedRun = request.getfixturevalue(f"trained_{kind}")
    rows = [row for row in describe_checkpoints(open_storage(run.folder)) if row.metrics]
    sizes = []
    for row in rows:
        report = evaluated(capsys, run, "--batch-size", "16", model=f"{run.folder}/{row.key}")
        assert report["cursor"] == row.cursor
        assert {f"val/{name}": value for name, value in report["metrics"].items()} == pytest.approx(row.metrics)
        sizes.append(report["image_size"])
    assert (sizes[0], sizes[-1]) == (32, 48)


def test_a_folder_prepared_with_the_classes_of_the_run_is_evaluated_on(
    trained_classifier: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = load_manifest(str(trained_classifier.data / "val")).classes
    for label in (3, 1):  # of four: numbers by the folders' own names would be others
        for number in range(4):
            put(tmp_path / "new" / classes[label] / f"{number}.png", png(image_of(label, number)))
    name, storage = trained_classifier.folder.name, str(trained_classifier.folder.parent)
    flags = ["--split", "test", "--classes", name, "--storage", storage, "--out", str(tmp_path / "out")]
    assert prepare_main(["image-folder", str(tmp_path / "new"), *flags, "--workers", "1"]) == 0
    assert load_manifest(str(tmp_path / "out/test")).classes == classes
    assert load_manifest(str(tmp_path / "out/test")).class_counts == (0, 4, 0, 4)
    capsys.readouterr()
    report = evaluated(capsys, trained_classifier, "--data", str(tmp_path / "out/test"))
    assert report["metrics"]["accuracy"] > 0.6


def test_classes_and_confusion_add_up(trained_classifier: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluated(capsys, trained_classifier)
    confusion = report["confusion"]
    assert [row["count"] for row in report["classes"]] == [sum(counts) for counts in confusion] == [8, 8, 7, 7]
    right = sum(confusion[index][index] for index in range(4))
    assert right / report["samples"] == pytest.approx(report["metrics"]["accuracy"])
    assert report["metrics"]["accuracy"] > 0.6
    for index, row in enumerate(report["classes"]):
        assert row["recall"] == confusion[index][index] / row["count"]


def test_iou_of_the_confusion_matrix_is_torchmetrics(
    trained_segmenter: TrainedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluated(capsys, trained_segmenter)
    for row in report["classes"]:
        assert row["iou"] == pytest.approx(report["metrics"][f"iou_{row['name']}"])


def test_size_weights_and_checkpoint_can_be_chosen(
    trained_classifier: TrainedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = evaluated(capsys, trained_classifier)
    weights = evaluated(capsys, trained_classifier, "--no-ema")
    assert (usual["weights"], weights["weights"]) == ("ema", "model")
    assert usual["metrics"]["loss"] != weights["metrics"]["loss"]
    larger = evaluated(capsys, trained_classifier, "--image-size", "64")
    assert larger["image_size"] == 64
    assert larger["metrics"]["loss"] != usual["metrics"]["loss"]
    rows = [row for row in describe_checkpoints(open_storage(trained_classifier.folder)) if row.metrics]
    best = evaluated(capsys, trained_classifier, "--best")
    assert best["metrics"]["accuracy"] == pytest.approx(max(row.metrics["val/accuracy"] for row in rows))


def test_statistics_are_estimated_again_from_the_training_data(
    trained_classifier: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, again, other = (
        evaluated(capsys, trained_classifier, "--image-size", "64", *more)
        for more in ((), ("--reestimate-bn", "48"), ("--reestimate-bn", "48", "--batch-size", "24"))
    )
    assert (usual["reestimate_bn"], again["reestimate_bn"]) == (0, 48)
    assert len({report["metrics"]["loss"] for report in (usual, again, other)}) == 3
    named = ("--reestimate-bn", "48", "--train-data", str(trained_classifier.data / "train"))
    assert evaluated(capsys, trained_classifier, "--image-size", "64", *named) == again
    with pytest.raises(
        MissingDataError, match="--reestimate-bn needs training shards: name them with --train-data"
    ) as error:
        evaluated(capsys, trained_classifier, "--reestimate-bn", "48", "--train-data", str(tmp_path / "none"))
    assert "\n" not in str(error.value)
    wrong = str(write_shards(tmp_path / "other", [24], classes=3))
    with pytest.raises(ValueError, match=r"has other classes \(3: "):
        evaluated(capsys, trained_classifier, "--reestimate-bn", "48", "--train-data", wrong)


def test_a_folder_of_classes_and_a_table_give_what_the_shards_give(
    trained_classifier: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = evaluated(capsys, trained_classifier)
    reader = SampleReader(load_manifest(str(trained_classifier.data / "val")))
    rows = ["path,label"]
    for number in range(30):
        sample = reader.read(number)
        path = tmp_path / "val" / f"class {sample.label}" / "deep" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.data)
        rows.append(f"{path.relative_to(tmp_path)},{sample.label}")
    (tmp_path / "val.csv").write_text("\n".join(rows))
    (tmp_path / "all.csv").write_text(
        "\n".join([f"{rows[0]},split", f"{rows[1]},train", *(f"{row},test" for row in rows[2:])])
    )
    for place in (tmp_path / "val", tmp_path / "val.csv"):
        report = evaluated(capsys, trained_classifier, "--data", str(place))
        assert report["confusion"] == expected["confusion"]
        assert report["metrics"] == pytest.approx(expected["metrics"])
    with pytest.raises(ValueError, match=r"it holds splits; name one, such as .*/val"):
        evaluated(capsys, trained_classifier, "--data", str(trained_classifier.data))
    report = evaluated(capsys, trained_classifier, "--data", str(tmp_path / "all.csv"), "--split", "test")
    assert (report["split"], report["samples"]) == ("test", 29)
    files = [str(trained_classifier.folder), "--data", str(tmp_path / "all.csv"), "--loader-workers", "0"]
    assert main([*files, "--split", "test", "--report", str(tmp_path)]) == 0
    assert f"on 29 images of {tmp_path}/all.csv (test)" in capsys.readouterr().out
    assert f"29 images of {tmp_path}/all.csv (test)" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="--split test is for the rows of a table; leave it out"):
        evaluated(capsys, trained_classifier, "--split", "test")
    (tmp_path / "val/class 0").rename(tmp_path / "val/other")
    with pytest.raises(ValueError, match="the label 'other' is none of the model's 4 classes"):
        evaluated(capsys, trained_classifier, "--data", str(tmp_path / "val"))


def test_a_place_that_cannot_be_written_to_is_said_before_the_work(
    trained_classifier: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = [str(trained_classifier.folder), "--data", str(trained_classifier.data / "val")]
    for flag, place in (("report", "file"), ("pictures", "file/deep"), ("json", "file/a.json")):
        with pytest.raises(
            ValueError, match=rf"^--{flag}: {tmp_path}/file\S* can't be written to \(.*\); name another"
        ):
            main([*arguments, f"--{flag}", str(tmp_path / place)])
    assert capsys.readouterr().out == ""


def test_the_mean_with_the_mirror_image(trained_segmenter: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    usual, both = (evaluated(capsys, trained_segmenter, *more) for more in ((), ("--tta", "flip")))
    assert (usual["tta"], both["tta"]) == ("none", "flip")
    assert usual["metrics"]["loss"] != both["metrics"]["loss"]
    assert both["metrics"]["miou"] == pytest.approx(usual["metrics"]["miou"], abs=0.2)


def test_a_run_is_found_by_its_name_and_tables_and_pictures_are_written(
    trained_segmenter: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = trained_segmenter.folder.parent
    arguments = ["small", "--storage", str(storage), "--data", str(trained_segmenter.data / "val")]
    files = ["--json", str(tmp_path / "report.json"), "--pictures", str(tmp_path / "pictures")]
    assert main([*arguments, *files, "--loader-workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert "miou" in shown
    assert "middle" in shown
    assert set(json.loads((tmp_path / "report.json").read_text())) >= {"metrics", "classes", "confusion"}
    for name in ("confusion.png", "predictions.png"):
        assert Image.open(tmp_path / "pictures" / name).size > (48, 48)


def test_a_torn_checkpoint_is_skipped_with_a_line(
    trained_classifier: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained_classifier.folder, tmp_path / "run")
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    (newest / "ema.safetensors").write_bytes(b"damaged")
    assert main([str(folder), "--data", str(trained_classifier.data / "val"), "--loader-workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert "note: skipped a checkpoint" in shown
    assert newest.name in shown
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is corrupt"):
        main([str(newest), "--data", str(trained_classifier.data / "val")])


def test_mistakes_are_one_line(trained_classifier: TrainedRun, trained_segmenter: TrainedRun, tmp_path: Path) -> None:
    run, val = str(trained_classifier.folder), str(trained_classifier.data / "val")
    other = write_shards(tmp_path / "other", [4], classes=3)
    for arguments, message in (
        (["nothing", "--storage", str(tmp_path), "--data", val], "nothing holds no valid checkpoint"),
        ([run, "--data", str(trained_segmenter.data / "val")], "is for segmentation, but"),
        ([run, "--data", str(other)], r"has other classes \(3: class 0, .*than .*\(4: "),
        ([run, "--data", val, "--image-size", "8"], "image_size=8: efficientnet_v2_tiny has a total stride of 16"),
        ([run, "--data", val, "--image-size", "16385"], "image_size is 16385: it must be at most 16,384 px"),
        ([run, "--data", val, "--device", "tpu9"], "device is 'tpu9'"),
        ([run, "--data", val, "--batch-size", "0"], "batch_size is 0"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            main(arguments)
        assert "\n" not in str(error.value)
