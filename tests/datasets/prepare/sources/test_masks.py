"""Masks of any layout and encoding -> class numbers beside the image's own bytes; mistakes are one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.config import DataConfig
from datasets.loading.loader import build_eval_loader
from datasets.loading.reader import SampleReader
from datasets.prepare.mask_classes import mask_classes
from datasets.prepare.sources.masks import Masks
from datasets.shards.resolve import load_manifest
from jobs.index import main as index
from tests.support.commands import prepare as main
from tests.support.prepared import png

SIDE = 32
COLOURS = {"sky": (0, 0, 128), "road": (128, 64, 128), "void": (0, 0, 0)}


def write_pairs(
    images: Path, masks: Path, count: int, *, suffix: str = "", value: int = 1, size: int = SIDE, shade: int = 0
) -> None:
    """Write grey images in two folders, and masks whose upper half is 0 and whose lower half is `value`."""
    for number in range(count):
        place = Path("ab"[number % 2]) / f"{number:02d}"
        pixels = np.full((SIDE, SIDE, 3), 10 * number + 3 * shade, np.uint8)
        mask = np.zeros((size, size), np.uint8)
        mask[size // 2 :] = value
        for path in (images / f"{place}.jpg", masks / f"{place}{suffix}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(images / f"{place}.jpg", quality=95)
        (masks / f"{place}{suffix}.png").write_bytes(png(mask))


def prepared(out: Path, *flags: str) -> dict[str, np.ndarray]:
    """Prepare; return the masks of each split as they are trained, uint8 [B, H, W]."""
    assert main(["masks", *flags, "--out", str(out), "--workers", "1"]) == 0
    found = {}
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        config = DataConfig(train=str(folder), val=str(folder), eval_crop="whole", loader_workers=0)
        batches = build_eval_loader(config, image_size=SIDE, batch_size=100, rank=0, world_size=1)
        found[folder.name] = next(iter(batches)).masks.numpy()  # type: ignore[union-attr]
    return found


def halves(lower: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[SIDE // 2 :] = lower
    return mask


def test_folders_of_splits_are_paired_by_name_and_pixels_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shade, (split, count) in enumerate((("train", 6), ("val", 4), ("test", 2))):
        write_pairs(tmp_path / split, tmp_path / f"{split}-masks", count, value=2, shade=shade)
    wanted = halves(255)
    wanted[0] = 1
    for path in tmp_path.glob("*-masks/*/*.png"):
        path.write_bytes(png(np.where(wanted == 255, 2, wanted).astype(np.uint8)))
    flags = [f"--{split}-{what}" for split in ("val", "test") for what in ("images", "masks")]
    folders = [str(tmp_path / name) for name in ("val", "val-masks", "test", "test-masks")]
    pairs = [part for pair in zip(flags, folders, strict=True) for part in pair]
    found = prepared(
        tmp_path / "out",
        *(str(tmp_path / "train"), "--masks", str(tmp_path / "train-masks"), *pairs),
        *("--classes", "sky,road,void,tree", "--ignore", "void"),
    )
    assert {split: len(masks) for split, masks in found.items()} == {"train": 6, "val": 4, "test": 2}
    assert all((mask == wanted).all() for masks in found.values() for mask in masks)
    output = capsys.readouterr().out
    assert "train: 6 images, pixels: ignored 50.00%, sky 46.88%, road 3.12%; none of tree" in output
    manifest = load_manifest(str(tmp_path / "out/train"))
    assert (manifest.kind, manifest.classes) == ("segmentation", ("sky", "road", "tree"))


@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_masks_beside_the_images_are_no_images_and_each_folder_gives_to_val(tmp_path: Path, suffix: str) -> None:
    write_pairs(tmp_path / "all", tmp_path / "all", 20, suffix=suffix, value=255)
    options = ["--mask-suffix", suffix] if suffix else []
    found = prepared(tmp_path / "out", str(tmp_path / "all"), "--classes", "good,bad", "--binary", *options)
    assert {split: len(masks) for split, masks in found.items()} == {"train": 18, "val": 2}
    assert all((mask == halves(1)).all() for masks in found.values() for mask in masks)


def test_a_share_for_testing_is_chosen_first_so_a_larger_one_takes_what_validation_had(tmp_path: Path) -> None:
    write_pairs(tmp_path / "all", tmp_path / "all", 20)

    def names(val_share: float, test_share: float) -> dict[str, set[str]]:
        source = Masks(images=tmp_path / "all", classes="x,y", val_share=val_share, test_share=test_share)
        return {split: {item.name for item in items} for split, items in source.plan().splits.items()}

    tested, tuned = names(0.2, 0.2), names(0.2, 0.4)
    assert {split: len(found) for split, found in tested.items()} == {"train": 12, "val": 4, "test": 4}
    assert tuned["test"] == tested["val"] | tested["test"]
    assert tuned["val"] | tuned["train"] == tested["train"]
    found = prepared(tmp_path / "out", str(tmp_path / "all"), "--classes", "x,y", "--test-share", "0.2")
    assert {split: len(masks) for split, masks in found.items()} == {"train": 14, "val": 2, "test": 4}
    assert all((mask == halves(1)).all() for masks in found.values() for mask in masks)


def test_an_interrupted_call_is_gone_on_with_and_other_classes_are_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "all", tmp_path / "all", 20)
    command = ["masks", str(tmp_path / "all"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*command, "--classes", "good,bad"]) == 0
    shard = tmp_path / "out/train/train-000000.tar"
    before = shard.read_bytes(), shard.stat().st_mtime_ns
    (tmp_path / "out/train/manifest.json").unlink()
    assert main([*command, "--classes", "good,bad"]) == 0
    assert (shard.read_bytes(), shard.stat().st_mtime_ns) == before
    assert main([*command, "--classes", "bad,good"]) == 2
    assert "holds shards made with classes='good,bad' (now 'bad,good')" in capsys.readouterr().err


def test_the_rarest_class_in_a_mask_is_written_beside_it(tmp_path: Path) -> None:
    """By the pixels of training alone: `few` has more in each mask that has it than `some`, and fewer in all."""
    for split, names in {
        "train": ["many", "some", "some", "some", "some", "few", "ignored"],
        "val": ["few", "few", "few", "few", "both", "some", "many"],
    }.items():
        (tmp_path / split).mkdir()
        for number, name in enumerate(names):
            mask = np.full((SIDE, SIDE), 3 * (name == "ignored"), np.uint8)
            mask[: 4 * (name in ("some", "both"))] = 1
            mask[8 : 8 + 12 * (name in ("few", "both"))] = 2
            pixels = np.full((SIDE, SIDE, 3), 10 * number + 3 * len(split), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{number}-{name}.jpg")
            (tmp_path / split / f"{number}-{name}.png").write_bytes(png(mask))
    flags = ["--val-images", str(tmp_path / "val"), "--classes", "many,some,few,void", "--ignore", "void"]
    prepared(tmp_path / "out", str(tmp_path / "train"), *flags)
    wanted = {"many": 0, "some": 1, "few": 2, "both": 2, "ignored": 0}
    for split in ("train", "val"):
        folder = tmp_path / "out" / split
        before = load_manifest(str(folder))
        reader = SampleReader(before)
        for number in range(before.num_samples):
            assert reader.read(number).label == wanted[reader.key(number).split("_")[1]]
        (tmp_path / "classes.txt").write_text("many\nsome\nfew\n")
        assert index([str(folder), "--classes", str(tmp_path / "classes.txt")]) == 0
        assert load_manifest(str(folder)).fingerprint == before.fingerprint


@pytest.fixture(scope="module")
def colour_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("colours") / "colours.txt"
    path.write_text("".join(f"{red} {green} {blue}\t{name}\n" for name, (red, green, blue) in COLOURS.items()))
    return str(path)


@settings(deadline=None)
@given(
    numbers=st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=6),
    how=st.sampled_from(["L", "P", "RGB", "colour", "16 bits"]),
)
def test_every_encoding_of_a_mask_gives_its_classes(colour_file: str, numbers: list[list[int]], how: str) -> None:
    grid = np.array(numbers, np.uint8)
    table = mask_classes(colour_file if how == "colour" else "sky,road,void", ("void",), binary=False)
    if how == "colour":
        data = png(np.array([*COLOURS.values()], np.uint8)[grid])
    elif how == "P":
        image = Image.fromarray(grid, "P")
        image.putpalette([200, 10, 10, 3, 200, 3, 7, 7, 200])
        stream = io.BytesIO()
        image.save(stream, "PNG")
        data = stream.getvalue()
    else:
        data = png({"16 bits": grid.astype(np.uint16), "RGB": np.stack([grid] * 3, -1)}.get(how, grid))
    assert table.names == ("sky", "road")
    assert (table.numbers_of(data) == np.array([0, 1, 255], np.uint8)[grid]).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{t}/empty"], "empty: no images lie there; name their folder"),
        (["{t}/no"], "/no: no such folder"),
        (["{t}/a", "--masks", "{t}/no"], "/no: no such folder"),
        (
            ["{t}/a", "--masks", "{t}/less"],
            "1 of 20 images have no mask: b/19.jpg; the first one's would be {t}/less/b/19.png",
        ),
        (["{t}/m"], "the first one's would be {t}/m/a/00.bmp; add them, name their folder with --masks, or leave"),
        (["{t}/a", "--masks", "{t}/large"], "the mask has 40x40 pixels, its image a/00.jpg 32x32; make them equal"),
        (["{t}/a", "--masks", "{t}/seven"], "512 of 1,024 pixels have the value 7, which is none of --classes; {t}"),
        (["{t}/a", "--masks", "{t}/lossy"], "no mask: it must be one of PNG, BMP, GIF, TIFF, PPM"),
        (["{t}/a", "--masks", "{t}/m", "--ignore", "fog"], "--ignore fog: no class of that name; there are x, y"),
        (["{t}/a", "--masks", "{t}/m", "--val-masks", "{t}/m"], "give --val-images too"),
        (["{t}/a", "--masks", "{t}/m", "--val-images", "{t}/a"], "--val-masks and --masks: give both"),
        (["{t}/a", "--masks", "{t}/m", "--val-share", "1"], "--val-share is 1"),
        (
            ["{t}/a", "--masks", "{t}/m", "--test-share", "0.95"],
            "--test-share is 0.95; it must be 0 (no test split) or more",
        ),
        (
            ["{t}/a", "--masks", "{t}/m", "--test-share", "0.1", "--val-images", "{t}/a", "--val-masks", "{t}/m"],
            "--test-share is 0.1: a share of all images; leave out",
        ),
        (["{t}/a", "--masks", "{t}/m", "--ignore", "1"], "--ignore 1 is the value of the class 'y'; to leave out that"),
        (
            ["{t}/a", "--masks", "{t}/m", "--binary"],
            "masks: no pixel of the training masks reaches 128, so all are 'x'",
        ),
        (
            ["{t}/a", "--masks", "{t}/white", "--binary"],
            "every pixel of the training masks reaches 128, so all are 'y'",
        ),
        (["{t}/a", "--masks", "{t}/black"], "all pixels of the training masks are of the class 'x'; two classes at"),
        (
            ["{t}/a", "--masks", "{t}/white", "--ignore", "255"],
            "all pixels of the training masks are ignored; two classes",
        ),
        (["{t}/a", "--masks", "{t}/m", "--binary", "--ignore", "3"], "--binary: masks with two classes have neither"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    write_pairs(tmp_path / "a", tmp_path / "m", 20)
    write_pairs(tmp_path / "x", tmp_path / "less", 19)
    write_pairs(tmp_path / "x", tmp_path / "large", 20, size=40)
    write_pairs(tmp_path / "x", tmp_path / "seven", 20, value=7)
    write_pairs(tmp_path / "x", tmp_path / "lossy", 20)
    for name, value in (("black", 0), ("white", 255)):
        write_pairs(tmp_path / "x", tmp_path / name, 20)
        for path in (tmp_path / name).rglob("*.png"):
            path.write_bytes(png(np.full((SIDE, SIDE), value, np.uint8)))
    for path in (tmp_path / "lossy").rglob("*.png"):
        Image.new("L", (SIDE, SIDE)).save(path, "JPEG")
    given_flags = [flag.replace("{t}", str(tmp_path)) for flag in flags]
    assert main(["masks", *given_flags, "--classes", "x,y", "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert message.replace("{t}", str(tmp_path)) in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_values_of_no_class_are_named_once_with_all_of_them_in_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "all", tmp_path / "all", 20)
    for value, path in zip((25, 50, 75, 3, 4), sorted((tmp_path / "all").rglob("*.png")), strict=False):
        path.write_bytes(png(halves(value)))
    command = ["masks", str(tmp_path / "all"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*command, "--classes", "x,y,z", "--ignore", "z"]) == 2
    error = capsys.readouterr().err
    assert (
        "add the values to --classes, or leave such pixels out by --ignore z 3 4 25 50 75, or leave the images" in error
    )
    assert error.count("--ignore") == 1
    assert main([*command, "--classes", "x,y,z", "--ignore", "z", "3", "4", "25", "50", "75"]) == 0


def test_colours_of_no_class_are_to_be_added_and_damaged_masks_to_be_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], colour_file: str
) -> None:
    write_pairs(tmp_path / "all", tmp_path / "all", 20)
    masks = sorted((tmp_path / "all").rglob("*.png"))
    for path in masks:
        path.write_bytes(png(np.full((SIDE, SIDE, 3), 9, np.uint8)))
    command = ["masks", str(tmp_path / "all"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*command, "--classes", colour_file]) == 2
    assert "; add the colours to --classes, or leave the images out with --skip-broken" in capsys.readouterr().err
    masks[0].write_bytes(b"no mask")
    assert main([*command, "--classes", "x,y"]) == 2
    cure = "; repair or remove them; add the values to --classes, or leave such pixels out by --ignore 9, or leave the"
    assert cure in capsys.readouterr().err


def test_masks_as_jpeg_are_said_to_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path / "a", tmp_path / "m", 2)
    for path in list((tmp_path / "m").rglob("*.png")):
        path.rename(path.with_suffix(".jpg"))
    command = ["masks", str(tmp_path / "a"), "--masks", str(tmp_path / "m"), "--classes", "x,y"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path}/m/a/00.jpg is there, but JPEG changes the values of pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("x", "--classes x: no such file, and one class alone"),
        ("x,y,x", "'x' is there twice"),
        ("x,", "no such file, and one class alone"),
    ],
)
def test_classes_that_cannot_be(classes: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_classes(classes, (), binary=False)


def test_images_without_a_mask_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path / "a", tmp_path / "m", 20)
    (tmp_path / "m/a/00.png").unlink()
    found = prepared(
        tmp_path / "out", str(tmp_path / "a"), "--masks", str(tmp_path / "m"), "--classes", "x,y", "--skip-unmasked"
    )
    assert sum(map(len, found.values())) == 19
    assert "without a mask: 1 (a/00.jpg)" in capsys.readouterr().out


def test_a_png_beside_a_note_of_its_name_is_an_image_and_no_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "all", tmp_path / "all", 20)
    (tmp_path / "all/a/lone.png").write_bytes(png(np.zeros((SIDE, SIDE, 3), np.uint8)))
    (tmp_path / "all/a/lone.txt").write_text("a note")
    assert main(["masks", str(tmp_path / "all"), "--classes", "x,y", "--out", str(tmp_path / "out")]) == 2
    assert "1 of 21 images have no mask: a/lone.png" in capsys.readouterr().err
