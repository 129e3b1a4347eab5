"""Mixup and CutMix of whole batches: drawn and applied at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from datasets.transforms.mixing import MixingRule


def mix(
    images: Tensor,
    targets: Tensor,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    seed: int,
    stream_index: Tensor,
    num_lanes_of_rank: int,
) -> tuple[Tensor, Tensor]:
    """Return images [B, C, H, W] and their targets, mixed."""
    rule = MixingRule(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, num_lanes=num_lanes_of_rank)
    drawn = rule.draw(stream_index.numpy(), seed=seed, shape=(images.shape[-2], images.shape[-1]))
    if drawn is None:
        return images, targets
    others, their_targets = images[drawn.partners], targets[drawn.partners]
    return drawn.of_pixels(images, others), drawn.of_targets(targets, their_targets)


def mixup(images: Tensor, targets: Tensor, *, alpha: float, **rest: Any) -> tuple[Tensor, Tensor]:
    """Return them with Mixup alone."""
    return mix(images, targets, mixup_alpha=alpha, cutmix_alpha=0.0, **rest)


def cutmix(images: Tensor, targets: Tensor, *, alpha: float, **rest: Any) -> tuple[Tensor, Tensor]:
    """Return them with CutMix alone."""
    return mix(images, targets, mixup_alpha=0.0, cutmix_alpha=alpha, **rest)
