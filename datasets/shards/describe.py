"""Describes shards: their manifest, with counts, sizes and stamps, made of the rows of their index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import DataError
from datasets.files.s3 import RemoteFile, is_remote
from datasets.files.urls import is_packed
from datasets.shards.fingerprint import pieces_digest, stamp_of
from datasets.shards.manifest import DatasetManifest, ShardInfo, manifest_version, save_manifest
from datasets.shards.tar_index import ShardIndex, index_name, rows_digest, scan_shard


def write_manifest(
    folder: Path,
    names: Sequence[str],
    *,
    classes: Sequence[str],
    kind: str = "classification",
    source: dict[str, Any] | None = None,
    copies: Sequence[int] = (),
) -> DatasetManifest:
    """Index the shards of a local folder and write the index and `manifest.json` next to them, atomically.

    Args:
        folder: with the shards.
        names: file names of the shards; they fix the order of the sample ids.
        classes: names in label order.
        kind: what the labels are.
        source: what to record about the shards' making.
        copies: short sides of the smaller copies in folders next to the shards.

    Raises:
        DataError: a shard that can't be used; names shard and key. Or somebody else wrote the manifest meanwhile.
    """
    version = manifest_version(folder)
    files = [RemoteFile(str(folder / name), (folder / name).stat().st_size, "") for name in names]
    scans = [scan_shard(file) for file in files]
    rows = [scan.rows for scan in scans]
    counts = several_counts(scans, len(classes)) if kind == "multilabel" else None
    targets = target_statistics(scans) if kind == "regression" else ()
    manifest = describe(
        files,
        rows,
        classes=classes,
        kind=kind,
        source=source or {},
        copies=copies,
        class_counts=counts,
        targets=targets,
    )
    save_manifest(folder, manifest, rows, version=version)
    return manifest


def several_counts(scans: Sequence[ShardIndex], num_classes: int) -> list[int]:
    """Return how many samples of multi-label shards have each class."""
    total = sum((scan.several or Counter() for scan in scans), Counter[int]())
    return [total[label] for label in range(max(num_classes, max(total, default=-1) + 1))]


def target_statistics(scans: Sequence[ShardIndex]) -> tuple[tuple[float, float], ...]:
    """Return mean and standard deviation of each target, over the samples that have any; a deviation of 0 is exact.

    Both are rounded, as they are part of a manifest's fingerprint and sums differ in their last bits between machines:
    the mean to 12 digits, since it may be far from 0 in deviations, the deviation to 6.

    Raises:
        DataError: samples have different numbers of targets.
    """
    parts = [scan.targets for scan in scans if scan.targets is not None]
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise DataError(f"some samples have {widths[0]} targets and some {widths[-1]}; give all of them the same")
    if not parts:
        return ()
    values = np.concatenate(parts)
    deviations = np.where(np.ptp(values, axis=0) > 0, values.std(0), 0.0)
    return tuple(
        (float(f"{mean:.12g}"), float(f"{deviation:.6g}"))
        for mean, deviation in zip(values.mean(0), deviations, strict=True)
    )


def describe(
    files: Sequence[RemoteFile],
    parts: Sequence[np.ndarray],
    *,
    classes: Sequence[str],
    kind: str,
    source: dict[str, Any],
    copies: Sequence[int] = (),
    class_counts: Sequence[int] | None = None,
    targets: tuple[tuple[float, float], ...] = (),
) -> DatasetManifest:
    """Return the manifest of shards with these rows of the index (of `MASK_DTYPE`).

    The rows don't tell the counts of the classes where samples have several, and not the targets' means and deviations:
    they are given then.
    """
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    shards = [_shard_info(file, part, start, kind) for file, part, start in zip(files, parts, starts, strict=False)]
    name = index_name(shard.rows for shard in shards)
    if class_counts is None:
        class_counts = () if kind == "regression" else label_counts(parts, len(classes))
    return DatasetManifest(
        shards=tuple(replace(shard, index_name=name) for shard in shards),
        classes=tuple(classes),
        kind=kind,
        class_counts=tuple(class_counts),
        targets=targets,
        source=source,
        copies=tuple(copies),
    )


def label_counts(parts: Sequence[np.ndarray], num_classes: int) -> list[int]:
    """Return how many samples have each class, in the rows of some shards."""
    total = np.zeros(num_classes, dtype=np.int64)
    for labels in (part["label"] for part in parts):
        counts = np.bincount(labels[labels >= 0], minlength=len(total))
        counts[: len(total)] += total
        total = counts
    return total.tolist()


def _shard_info(file: RemoteFile, rows: np.ndarray, first_row: int, kind: str) -> ShardInfo:
    local = not is_remote(file.url)
    mtime_ns, inode = stamp_of(Path(file.url)) if local else (0, 0)
    has_label = {
        "classification": rows["label"] >= 0,
        "segmentation": rows["mask_size"] > 0,
        "multilabel": rows["mask_offset"] > 0,  # an empty file says that a sample is of no class
        "regression": rows["mask_offset"] > 0,
    }[kind]
    return ShardInfo(
        url=file.url,
        samples=len(rows),
        num_bytes=file.size,
        labelled=int(has_label.sum()),
        max_label=int(rows["label"].max(initial=-1)),
        first_row=first_row,
        rows=rows_digest(rows),
        etag=file.etag,
        mtime_ns=mtime_ns,
        inode=inode,
        pieces=pieces_digest(Path(file.url)) if local else "",
        unpacked_bytes=_end(rows) if is_packed(file.url) else 0,
    )


def _end(rows: np.ndarray) -> int:
    """Return the byte after the last member that is read of a shard."""
    ends = np.concatenate([rows["offset"] + rows["size"], rows["mask_offset"] + rows["mask_size"], [0]])
    return int(ends.max())
