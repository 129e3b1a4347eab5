from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.config import MAX_RATIO, DataConfig
from datasets.transforms.shape import format_size, image_shape

SIZES = st.integers(8, 2000)
RATIOS = st.floats(1 / MAX_RATIO, MAX_RATIO)


@given(SIZES, RATIOS)
def test_the_short_side_is_the_image_size_and_the_long_one_is_as_the_ratio_says(size: int, ratio: float) -> None:
    height, width = image_shape(size, ratio)
    assert min(height, width) == size
    assert abs(max(height, width) - size * max(ratio, 1 / ratio)) <= 0.5
    assert (height <= width) if ratio >= 1 else (height >= width)


@given(SIZES)
def test_images_are_square_unless_a_ratio_is_given(size: int) -> None:
    assert DataConfig().shape(size) == image_shape(size, 1.0) == (size, size)


@given(SIZES, SIZES, RATIOS)
def test_larger_sizes_are_never_smaller_images(size: int, other: int, ratio: float) -> None:
    low, high = (image_shape(one, ratio) for one in sorted((size, other)))
    assert low[0] <= high[0]
    assert low[1] <= high[1]


@given(SIZES, st.floats(1, MAX_RATIO), st.floats(1, MAX_RATIO))
def test_longer_images_never_have_fewer_pixels(size: int, ratio: float, other: float) -> None:
    low, high = (math.prod(image_shape(size, one)) for one in sorted((ratio, other)))
    assert low <= high


@pytest.mark.parametrize(
    ("size", "ratio", "shape", "shown"),
    [
        (360, 4 / 3, (360, 480), "480x360"),
        (360, 1.333, (360, 480), "480x360"),
        (480, 0.75, (640, 480), "480x640"),
        (512, 2.0, (512, 1024), "1024x512"),
        (720, 1.778, (720, 1280), "1280x720"),
        (128, 1.0, (128, 128), "128"),
    ],
)
def test_usual_shapes(size: int, ratio: float, shape: tuple[int, int], shown: str) -> None:
    assert DataConfig(aspect_ratio=ratio).shape(size) == shape
    assert format_size(size, ratio) == shown


@pytest.mark.parametrize("ratio", [0.0, -1.0, 0.09, 10.1, float("nan"), float("inf")])
def test_a_ratio_that_no_image_has_is_one_line(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"^data.aspect_ratio is .*; it is width / height, from 0\.1 to 10, such as"):
        DataConfig(aspect_ratio=ratio)
