"""Corrupt samples: logged once each; too many of an epoch, or of a validation set, end the run with a list."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from datasets.errors import DataError
from datasets.loading.batch import Batch

log = logging.getLogger(__name__)

_ALLOWED = 10
MAX_MESSAGES = 20
"""Damaged samples that an error names."""


class CorruptionLog:
    """Logs what a loader's batches say of corrupt samples; one that comes again is not logged again."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def add(self, batch: Batch) -> None:
        """Log a batch's corrupt samples."""
        for sample in batch.damaged:
            if sample.message not in self._known:
                log.warning("corrupt sample: %s", sample.message)
                self._known.add(sample.message)


def is_too_much(count: int, samples: int, max_share: float) -> bool:
    """Say whether so many corrupt samples of an epoch or a validation set of `samples` end a run.

    The share is of all samples, not of those seen so far: where the damaged ones lie makes no difference.
    """
    return count >= _ALLOWED and count > max_share * samples


def corruption_error(count: int, samples: int, max_share: float, what: str, messages: Sequence[str]) -> DataError:
    """Return the error of too many corrupt samples, with a list of some."""
    known = sorted(set(messages))
    shown = "; ".join(known[:MAX_MESSAGES]) + ("; and more" if count > min(len(known), MAX_MESSAGES) else "")
    return DataError(
        f"{count} of the {samples} samples of {what} are corrupt, more than data.max_damaged={max_share:g}: {shown}"
    )
