"""Mixup and CutMix on a batch, within each lane, keyed by the samples' stream indices."""

from __future__ import annotations

import math

import torch

from datasets.randomness import Purpose, sample_generator


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
