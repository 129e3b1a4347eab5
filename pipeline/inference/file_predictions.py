"""Predictions of images wherever they lie, a batch at a time: no more than two batches of images are in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from datasets.errors import DataError
from datasets.images.listing import ImageFile, find_images, no_images
from datasets.prepare.layout import LeftOut
from pipeline.inference.predictor import Prediction, Predictor

_READERS = 16


def images_of(places: Sequence[str], left_out: LeftOut, path_column: str) -> Iterator[ImageFile]:
    """Yield the images of all places; each is looked into before the first image is.

    Raises:
        DataError: a place has none, or can't be read.
    """
    listings = [(place, find_images(place, left_out, path_column)) for place in places]
    begun = []
    for place, files in listings:
        first = next(files, None)
        if first is None:
            raise no_images(place, left_out)
        begun.append(itertools.chain([first], files))
    return itertools.chain.from_iterable(begun)


def predict_files(
    predictor: Predictor, files: Iterable[ImageFile], *, batch_size: int, max_pixels: int
) -> Iterator[tuple[ImageFile, Prediction | ValueError]]:
    """Yield each image with what the model says of it, or what is wrong with it; the next batch is read meanwhile."""
    waiting = iter(files)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as pool:

        def start() -> list[tuple[ImageFile, Future[bytes | ValueError]]]:
            return [(file, pool.submit(_read, file)) for file in itertools.islice(waiting, batch_size)]

        batch = start()
        while batch:
            following = start()
            read = [(file, future.result()) for file, future in batch]
            answers = iter(
                predictor.predict([data for _, data in read if isinstance(data, bytes)], max_pixels=max_pixels)
            )
            yield from ((file, next(answers) if isinstance(data, bytes) else data) for file, data in read)
            batch = following


def _read(file: ImageFile) -> bytes | ValueError:
    try:
        return file.read()
    except DataError as error:
        return error
