from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from datasets.transforms import decode
from datasets.transforms.decode import CROP_DRAWS, _decode_jpeg, decode_crop, eval_crop, random_crop
from datasets.transforms.pixels import Header, read_header
from datasets.transforms.randomness import Purpose, sample_generator
from datasets.transforms.shape import image_shape
from tests.support.shards import image_of


def photo(height: int, width: int) -> np.ndarray:
    return image_of(2, 5, height=height, width=width)


def encoded(pixels: np.ndarray, kind: str, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def draws(index: int) -> list[float]:
    return sample_generator(1, Purpose.AUGMENT, index).random(CROP_DRAWS).tolist()


def whole(data: bytes, size: int) -> np.ndarray:
    header = read_header(data)
    return decode_crop(data, header, (0, 0, header.height, header.width), (size, size))


FORMATS: dict[str, Callable[[np.ndarray], bytes]] = {
    "jpeg": lambda pixels: simplejpeg.encode_jpeg(pixels, quality=98),
    "progressive": lambda pixels: encoded(pixels, "JPEG", quality=98, progressive=True),
    "cmyk": lambda pixels: encoded(pixels, "JPEG", mode="CMYK", quality=98),
    "png": lambda pixels: encoded(pixels, "PNG"),
    "alpha": lambda pixels: encoded(pixels, "PNG", mode="RGBA"),
    "palette": lambda pixels: encoded(pixels, "PNG", mode="P"),
    "webp": lambda pixels: encoded(pixels, "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_becomes_the_same_rgb(kind: str) -> None:
    pixels = photo(60, 80)
    got = whole(FORMATS[kind](pixels), 40)
    assert (got.shape, got.dtype) == ((40, 40, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((40, 40), Image.Resampling.BILINEAR), dtype=int)
    assert np.abs(got.astype(int) - expected).mean() < (8 if kind == "palette" else 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_rgb(kind: str) -> None:
    got = whole(encoded(photo(60, 80), kind, mode="L"), 32)
    assert got.shape == (32, 32, 3)
    assert np.array_equal(got[..., 0], got[..., 1])


def test_the_crop_is_the_part_that_was_asked_for() -> None:
    pixels = np.zeros((100, 100, 3), dtype=np.uint8)
    pixels[20:60, 30:70] = 250
    data = encoded(pixels, "PNG")
    assert decode_crop(data, read_header(data), (20, 30, 40, 40), (16, 16)).min() == 250
    assert decode_crop(data, read_header(data), (60, 0, 40, 30), (16, 16)).max() == 0


def test_resizing_is_torchs_antialiased_bilinear() -> None:
    pixels = photo(90, 120)
    data = encoded(pixels, "PNG")
    got = decode_crop(data, read_header(data), (5, 10, 70, 90), (48, 48))
    crop = torch.from_numpy(pixels[5:75, 10:100].copy()).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(crop, (48, 48), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    assert np.array_equal(got, expected.numpy())


def test_scaled_decode_only_where_the_crop_stays_twice_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    real = decode.resize

    def spy(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        sizes.append(pixels.shape[:2])
        return real(pixels, shape)

    monkeypatch.setattr(decode, "resize", spy)
    pixels = photo(600, 800)
    data = simplejpeg.encode_jpeg(pixels, quality=98)
    header = read_header(data)
    full = decode_crop(data, header, (0, 0, 600, 800), (160, 160))
    small = decode_crop(data, header, (0, 0, 600, 800), (64, 64))
    decode_crop(data, header, (0, 0, 127, 127), (64, 64))
    assert sizes == [(600, 800), (150, 200), (127, 127)]
    for got, size in ((full, 160), (small, 64)):
        expected = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR), dtype=int)
        assert np.abs(got.astype(int) - expected).mean() < 2


def test_a_scaled_crop_lies_where_the_full_one_does() -> None:
    pixels = photo(640, 960)
    data = simplejpeg.encode_jpeg(pixels, quality=98)
    got = decode_crop(data, read_header(data), (100, 300, 400, 500), (40, 40))
    expected = Image.fromarray(pixels).crop((300, 100, 800, 500)).resize((40, 40), Image.Resampling.BILINEAR)
    assert np.abs(got.astype(int) - np.asarray(expected, dtype=int)).mean() < 3


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0 nor this", encoded(photo(40, 40), "PNG")[:200]])
def test_damaged_data_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="image"):
        whole(data, 16)


def test_a_jpeg_cut_short_is_a_value_error() -> None:
    data = simplejpeg.encode_jpeg(photo(400, 400))
    with pytest.raises(ValueError, match=r"."):
        whole(data[: len(data) // 2], 16)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "Gray"])
def test_rows_below_the_crop_are_not_decoded_and_change_nothing(subsampling: str) -> None:
    pixels = photo(300, 200) if subsampling != "Gray" else photo(300, 200)[..., :1]
    colors = (
        {"colorspace": "GRAY", "colorsubsampling": "Gray"}
        if subsampling == "Gray"
        else {"colorsubsampling": subsampling}
    )
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, **colors)
    header, all_rows = read_header(data), simplejpeg.decode_jpeg(data)
    for bottom in range(1, 301, 7):
        rows = _decode_jpeg(data, header, (0, 0, bottom, 200), (128, 128))
        assert len(rows) <= max(bottom + 33, 32)
        assert np.array_equal(rows[:bottom], all_rows[:bottom])


def test_damage_above_the_crops_end_is_found_and_bytes_too_many_do_no_harm() -> None:
    data = simplejpeg.encode_jpeg(photo(400, 400), quality=95)
    header, middle = read_header(data), len(data) // 2
    ended = data[:middle] + b"\xff\xd9" + data[middle:]
    for damaged in (data[:middle], ended):
        with pytest.raises(ValueError, match=r"."):
            decode_crop(damaged, header, (0, 0, 350, 350), (128, 128))
    extra = data[:-2] + bytes(50) + data[-2:]
    assert np.array_equal(
        decode_crop(extra, header, (0, 0, 400, 400), (128, 128)),
        decode_crop(data, header, (0, 0, 400, 400), (128, 128)),
    )


def test_random_crops_keep_to_area_ratio_and_image() -> None:
    header = Header(300, 400, True)
    boxes = [random_crop(header, draws(index), area=(0.05, 1.0), ratio=(3 / 4, 4 / 3)) for index in range(500)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        assert 0.045 < height * width / (300 * 400) <= 1
        assert 0.72 < width / height < 1.39
    shares = [height * width / 120_000 for _, _, height, width in boxes]
    assert min(shares) < 0.08
    assert max(shares) > 0.8


def test_an_image_that_no_crop_fits_is_cropped_centrally() -> None:
    box = random_crop(Header(20, 800, True), draws(0), area=(0.9, 1.0), ratio=(3 / 4, 4 / 3))
    assert box == (0, 386, 20, 27)


SIDES = st.integers(1, 500)


@given(SIDES, SIDES, st.integers(8, 400), st.floats(0.2, 5))
def test_the_evaluations_crop_has_the_inputs_shape(height: int, width: int, size: int, ratio: float) -> None:
    rows, columns = shape = image_shape(size, ratio)
    top, left, h, w = eval_crop(Header(height, width, True), shape, rule="central")
    assert (top, left) == ((height - h) // 2, (width - w) // 2)
    # The largest part of the shape, made smaller, with the shape's ratio up to whole pixels.
    share = size / (size + 32)
    scale = min(height / rows, width / columns) * share
    for side, full, whole in ((h, rows, height), (w, columns, width)):
        assert 1 <= side <= whole
        assert side == 1 or scale * full - 1 - 1e-6 <= side <= scale * full + 1e-6


@given(SIDES, SIDES, st.integers(8, 400))
def test_of_a_square_it_is_a_share_of_the_short_side(height: int, width: int, size: int) -> None:
    side = max(1, int(size / (size + 32) * min(height, width)))
    box = eval_crop(Header(height, width, True), (size, size), rule="central")
    assert box == ((height - side) // 2, (width - side) // 2, side, side)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_turned_image_becomes_the_same_shape_as_an_upright_one(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(photo(90, 150)).save(stream, kind, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(stream))
    header = read_header(stream.getvalue())
    box = (10, 20, 60, 50)
    got = decode_crop(stream.getvalue(), header, box, (24, 40))
    assert got.shape == (24, 40, 3)
    expected = decode_crop(encoded(np.array(shown), "PNG"), Header(shown.height, shown.width, False), box, (24, 40))
    assert np.abs(got.astype(int) - expected).max() <= 2  # resized before it is turned, so rounded otherwise


@pytest.mark.parametrize(
    ("rule", "size", "box"),
    [
        ("central_below_320", 224, (12, 112, 175, 175)),
        ("central_below_320", 319, (9, 109, 181, 181)),
        ("central_below_320", 320, (0, 0, 200, 400)),
        ("central", 480, (6, 106, 187, 187)),
        ("whole", 64, (0, 0, 200, 400)),
    ],
)
def test_evaluation_looks_at_the_centre_of_small_images_and_all_of_large_ones(
    rule: str, size: int, box: tuple[int, int, int, int]
) -> None:
    assert eval_crop(Header(200, 400, True), (size, size), rule=rule) == box
