"""Indexes existing shards in one parallel pass over their headers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from datasets.cpus import usable_cpus
from datasets.errors import DataError
from datasets.files.s3 import RemoteFile, is_remote
from datasets.files.urls import is_packed, open_shard
from datasets.shards.describe import describe, several_counts, target_statistics
from datasets.shards.given_classes import class_names
from datasets.shards.index_checks import check_captions, check_keys, report
from datasets.shards.manifest import DatasetManifest, manifest_version, read_manifest, save_manifest
from datasets.shards.resolve import expand_files
from datasets.shards.scan_log import ScanLog
from datasets.shards.tar_index import ShardIndex, scan_shard
from datasets.transforms.bands import checked_format

log = logging.getLogger(__name__)

_MOST_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRules:
    """How shards are indexed."""

    classes: str = ""
    """The class names in label order, separated by commas, or a file with them: a JSON list, a JSON object from name to
    number, a manifest.json, or one name per line; or a folder of prepared data. Empty: the names found in the labels,
    sorted; for numeric labels, the names of the previous index, or else the numbers."""
    json_field: str = "label"
    """Field of `.json` members that holds the label, a number or a class name."""
    repeated_keys: bool = False
    """Accept the same key in several shards, if keys start again in each; within a shard it is always refused."""
    workers: int = 16
    """Shards read at a time: in threads for S3, otherwise in at most one process per core."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; it must be at least 1")


def index_shards(
    url: str,
    out: str,
    rules: IndexRules,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = log.warning,
) -> DatasetManifest:
    """Index all shards that `url` names, and write the index and `manifest.json` into the folder `out`.

    The copies of shards that are indexed again and are the same stay named.

    Args:
        url: of the shards.
        out: folder or prefix.
        rules: how they are indexed.
        progress: called with (shards read, shards in all).
        tell: takes the lines on what is no sample, has no label or looks cut off.

    Raises:
        DataError: shards, labels or classes that can't be used; names shard and key. Or somebody else wrote the
            manifest meanwhile.
    """
    version, before = manifest_version(out), _manifest_before(out)
    files = expand_files(url)
    kept_scans = ScanLog(out, files, rules.json_field)
    scans = _scan(files, rules, progress, kept_scans)
    if not any(len(scan.rows) for scan in scans):
        raise DataError(f"{url}: it contains no samples")
    if not rules.repeated_keys:
        check_keys(files, scans)
    kind = _kind(scans)
    classes, numbers = _classes(rules.classes, scans, kind)
    rows = [_numbered(file, scan, numbers) for file, scan in zip(files, scans, strict=True)]
    if not classes and kind == "segmentation":
        raise DataError(f"{url}: masks alone don't tell the classes; name them with --classes")
    targets = target_statistics(scans) if kind == "regression" else ()
    kept = () if classes else _names_kept(before, kind, rows, len(targets))
    if kind == "regression":
        classes = _target_names(url, classes or kept, len(targets))
    elif not rules.classes and not kept and kind != "multilabel":
        check_captions(url, classes, np.concatenate([part["label"] for part in rows]))
    classes = classes or kept or _numbers_as_names(rows)
    counts = several_counts(scans, len(classes)) if kind == "multilabel" else None
    source = {"indexed": url, **_pixels(files[0], rows[0])}
    manifest = describe(files, rows, classes=classes, kind=kind, source=source, class_counts=counts, targets=targets)
    if before is not None and before.fingerprint == manifest.fingerprint:
        manifest = replace(manifest, copies=before.copies)
    save_manifest(out, manifest, rows, version=version)
    kept_scans.clear()
    for line in report(files, scans, rows):
        tell(line)
    return manifest


def _pixels(file: RemoteFile, rows: np.ndarray) -> dict[str, Any]:
    """Return what the manifest records of the first image's pixels: nothing where they are RGB, or unreadable."""
    if is_packed(file.url) or not len(rows):
        return {}
    with open_shard(file, block_bytes=int(rows["size"][0])) as stream:
        stream.seek(int(rows["offset"][0]))
        data = stream.read(int(rows["size"][0]))
    try:
        pixels = checked_format(data)
    except ValueError:
        return {}
    return {} if pixels.is_rgb else {"pixels": {"type": pixels.kind, "channels": pixels.channels}}


def _kind(scans: Sequence[ShardIndex]) -> str:
    if any(scan.several is not None for scan in scans):
        return "multilabel"
    if any(scan.targets is not None for scan in scans):
        return "regression"
    masked = any(len(scan.rows) for scan in scans) and all((scan.rows["mask_size"] > 0).all() for scan in scans)
    return "segmentation" if masked else "classification"


def _target_names(url: str, given: Sequence[str], count: int) -> tuple[str, ...]:
    names = tuple(given) or tuple(f"target{number}" for number in range(1, count + 1))
    if len(names) != count:
        raise DataError(f"{url}: its samples have {count} targets, and {len(names)} names are given; name each once")
    return names


def _scan(
    files: Sequence[RemoteFile], rules: IndexRules, progress: Callable[[int, int], None], kept: ScanLog
) -> list[ShardIndex]:
    scans = kept.read()
    left = [file for file in files if file.url not in scans]
    executor: Executor
    if is_remote(files[0].url):
        executor = ThreadPoolExecutor(rules.workers)
    else:
        executor = ProcessPoolExecutor(max(1, min(rules.workers, len(left), usable_cpus())))
    with executor:
        pending = {executor.submit(partial(scan_shard, json_field=rules.json_field), file): file for file in left}
        try:
            for future in as_completed(pending):
                file = pending[future]
                scans[file.url] = future.result()
                kept.add(file.url, scans[file.url])
                progress(len(scans), len(files))
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return [scans[file.url] for file in files]


def _classes(given: str, scans: Sequence[ShardIndex], kind: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return (class names in label order, number of each name); both are empty where labels are numbers only."""
    if given:
        least = 1 if kind == "regression" else 2  # of targets one is enough
        names = class_names(given, unique=any(scan.names for scan in scans), least=least)
    else:
        names = tuple(sorted({name for scan in scans for name in scan.names}))
        if len(names) > _MOST_CLASSES:
            raise DataError(f"the labels have {len(names)} different texts: are they captions? Name the --classes")
        if names and any((scan.rows["label"] >= 0).any() for scan in scans):
            raise DataError("some labels are numbers and some are names; name the classes with --classes")
    return names, {name: number for number, name in enumerate(names)}


def _numbered(file: RemoteFile, scan: ShardIndex, numbers: dict[str, int]) -> np.ndarray:
    """Return a shard's rows, with the numbers of the classes that its labels name."""
    rows, named = scan.rows, scan.named
    if named is None:
        return rows
    for place, name in enumerate(scan.names):
        if name not in numbers:
            row = int(np.argmax(named == place))
            raise DataError(f"{file.url}: label {name[:60]!r} of sample {row} is none of the classes")
    table = np.array([numbers[name] for name in scan.names], dtype=np.int32)
    rows["label"] = np.where(named >= 0, table[named], rows["label"])
    return rows


def _manifest_before(out: str) -> DatasetManifest | None:
    try:
        return read_manifest(out)
    except DataError:
        return None


def _names_kept(
    before: DatasetManifest | None, kind: str, rows: Sequence[np.ndarray], num_targets: int
) -> tuple[str, ...]:
    """Return the names of the index that was there before, where they still fit: in tars are numbers alone.

    Names of classes are none of targets, nor the other way around.
    """
    if before is None or (before.kind == "regression") != (kind == "regression"):
        return ()
    names = before.classes
    if kind == "regression":
        return names if len(names) == num_targets else ()
    return names if all(part["label"].max(initial=-1) < len(names) for part in rows) else ()


def _numbers_as_names(rows: Sequence[np.ndarray]) -> tuple[str, ...]:
    last = max((int(part["label"].max(initial=-1)) for part in rows), default=-1)
    if last >= _MOST_CLASSES:
        raise DataError(f"a label is {last}, beyond {_MOST_CLASSES} classes; name the classes with --classes")
    return tuple(str(number) for number in range(last + 1))
