from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.inference.flip import FlipAveraged, flip_averaged
from pipeline.inference.tiling import tiled_classes

SIZE = 16
SHAPE, WIDE = (SIZE, SIZE), (SIZE, 21)


def of_pixels(images: np.ndarray) -> np.ndarray:
    """Logits of 3 classes that depend on nothing but each pixel."""
    assert images.shape[1:] in ((3, *SHAPE), (3, *WIDE))
    return images.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(0, 0.9), st.sampled_from([SHAPE, WIDE]))
def test_tiles_cover_every_pixel_of_any_image(height: int, width: int, overlap: float, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    classes = tiled_classes(of_pixels, pixels, shape=shape, tile=shape, overlap=overlap)
    assert classes.shape == (height, width)
    assert np.array_equal(classes, pixels.argmax(2))


@pytest.mark.parametrize(("shape", "tile"), [(SHAPE, (32, 32)), (WIDE, (32, 42)), (WIDE, (12, 16))])
def test_a_tile_is_scaled_to_the_models_input_and_its_logits_back(
    shape: tuple[int, int], tile: tuple[int, int]
) -> None:
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    pixels[:, :64, 1], pixels[:, 64:, 2] = 200, 200
    classes = tiled_classes(of_pixels, pixels, shape=shape, tile=tile, overlap=0.5)
    assert classes.shape == (96, 128)
    assert (classes[:, :60] == 1).all()
    assert (classes[:, 68:] == 2).all()


def test_the_middle_of_a_tile_outweighs_its_edge() -> None:
    """A model that is wrong at the edges of what it sees: no seam is left where tiles overlap."""

    def wrong_at_edges(images: np.ndarray) -> np.ndarray:
        logits = np.zeros((len(images), 2, SIZE, SIZE), dtype=np.float32)
        logits[:, 1] = 1
        logits[:, 0, :, [0, 1, -2, -1]] = logits[:, 0, [0, 1, -2, -1], :] = 1.5
        return logits

    pixels = np.zeros((48, 48, 3), dtype=np.uint8)
    inside = slice(4, -4)
    assert (tiled_classes(wrong_at_edges, pixels, shape=SHAPE, tile=SHAPE, overlap=0.5)[inside, inside] == 1).all()
    assert (tiled_classes(wrong_at_edges, pixels, shape=SHAPE, tile=SHAPE, overlap=0)[inside, inside] == 0).any()


def test_the_band_is_of_one_row_of_tiles() -> None:
    largest = 0
    zeros = torch.zeros

    def counted(*shape: int) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, int(np.prod(shape)))
        return zeros(*shape)

    torch.zeros = counted  # type: ignore[assignment]
    try:
        tiled_classes(of_pixels, np.zeros((400, 40, 3), np.uint8), shape=SHAPE, tile=SHAPE, overlap=0.25)
    finally:
        torch.zeros = zeros
    assert largest == 3 * SIZE * 40


def test_both_ways_to_average_with_the_mirror_image_agree() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    dense = nn.Conv2d(3, 4, 3, padding=1)
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for model in (dense, pooled):
        with torch.no_grad():
            both = FlipAveraged(model)(images)
            mirrored = FlipAveraged(model)(images.flip(-1))
            run = flip_averaged(lambda values, model=model: model(torch.from_numpy(values)).numpy())
            np.testing.assert_allclose(run(images.numpy()), both, rtol=1e-5, atol=1e-6)
        expected = mirrored.flip(-1) if both.ndim == 4 else mirrored
        torch.testing.assert_close(both, expected)
        assert not torch.allclose(both, model(images))
