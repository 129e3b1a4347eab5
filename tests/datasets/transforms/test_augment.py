from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import RandAugment

from datasets.transforms.augment import rand_augment, random_flip_pair
from datasets.transforms.randaugment_ops import color, whole_grey
from datasets.transforms.randaugment_policies import GOOGLE, MASKED, POLICIES, TORCHVISION, Amount
from datasets.transforms.randomness import Purpose, sample_generator, uniforms
from tests.support.shards import image_of

PIXELS = image_of(1, 3, height=96, width=96)
LAST_BIN = 30
"""Of torchvision's 31 bins; our magnitude 10."""


def slope() -> np.ndarray:
    """A slope with some noise, which every operation changes the more the stronger it is: uint8 [96, 96, 3]."""
    y, x = np.mgrid[0:96, 0:96] / 96
    noise = np.random.default_rng(0).normal(0, 6, (96, 96, 3))
    return np.clip(np.stack([x * 150 + 30, y * 180 + 20, 200 - x * 150], axis=-1) + noise, 0, 254).astype(np.uint8)


IMAGES = {"noise": PIXELS, "slope": slope(), "wide": image_of(2, 5, height=40, width=72)}

# torchvision's name of each operation.
NAMES = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}


def draws(index: int = 0, policy: str = "torchvision") -> list[float]:
    count = 2 * POLICIES[policy].draws_per_layer
    return sample_generator(9, Purpose.AUGMENT, index).random(count).tolist()


# torchvision's -------------------------------------------------------------------------------------------------------


def test_the_operations_are_torchvisions() -> None:
    assert list(NAMES) == list(TORCHVISION.operations)
    assert list(NAMES.values()) == list(RandAugment._AUGMENTATION_SPACE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("image", IMAGES)
def test_every_operation_is_torchvisions_in_every_bin(name: str, sign: float, image: str) -> None:
    pixels, reference = IMAGES[image], RandAugment(fill=128)
    height, width = pixels.shape[:2]
    magnitudes, signed = RandAugment._AUGMENTATION_SPACE[NAMES[name]]
    values = magnitudes(LAST_BIN + 1, height, width)
    for number in range(LAST_BIN + 1):
        amount = 0.0 if values is None else float(values[number]) * (sign if signed else 1.0)
        expected = reference._apply_image_or_video_transform(
            Image.fromarray(pixels), NAMES[name], amount, interpolation=reference.interpolation, fill=reference._fill
        )
        got = TORCHVISION.operations[name](pixels, Amount(number / LAST_BIN, sign))
        # Values are Pillow's but for its rounding of intermediate images; pixels are moved to the very same places.
        most = 0 if name in MASKED or name in ("identity", "posterize", "solarize", "equalize") else 1
        apart = np.abs(got.astype(int) - np.asarray(expected, dtype=int))
        if name == "solarize":  # torchvision's thresholds are float32: of 51.000001, 51 is not inverted
            apart[pixels == round(255 * (1 - number / LAST_BIN), 6)] = 0
        assert apart.max() <= most, number


@pytest.mark.parametrize("factor", [0.1, 0.55, 1.0, 1.3, 1.9])
def test_color_is_pillows_to_the_bit(factor: float) -> None:
    """So that a sample's pixels are the same on every processor."""
    for pixels in IMAGES.values():
        assert np.array_equal(color(pixels, factor), ImageEnhance.Color(Image.fromarray(pixels)).enhance(factor))


def test_googles_grey_is_the_formulas_for_any_color() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    red, green, blue = (pixels[..., channel].astype(np.float64) for channel in range(3))
    grey = np.floor((0.2989 * red + 0.587 * green + 0.114 * blue) / 255 * 255.5)
    assert np.array_equal(whole_grey(pixels)[..., 0], grey)
    assert np.array_equal(whole_grey(np.full((1, 1, 3), 255, np.uint8)), [[[255.0]]])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("identity", "autocontrast", "equalize")])
def test_strength_grows_beyond_the_full_range_and_leaves_something_to_see(name: str) -> None:
    image = slope()

    def changed(strength: float) -> np.ndarray:
        return TORCHVISION.operations[name](image, Amount(strength, 1.0))

    def change(strength: float) -> float:
        return float(np.abs(changed(strength).astype(float) - image).mean())

    assert change(0.0) <= 1.0
    assert change(0.5) > change(0.1)
    assert change(1.5) > change(0.5)
    assert changed(2.5).std() > 3
    assert np.array_equal(image, slope())  # operations leave their argument as it is


# google's: each as efficientnetv2/autoaugment.py of google/automl says, worked out pixel by pixel --------------------


def blend(one: int, two: int, factor: float) -> int:
    value = np.float32(one) + np.float32(factor) * np.float32(two - one)
    return int(min(255.0, max(0.0, float(value))))


def source(pixels: np.ndarray, y: float, x: float) -> list[int]:
    row, column = round(y), round(x)
    inside = 0 <= row < pixels.shape[0] and 0 <= column < pixels.shape[1]
    return pixels[row, column].tolist() if inside else [128, 128, 128]


def moved(pixels: np.ndarray, name: str, level: float, sign: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    angle, slope_, shift = (sign * level / 10 * most for most in (math.radians(30), 0.3, 100))
    cos, sin = math.cos(angle), math.sin(angle)
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2

    def place(y: int, x: int) -> tuple[float, float]:
        if name == "rotate":
            dy, dx = y - middle_y, x - middle_x
            return middle_y + sin * dx + cos * dy, middle_x + cos * dx - sin * dy
        return {
            "shear_x": (y, x + slope_ * y),
            "shear_y": (y + slope_ * x, x),
            "translate_x": (y, x + shift),
            "translate_y": (y + shift, x),
        }[name]

    rows = [[source(pixels, *place(y, x)) for x in range(width)] for y in range(height)]
    return np.array(rows, dtype=np.uint8)


def smooth(pixels: np.ndarray, y: int, x: int, channel: int) -> int:
    around = pixels[y - 1 : y + 2, x - 1 : x + 2, channel].astype(int)
    if not 0 < y < pixels.shape[0] - 1 or not 0 < x < pixels.shape[1] - 1:
        return int(pixels[y, x, channel])
    return (int(around.sum()) + 4 * int(pixels[y, x, channel])) // 13


def valued(pixels: np.ndarray, name: str, level: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    factor, share = level / 10 * 1.8 + 0.1, level / 10
    out = pixels.copy()
    for y, x, channel in np.ndindex(pixels.shape):
        value = int(pixels[y, x, channel])
        red, green, blue = (float(one) for one in pixels[y, x])
        grey = int((0.2989 * red + 0.587 * green + 0.114 * blue) / 255 * 255.5)
        bits, smoothed = min(8, max(1, int(share * 4))), smooth(pixels, y, x, channel)
        out[y, x, channel] = {
            "invert": lambda v=value: 255 - v,
            "posterize": lambda v=value, b=bits: v >> (8 - b) << (8 - b),
            "solarize": lambda v=value: v if v < int(share * 256) else 255 - v,
            "solarize_add": lambda v=value: min(255, v + int(share * 110)) if v < 128 else v,
            "brightness": lambda v=value: blend(0, v, factor),
            "color": lambda v=value, g=grey: blend(g, v, factor),
            "contrast": lambda v=value: blend(min(255, height * width // 256), v, factor),
            "sharpness": lambda v=value, s=smoothed: blend(s, v, factor),
        }[name]()
    return out


SMALL = np.random.default_rng(3).integers(0, 256, (20, 26, 3), dtype=np.uint8)
LEVELS = [1.0, 5.0, 8.0, 10.0, 15.0, 25.0]
VALUES = ("invert", "posterize", "solarize", "solarize_add", "brightness", "color", "contrast", "sharpness")


def test_the_operations_are_the_released_codes() -> None:
    both = {
        "autocontrast",
        "equalize",
        "rotate",
        "posterize",
        "solarize",
        "color",
        "contrast",
        "brightness",
        "sharpness",
    }
    moves = {"shear_x", "shear_y", "translate_x", "translate_y"}
    assert set(GOOGLE.operations) == both | moves | {"invert", "cutout", "solarize_add"}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("level", LEVELS)
def test_googles_values_are_those_of_its_formulas(name: str, level: float) -> None:
    got = GOOGLE.operations[name](SMALL, Amount(level / 10, 1.0))
    assert np.array_equal(got, GOOGLE.operations[name](SMALL, Amount(level / 10, -1.0)))  # none of them has a sign
    assert np.array_equal(got, valued(SMALL, name, level))


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
@pytest.mark.parametrize("level", [0.3, 0.7, 5.3, 8.3, 15.3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_googles_moves_are_those_of_its_formulas(name: str, level: float, sign: float) -> None:
    apart = (GOOGLE.operations[name](SMALL, Amount(level / 10, sign)) != moved(SMALL, name, level, sign)).any(axis=-1)
    assert apart.mean() < 0.01  # at equal distances from two pixels


def test_googles_levels_mean_what_the_paper_used_them_for() -> None:
    at = {level: Amount(level / 10, 1.0) for level in (5, 10, 15, 20)}
    big = image_of(1, 4, height=200, width=200)
    for name in ("brightness", "color", "contrast", "sharpness"):
        assert np.array_equal(GOOGLE.operations[name](big, at[5]), big)
    assert np.array_equal(GOOGLE.operations["solarize"](big, at[10]), big)
    assert np.array_equal(GOOGLE.operations["posterize"](big, at[20]), big)
    shifted = GOOGLE.operations["translate_x"](big, at[15])
    assert np.array_equal(shifted[:, :50], big[:, 150:])  # 150 px at most in the paper
    assert (shifted[:, 50:] == 128).all()
    assert (GOOGLE.operations["translate_x"](big[:, :128], at[15]) == 128).all()
    assert np.array_equal(
        GOOGLE.operations["autocontrast"](big, at[5]), TORCHVISION.operations["autocontrast"](big, at[5])
    )
    assert np.array_equal(GOOGLE.operations["equalize"](big, at[5]), TORCHVISION.operations["equalize"](big, at[5]))


@pytest.mark.parametrize(("y", "x"), [(0.0, 0.0), (0.5, 0.3), (0.999, 0.999)])
def test_cutout_is_a_square_around_its_place_in_the_image_and_in_its_mask(y: float, x: float) -> None:
    amount, half = Amount(0.4, 1.0, y, x), 16
    row, column = int(y * 96), int(x * 96)
    expected, mask = PIXELS.copy(), np.zeros((96, 96), dtype=np.uint8)
    square = slice(max(0, row - half), row + half), slice(max(0, column - half), column + half)
    expected[square] = 128
    assert np.array_equal(GOOGLE.operations["cutout"](PIXELS, amount), expected)
    blanked = GOOGLE.operations["cutout"](mask, amount)
    assert (blanked[square] == 255).all()
    assert blanked.sum() == 255 * blanked[square].size


# Both ----------------------------------------------------------------------------------------------------------------


def augmented(*layers: list[float], magnitude: float, policy: str = "torchvision") -> np.ndarray:
    images = np.stack([PIXELS] * len(layers))
    rand_augment(images, None, layers, policy=POLICIES[policy], magnitude=magnitude)
    return images


@pytest.mark.parametrize("policy", POLICIES)
def test_magnitude_zero_is_off_and_every_sample_has_its_own_operations(policy: str) -> None:
    assert np.array_equal(augmented(draws(policy=policy), magnitude=0, policy=policy)[0], PIXELS)
    each = [draws(index, policy) for index in range(40)]
    together = augmented(*each, magnitude=9, policy=policy)
    assert len({image.tobytes() for image in together}) > 30
    for image, numbers in zip(together, each, strict=True):
        assert np.array_equal(image, augmented(numbers, magnitude=9, policy=policy)[0])


@pytest.mark.parametrize("policy", POLICIES)
def test_operations_are_applied_one_after_another(policy: str) -> None:
    operations = POLICIES[policy].operations
    names, place = list(operations), [0.2, 0.7][: POLICIES[policy].draws_per_layer - 2]
    second = "equalize" if "equalize" in names else "shear_x"
    picks = [(names.index(name) + 0.5) / len(names) for name in ("rotate", second)]
    expected = operations[second](operations["rotate"](PIXELS, Amount(0.6, -1.0)), Amount(0.6, 1.0))
    numbers = [picks[0], 0.9, *place, picks[1], 0.1, *place]
    assert np.array_equal(augmented(numbers, magnitude=6, policy=policy)[0], expected)


def test_cutouts_place_is_drawn() -> None:
    pick = (list(GOOGLE.operations).index("cutout") + 0.5) / len(GOOGLE.operations)
    expected = GOOGLE.operations["cutout"](PIXELS, Amount(0.3, 1.0, 0.25, 0.75))
    assert np.array_equal(augmented([pick, 0.1, 0.25, 0.75], magnitude=3, policy="google")[0], expected)


def test_half_of_the_images_are_mirrored() -> None:
    assert np.array_equal(random_flip_pair(PIXELS, None, 0.49)[0], PIXELS[:, ::-1])
    assert random_flip_pair(PIXELS, None, 0.5)[0] is PIXELS


def test_random_numbers_of_a_batch_are_those_of_its_samples() -> None:
    indices = np.array([5, 0, 2**40])
    each = [sample_generator(9, Purpose.AUGMENT, index).random(7) for index in indices.tolist()]
    assert np.array_equal(uniforms(9, Purpose.AUGMENT, indices, 7), np.stack(each))
