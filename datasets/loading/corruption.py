"""Damaged samples: logged and counted, and the end of a run that has too many of them."""

from __future__ import annotations

import logging

from datasets.errors import DataError
from datasets.loading.batch import Batch

log = logging.getLogger(__name__)

_ALLOWED = 10
_SHOWN = 20


class CorruptionCount:
    """Counts what a loader's batches say of damaged samples.

    Args:
        max_share: of the samples that may be damaged.
    """

    def __init__(self, max_share: float) -> None:
        self._max_share, self._samples = max_share, 0
        self._damaged: dict[str, None] = {}

    def add(self, batch: Batch) -> None:
        """Count a batch; a sample that comes again is one.

        Raises:
            DataError: too many are damaged; lists them.
        """
        self._samples += len(batch.labels)
        for line in batch.replaced:
            if line not in self._damaged:
                log.warning("damaged sample: %s", line)
                self._damaged[line] = None
        count = len(self._damaged)
        if count >= _ALLOWED and count > self._max_share * self._samples:
            shown = "; ".join(list(self._damaged)[:_SHOWN]) + (f"; and {count - _SHOWN} more" if count > _SHOWN else "")
            allowed = f"more than data.max_damaged={self._max_share:g}"
            raise DataError(f"{count} of {self._samples} samples are damaged, {allowed}: {shown}")
