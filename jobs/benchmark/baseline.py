"""The baseline loader: webdataset, Pillow and torchvision's v2 transforms, as in their documentation."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import webdataset as wds
from PIL import Image
from torchvision.transforms import v2

# torchvision's RandAugment has 31 bins; its last one is the full range, magnitude 10 of our `torchvision` policy.
_BINS_A_UNIT = 3
_SHUFFLED = 1000


def usual_batches(
    urls: Sequence[str], *, image_size: int, batch_size: int, magnitude: float, layers: int, on: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield endless batches, uint8 [B, 3, H, W] and int64 [B].

    Args:
        urls: tars, each with `jpg` and `cls` members.
        image_size: side of the crops in pixels.
        batch_size: samples of a batch.
        magnitude: RandAugment's, 10 at torchvision's last bin, in steps of a third.
        layers: RandAugment's operations.
        on: what the transforms work on: `pil` images, or `tensor`s.
    """
    augment = [
        v2.RandomResizedCrop(image_size, scale=(0.05, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandAugment(layers, round(magnitude * _BINS_A_UNIT), fill=[128, 128, 128]),
    ]
    transform = v2.Compose([*augment, v2.PILToTensor()] if on == "pil" else [v2.PILToTensor(), *augment])
    dataset = (
        wds.WebDataset(list(urls), shardshuffle=len(urls), seed=0)
        .repeat()
        .shuffle(_SHUFFLED)
        .to_tuple("jpg", "cls")
        .map_tuple(_decoded(transform), int)
        .batched(batch_size, collation_fn=_stacked)
    )
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=0))


def _decoded(transform: Callable[[Image.Image], torch.Tensor]) -> Callable[[bytes], torch.Tensor]:
    return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def _stacked(samples: Sequence[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, Any]:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)
