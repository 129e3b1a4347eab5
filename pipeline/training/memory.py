"""Micro-batch auto-tuning: how many samples fit into one forward and backward pass, found before the first step.

The last stage has the largest images. What fits there says what fits in every stage, since what a pass keeps in memory
grows with the pixels of its images. The global batch stays what the stage says; gradients are accumulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from pipeline.schedule.stages import TrainingStage


class OutOfMemoryError(RuntimeError):
    """A pass didn't fit into memory; with a smaller micro-batch, another worker group can continue."""

    def __init__(self, stage: int, limit: int) -> None:
        super().__init__(f"out of memory in stage {stage + 1} with {limit} samples in a pass")
        self.stage, self.limit = stage, limit


class MemoryLimitError(ValueError):
    """Not even one sample fits."""


_ALLOCATION_FAILED = ("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
"""What cuDNN, cuBLAS and the driver say in a RuntimeError of its own where PyTorch would raise OutOfMemoryError."""


@contextmanager
def allocation_errors() -> Iterator[None]:
    """Raise what libraries raise without memory as PyTorch's own error.

    Raises:
        torch.OutOfMemoryError: memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if any(text in str(error) for text in _ALLOCATION_FAILED):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


def largest_that_fits(try_pass: Callable[[int], None], most: int) -> int:
    """Return the largest of `most`, `most` / 2, `most` / 4, ... samples with which a pass doesn't run out of memory.

    Raises:
        MemoryLimitError: not even one sample fits.
    """
    count = most
    while count >= 1:
        with suppress(torch.OutOfMemoryError), allocation_errors():
            try_pass(count)
            return count
        count //= 2
    raise MemoryLimitError(
        "not even one image fits into memory: take a smaller last image_size or model, or a larger GPU"
    )


MARGIN = 0.85
"""Of what a stage's pixels say: small images keep up to a tenth more memory a pixel, and a pool has gaps."""


def stage_limits(stages: Sequence[TrainingStage], fits_last: int) -> list[int]:
    """Return the most samples of a pass for each stage, when `fits_last` samples of the last stage fit.

    Images that aren't square have more pixels than their size squared, in all stages by the same factor.
    """
    pixels = [max(stage.image_sizes) ** 2 for stage in stages]
    return [max(fits_last, math.floor(MARGIN * fits_last * pixels[-1] / count)) for count in pixels]


def release(device: torch.device) -> None:
    """Give cached memory of another image size back, and measure the most that is used anew: a stage begins."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def micro_batch(samples: int, limit: int) -> int:
    """Return the size of the chunks that a worker's `samples` are cut into: nearly equal, and within `limit`."""
    return math.ceil(samples / math.ceil(samples / limit)) if limit else samples


def halved(limits: Sequence[int], stage: int, limit: int) -> list[int]:
    """Return smaller limits after `limit` samples of a stage didn't fit: half of it there, as much less in later ones.

    The limit that was set may be larger than `limit`, a worker's whole share of the batch.

    Raises:
        MemoryLimitError: it was one sample.
    """
    if limit <= 1:
        raise MemoryLimitError(
            f"not even one image of stage {stage + 1} fits into memory: take a smaller image_size or model, "
            "or a larger GPU"
        )
    factor = (limit // 2) / max(limit, limits[stage])
    return [min(old, max(1, int(old * factor))) if index >= stage else old for index, old in enumerate(limits)]
