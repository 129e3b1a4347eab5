from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.transforms.spectrum import low_frequency, masks_at

SIDES = st.integers(9, 40)


@settings(max_examples=30, deadline=None)
@given(sides=st.tuples(SIDES, SIDES), sizes=st.tuples(SIDES, SIDES), seed=st.integers(0, 99))
def test_it_is_the_centre_of_the_spectrum(sides: tuple[int, int], sizes: tuple[int, int], seed: int) -> None:
    shape = height, width = min(sizes[0], sides[0]), min(sizes[1], sides[1])
    images = np.random.default_rng(seed).integers(0, 256, (2, 3, *sides), dtype=np.uint8)
    spectrum = np.fft.fft2(images.astype(np.float64))
    # Frequencies -(size // 2) ... (size - 1) // 2 in each direction, by their numbers in an unshifted spectrum.
    down, right = (np.arange(-(size // 2), size - size // 2) for size in shape)
    small = np.zeros((2, 3, *shape), dtype=complex)
    small[..., (down % height)[:, None], right % width] = spectrum[..., (down % sides[0])[:, None], right % sides[1]]
    expected = np.clip((np.fft.ifft2(small) * np.prod(shape) / np.prod(sides)).real, 0, 255)
    got = low_frequency(torch.from_numpy(images), shape)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(side=SIDES, size=SIDES, grey=st.integers(0, 255))
def test_a_flat_image_keeps_its_brightness(side: int, size: int, grey: int) -> None:
    images = torch.full((1, 3, side, side), grey, dtype=torch.uint8)
    assert torch.allclose(low_frequency(images, (min(size, side),) * 2), torch.tensor(float(grey)), atol=1e-3)


def test_what_a_small_grid_can_hold_stays_as_it_is_and_what_it_can_not_is_left_out() -> None:
    place = torch.arange(64)[None, :] / 64
    slow, fast = (100 + 50 * torch.sin(2 * torch.pi * waves * place).expand(64, 64) for waves in (5, 20))
    images = torch.stack([slow, fast])[:, None]
    got = low_frequency(images, (32, 32))
    assert torch.allclose(got[0, 0], slow[::2, ::2], atol=1e-3)
    assert torch.allclose(got[1, 0], torch.tensor(100.0), atol=1e-3)


def test_the_size_itself_changes_nothing_and_images_do_not_depend_on_their_batch() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (130, 3, 24, 24), dtype=np.uint8))
    assert torch.allclose(low_frequency(images, (24, 24)), images.float(), atol=1e-3)
    assert torch.equal(low_frequency(images, (16, 16))[100:], low_frequency(images[100:], (16, 16)))


@pytest.mark.parametrize("height", [30, 9])
@pytest.mark.parametrize("size", [8, 12, 13, 24])
def test_masks_are_taken_where_the_pixels_lie(size: int, height: int) -> None:
    # A border in the middle, smooth enough for the small grid: both halves stay where they are.
    ramp = torch.linspace(0, 255, 24).expand(30, 24)
    masks = (ramp > 127).to(torch.uint8)[None]
    small = low_frequency(ramp[None, None], (height, size))[0, 0]
    got = masks_at(masks, (height, size))[0]
    assert got.shape == (height, size)
    inner = slice(size // 4, -(size // 4))  # a spectrum wraps around at the borders
    assert ((small > 127) == got.bool())[:, inner].float().mean() > 0.85
