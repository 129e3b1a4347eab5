"""Mixup and CutMix on a batch, within each lane, keyed by the samples' stream indices."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import betaincinv

from datasets.transforms.randomness import Purpose, uniforms


def mix(
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    seed: int,
    stream_index: torch.Tensor,
    num_lanes_of_rank: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply Mixup, CutMix, or, where both are on, one of them to each lane's part of the batch.

    Which one a lane gets is redrawn for each batch, half and half on average; the released code of EfficientNetV2
    splits its batches into halves. For the arguments see `mixup` and `cutmix`.
    """
    rest = {"seed": seed, "stream_index": stream_index, "num_lanes_of_rank": num_lanes_of_rank}
    if not (mixup_alpha and cutmix_alpha):
        images, targets = mixup(images, targets, alpha=mixup_alpha, **rest)  # type: ignore[arg-type]
        return cutmix(images, targets, alpha=cutmix_alpha, **rest)  # type: ignore[arg-type]
    blended = mixup(images, targets, alpha=mixup_alpha, **rest)  # type: ignore[arg-type]
    cut = cutmix(images, targets, alpha=cutmix_alpha, **rest)  # type: ignore[arg-type]
    chosen = lanes_with_cutmix(stream_index, seed=seed, num_lanes_of_rank=num_lanes_of_rank).to(images.device)
    mixed, labels = (
        torch.where(chosen.reshape(-1, *[1] * (one.ndim - 1)), two, one) for one, two in zip(blended, cut, strict=True)
    )
    return mixed, labels


def lanes_with_cutmix(stream_index: torch.Tensor, *, seed: int, num_lanes_of_rank: int) -> torch.Tensor:
    """Return which samples get CutMix where Mixup is on too, bool [B]: drawn by each lane's first stream index."""
    firsts = stream_index.unflatten(0, (num_lanes_of_rank, -1))[:, 0]
    draws = uniforms(seed, Purpose.MIX_KIND, firsts.numpy(), 1)[:, 0]
    return torch.from_numpy(draws < 0.5).repeat_interleave(len(stream_index) // num_lanes_of_rank)


def _betas(draws: np.ndarray, alpha: float) -> np.ndarray:
    """Turn uniform numbers into Beta(alpha, alpha) ones, by its inverse distribution function."""
    return np.asarray(betaincinv(alpha, alpha, draws))


def mixup_weights(stream_index: torch.Tensor, *, alpha: float, seed: int) -> torch.Tensor:
    """Return each sample's own share, float32 [B] in [0.5, 1]: max(w, 1 - w) with w ~ Beta(alpha, alpha)."""
    weights = _betas(uniforms(seed, Purpose.MIXUP, stream_index.numpy(), 1)[:, 0], alpha)
    return torch.from_numpy(np.maximum(weights, 1.0 - weights).astype(np.float32))


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
    draws = uniforms(seed, Purpose.CUTMIX, stream_index.numpy(), 3)
    half = 0.5 * np.sqrt(1.0 - _betas(draws[:, 0], alpha))
    y, x = draws[:, 1], draws[:, 2]
    sides = np.stack([(y - half) * height, (y + half) * height, (x - half) * width, (x + half) * width], axis=1)
    return torch.from_numpy(np.rint(np.clip(sides, 0.0, [height, height, width, width])).astype(np.int64))


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
