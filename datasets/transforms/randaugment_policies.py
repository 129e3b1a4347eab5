"""RandAugment's policies: which operations there are, and how far each goes at which magnitude.

`torchvision` is `torchvision.transforms.v2.RandAugment` with `fill=128`, of whose 31 bins magnitude 10 is the last.
`google` is that of EfficientNetV2's released code (google/automl, efficientnetv2/autoaugment.py), oddities included:

- translations and Cutout are in pixels, whatever the image's size;
- posterize and solarize grow weaker with the magnitude, and do nothing from 20 and from 10 on;
- Color, Contrast, Brightness and Sharpness have no sign: they do nothing at 5, and less than that below it;
- Contrast blends with the number of pixels / 256 where the mean grey would be, 255 at most.

It draws a probability for each operation and does not use it: an operation that is drawn is carried out.

`geometric` has the moves of `torchvision` by the same amounts, about the centre, for images of any channels and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datasets.transforms import geometric
from datasets.transforms import randaugment_ops as ops

FULL_MAGNITUDE = 10.0
"""The magnitude at which every operation of `torchvision` has its full range, and the unit of `google`'s formulas."""


class Amount(NamedTuple):
    """What is drawn for one operation, and how strong it is."""

    strength: float
    """magnitude / 10"""
    sign: float
    """-1 or 1"""
    y: float = 0.0
    """A place in the image, in [0, 1), from the top"""
    x: float = 0.0
    """... and from the left"""


Operation = Callable[[np.ndarray, Amount], np.ndarray]
"""uint8 [H, W, 3], of what moves pixels also a mask [H, W], -> the same shape; the argument stays as it is"""


@dataclass(frozen=True, slots=True)
class Policy:
    """The operations of RandAugment, all drawn equally often."""

    operations: Mapping[str, Operation]
    draws_per_layer: int
    """Random numbers that one operation takes: which one, its sign, and a place where one needs it."""


# torchvision's -------------------------------------------------------------------------------------------------------

# Beyond magnitude 10 it extrapolates, until nothing would be left to learn from: a nearly black, grey or flat image, a
# quarter of the image, one bit.
_LOWEST_FACTOR = 0.1
_LARGEST_SHIFT = 0.75
_FEWEST_BITS = 1


def _factor(at: Amount) -> float:
    return max(_LOWEST_FACTOR, 1.0 + 0.9 * at.strength * at.sign)


def _shift(side: int, at: Amount) -> int:
    return int(min(150.0 / 331.0 * at.strength, _LARGEST_SHIFT) * side * at.sign)


TORCHVISION = Policy(
    {
        "identity": lambda pixels, at: pixels,
        "shear_x": lambda pixels, at: ops.shear_x(pixels, 0.3 * at.strength * at.sign),
        "shear_y": lambda pixels, at: ops.shear_y(pixels, 0.3 * at.strength * at.sign),
        "translate_x": lambda pixels, at: ops.translate_x(pixels, _shift(pixels.shape[1], at)),
        "translate_y": lambda pixels, at: ops.translate_y(pixels, _shift(pixels.shape[0], at)),
        "rotate": lambda pixels, at: ops.rotate(pixels, 30.0 * at.strength * at.sign),
        "brightness": lambda pixels, at: ops.brightness(pixels, _factor(at)),
        "color": lambda pixels, at: ops.color(pixels, _factor(at)),
        "contrast": lambda pixels, at: ops.contrast(pixels, _factor(at), ops.mean_grey(pixels)),
        "sharpness": lambda pixels, at: ops.sharpness(pixels, _factor(at)),
        "posterize": lambda pixels, at: ops.posterize(pixels, max(_FEWEST_BITS, 8 - round(4 * at.strength))),
        "solarize": lambda pixels, at: ops.solarize(pixels, math.ceil(max(0.0, 255.0 * (1.0 - at.strength)))),
        "autocontrast": lambda pixels, at: ops.autocontrast(pixels),
        "equalize": lambda pixels, at: ops.equalize(pixels),
    },
    draws_per_layer=2,
)

# google's ------------------------------------------------------------------------------------------------------------

_TRANSLATE_CONST, _CUTOUT_CONST = 100, 40


def _google_factor(at: Amount) -> float:
    return at.strength * 1.8 + 0.1


def _google_shift(at: Amount) -> int:
    return -int(at.sign) * int(at.strength * _TRANSLATE_CONST + 0.5)  # nearest neighbour: whole pixels


def _pixel_grey(pixels: np.ndarray) -> np.ndarray:
    return np.full((1, 1, 1), min(255, pixels.shape[0] * pixels.shape[1] // 256), dtype=np.float32)


GOOGLE = Policy(
    {
        "autocontrast": lambda pixels, at: ops.autocontrast(pixels),
        "equalize": lambda pixels, at: ops.equalize(pixels),
        "invert": lambda pixels, at: ops.invert(pixels),
        "rotate": lambda pixels, at: ops.rotate(pixels, 30.0 * at.strength * at.sign),
        # TensorFlow shifts by 7 of 8 bits at most.
        "posterize": lambda pixels, at: ops.posterize(pixels, min(8, max(1, int(at.strength * 4)))),
        "solarize": lambda pixels, at: ops.solarize(pixels, int(at.strength * 256)),
        "color": lambda pixels, at: ops.blend(ops.whole_grey(pixels), pixels, _google_factor(at)),
        "contrast": lambda pixels, at: ops.blend(_pixel_grey(pixels), pixels, _google_factor(at)),
        "brightness": lambda pixels, at: ops.brightness(pixels, _google_factor(at)),
        "sharpness": lambda pixels, at: ops.sharpness(pixels, _google_factor(at), whole=True),
        "shear_x": lambda pixels, at: ops.shear_x(pixels, 0.3 * at.strength * at.sign, first_row=0.0),
        "shear_y": lambda pixels, at: ops.shear_y(pixels, 0.3 * at.strength * at.sign, first_column=0.0),
        "translate_x": lambda pixels, at: ops.translate_x(pixels, _google_shift(at)),
        "translate_y": lambda pixels, at: ops.translate_y(pixels, _google_shift(at)),
        "cutout": lambda pixels, at: ops.cutout(pixels, int(at.strength * _CUTOUT_CONST), at.y, at.x),
        "solarize_add": lambda pixels, at: ops.solarize_add(pixels, int(at.strength * 110)),
    },
    draws_per_layer=4,
)

# geometric -----------------------------------------------------------------------------------------------------------


def _geometric(matrix: Callable[[np.ndarray, Amount], geometric.Matrix]) -> Operation:
    return lambda pixels, at: geometric.moved(pixels, matrix(pixels, at))


GEOMETRIC = Policy(
    {
        "identity": lambda pixels, at: pixels,
        "shear_x": _geometric(lambda pixels, at: geometric.shear_x(0.3 * at.strength * at.sign)),
        "shear_y": _geometric(lambda pixels, at: geometric.shear_y(0.3 * at.strength * at.sign)),
        "translate_x": _geometric(lambda pixels, at: geometric.translate(_shift(pixels.shape[1], at), 0)),
        "translate_y": _geometric(lambda pixels, at: geometric.translate(0, _shift(pixels.shape[0], at))),
        "rotate": _geometric(lambda pixels, at: geometric.rotate(30.0 * at.strength * at.sign)),
    },
    draws_per_layer=2,
)

POLICIES: Mapping[str, Policy] = {"torchvision": TORCHVISION, "google": GOOGLE, "geometric": GEOMETRIC}
"""By the values of `data.randaugment_policy`."""

MASKED = frozenset({"shear_x", "shear_y", "translate_x", "translate_y", "rotate", "cutout"})
"""The operations that a mask follows: those that move or blank pixels. The others change an image's values only."""
