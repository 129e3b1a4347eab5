"""A stage's batches. The next stage's first ones are decoded while a stage ends: its first step waits for no data."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from datasets.loading.batch import Batch
from datasets.shards.manifest import DatasetManifest
from pipeline.config import TrainConfig
from pipeline.schedule.stages import StageSpan
from pipeline.training.inputs import stage_batches

STEPS_AHEAD = 8
"""Steps before a stage's planned end at which the next one's loader is started."""
BATCHES_AHEAD = 2


class Feed:
    """Gives one rank the batches of each stage, all of the same manifest, whatever is indexed again meanwhile."""

    def __init__(
        self, config: TrainConfig, manifest: DatasetManifest, rank: int, world_size: int, device: torch.device
    ) -> None:
        self.config, self.manifest, self.rank, self.world_size = config, manifest, rank, world_size
        self.device = device
        self._ahead: Ahead | None = None

    def batches(self, span: StageSpan, cursor: int) -> Iterable[Batch]:
        """Return the batches from the cursor to the stage's end: those that were made ready, or a new loader's."""
        rest = replace(span, start=cursor)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.span == rest:
            return ahead.batches()
        if ahead is not None:
            ahead.close()
        return self.loader(rest)

    def make_ready(self, span: StageSpan, cursor: int, following: StageSpan | None) -> None:
        """Start the following stage's loader when a stage is about to end as planned."""
        steps_left = (span.stop - cursor) // span.stage.batch_size
        if following is not None and steps_left <= STEPS_AHEAD and self._ahead is None:
            self._ahead = Ahead(following, self.loader(following), self.device)

    def close(self) -> None:
        """Give back what was made ready and isn't used."""
        if self._ahead is not None:
            self._ahead.close()

    def loader(self, span: StageSpan) -> Iterable[Batch]:
        """Return a new loader of a span."""
        return stage_batches(
            self.config,
            span.stage,
            start=span.start,
            stop=span.stop,
            rank=self.rank,
            world_size=self.world_size,
            manifest=self.manifest,
        )


class Ahead:
    """Starts a span's loader and takes its first batches in a thread; `batches` gives those, then all others."""

    def __init__(self, span: StageSpan, batches: Iterable[Batch], device: torch.device) -> None:
        self.span, self._device = span, device
        self._iterator = iter(batches)
        self._ready: list[Batch] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._fill, name="ahead", daemon=True)
        self._thread.start()

    def batches(self) -> Iterator[Batch]:
        """Yield all batches; raise what reading the first ones raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        yield from self._ready
        yield from self._iterator

    def close(self) -> None:
        """Give the loader back, unused."""
        self._thread.join()
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def _fill(self) -> None:
        try:
            if self._device.type == "cuda":  # a thread's own is the first one: pinned memory would open a context there
                torch.cuda.set_device(self._device)
            for batch in self._iterator:
                self._ready.append(batch)
                if len(self._ready) == BATCHES_AHEAD:
                    return
        except Exception as error:  # raised where the batches are used
            self._error = error
