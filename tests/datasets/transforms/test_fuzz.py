"""Mutated images: every decoding path says ValueError or shows the same pixels as the others."""

from __future__ import annotations

import contextlib
from collections import Counter
from random import Random

import numpy as np
import pytest

from datasets.prepare.encode import shrunk
from datasets.transforms.decode import decode_crop, decode_mask
from datasets.transforms.pixels import Header, decode_rgb, read_header
from pipeline.inference.preprocessing import Preprocessing
from tests.support.odd_images import odd_images

MAX_PIXELS = 1 << 20
SOURCES = [image.data for image in odd_images(48, 36)]
VIEW = Preprocessing(image_size=8, eval_crop="whole", pixel_mean=0, pixel_std=1)


def mutated(random: Random) -> bytes:
    """Return an image with bits flipped, cut short, spliced with another, or with bytes of its head replaced."""
    data = bytearray(random.choice(SOURCES))
    for _ in range(random.choice((1, 1, 1, 3))):
        place = random.randrange(len(data) or 1)
        match random.randrange(6):
            case 0:
                for _ in range(random.randint(1, 8)):
                    if data:
                        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            case 1:
                del data[place:]
            case 2:
                other = random.choice(SOURCES)
                start = random.randrange(len(other))
                data[place : place + random.randint(0, 64)] = other[start : start + random.randint(1, 200)]
            case 3:
                for at in random.sample(range(min(len(data), 80)), min(len(data), random.randint(1, 4))):
                    data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
            case 4:
                length = random.randint(1, 64)
                data[place : place + length] = bytes(min(length, len(data) - place))
            case _:
                data[place:place] = data[place : place + random.randint(1, 32)]
    return bytes(data)


def outcome(data: bytes, header: Header, box: tuple[int, int, int, int], size: int) -> np.ndarray | None:
    try:
        return decode_crop(data, header, box, (size, size))
    except ValueError:
        return None


def check(data: bytes, random: Random) -> str:
    """Hold all paths to one outcome; return what it was."""
    try:
        header = read_header(data, max_pixels=MAX_PIXELS)
    except ValueError:
        return "no header"
    try:
        whole = decode_rgb(data, max_pixels=MAX_PIXELS)
    except ValueError:
        whole = None
    height, width = header.height, header.width
    assert whole is None or whole.shape == (height, width, 3)
    full = (0, 0, height, width)
    for size in (8, 16):
        seen = outcome(data, header, full, size)
        assert (seen is None) == (whole is None), f"{size} px of the whole"
    try:
        assert np.array_equal(VIEW.pixels(data, max_pixels=MAX_PIXELS)[0], outcome(data, header, full, 8))
    except ValueError:
        assert whole is None
    _check_crop(data, header, whole, random)
    _check_copy(data, header, whole)
    with contextlib.suppress(ValueError):
        decode_mask(data, header, full, (8, 8))
    return "damaged" if whole is None else "shown"


def _check_crop(data: bytes, header: Header, whole: np.ndarray | None, random: Random) -> None:
    side = min(header.height, header.width, 16)
    top, left = random.randint(0, header.height - side), random.randint(0, header.width - side)
    crop = outcome(data, header, (top, left, side, side), side)
    again = outcome(data, header, (top, left, side, side), side)
    if crop is None or again is None:
        assert whole is None
        assert crop is again
        return
    assert np.array_equal(crop, again)
    if whole is not None:
        assert np.array_equal(crop, whole[top : top + side, left : left + side])
    else:  # rows of a JPEG that lie above its damage
        assert header.is_plain_jpeg


def _check_copy(data: bytes, header: Header, whole: np.ndarray | None) -> None:
    try:
        extension, copy = shrunk(data, "jpg", 12)
    except ValueError:
        assert whole is None
        return
    if copy is data:
        assert min(header.height, header.width) <= 12
    else:
        assert whole is not None
        assert decode_rgb(copy).shape[2] == 3
        assert extension in ("jpg", "png", "webp")


def fuzz(first: int, count: int) -> Counter[str]:
    """Check so many images, each a function of its number alone."""
    seen: Counter[str] = Counter()
    for number in range(first, first + count):
        random = Random(number)
        try:
            seen[check(mutated(random), random)] += 1
        except Exception as error:
            raise AssertionError(f"image {number}: {type(error).__name__}: {error}") from error
    return seen


def test_a_few_mutated_images() -> None:
    seen = fuzz(0, 1000)
    assert min(seen["damaged"], seen["shown"], seen["no header"]) > 100


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_fifty_thousand_mutated_images() -> None:
    assert sum(fuzz(1000, 50_000).values()) == 50_000
