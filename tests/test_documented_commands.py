"""The documented commands that end by themselves in seconds, run in a folder that has what the documents speak of.

That the others exist and take their flags is seen in tests/test_docs.py.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.common import compare_args
from tests.support import torchvision_sets
from tests.support.documented import documented
from tests.support.hf_parquet import write_classes
from tests.support.prepared import SIDE, numbered, png
from tests.support.runs import TrainedRun
from tests.support.shards import image_of


@dataclass(frozen=True)
class Run:
    """How a documented command is run."""

    says: str
    """What it prints."""
    more: str = ""
    """Further arguments, which make it short."""


RUNS = {
    r"jobs\.prepare image-folder PATH --out data/\S+( --also-short-side 256,160)?": Run("12 images of 2 classes"),
    r"jobs\.prepare csv photos\.csv --(out|label|mask).*": Run("12 images of 2 classes"),
    r"jobs\.prepare parquet data/beans .*": Run("20 images of 3 classes"),
    r"jobs\.prepare masks (camvid|tiles)\S* .*": Run("images, pixels: "),
    r"jobs\.prepare torchvision DTD .*": Run("8 images of 2 classes"),
    r"jobs\.prepare torchvision OxfordIIITPet --masks .*": Run("pixels: pet 50.00%, background 25.00%"),
    r"jobs\.prepare fonts --families 8 .*": Run("images of 8 classes", "--train-images 3 --val-images 2"),
    r"jobs\.prepare fonts --families 16 .*": Run("images of 16 classes", "--train-images 2 --val-images 1"),
    r"jobs\.index (URL|data/theirs)": Run("images of 4 classes in"),
    r"jobs\.index \"data/theirs/\{a-0,b-0\}.*": Run("images of 4 classes in"),
    r"jobs\.pyramid data/mine/train .*": Run("copies of short side 160, 256"),
    r"jobs\.plan RECIPE": Run("demo"),
    r"jobs\.plan finetune --data data/mine": Run("finetune-mine"),
    r"jobs\.train( demo)? --help": Run("usage"),
    r"jobs\.checkpoints (NAME|RUN) (\[?--verify\]?)": Run("valid"),
    r"jobs\.evaluate (NAME --data URL|demo --data data/elpv/val --pictures pics)": Run("accuracy"),
    r"jobs\.export demo --to.*": Run("its logits on 8 real images match"),
    r"jobs\.predict (MODEL IMAGE\.\.\.|cells.onnx cells)": Run("probability"),
}
"""Pattern of a whole command, without `python -m` -> how it is run."""

COMMANDS = documented()
WORDS = {
    "RECIPE": "demo",
    "NAME": "demo",
    "RUN": "demo",
    "URL": "data/mine/train",
    "MODEL": "runs/demo",
    "IMAGE...": "cells",
}


def run_of(command: str) -> Run | None:
    line = re.sub(r"^python3? -m ", "", command)
    return next((run for pattern, run in RUNS.items() if re.fullmatch(pattern, line)), None)


@pytest.fixture(scope="module")
def place(trained_classifier: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the images, shards and the run that the documents name."""
    place = tmp_path_factory.mktemp("documented")
    for split, count in ("train", 12), ("val", 4):
        for number in range(count):
            path = place / "PATH" / split / ("cat", "dog")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = image_of(number % 2, number + 100 * (split == "val"), height=320, width=400)
            Image.fromarray(pixels).save(path)
    (place / "runs").mkdir()
    (place / "runs" / "demo").symlink_to(trained_classifier.folder)
    for name in ("elpv", "mine", "more", "theirs"):
        shutil.copytree(trained_classifier.data, place / "data" / name)
    for name, path in zip("ab", sorted((place / "data" / "theirs" / "train").glob("*.tar")), strict=True):
        path.rename(place / "data" / "theirs" / f"{name}-0.tar")
    for path in (place / "data" / "more" / "val").glob("*.tar"):
        path.rename(place / "data" / "more" / path.name)
    (place / "data" / "classes.json").write_text(json.dumps(["a", "b", "c", "d"]))
    shutil.copytree(place / "PATH" / "val" / "cat", place / "cells")
    lay_out_sources(place)
    return place


def lay_out_sources(place: Path) -> None:
    """Write a table of images, folders of images and masks, a set of Parquet files and two of torchvision."""
    lines = ["path,label,has_cat,has_dog,mask,split"]
    for number in range(15):
        kind, split = number % 2, "train" if number < 12 else "val"
        image, mask = numbered(number), png(np.full((SIDE, SIDE), kind, np.uint8))
        lines.append(f"{number}.png,{('cat', 'dog')[kind]},{1 - kind},{kind},masks/{number}.png,{split}")
        black_or_white = png(np.full((SIDE, SIDE), 255 * kind, np.uint8))
        for path, data in (
            (f"{number}.png", image),
            (f"masks/{number}.png", mask),
            (f"camvid/{split}/{number}.png", image),
            (f"camvid/{split}annot/{number}.png", mask),
            (f"tiles/{number}.jpg", image),
            (f"tiles/{number}.png", black_or_white),
        ):
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(data)
    (place / "photos.csv").write_text("\n".join(lines))
    write_classes(place / "data/beans/train-00000-of-00001.parquet", range(20))
    write_classes(place / "data/beans/validation-00000-of-00001.parquet", range(20, 26))
    torchvision_sets.dtd(place / "data/torchvision")
    torchvision_sets.pets(place / "data/torchvision")


@pytest.mark.parametrize("command", [pytest.param(one, id=one[:60]) for one in COMMANDS if run_of(one)])
def test_a_documented_command_does_what_it_says(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(command)
    assert run is not None
    monkeypatch.chdir(place)
    assert run.says in said_by(command, run.more, capsys)


def said_by(command: str, more: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the verb in this process, and return what it printed."""
    _, _, module, *arguments = shlex.split(command)
    if module == "jobs.prepare":  # what is there already is other data
        arguments = [re.sub("^data/mine", f"data/made-{len(command)}", word) for word in arguments]
    arguments = [WORDS.get(word, word) for word in (word.strip("[]") for word in arguments)] + shlex.split(more)
    try:
        code = importlib.import_module(module).main(arguments)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert code in (0, None), printed.out + printed.err
    return printed.out


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search(r"jobs\.compare .*\w$", command)])
def test_a_documented_comparison_can_be_asked_for(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    _, _, _, *arguments = shlex.split(command)
    comparison, options = compare_args.parse([WORDS.get(word, word) for word in arguments])
    assert len(comparison.variants) > 1
    assert comparison.baseline in comparison.variants
    if "--seeds" in arguments:
        assert str(options.seeds[0]) == arguments[arguments.index("--seeds") + 1]


@pytest.mark.parametrize("pattern", RUNS)
def test_no_pattern_is_left_over(pattern: str) -> None:
    assert any(re.fullmatch(pattern, re.sub(r"^python3? -m ", "", command)) for command in COMMANDS)
