"""Writes the shard pyramid: copies of a folder's shards with smaller images and everything else unchanged."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import RemoteFile, is_remote
from datasets.files.urls import join, list_shards, name_of, open_shard, read_file, remove_file, write_file
from datasets.prepare.encode import shrunk, shrunk_mask
from datasets.prepare.folder_lock import locked
from datasets.prepare.process_pool import count_one, run_tasks
from datasets.shards.copies import copy_folder
from datasets.shards.describe import describe
from datasets.shards.index_rows import IndexRows
from datasets.shards.manifest import (
    ConflictError,
    DatasetManifest,
    ShardInfo,
    manifest_version,
    read_manifest,
    save_manifest,
)
from datasets.shards.tar_index import MASK_EXTENSION, scan_shard
from datasets.transforms.formats import IMAGE_EXTENSIONS

log = logging.getLogger(__name__)

_ORIGIN_NAME = "copy-of.txt"
_BLOCK_BYTES = 8 << 20
_SCANS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class _Task:
    shard: ShardInfo
    target: str
    """Folder or prefix of the copy."""
    short_side: int


def write_copies(
    folder: str | Path,
    short_sides: Sequence[int],
    *,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetManifest:
    """Write a copy of a dataset's shards for each short side, and name the copies in its manifest.

    A copy lies in `short-SIDE` below the folder of the manifest and has the same keys, counts and order. Images are
    scaled down to the short side (a JPEG of quality 92), those that are no larger stay as they are. What is finished
    already is kept: shards appear whole, and manifests last.

    Args:
        folder: of the manifest, local or in S3; the shards may lie elsewhere.
        short_sides: in pixels.
        workers: processes; each has one shard from S3 on the disk at a time.
        progress: called with (images written, images in all).

    Raises:
        DataError: shards that can't be read, or were indexed again meanwhile; another process writes copies there. A
            damaged image is copied as it is.
    """
    folder = str(folder)
    manifest = read_manifest(folder)
    if packed := next((shard.url for shard in manifest.shards if shard.packed), None):
        raise DataError(f"{packed}: copies are made of plain tars; unpack it first")
    if manifest.pixels is not None:
        raise DataError(f"{folder}: smaller copies are made of RGB, and these images hold {manifest.pixels}")
    targets = {side: join(folder, copy_folder(side)) for side in sorted(set(short_sides))}
    with contextlib.ExitStack() as locks:
        if not is_remote(folder):
            for target in map(Path, targets.values()):
                target.mkdir(exist_ok=True)
                locks.enter_context(locked(target, "wait for it"))
        _write_missing(manifest, targets, workers, progress)
    return _name_copies(folder, manifest, targets)


def _write_missing(
    manifest: DatasetManifest, targets: Mapping[int, str], workers: int, progress: Callable[[int, int], None]
) -> None:
    """Write what is missing of the copies in their folders or prefixes, by short side, then their manifests."""
    there = {side: _claim(target, manifest) for side, target in targets.items()}
    tasks = [_Task(shard, targets[side], side) for side, shard in itertools.product(targets, manifest.shards)]
    waiting = [task for task in tasks if task.shard.name not in there[task.short_side]]
    total = manifest.num_samples * len(targets)
    kept = total - sum(task.shard.samples for task in waiting)
    run_tasks(_copy_shard, waiting, workers=workers, progress=lambda count: progress(min(kept + count, total), total))
    for side, target in targets.items():
        _index_copy(target, side, manifest)


def _name_copies(folder: str, manifest: DatasetManifest, sides: Iterable[int]) -> DatasetManifest:
    """Name copies in the manifest of their shards, as it is by now: the copies may have taken hours."""
    while True:
        version, now = manifest_version(folder), read_manifest(folder)
        if now.fingerprint != manifest.fingerprint:
            raise DataError(f"{folder}: its shards were re-indexed while the copies were written; run this again")
        named = replace(now, copies=tuple(sorted({*now.copies, *sides})))
        with contextlib.suppress(ConflictError):  # somebody named other copies just now: these come to theirs
            save_manifest(folder, named, version=version)
            return named


def _claim(target: str, manifest: DatasetManifest) -> set[str]:
    """Make a copy's folder one of these shards; returns the names that are finished in it.

    A copy of other shards is removed.
    """
    origin = join(target, _ORIGIN_NAME)
    there = list_shards(target)
    try:
        if read_file(origin).decode() == manifest.fingerprint:
            return {name_of(file.url) for file in there}
    except FileNotFoundError:
        pass
    for file in there:
        remove_file(file.url)
    write_file(origin, manifest.fingerprint.encode())
    return set()


def _index_copy(target: str, side: int, manifest: DatasetManifest) -> None:
    """Write a copy's index: its own places of the images, the labels of the shards themselves."""
    version = manifest_version(target)
    index, listed = IndexRows(manifest), {name_of(file.url): file for file in list_shards(target)}
    files = [listed[shard.name] for shard in manifest.shards]
    with ThreadPoolExecutor(_SCANS_AT_ONCE if is_remote(target) else 1) as pool:
        parts = [scan.rows for scan in pool.map(scan_shard, files)]
    for shard, file, rows in zip(manifest.shards, files, parts, strict=True):
        if len(rows) != shard.samples:
            raise DataError(f"{file.url}: {len(rows)} samples, its original has {shard.samples}; remove the copy")
        rows["label"] = index.of(shard)["label"]
    source = {"short_side": side, "copy_of": manifest.fingerprint}
    copy = describe(
        files,
        parts,
        classes=manifest.classes,
        kind=manifest.kind,
        source=source,
        class_counts=manifest.class_counts if manifest.kind == "multilabel" else None,
        targets=manifest.targets,
    )
    shards = [replace(new, copy_of=old.rows) for new, old in zip(copy.shards, manifest.shards, strict=True)]
    save_manifest(target, replace(copy, shards=tuple(shards)), parts, version=version)


def _copy_shard(task: _Task) -> None:
    shard = task.shard
    if not is_remote(task.target):
        final = Path(task.target, shard.name)
        temporary = final.with_name(f".{final.name}.tmp")
        _write_copy(shard, temporary, task.short_side)
        temporary.replace(final)
        return
    with tempfile.TemporaryDirectory(prefix="crescendo-copy-") as folder:
        path = Path(folder, shard.name)
        _write_copy(shard, path, task.short_side)
        s3.upload(join(task.target, shard.name), path)


def _write_copy(shard: ShardInfo, path: Path, short_side: int) -> None:
    """Write a shard's copy as a local file; a shard in S3 is read in large blocks, one after another."""
    source = RemoteFile(shard.url, shard.num_bytes, shard.etag)
    with (
        open_shard(source, block_bytes=_BLOCK_BYTES) as stream,
        tarfile.open(fileobj=stream, mode="r:") as tar,
        tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as target,
    ):
        for info in tar:
            content = tar.extractfile(info) if info.isreg() else None
            if content is None:
                continue
            extension = info.name.rpartition("/")[2].partition(".")[2].lower()
            data = content.read()
            name = info.name
            try:
                if extension in IMAGE_EXTENSIONS:
                    other, data = shrunk(data, extension, short_side)
                    name = name[: len(name) - len(extension)] + other
                elif extension == MASK_EXTENSION:
                    data = shrunk_mask(data, short_side)
            except (OSError, SyntaxError, ValueError) as error:  # in training it is damaged then as it is now
                log.warning("%s: %r is corrupt (%s) and is copied unchanged", shard.url, info.name, error)
            copy = tarfile.TarInfo(name)
            copy.size = len(data)
            target.addfile(copy, io.BytesIO(data))
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            if extension in IMAGE_EXTENSIONS:
                count_one()
