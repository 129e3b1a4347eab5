from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

from datasets.transforms.augment import rand_augment, random_flip_pair
from datasets.transforms.randaugment_ops import OPERATIONS
from datasets.transforms.randomness import Purpose, sample_generator, uniforms
from tests.support.shards import image_of

PIXELS = image_of(1, 3, height=96, width=96)


def slope() -> np.ndarray:
    """A slope with some noise, which every operation changes the more the stronger it is: uint8 [96, 96, 3]."""
    y, x = np.mgrid[0:96, 0:96] / 96
    noise = np.random.default_rng(0).normal(0, 6, (96, 96, 3))
    return np.clip(np.stack([x * 150 + 30, y * 180 + 20, 200 - x * 150], axis=-1) + noise, 0, 254).astype(np.uint8)


# torchvision's name of each operation; its 31 bins put magnitude 10 of the paper's scale at bin 30.
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


def draws(index: int = 0) -> list[float]:
    return sample_generator(9, Purpose.AUGMENT, index).random(4).tolist()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0.0, 3.0, 5.0, 10.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_operation_is_torchvisions_at_the_same_strength(name: str, magnitude: float, sign: float) -> None:
    strengths, signed = RandAugment()._augmentation_space(31, (96, 96))[NAMES[name]]
    strength = float(strengths[round(magnitude * 3)]) if strengths.ndim else 0.0
    image = Image.fromarray(PIXELS)
    expected = _apply_op(
        image, NAMES[name], strength * (sign if signed else 1.0), InterpolationMode.NEAREST, [128.0] * 3
    )
    got = OPERATIONS[name](PIXELS, magnitude / 10, sign)
    assert np.abs(got.astype(int) - np.asarray(expected, dtype=int)).max() <= 1


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("identity", "autocontrast", "equalize")])
def test_strength_grows_beyond_the_full_range_and_leaves_something_to_see(name: str) -> None:
    image = slope()

    def change(strength: float) -> float:
        return float(np.abs(OPERATIONS[name](image, strength, 1.0).astype(float) - image).mean())

    assert change(0.0) <= 1.0
    assert change(0.5) > change(0.1)
    assert change(1.5) > change(0.5)
    assert OPERATIONS[name](image, 2.5, 1.0).std() > 3
    assert np.array_equal(image, slope())  # operations leave their argument as it is


def augmented(*layers: list[float], magnitude: float) -> np.ndarray:
    images = np.stack([PIXELS] * len(layers))
    rand_augment(images, None, layers, magnitude=magnitude)
    return images


def test_magnitude_zero_is_off_and_every_sample_has_its_own_operations() -> None:
    assert np.array_equal(augmented(draws(), magnitude=0)[0], PIXELS)
    together = augmented(*map(draws, range(40)), magnitude=9)
    assert len({image.tobytes() for image in together}) > 30
    for index, image in enumerate(together):
        assert np.array_equal(image, augmented(draws(index), magnitude=9)[0])


def test_operations_are_applied_one_after_another() -> None:
    names = list(OPERATIONS)
    picks = [(names.index(name) + 0.5) / len(names) for name in ("rotate", "equalize")]
    expected = OPERATIONS["equalize"](OPERATIONS["rotate"](PIXELS, 0.6, -1.0), 0.6, 1.0)
    assert np.array_equal(augmented([picks[0], 0.9, picks[1], 0.1], magnitude=6)[0], expected)


def test_half_of_the_images_are_mirrored() -> None:
    assert np.array_equal(random_flip_pair(PIXELS, None, 0.49)[0], PIXELS[:, ::-1])
    assert random_flip_pair(PIXELS, None, 0.5)[0] is PIXELS


def test_random_numbers_of_a_batch_are_those_of_its_samples() -> None:
    indices = np.array([5, 0, 2**40])
    each = [sample_generator(9, Purpose.AUGMENT, index).random(7) for index in indices.tolist()]
    assert np.array_equal(uniforms(9, Purpose.AUGMENT, indices, 7), np.stack(each))
