"""Predictions of many images by the workers of a Ray cluster: chunks of their names out, rows back, in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.files.s3 import is_remote
from datasets.images.listing import ImageFile
from pipeline.inference.prediction_table import PredictorSpec, Row, rows_of

CHUNK = 512
"""Images that a worker is given at a time."""
_AHEAD = 2
"""Chunks of each worker that are under way: one is computed, one waits."""


class PredictionWorker:
    """Predicts chunks; an actor, so that the model is opened once."""

    def __init__(self, spec: PredictorSpec, batch_size: int, max_pixels: int) -> None:
        import torch

        torch.set_num_threads(1)
        self._predictor, self._batch_size, self._max_pixels = spec.open(), batch_size, max_pixels

    def predict(self, files: list[ImageFile]) -> list[Row]:
        """Return a row for each image."""
        return list(rows_of(self._predictor, files, batch_size=self._batch_size, max_pixels=self._max_pixels))


def predict_on_cluster(
    spec: PredictorSpec,
    files: Iterable[ImageFile],
    *,
    workers: int,
    batch_size: int,
    max_pixels: int,
    chunk: int = CHUNK,
) -> Iterator[list[Row]]:
    """Yield the rows of each chunk, in the order of the images, from a cluster that this process is connected to.

    No more than two chunks of each worker are under way, so memory does not depend on the number of images. A worker
    that is lost is started again, elsewhere if need be, and its chunk is predicted again.
    """
    import ray

    options = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": -1}
    actors = [
        ray.remote(**options)(PredictionWorker).remote(absolute_spec(spec), batch_size, max_pixels)
        for _ in range(workers)
    ]
    pending: deque[Any] = deque()
    try:
        waiting = iter(files)
        for actor in itertools.cycle(actors):
            some = [_absolute(file) for file in itertools.islice(waiting, chunk)]
            if some:
                pending.append(actor.predict.remote(some))
            if not pending:
                break
            if not some or len(pending) >= _AHEAD * workers:
                yield ray.get(pending.popleft())
    finally:
        for actor in actors:
            ray.kill(actor)


def absolute_spec(spec: PredictorSpec) -> PredictorSpec:
    """Return the spec with paths that mean the same in another working directory."""
    return replace(spec, model=_absolute_path(spec.model), storage=_absolute_path(spec.storage))


def _absolute_path(place: str) -> str:
    return place if "://" in place or not Path(place).exists() else str(Path(place).absolute())


def _absolute(file: ImageFile) -> ImageFile:
    return file if is_remote(file.url) else replace(file, url=str(Path(file.url).absolute()))
