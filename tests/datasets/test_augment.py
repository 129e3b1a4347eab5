from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

from datasets.augment import OPERATIONS, cutmix, cutmix_boxes, mixup, mixup_weights, rand_augment, random_flip
from datasets.randomness import Purpose, sample_generator
from tests.datasets.images import image_of

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


def generator(index: int = 0) -> np.random.Generator:
    return sample_generator(9, Purpose.AUGMENT, index)


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
    got = OPERATIONS[name](image, magnitude / 10, sign)
    assert np.abs(np.asarray(got, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("identity", "autocontrast", "equalize")])
def test_strength_grows_beyond_the_full_range_and_leaves_something_to_see(name: str) -> None:
    image = Image.fromarray(slope())

    def change(strength: float) -> float:
        return float(np.abs(np.asarray(OPERATIONS[name](image, strength, 1.0), dtype=float) - slope()).mean())

    assert change(0.0) <= 1.0
    assert change(0.5) > change(0.1)
    assert change(1.5) > change(0.5)
    assert np.asarray(OPERATIONS[name](image, 2.5, 1.0)).std() > 3


def test_magnitude_zero_is_off_and_every_sample_has_its_own_operations() -> None:
    assert rand_augment(PIXELS, generator(), magnitude=0, layers=2) is PIXELS
    results = [rand_augment(PIXELS, generator(index), magnitude=9, layers=2).tobytes() for index in range(40)]
    assert len(set(results)) > 30
    assert results[7] == rand_augment(PIXELS, generator(7), magnitude=9, layers=2).tobytes()


def test_half_of_the_images_are_mirrored() -> None:
    flipped = sum(not np.array_equal(random_flip(PIXELS, generator(index)), PIXELS) for index in range(400))
    assert 160 < flipped < 240
    assert np.array_equal(
        PIXELS[:, ::-1], next(r for i in range(9) if (r := random_flip(PIXELS, generator(i))) is not PIXELS)
    )


def batch(lanes: int, per_lane: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count = lanes * per_lane
    images = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    stream = torch.cat([torch.arange(per_lane) * 6 + lane for lane in range(lanes)])
    return images, torch.eye(count), stream


def test_mixup_blends_with_the_mirror_in_the_lane() -> None:
    images, targets, stream = batch(lanes=2, per_lane=4)
    mixed, labels = mixup(images, targets, alpha=0.5, seed=3, stream_index=stream, num_lanes_of_rank=2)
    own = mixup_weights(stream, alpha=0.5, seed=3)
    partner = [3, 2, 1, 0, 7, 6, 5, 4]
    for row, other in enumerate(partner):
        assert mixed[row, 0, 0, 0].item() == pytest.approx(
            own[row].item() * row + (1 - own[row].item()) * other, abs=1e-5
        )
        assert labels[row, row].item() == pytest.approx(own[row].item(), abs=1e-6)
        assert labels[row, other].item() == pytest.approx(1 - own[row].item(), abs=1e-6)


def test_mixup_is_the_same_on_one_rank_and_on_two() -> None:
    images, targets, stream = batch(lanes=2, per_lane=4)
    whole = mixup(images, targets, alpha=0.3, seed=3, stream_index=stream, num_lanes_of_rank=2)[0]
    halves = [
        mixup(images[part], targets[part], alpha=0.3, seed=3, stream_index=stream[part], num_lanes_of_rank=1)[0]
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert torch.equal(whole, torch.cat(halves))


def test_mixup_weights_are_betas_larger_half() -> None:
    weights = mixup_weights(torch.arange(4000), alpha=1.0, seed=1)
    assert weights.min() >= 0.5
    assert weights.mean().item() == pytest.approx(0.75, abs=0.01)  # uniform on [0.5, 1]
    assert not torch.equal(weights, mixup_weights(torch.arange(4000), alpha=1.0, seed=2))


def test_mixup_without_alpha_or_partner() -> None:
    images, targets, stream = batch(lanes=4, per_lane=1)
    assert mixup(images, targets, alpha=0, seed=3, stream_index=stream, num_lanes_of_rank=4)[0] is images
    with pytest.raises(ValueError, match="a lane has 1 sample"):
        mixup(images, targets, alpha=0.2, seed=3, stream_index=stream, num_lanes_of_rank=4)


def test_cutmix_fills_a_box_from_the_mirror_and_blends_targets_by_area() -> None:
    _, targets, stream = batch(lanes=2, per_lane=4)
    images = torch.arange(8.0).reshape(-1, 1, 1, 1).expand(-1, 3, 20, 30).contiguous()
    mixed, labels = cutmix(images, targets, alpha=1.0, seed=3, stream_index=stream, num_lanes_of_rank=2)
    boxes = cutmix_boxes(stream, alpha=1.0, seed=3, height=20, width=30)
    for row, other in enumerate([3, 2, 1, 0, 7, 6, 5, 4]):
        top, bottom, left, right = boxes[row].tolist()
        expected = images[row].clone()
        expected[:, top:bottom, left:right] = other
        assert torch.equal(mixed[row], expected)
        taken = (bottom - top) * (right - left) / 600
        assert labels[row, other].item() == pytest.approx(taken, abs=1e-6)
        assert labels[row, row].item() == pytest.approx(1 - taken, abs=1e-6)
    dense = cutmix(images, images[:, :1], alpha=1.0, seed=3, stream_index=stream, num_lanes_of_rank=2)[1]
    assert torch.equal(dense, mixed[:, :1])


def test_cutmix_is_the_same_on_one_rank_and_on_two_and_off_at_zero() -> None:
    images, targets, stream = batch(lanes=2, per_lane=4)
    whole = cutmix(images, targets, alpha=0.5, seed=3, stream_index=stream, num_lanes_of_rank=2)[0]
    halves = [
        cutmix(images[part], targets[part], alpha=0.5, seed=3, stream_index=stream[part], num_lanes_of_rank=1)[0]
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert torch.equal(whole, torch.cat(halves))
    assert cutmix(images, targets, alpha=0, seed=3, stream_index=stream, num_lanes_of_rank=2)[0] is images
    with pytest.raises(ValueError, match=r"cutmix_alpha is 0\.5, but a lane has 1 sample"):
        cutmix(images, targets, alpha=0.5, seed=3, stream_index=stream, num_lanes_of_rank=8)
    areas = cutmix_boxes(torch.arange(3000), alpha=1.0, seed=1, height=200, width=200).double()
    share = ((areas[:, 1] - areas[:, 0]) * (areas[:, 3] - areas[:, 2]) / 40000).mean()
    assert 0.2 < share < 0.5  # half of the image, less what is cut at the borders
