"""One meaning: the same file is the same pixels by every path."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from datasets.prepare.encode import shrunk
from datasets.transforms.decode import decode_crop
from datasets.transforms.pixels import decode_rgb, read_header
from tests.support.odd_images import OddImage, odd_images

ODD = {image.name: image for image in odd_images()}


def assert_shows(pixels: np.ndarray, image: OddImage) -> None:
    assert pixels.shape == image.shown.shape
    if image.tolerance:
        assert np.abs(pixels.astype(int) - image.shown).mean() <= image.tolerance
    else:
        assert np.array_equal(pixels, image.shown)


def test_the_product_has_every_container_and_orientation() -> None:
    containers = {read_header(image.data).container for image in ODD.values()}
    assert containers >= {"JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM"}
    assert len(ODD) > 90
    assert {f"exif{number}_{kind}" for number in range(1, 9) for kind in ("jpeg.jpg", "mpo.jpg", "png.png")} <= {*ODD}


@pytest.mark.parametrize("name", ODD)
def test_an_image_is_decoded_as_it_is_shown(name: str) -> None:
    image = ODD[name]
    header = read_header(image.data)
    assert (header.height, header.width) == image.shown.shape[:2]
    assert_shows(decode_rgb(image.data), image)


@pytest.mark.parametrize("name", ODD)
def test_any_crop_is_cut_from_the_pixels_of_the_whole(name: str) -> None:
    image = ODD[name]
    header, pixels = read_header(image.data), decode_rgb(image.data)
    for top, left in ((0, 0), (7, 3), (8, 24), (3, 11)):
        crop = decode_crop(image.data, header, (top, left, 16, 16), (16, 16))
        assert np.array_equal(crop, pixels[top : top + 16, left : left + 16])


@pytest.mark.parametrize("name", ODD)
def test_a_smaller_copy_is_made_of_the_same_pixels(name: str) -> None:
    image = ODD[name]
    extension, data = shrunk(image.data, name.rpartition(".")[2], 12)
    pixels = Image.fromarray(decode_rgb(image.data)).resize((20, 12), Image.Resampling.BICUBIC, reducing_gap=3.0)
    lossless = extension in ("png", "apng")
    difference = np.abs(decode_rgb(data).astype(int) - np.asarray(pixels, dtype=int)).mean()
    assert difference == 0 if lossless else difference < 20
    assert shrunk(image.data, "anything", 24) == ("anything", image.data)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 70_000]], dtype=np.int32), "from 0 to 70000: only 0 to 65535"),
        (np.array([[-1, 5]], dtype=np.int32), "from -1 to 5"),
        (np.array([[0.0, 255.0]], dtype=np.float32), "from 0 to 255: only 0 to 1"),
        (np.array([[0.0, np.nan]], dtype=np.float32), "nan"),
    ],
)
def test_values_without_a_scale_are_refused(values: np.ndarray, message: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF")
    with pytest.raises(ValueError, match=message):
        decode_rgb(stream.getvalue())


def test_formats_that_are_not_listed_are_not_opened() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "EPS")
    with pytest.raises(ValueError, match="unsupported format"):
        read_header(stream.getvalue())
