"""What a saved model is evaluated on: shards with their manifest, or labelled images wherever they lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets.cache.shard_cache import open_cache
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.files.s3 import is_remote
from datasets.files.tables import is_table
from datasets.files.urls import folder_of, is_shard, join, tag_of
from datasets.images.labelled import file_batches, labelled_files
from datasets.loading.batch import Batch
from datasets.loading.loader import build_eval_loader
from datasets.loading.reader import Reader, SampleReader
from datasets.prepare.table_labels import TableColumns
from datasets.shards.manifest import MANIFEST_NAME
from datasets.shards.resolve import SEPARATOR, load_manifest
from pipeline.inference.trained_model import SavedModel, check_classes


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationData:
    """Labelled samples of a model's classes."""

    config: DataConfig
    """How they are read; `val` is the place."""
    reader: Reader
    notes: tuple[str, ...] = ()
    """Lines for the user on what was left out."""
    split: str = ""
    """The split of a table that they are; empty: all there is."""

    @property
    def source(self) -> str:
        """The place as a report names it: a table's rows of one split are not the table."""
        return f"{self.config.val} ({self.split})" if self.split else self.config.val

    @property
    def num_samples(self) -> int:
        """How many there are."""
        return self.reader.manifest.num_samples

    def batches(self, *, image_size: int, batch_size: int, samples: int | None = None) -> Iterable[Batch]:
        """Return every sample once, in order; `stream_index` is its number. Or `samples` of them, evenly spaced."""
        if samples is None and isinstance(self.reader, SampleReader):
            return build_eval_loader(
                self.config,
                image_size=image_size,
                batch_size=batch_size,
                rank=0,
                world_size=1,
                manifest=self.reader.manifest,
            )
        return file_batches(self.reader, self.config, image_size=image_size, batch_size=batch_size, samples=samples)


def open_data(
    saved: SavedModel, place: str, *, loader_workers: int, columns: TableColumns | None = None, split: str = ""
) -> EvaluationData:
    """Open what a model is evaluated on, read as the run read its validation data.

    Args:
        saved: the model.
        place: shards, as `DataConfig.val` names them, or what `find_images` takes: a folder of class folders, a tar
            without a manifest, a table; local or in S3.
        loader_workers: processes that decode images.
        columns: of a table.
        split: of a table with splits.

    Raises:
        DataError: nothing is there, or more than one split, or its labels mean something else than the model's outputs.
    """
    if split and not is_table(place):
        raise DataError(
            f"{place}: --split {split} is for the rows of a table; leave it out, or name the split's folder"
        )
    view = saved.preprocessing
    config = DataConfig(
        val=place,
        eval_crop=view.eval_crop,
        aspect_ratio=view.aspect_ratio,
        pixel_type=view.pixel_type,
        channels=view.channels,
        loader_workers=loader_workers,
    )
    if _is_indexed(place):
        manifest = load_manifest(place)
        check_classes(saved, manifest, place)
        return EvaluationData(config=config, reader=SampleReader(manifest, open_cache(config, manifest.shards)))
    if _is_folder(place) and tag_of(join(place, f"val/{MANIFEST_NAME}")):
        raise DataError(f"{place}: it holds splits; name one, such as {join(place, 'val')}")
    reader, notes = labelled_files(
        place, kind=saved.kind, classes=saved.task.classes, columns=columns or TableColumns(), split=split
    )
    return EvaluationData(config=config, reader=reader, notes=notes, split=split)


def _is_folder(place: str) -> bool:
    return not (is_shard(place) or is_table(place)) if is_remote(place) else Path(place).is_dir()


def _is_indexed(place: str) -> bool:
    """Say whether a manifest describes what lies at a place."""
    if SEPARATOR in place:
        return True
    if not is_shard(place):
        return _is_folder(place) and bool(tag_of(join(place, MANIFEST_NAME)))
    folder = folder_of(place if is_remote(place) else str(Path(place).absolute()))
    return "{" in folder or bool(tag_of(join(folder, MANIFEST_NAME)))
