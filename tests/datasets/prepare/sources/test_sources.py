from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from datasets.errors import DataError
from datasets.prepare.sources import debian
from datasets.prepare.sources.elpv import Elpv
from datasets.prepare.sources.font_table import FAMILIES
from datasets.prepare.sources.fonts import Fonts
from datasets.prepare.sources.words import random_word, word_split
from datasets.transforms.randomness import Purpose, sample_generator

# Free fonts that come with a dependency, so that the tests need no network.
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def fonts(**changes: object) -> Fonts:
    return Fonts(**{"families": 4, "train_images": 6, "val_images": 3, "font_folder": FONTS, **changes})  # type: ignore[arg-type]


def drawn(source: Fonts, split: str = "train") -> list[bytes]:
    return [source.encode(split, item)[1] for item in source.plan().splits[split]]


def test_elpv_is_split_by_level_and_cell_type_and_never_moves() -> None:
    plan = Elpv().plan()
    assert plan.classes == ("functional", "defective")
    assert {split: len(items) for split, items in plan.splits.items()} == {"train": 1970, "val": 654}
    assert not {item.name for item in plan.splits["train"]} & {item.name for item in plan.splits["val"]}
    defective = {split: np.mean([item.label for item in items]) for split, items in plan.splits.items()}
    assert defective["train"] == pytest.approx(defective["val"], abs=0.005)
    assert plan == Elpv().plan()
    levels = Elpv(task="levels").plan()
    assert np.bincount([item.label for items in levels.splits.values() for item in items]).tolist() == [
        1508,
        295,
        106,
        715,
    ]


def test_elpv_photographs_are_grey_jpegs_of_their_size() -> None:
    item = Elpv().plan().splits["train"][0]
    extension, data = Elpv().encode("train", item)
    image = Image.open(io.BytesIO(data))
    assert (extension, image.format, image.mode, image.size) == ("jpg", "JPEG", "L", (300, 300))


def test_font_images_are_a_function_of_seed_family_and_number_only() -> None:
    first = drawn(fonts())
    assert first == drawn(fonts(train_images=6, val_images=1))
    assert drawn(fonts(families=2)) == first[:12]
    assert len({*first, *drawn(fonts(), "val"), *drawn(fonts(seed=1))}) == 24 + 12 + 24


def test_font_images_have_the_size_and_enough_contrast_to_read() -> None:
    for data in drawn(fonts(size=64, train_images=20)):
        image = Image.open(io.BytesIO(data))
        assert (image.mode, image.size) == ("RGB", (64, 64))
        dark, light = np.percentile(np.asarray(image.convert("L"), dtype=float), [2, 98])
        assert light - dark > 40


def test_no_word_of_validation_occurs_in_training() -> None:
    words = {
        split: {random_word(split, sample_generator(0, Purpose.RENDER, index)).lower() for index in range(3000)}
        for split in ("train", "val")
    }
    assert not words["train"] & words["val"]
    assert min(map(len, words.values())) > 2500
    assert word_split("Grouse") == word_split("GROUSE")


def test_the_font_table_has_distinct_families() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) >= 60


def test_too_few_fonts_are_an_error(tmp_path: Path) -> None:
    shutil.copy(FONTS / "DejaVuSans.ttf", tmp_path)
    with pytest.raises(DataError, match=r"families is 4, but .* has only 1 fonts"):
        fonts(font_folder=tmp_path).plan()


@pytest.mark.parametrize(
    "changes", [{"families": 1}, {"train_images": 0}, {"size": 8}, {"text_size": (4, 9)}, {"rotation": -1.0}]
)
def test_font_options_out_of_range_are_named(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(changes)).replace('_', '-')} is"):
        fonts(**changes)


def test_a_machine_without_apt_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no apt-get here; pass --font-folder"):
        debian.fetch_packages(["fonts-jura"], tmp_path)


def test_a_download_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("apt-get", "apt-cache", "dpkg"):
        (tools / tool).write_text("#!/bin/sh\necho 'E: no route to the archive' >&2\nexit 100\n")
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    with pytest.raises(DataError, match=r"`apt-get update` failed \(E: no route to the archive\); .*--font-folder"):
        debian.fetch_packages(["fonts-jura"], tmp_path / "cache")


@pytest.mark.skipif(shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None, reason="needs Debian's tools")
def test_packages_are_unpacked_once_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real package, real dpkg, and an apt that hands it over instead of the network."""
    content = tmp_path / "content"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "DEBIAN/control").write_text(
        "Package: fonts-x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    (content / "usr/share/fonts").mkdir(parents=True)
    shutil.copy(FONTS / "DejaVuSans.ttf", content / "usr/share/fonts/X.ttf")
    subprocess.run(["dpkg-deb", "--build", content, tmp_path / "fonts-x_1_all.deb"], check=True, capture_output=True)
    calls: list[str] = []

    def run(self: object, tool: str, *arguments: str) -> str:
        calls.append(f"{tool} {arguments[0]}")
        if arguments[0] == "download":
            shutil.copy(tmp_path / "fonts-x_1_all.deb", tmp_path / "cache" / "apt")
        return "fonts-x\nfonts-y\n"

    monkeypatch.setattr(debian._Apt, "_run", run)
    found = debian.fetch_packages(["fonts-x", "fonts-unknown"], tmp_path / "cache")
    assert list(found) == ["fonts-x"]
    assert [path.name for path in found["fonts-x"].rglob("*.ttf")] == ["X.ttf"]
    assert calls == ["apt-get update", "apt-cache pkgnames", "apt-get download"]
    assert debian.fetch_packages(["fonts-x"], tmp_path / "cache") == found
    assert len(calls) == 3
