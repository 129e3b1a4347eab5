"""Mean and standard deviation of each channel, from a bounded sample of a dataset in a fixed order."""

from __future__ import annotations

import numpy as np

from datasets.cache.shard_cache import open_cache
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.reader import SampleReader
from datasets.shards.manifest import DatasetManifest
from datasets.transforms.decode import decode_whole

SAMPLES = 256
"""Images that are looked at, evenly spaced over the shards."""
_SIDE = 256
_DIGITS = 6


def channel_statistics(
    config: DataConfig, manifest: DatasetManifest, *, samples: int = SAMPLES
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel; the deviation of a channel with one value is 1.

    Of a large image every so many rows and columns count, 256 or a few more. Images that can't be read are left out.

    Raises:
        DataError: none of them can be read, or the shards can't.
    """
    reader, total = SampleReader(manifest, open_cache(config, manifest.shards)), manifest.num_samples
    count = min(samples, total)
    pixels, mean, squares, problem = 0, np.zeros(config.channels), np.zeros(config.channels), ""
    for sample_id in np.arange(count) * total // count:
        try:
            values = decode_whole(reader.read(int(sample_id)).data, config.pixels, max_pixels=config.max_pixels)
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            problem = problem or f"{reader.describe(int(sample_id))}: {error}"
            continue
        rows = _thinned(values).reshape(-1, config.channels).astype(np.float64)
        # Chan's rule for the sums of two parts: exact for values far from 0, too.
        apart, pixels = rows.mean(axis=0) - mean, pixels + len(rows)
        mean = mean + apart * (len(rows) / pixels)
        squares = squares + rows.var(axis=0) * len(rows) + apart**2 * (len(rows) * (pixels - len(rows)) / pixels)
    reader.close()
    if not pixels:
        raise DataError(f"none of {count} images that were tried can be read; {problem}")
    deviation = np.sqrt(squares / pixels)
    return _rounded(mean), _rounded(np.where(deviation > 0, deviation, 1.0))


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[:: max(1, values.shape[0] // _SIDE), :: max(1, values.shape[1] // _SIDE)]


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Return numbers that are the same on any machine, whose sums may differ in their last bits."""
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
