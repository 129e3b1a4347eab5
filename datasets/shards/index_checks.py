"""Checks over all indexed shards together, and the report on them: every member is accounted for."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from datasets.errors import DataError
from datasets.files.s3 import RemoteFile
from datasets.shards.tar_index import ShardIndex, key_at

_REPETITIONS = 100
"""Digests that come again of which the keys are read."""
_CAPTIONS = 100
"""Labels of one sample each from which on they are taken for captions or numbers of images."""


def check_keys(files: Sequence[RemoteFile], scans: Sequence[ShardIndex]) -> None:
    """Check that no two samples have the same key.

    Raises:
        DataError: names the key and both shards.
    """
    for first, second in _equal_digests(scans):
        key = key_at(files[first[0]], first[1])
        if key == key_at(files[second[0]], second[1]):  # equal digests of other keys are possible
            raise DataError(
                f"{files[first[0]].url} and {files[second[0]].url} both have a sample {key!r}: are the same samples "
                "there twice? Leave one of the shards out, or index with --repeated-keys where keys start again in each"
            )


def _equal_digests(scans: Sequence[ShardIndex]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the (shard, sample) of two samples whose keys have the same digest."""
    digests = np.concatenate([scan.keys for scan in scans])
    digests.sort()
    # Chance gives a billion keys one equal pair in thirty datasets: real repetitions are among the first.
    repeated = np.unique(digests[1:][digests[1:] == digests[:-1]])[:_REPETITIONS]
    places: dict[int, list[tuple[int, int]]] = {}
    for shard, scan in enumerate(scans) if len(repeated) else ():
        for sample in np.flatnonzero(np.isin(scan.keys, repeated)).tolist():
            places.setdefault(int(scan.keys[sample]), []).append((shard, sample))
    for digest in repeated.tolist():
        yield from itertools.pairwise(places[digest])


def check_captions(url: str, names: Sequence[str], labels: np.ndarray) -> None:
    """Check that the labels of samples, int [samples], are those of classes.

    Raises:
        DataError: most of them are on one sample only, as captions or image numbers are.
    """
    used, counts = np.unique(labels[labels >= 0], return_counts=True)
    once = used[counts == 1]
    if len(once) >= _CAPTIONS and 2 * len(once) > len(used):
        example = names[once[0]][:60] if names else str(once[0])
        raise DataError(
            f"{url}: {len(once)} of {len(used)} labels belong to one sample each, such as {example!r}: captions or "
            "numbers of images? Take the label from another --json-field or from .cls files; if they are classes, name "
            "them in a file with --classes"
        )


def report(files: Sequence[RemoteFile], scans: Sequence[ShardIndex], rows: Sequence[np.ndarray]) -> list[str]:
    """Return lines on what of the shards is no sample, has no label or looks cut off, with a number and an example."""
    lines = [f"warning: {file.url}: {scan.warning}" for file, scan in zip(files, scans, strict=True) if scan.warning]
    skipped: Counter[str] = Counter()
    for scan in scans:
        skipped += scan.skipped
    for reason, count in sorted(skipped.items()):
        shard = next(shard for shard, scan in enumerate(scans) if reason in scan.examples)
        lines.append(f"skipped {count} {reason}, such as {scans[shard].examples[reason]!r} in {files[shard].url}")
    lines += [
        f"warning: {file.url}: contains no samples" for file, part in zip(files, rows, strict=True) if not len(part)
    ]
    several = any(scan.several is not None for scan in scans)
    masks = any((part["mask_offset"] > 0).any() for part in rows)
    without = [part["mask_offset"] == 0 if masks else part["label"] < 0 for part in rows]
    numbers = any(scan.targets is not None for scan in scans)
    what = "list of labels (.labels)" if several else "targets" if numbers else "mask" if masks else "label"
    lines += _samples_that(f"have no {what}", files, without)
    return lines + _samples_that("have an image of 0 bytes", files, [part["size"] == 0 for part in rows])


def _samples_that(what: str, files: Sequence[RemoteFile], found: Sequence[np.ndarray]) -> list[str]:
    count = sum(int(part.sum()) for part in found)
    if not count:
        return []
    shard = next(shard for shard, part in enumerate(found) if part.any())
    key = key_at(files[shard], int(np.argmax(found[shard])))
    total = sum(map(len, found))
    return [f"warning: {count} of {total} samples {what}, such as {key!r} in {files[shard].url}"]
