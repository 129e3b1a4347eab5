"""A pass of an evaluation: the network's inputs, its precision, its logits, and what can't be decoded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.config import DataConfig
from datasets.loading.batch import Batch
from datasets.loading.corruption import MAX_MESSAGES, corruption_error, is_too_much
from pipeline.training.device import begin_pass, constant
from pipeline.training.distributed import gathered
from pipeline.training.memory import largest_that_fits
from pipeline.training_config import TrainerConfig

log = logging.getLogger(__name__)


def normalized(images: Tensor, config: TrainerConfig, device: torch.device) -> Tensor:
    """Turn values [B, C, H, W] into normalized float32, channels_last, on the device."""
    on_device = images.to(device, non_blocking=True)
    pixels = on_device.to(dtype=torch.float32, memory_format=torch.channels_last)
    if config.channel_mean:  # not in place: these pixels may be the batch's own
        mean, std = (constant(values, device)[:, None, None] for values in (config.channel_mean, config.channel_std))
        return (pixels - mean) / std
    return pixels.sub_(config.pixel_mean).div_(config.pixel_std)


def autocast(config: TrainerConfig, device: torch.device) -> torch.autocast:
    """Return the autocast context that the config asks for on this device."""
    kind = compute_type(config, device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=kind is torch.bfloat16)


def compute_type(config: TrainerConfig, device: torch.device) -> torch.dtype:
    """Return the type in which convolutions and products are computed: bfloat16 or float32."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    on = config.precision == "bf16" or (config.precision == "auto" and has_bf16)
    return torch.bfloat16 if on else torch.float32


@torch.inference_mode()
def predicted(
    model: nn.Module,
    batches: Iterable[Batch],
    data: DataConfig,
    config: TrainerConfig,
    *,
    device: torch.device,
    heartbeat: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield each batch with its logits; `heartbeat` is called after each. Samples that can't be decoded are left out.

    Raises:
        DataError: too many of them, at the end; `data` says how many are too many.
    """
    model.eval()
    most, seen, damaged = config.eval_batch_size, 0, list[str]()
    for batch in batches:
        damaged += [sample.message for sample in batch.damaged]
        seen += len(batch.labels)
        if len(batch.labels):
            logits, most = logits_of(model, batch.images, config, device, most)
            yield batch, logits
        heartbeat()
    check_damaged(seen, damaged, url=data.val, max_damaged=data.max_damaged)


def check_damaged(seen: int, damaged: list[str], *, url: str, max_damaged: float) -> None:
    """Say how many samples of `url` were left out, on all ranks at once: each has only some of them.

    Args:
        seen: this rank's samples that were used.
        damaged: a message for each of the others.
        url: the dataset.
        max_damaged: the share that may be corrupt.

    Raises:
        DataError: too many are damaged, or all.
    """
    parts = gathered((seen, len(damaged), damaged[:MAX_MESSAGES]))
    count = sum(part[1] for part in parts)
    total = count + sum(part[0] for part in parts)
    if is_too_much(count, total, max_damaged) or count == total:
        messages = [message for part in parts for message in part[2]]
        raise corruption_error(count, total, max_damaged, url, messages)
    if count and (not dist.is_initialized() or dist.get_rank() == 0):
        log.warning("%d of the %d samples of %s are corrupt and left out", count, total, url)


def logits_of(
    model: nn.Module, images: Tensor, config: TrainerConfig, device: torch.device, most: int
) -> tuple[Tensor, int]:
    """Return the logits of decoded images [B, C, H, W], and how many samples, `most` or fewer, fit into a pass.

    No other rank hears of it: a pass of an evaluation has no collective, and a sample's logits don't depend on the
    others in it, but for their rounding.

    Raises:
        MemoryLimitError: not even one fits.
    """
    parts: list[Tensor] = []

    def try_pass(count: int) -> None:
        parts.clear()
        for part in images.split(count):
            inputs = normalized(part, config, device)
            begin_pass(config)
            with autocast(config, device):
                if config.compile:  # a last batch that is shorter would be compiled for itself
                    inputs = F.pad(inputs, (0,) * 7 + (count - len(part),))
                logits = model(inputs)[: len(part)]
            parts.append(logits.clone() if config.compile_mode != "default" else logits)

    fits = largest_that_fits(try_pass, most)
    return parts[0] if len(parts) == 1 else torch.cat(parts), fits
