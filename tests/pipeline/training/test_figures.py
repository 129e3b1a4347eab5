from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.training.figures import confusion_picture, indexed_mask, palette, scatter_picture


@pytest.mark.parametrize("count", [2, 8, 30])
def test_colours_differ_and_what_is_no_class_is_black(count: int) -> None:
    colours = palette(count)
    assert len({tuple(colour) for colour in colours[:count].tolist()}) == count
    assert not colours[count:].any()


def test_a_mask_keeps_its_values_and_shows_its_colours() -> None:
    mask = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)
    image = Image.open(io.BytesIO(indexed_mask(mask, 3)))
    assert image.mode == "P"
    assert np.array_equal(np.array(image), mask)
    assert np.array_equal(np.array(image.convert("RGB")), palette(3)[mask])


def test_the_confusion_matrix_shades_a_cell_by_its_share_of_the_row() -> None:
    counts = torch.tensor([[9, 1], [0, 4]])
    names = ("a", "b")
    picture = Image.open(io.BytesIO(confusion_picture(counts, names))).convert("RGB")
    margin = next(x for x in range(picture.width) if picture.getpixel((x, 0)) != (255, 255, 255))
    shades = [[picture.getpixel((margin + 44 * column, 44 * row))[0] for column in (0, 1)] for row in (0, 1)]
    assert shades == [[255 - 180, 255 - 20], [255, 255 - 200]]


@pytest.mark.parametrize("count", [2, 25, 60, 1000])
def test_the_confusion_matrix_of_many_classes_stays_a_picture(count: int) -> None:
    picture = Image.open(io.BytesIO(confusion_picture(torch.eye(count), [f"class {i}" for i in range(count)])))
    assert 90 < picture.width < 2200
    right = np.array(picture.convert("RGB"))[-16:, -4:]
    assert (right == 255).all()  # the caption is not cut


@pytest.mark.parametrize("count", [1, 2, 7, 24, 25, 500])
def test_the_scatter_of_many_targets_stays_a_picture(count: int) -> None:
    numbers = torch.rand(4, count)
    picture = Image.open(io.BytesIO(scatter_picture(numbers, numbers, [f"target {i}" for i in range(count)])))
    assert picture.width <= 2300
    assert picture.height <= 1600
    points = (np.asarray(picture) == (37, 99, 235)).all(2)
    for square in range(min(count, 24)):
        row, column = divmod(square, 6)
        assert points[368 * row : 368 * row + 320, 4 + 368 * column : 324 + 368 * column].any()
