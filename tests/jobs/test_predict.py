from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from datasets.config import DataConfig
from datasets.files.urls import write_file
from datasets.loading.loader import build_eval_loader
from infra.storage.open import open_storage
from jobs.predict import main
from pipeline.checkpoint.catalog import list_checkpoints
from pipeline.inference import trained_model
from pipeline.inference.trained_model import open_saved
from pipeline.training.figures import palette
from tests.support.runs import TrainedRun
from tests.support.shards import image_of, png, write_tar

COUNT = 6


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The first images of the validation shards, as files."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(image_of(number % 4, number)))
    return folder


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_probabilities_are_those_of_the_evaluation(
    trained_classifier: TrainedRun, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = open_saved(str(trained_classifier.folder))
    data = DataConfig(val=str(trained_classifier.data / "val"), eval_crop="whole", loader_workers=0)
    batch = next(iter(build_eval_loader(data, image_size=48, batch_size=COUNT, rank=0, world_size=1)))
    expected = torch.from_numpy(saved.logits(batch.images.numpy())).softmax(1)
    answers = predicted(capsys, trained_classifier.folder, images, "--top", 4)
    assert [Path(answer["image"]).name for answer in answers] == [f"{number}.jpg" for number in range(COUNT)]
    for answer, row in zip(answers, expected, strict=True):
        scores = {label["label"]: label["probability"] for label in answer["labels"]}
        assert [scores[name] for name in saved.task.classes] == pytest.approx(row.tolist(), abs=1e-6)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_exported_models_say_the_same(
    trained_classifier: TrainedRun,
    exported: dict[str, Path],
    images: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    ours = predicted(capsys, trained_classifier.folder, images)
    theirs = predicted(capsys, exported[f"classifier{suffix}"], images, "--batch-size", 4)
    for one, other in zip(ours, theirs, strict=True):
        assert [label["label"] for label in one["labels"]] == [label["label"] for label in other["labels"]]
        probabilities = [label["probability"] for label in other["labels"]]
        assert [label["probability"] for label in one["labels"]] == pytest.approx(probabilities, abs=1e-5)


@pytest.mark.parametrize("kind", ["checkpoint", ".onnx", ".pt2"])
def test_a_mask_has_the_images_size_and_the_classes_colours(
    trained_segmenter: TrainedRun,
    exported: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    model = trained_segmenter.folder if kind == "checkpoint" else exported[f"segmenter{kind}"]
    image = image_of(1, 3)
    (tmp_path / "photo.png").write_bytes(png(image))
    answer = predicted(capsys, model, tmp_path / "photo.png", "--out", tmp_path / "masks")[0]
    mask = Image.open(answer["mask"])
    values = np.array(mask)
    assert values.shape == (48, 64)
    assert np.array_equal(np.array(mask.convert("RGB")), palette(3)[values])
    right = (values == image[..., 0] // 86).mean()
    assert right > 0.75
    assert sum(label["share"] for label in answer["labels"]) == pytest.approx(1)


def test_a_table_and_a_damaged_file(
    trained_classifier: TrainedRun, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    assert main([str(trained_classifier.folder), str(tmp_path / "broken.jpg"), str(images), "--top", "1"]) == 1
    shown = capsys.readouterr()
    assert "broken.jpg: corrupt" in shown.err
    assert shown.out.count("class ") == COUNT


def test_folders_tables_tars_and_s3_are_predicted_alike(
    trained_classifier: TrainedRun, images: Path, s3_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = predicted(capsys, trained_classifier.folder, images, "--top", 1)
    files = sorted(images.iterdir())
    (images.parent / "table.csv").write_text("file\n" + "".join(f"images/{file.name}\n" for file in files))
    write_tar(images.parent / "all.tar", {file.name: file.read_bytes() for file in files})
    for file in files:
        write_file(f"{s3_uri}/{file.name}", file.read_bytes())
    for place, *more in (
        (images.parent / "table.csv", "--path-column", "file"),
        (images.parent / "all.tar",),
        (s3_uri,),
    ):
        theirs = predicted(capsys, trained_classifier.folder, place, "--top", 1, "--batch-size", 4, *more)
        assert [answer["labels"] for answer in theirs] == [
            [{"label": label["label"], "probability": pytest.approx(label["probability"], abs=1e-6)}]
            for answer in ours
            for label in answer["labels"]
        ]
        assert [answer["image"].rpartition("/")[2].rpartition(":")[2] for answer in theirs] == [f.name for f in files]


def test_masks_lie_in_folders_like_their_images_and_never_outside(
    trained_segmenter: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/0.png", "b/0.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(png(image_of(1, 3)))
    run, out = trained_segmenter.folder, tmp_path / "out"
    answers = predicted(capsys, run, f"{tmp_path}/in/", "--out", out, "--tile", 32, "--tta", "flip")
    assert [answer["mask"] for answer in answers] == [f"{out}/a/0.mask.png", f"{out}/b/0.mask.png"]
    mask = np.array(Image.open(answers[0]["mask"]))
    assert mask.shape == (48, 64)
    assert (mask == image_of(1, 3)[..., 0] // 86).mean() > 0.6
    write_tar(tmp_path / "evil.tar", {"../../outside.png": png(image_of(1, 3))})
    with pytest.raises(ValueError, match="a name that leads out of the folder"):
        main([str(run), str(tmp_path / "evil.tar"), "--out", str(out)])


def test_the_best_checkpoint_may_be_taken_as_by_an_evaluation(
    trained_classifier: TrainedRun, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_classifier.folder
    other = min(list_checkpoints(open_storage(run)))
    monkeypatch.setattr(trained_model, "_best", lambda storage: [other])
    assert predicted(capsys, run, images, "--best") == predicted(capsys, run / other, images)
    assert predicted(capsys, run, images, "--best") != predicted(capsys, run, images)


def test_the_mean_with_the_mirror_image_is_the_same_for_both(
    trained_classifier: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_of(1, 3)
    (tmp_path / "0.png").write_bytes(png(image))
    (tmp_path / "1.png").write_bytes(png(np.ascontiguousarray(image[:, ::-1])))
    one, other = predicted(capsys, trained_classifier.folder, tmp_path, "--tta", "flip", "--top", 4)
    scores, mirrored = ({label["label"]: label["probability"] for label in a["labels"]} for a in (one, other))
    assert scores == pytest.approx(mirrored, abs=1e-4)


def test_mistakes_are_one_line(
    trained_classifier: TrainedRun,
    trained_segmenter: TrainedRun,
    exported: dict[str, Path],
    images: Path,
    tmp_path: Path,
) -> None:
    run, file = str(trained_classifier.folder), str(images / "0.jpg")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/0.jpg").write_bytes((images / "0.jpg").read_bytes())
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([run, str(tmp_path / "none.jpg")], r"none\.jpg: there is no such file or folder"),
        ([run, str(tmp_path / "empty")], "empty: no image files lie there"),
        ([run, file, "--tile", "32"], "tile is 32: tiles are for segmentation"),
        ([run, file, "--tile-overlap", "1"], "tile_overlap is 1"),
        ([run, file, "--tta", "rotate"], "--tta: 'rotate' is not one of none, flip"),
        ([str(trained_segmenter.folder), file], "out is empty: the model segments"),
        (
            [str(trained_segmenter.folder), file, str(tmp_path / "other/0.jpg"), "--out", str(tmp_path / "m")],
            "has the same name; give them in two calls",
        ),
        ([run], "no images are named: add files, folders, tars or tables after"),
        ([run, file, "--out", "a.csv"], r"out is 'a\.csv': for classification name a table, NAME\.parquet, or leave"),
        ([file, file], r"0\.jpg is a file: name a run or a checkpoint by its folder"),
        ([str(tmp_path / "none.onnx"), file], r"none\.onnx: there is no such file"),
        ([str(exported["classifier.onnx"]), file, "--image-size", "64"], "has a fixed image size"),
        ([str(exported["classifier.onnx"]), file, "--best"], r"best is True: .*classifier\.onnx holds one model"),
        ([str(exported["classifier.pt2"]), file, "--no-ema"], r"ema is False: .*classifier\.pt2 holds the weights"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            main(arguments)
        assert "\n" not in str(error.value)
