"""Augmentation: flips and RandAugment on one image, Mixup on a batch, all keyed by the sample's stream index."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from datasets.randomness import Purpose, sample_generator

FULL_MAGNITUDE = 10.0
"""The magnitude at which every operation has its full range; larger magnitudes extrapolate."""

# Where extrapolation would leave nothing to learn from, it stops: at a nearly black, grey or flat image, at a quarter
# of the image, at one bit.
_LOWEST_FACTOR = 0.1
_LARGEST_SHIFT = 0.75
_FEWEST_BITS = 1
_FILL = [128.0, 128.0, 128.0]
MASK_IGNORE = 255
"""A mask's value where there is nothing to learn."""

Operation = Callable[[Image.Image, float, float], Image.Image]
"""image, strength (magnitude / 10), sign (-1 or 1) -> image"""


def _affine(
    image: Image.Image, *, translate: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)
) -> Image.Image:
    center = [0.0, 0.0] if any(shear) else None
    return F.affine(
        image, angle=0.0, translate=list(translate), scale=1.0, shear=list(shear), fill=_fill(image), center=center
    )


def _fill(image: Image.Image) -> list[float]:
    return _FILL if image.mode == "RGB" else [float(MASK_IGNORE)]


def _shear_degrees(strength: float, sign: float) -> float:
    return math.degrees(math.atan(0.3 * strength * sign))


def _shift(side: int, strength: float, sign: float) -> int:
    return int(min(150.0 / 331.0 * strength, _LARGEST_SHIFT) * side * sign)


def _factor(strength: float, sign: float) -> float:
    return max(_LOWEST_FACTOR, 1.0 + 0.9 * strength * sign)


def _posterize_bits(strength: float) -> int:
    return max(_FEWEST_BITS, 8 - round(4 * strength))


def _solarize_threshold(strength: float) -> float:
    return max(0.0, 255.0 * (1.0 - strength))


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, sign: image,
    "shear_x": lambda image, strength, sign: _affine(image, shear=(_shear_degrees(strength, sign), 0.0)),
    "shear_y": lambda image, strength, sign: _affine(image, shear=(0.0, _shear_degrees(strength, sign))),
    "translate_x": lambda image, strength, sign: _affine(image, translate=(_shift(image.width, strength, sign), 0)),
    "translate_y": lambda image, strength, sign: _affine(image, translate=(0, _shift(image.height, strength, sign))),
    "rotate": lambda image, strength, sign: F.rotate(image, 30.0 * strength * sign, fill=_fill(image)),
    "brightness": lambda image, strength, sign: F.adjust_brightness(image, _factor(strength, sign)),
    "color": lambda image, strength, sign: F.adjust_saturation(image, _factor(strength, sign)),
    "contrast": lambda image, strength, sign: F.adjust_contrast(image, _factor(strength, sign)),
    "sharpness": lambda image, strength, sign: F.adjust_sharpness(image, _factor(strength, sign)),
    "posterize": lambda image, strength, sign: F.posterize(image, _posterize_bits(strength)),
    "solarize": lambda image, strength, sign: F.solarize(image, _solarize_threshold(strength)),
    "autocontrast": lambda image, strength, sign: F.autocontrast(image),
    "equalize": lambda image, strength, sign: F.equalize(image),
}
"""RandAugment's operations by name, with the ranges that torchvision gives them."""

_NAMES = tuple(OPERATIONS)
GEOMETRIC = frozenset({"shear_x", "shear_y", "translate_x", "translate_y", "rotate"})
"""The operations that move pixels; the others change their values only."""


def rand_augment(pixels: np.ndarray, generator: np.random.Generator, *, magnitude: float, layers: int) -> np.ndarray:
    """Apply `layers` random operations to uint8 [H, W, 3], each at the paper's `magnitude`; 0 changes nothing."""
    return rand_augment_pair(pixels, None, generator, magnitude=magnitude, layers=layers)[0]


def rand_augment_pair(
    pixels: np.ndarray, mask: np.ndarray | None, generator: np.random.Generator, *, magnitude: float, layers: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Augment an image with its mask, uint8 [H, W, 3] and [H, W]; the image becomes what it becomes without a mask.

    What moves pixels moves the mask's with them, by nearest neighbour; what comes in from outside is `MASK_IGNORE`.
    """
    if magnitude <= 0 or layers == 0:
        return pixels, mask
    image, moved = Image.fromarray(pixels), None if mask is None else Image.fromarray(mask)
    for pick, draw in generator.random((layers, 2)):
        name = _NAMES[int(pick * len(_NAMES))]
        strength, sign = magnitude / FULL_MAGNITUDE, 1.0 if draw < 0.5 else -1.0
        image = OPERATIONS[name](image, strength, sign)
        if moved is not None and name in GEOMETRIC:
            moved = OPERATIONS[name](moved, strength, sign)
    return np.asarray(image), None if moved is None else np.asarray(moved)


def random_flip(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mirror uint8 [H, W, 3] left to right in half of the cases."""
    return random_flip_pair(pixels, None, generator)[0]


def random_flip_pair(
    pixels: np.ndarray, mask: np.ndarray | None, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mirror an image and its mask, uint8 [H, W, 3] and [H, W], together in half of the cases."""
    if generator.random() >= 0.5:
        return pixels, mask
    return pixels[:, ::-1], None if mask is None else mask[:, ::-1]


def mixup_weights(stream_index: torch.Tensor, *, alpha: float, seed: int) -> torch.Tensor:
    """Return each sample's own share, float32 [B] in [0.5, 1]: max(w, 1 - w) with w ~ Beta(alpha, alpha)."""
    indices = stream_index.tolist()
    weights = [sample_generator(seed, Purpose.MIXUP, index).beta(alpha, alpha) for index in indices]
    return torch.tensor([max(weight, 1.0 - weight) for weight in weights], dtype=torch.float32)


def mixup(
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    alpha: float,
    seed: int,
    stream_index: torch.Tensor,
    num_lanes_of_rank: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend every sample with its mirror in its own lane's part of the batch, so that no rank needs another's samples.

    Args:
        images: float [B, C, H, W], lane-major, on any device.
        targets: float [B, K] on the same device.
        alpha: of the Beta distribution; 0 changes nothing.
        seed: of the run.
        stream_index: int64 [B] on the host; keys each sample's weight.
        num_lanes_of_rank: lanes in this batch; B / lanes samples of each.

    Raises:
        ValueError: a lane has fewer than 2 samples in the batch, so there is nothing to mix with.
    """
    if alpha == 0:
        return images, targets
    _check_partners("mixup_alpha", alpha, images.shape[0] // num_lanes_of_rank)
    own = mixup_weights(stream_index, alpha=alpha, seed=seed).to(images.device, non_blocking=True)
    return _blend(images, own, num_lanes_of_rank), _blend(targets, own, num_lanes_of_rank)


def cutmix_boxes(stream_index: torch.Tensor, *, alpha: float, seed: int, height: int, width: int) -> torch.Tensor:
    """Return the box of each sample that its partner fills, int64 [B, 4]: top, bottom, left, right.

    Its area is the share 1 - w of the image with w ~ Beta(alpha, alpha), its centre anywhere; it is cut at the borders.
    """
    boxes = []
    for index in stream_index.tolist():
        generator = sample_generator(seed, Purpose.CUTMIX, index)
        half = 0.5 * math.sqrt(1.0 - generator.beta(alpha, alpha))
        y, x = generator.random(2)
        sides = ((y - half) * height, (y + half) * height, (x - half) * width, (x + half) * width)
        boxes.append(
            [max(0, min(limit, round(s))) for s, limit in zip(sides, (height, height, width, width), strict=True)]
        )
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)


def cutmix(
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    alpha: float,
    seed: int,
    stream_index: torch.Tensor,
    num_lanes_of_rank: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill a box of every sample with that of its mirror in its own lane's part of the batch, as Mixup pairs them.

    Args:
        images: float [B, C, H, W], lane-major, on any device.
        targets: float [B, K], blended by the areas; or [B, K, H, W], cut as the images are.
        alpha: of the Beta distribution of the share that a sample keeps; 0 changes nothing.
        seed: of the run.
        stream_index: int64 [B] on the host; keys each sample's box.
        num_lanes_of_rank: lanes in this batch; B / lanes samples of each.

    Raises:
        ValueError: a lane has fewer than 2 samples in the batch, so there is nothing to mix with.
    """
    if alpha == 0:
        return images, targets
    _check_partners("cutmix_alpha", alpha, images.shape[0] // num_lanes_of_rank)
    height, width = images.shape[-2:]
    boxes = cutmix_boxes(stream_index, alpha=alpha, seed=seed, height=height, width=width)
    own = 1.0 - ((boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])).float() / (height * width)
    top, bottom, left, right = boxes.to(images.device, non_blocking=True)[:, :, None, None].unbind(1)
    y = torch.arange(height, device=images.device)[None, :, None]
    x = torch.arange(width, device=images.device)[None, None, :]
    inside = ((y >= top) & (y < bottom) & (x >= left) & (x < right))[:, None]
    mixed = torch.where(inside, _partner(images, num_lanes_of_rank), images)
    if targets.ndim == images.ndim:
        return mixed, torch.where(inside, _partner(targets, num_lanes_of_rank), targets)
    return mixed, _blend(targets, own.to(targets.device, non_blocking=True), num_lanes_of_rank)


def _check_partners(name: str, alpha: float, per_lane: int) -> None:
    if per_lane < 2:
        raise ValueError(
            f"{name} is {alpha}, but a lane has {per_lane} sample in a batch; it needs 2 or more: "
            "use a larger batch_size or fewer data.num_lanes"
        )


def _partner(values: torch.Tensor, lanes: int) -> torch.Tensor:
    """Return each sample's partner: the mirror inside its lane."""
    return values.unflatten(0, (lanes, -1)).flip(1).flatten(0, 1)


def _blend(values: torch.Tensor, own: torch.Tensor, lanes: int) -> torch.Tensor:
    weight = own.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return torch.lerp(_partner(values, lanes), values, weight)
