"""Resolves URLs (folders, brace lists, lists of these; local or in S3) to shards and their manifests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import braceexpand

from datasets.errors import DataError, MissingDataError
from datasets.files.s3 import RemoteFile, changed, is_remote
from datasets.files.urls import folder_of, is_shard, list_shards, name_of
from datasets.shards.fingerprint import is_changed
from datasets.shards.manifest import HOW_TO_MAKE, MANIFEST_NAME, DatasetManifest, ShardInfo, read_manifest
from datasets.transforms.formats import RGB

SEPARATOR = "::"
INDEX_AGAIN = "write the shards again, or count them again with `python -m jobs.index URL`"
_Folders = dict[str, dict[str, RemoteFile]]
"""folder -> URL -> file, as listed"""


def expand_urls(url: str) -> list[str]:
    """Name every shard of a folder, of a brace list such as `DIR/train-{000000..000009}.tar`, or of several by `::`.

    A folder is a local path or `s3://BUCKET/PREFIX`. One that holds only a manifest (`jobs.index --out`) stands for the
    shards that the manifest lists, wherever they are.

    Raises:
        DataError: a part names nothing that is there.
    """
    return [file.url for file in expand_files(url)]


def expand_files(url: str) -> list[RemoteFile]:
    """As `expand_urls`, with the size and the ETag of every shard."""
    listed: _Folders = {}
    return [file for part in _parts(url) for file in _part_files(part, listed)[0]]


def _parts(url: str) -> list[str]:
    parts = [part for part in url.split(SEPARATOR) if part]
    if not parts:
        raise DataError(f"no data given: {url!r} names no shard; {HOW_TO_MAKE}")
    return parts


def _part_files(part: str, listed: _Folders) -> tuple[list[RemoteFile], str]:
    """Return the shards of one part, and the folder of their manifest; empty where each shard's own folder has it."""
    if "://" in part and not is_remote(part):
        raise DataError(f"{part}: only shards on a local path or in s3:// can be read; copy them there")
    if not _is_folder(part):
        names = [name if is_remote(name) else str(Path(name).absolute()) for name in braceexpand.braceexpand(part)]
        return [_find(name, listed) for name in names], ""
    folder = part.rstrip("/") if is_remote(part) else str(Path(part).absolute())
    files = list(_listed(folder, listed).values())
    if files:
        return files, folder
    elsewhere = _indexed_elsewhere(folder)
    if elsewhere is None:
        raise MissingDataError.at(folder, f"the folder holds no .tar shard; {_cure(folder)}")
    return [_find(shard.url, listed) for shard in elsewhere.shards], folder


def _is_folder(part: str) -> bool:
    return not is_shard(part) if is_remote(part) else Path(part).is_dir()


def _find(url: str, listed: _Folders) -> RemoteFile:
    file = _listed(folder_of(url), listed).get(url)
    if file is None:
        several = f"join several by {SEPARATOR}, or " if ":" in url.removeprefix("s3:") else ""
        raise MissingDataError.at(url, f"no such shard or folder; {several}{HOW_TO_MAKE}")
    return file


def _listed(folder: str, listed: _Folders) -> dict[str, RemoteFile]:
    if folder not in listed:
        exists = is_remote(folder) or Path(folder).is_dir()
        listed[folder] = {file.url: file for file in list_shards(folder)} if exists else {}
    return listed[folder]


def _indexed_elsewhere(folder: str) -> DatasetManifest | None:
    """Return the manifest of a folder without shards that was written for shards elsewhere."""
    try:
        manifest = read_manifest(folder)
    except DataError:
        return None
    return manifest if all(folder_of(shard.url) != folder for shard in manifest.shards) else None


def _cure(folder: str) -> str:
    if is_remote(folder):
        return HOW_TO_MAKE
    splits = sorted(path.name for path in Path(folder).iterdir() if path.is_dir() and any(path.glob("*.tar")))
    return f"name one of its folders: {', '.join(splits)}" if splits else HOW_TO_MAKE


def load_manifest(url: str, *, weights: Sequence[float] = ()) -> DatasetManifest:
    """Read the manifests of the shards that `url` names, and check that the files are the ones they describe.

    Args:
        url: as `expand_urls` takes it.
        weights: one for each part of `url`, in a mix: an epoch takes round(weight * n) of a shard's n samples, and goes
            on in the next epoch where it ended in this one, so that over the epochs all are used equally often.

    Raises:
        DataError: no shards, no manifest, a shard that its manifest does not know or that changed since.
    """
    parts, listed = _parts(url), _Folders()
    if weights and len(weights) != len(parts):
        raise DataError(
            f"data.train_weights has {len(weights)} numbers for {len(parts)} parts of {url!r}; give one each"
        )
    read = lru_cache(maxsize=None)(read_manifest)
    shards: list[ShardInfo] = []
    folders: list[str] = []
    for part, weight in zip(parts, weights or [1.0] * len(parts), strict=True):
        files, folder = _part_files(part, listed)
        known: dict[str, dict[str, ShardInfo]] = {}
        for file in files:
            home = folder or folder_of(file.url)
            if home not in known:
                known[home] = {shard.url: shard for shard in read(home).shards}
                folders += [home] if home not in folders else []
            shards.append(replace(_checked_shard(file, known[home].get(file.url)), weight=weight))
        if folder and (missing := set(known[folder]) - {file.url for file in files}):
            raise DataError(
                f"{folder}: {MANIFEST_NAME} lists {name_of(min(missing))}, but there is no such file; {INDEX_AGAIN}"
            )
    manifests = [read(folder) for folder in folders]
    return _joined(url, manifests, shards)


def _joined(url: str, manifests: list[DatasetManifest], shards: list[ShardInfo]) -> DatasetManifest:
    first = manifests[0]
    for manifest in manifests[1:]:
        if (manifest.classes, manifest.kind) != (first.classes, first.kind):
            raise DataError(
                f"{manifest.shards[0].index_folder}: its classes are not those of the other shards of {url!r}"
            )
        if manifest.pixels != first.pixels:
            raise DataError(
                f"{manifest.shards[0].index_folder}: its images hold {manifest.pixels or RGB}, those of the other "
                f"shards of {url!r} {first.pixels or RGB}"
            )
    copies = set(first.copies).intersection(*(manifest.copies for manifest in manifests[1:]))
    whole = len(manifests) == 1 and len(shards) == len(first.shards)
    return replace(
        first,
        shards=tuple(shards),
        class_counts=first.class_counts if whole else (),
        targets=first.targets if whole else (),
        copies=tuple(sorted(copies)),
    )


def check_unchanged(manifest: DatasetManifest) -> None:
    """Check that local shards are still those of a manifest that was read before; one in S3 is refused by its ETag.

    Raises:
        DataError: one is gone, or changed since it was indexed.
    """
    for shard in manifest.shards:
        if not is_remote(shard.url):
            if not shard.path.exists():
                raise DataError(f"{shard.url}: the shard is gone; {INDEX_AGAIN}")
            _checked_shard(RemoteFile(shard.url, shard.path.stat().st_size, shard.etag), shard)


def _checked_shard(file: RemoteFile, info: ShardInfo | None) -> ShardInfo:
    """Return what the manifest says of a shard, with the ETag that it has now: workers then read no other one."""
    if info is None:
        raise DataError(f"{file.url}: {MANIFEST_NAME} next to it does not list this shard; {INDEX_AGAIN}")
    if file.size != info.num_bytes:
        raise DataError(
            f"{file.url}: {file.size} bytes, but {MANIFEST_NAME} says {info.num_bytes}: changed since; {INDEX_AGAIN}"
        )
    if info.etag and file.etag and info.etag != file.etag:
        raise changed(file.url, file.etag, info.etag)
    known = {"mtime_ns": info.mtime_ns, "inode": info.inode, "pieces": info.pieces}
    if info.pieces and not is_remote(file.url) and is_changed(info.path, **known):  # type: ignore[arg-type]
        raise DataError(
            f"{file.url}: its time or content is not what {MANIFEST_NAME} was made for: changed since; {INDEX_AGAIN}"
        )
    return replace(info, etag=file.etag)
