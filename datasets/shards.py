"""Shards as files: URL expansion, and the dataset manifest with its counts and its index of samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np

from datasets.errors import DataError
from datasets.tar_index import INDEX_DTYPE, INDEX_NAME, index_shard

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "crescendo-shards"
MANIFEST_VERSION = 1

_HOW_TO_MAKE = "write shards with `python -m jobs.prepare SOURCE --out DIR`"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One tar of a dataset, as its manifest describes it."""

    url: str
    """Where the shard is: an absolute path of this machine."""
    samples: int
    """Number of samples in it."""
    num_bytes: int
    """Size of the file in bytes; a shard of another size is not the one that was counted."""
    labelled: int
    """How many of the samples have a label."""
    max_label: int
    """The largest label in it; -1 when it has none."""
    first_row: int
    """Row of its first sample in the index beside it."""

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.url)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetManifest:
    """The shards of one split with their counts, in the order that fixes the global sample ids."""

    shards: tuple[ShardInfo, ...]
    """The shards; sample ids count through them in this order."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them. Empty for data without classes."""
    kind: str = "classification"
    """What the labels are."""
    class_counts: tuple[int, ...] = ()
    """Samples per class over the whole folder; empty where not every shard of the folder is used."""
    source: dict[str, Any] = field(default_factory=dict)
    """What the shards were made from and how, as `jobs.prepare` recorded it."""

    @property
    def num_samples(self) -> int:
        """Samples over all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes over all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def shard_counts(self) -> np.ndarray:
        """Samples per shard, int64 [shards]."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """Hex digest of what fixes ids and labels: names, counts and sizes of shards, class names. Not the folder."""
        rows = [(shard.path.name, shard.samples, shard.num_bytes) for shard in self.shards]
        return hashlib.sha256(json.dumps([self.kind, self.classes, rows]).encode()).hexdigest()[:32]


def expand_urls(url: str) -> list[str]:
    """Name every shard of a folder, of a brace list such as `DIR/train-{000000..000009}.tar`, or of several by `::`.

    Raises:
        DataError: a part names nothing that is there.
    """
    urls: list[str] = []
    for part in filter(None, url.split("::")):
        folder = Path(part)
        names = _folder_shards(folder) if folder.is_dir() else list(braceexpand.braceexpand(part))
        urls += [name if "://" in name else str(Path(name).absolute()) for name in names]
    if not urls:
        raise DataError(f"no data given: {url!r} names no shard; {_HOW_TO_MAKE}")
    for name in urls:
        if "://" in name:
            raise DataError(f"{name}: only shards on a local path can be read here; copy them to a folder")
        if not Path(name).is_file():
            raise DataError(f"{name}: no such shard or folder; {_HOW_TO_MAKE}")
    return urls


def _folder_shards(folder: Path) -> list[str]:
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    if not shards:
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.tar")))
        cure = f"name one of its folders: {', '.join(splits)}" if splits else _HOW_TO_MAKE
        raise DataError(f"{folder}: the folder holds no .tar shard; {cure}")
    return shards


def load_manifest(url: str) -> DatasetManifest:
    """Read the manifests beside the shards that `url` names, and check that the files are the ones they describe.

    Raises:
        DataError: no shards, no manifest, a shard that its manifest does not know or that changed since.
    """
    shards: list[ShardInfo] = []
    seen: dict[Path, dict[str, ShardInfo]] = {}
    manifests: list[DatasetManifest] = []
    for name in expand_urls(url):
        path = Path(name)
        if path.parent not in seen:
            manifests.append(read_manifest(path.parent))
            seen[path.parent] = {shard.path.name: shard for shard in manifests[-1].shards}
        shards.append(_checked_shard(path, seen[path.parent].get(path.name)))
    for folder in filter(Path.is_dir, map(Path, url.split("::"))):
        if missing := set(seen[folder.absolute()]) - {shard.path.name for shard in shards}:
            raise DataError(
                f"{folder}: {MANIFEST_NAME} lists {min(missing)}, but there is no such file; {_HOW_TO_MAKE}"
            )
    first = manifests[0]
    for manifest in manifests[1:]:
        if (manifest.classes, manifest.kind) != (first.classes, first.kind):
            raise DataError(
                f"{manifest.shards[0].path.parent}: its classes are not those of the other shards of {url!r}"
            )
    whole = len(manifests) == 1 and len(shards) == len(first.shards)
    return replace(first, shards=tuple(shards), class_counts=first.class_counts if whole else ())


def _checked_shard(path: Path, info: ShardInfo | None) -> ShardInfo:
    if info is None:
        raise DataError(f"{path}: {MANIFEST_NAME} beside it does not list this shard; {_HOW_TO_MAKE}")
    size = path.stat().st_size
    if size != info.num_bytes:
        raise DataError(
            f"{path}: {size} bytes, but {MANIFEST_NAME} says {info.num_bytes}: changed since; write it again"
        )
    return info


def read_manifest(folder: Path) -> DatasetManifest:
    """Read `folder/manifest.json` as it stands, without a look at the shards.

    Raises:
        DataError: it is missing or not a manifest of this format.
    """
    path = folder / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if (raw["format"], raw["version"]) != (MANIFEST_FORMAT, MANIFEST_VERSION):
            raise DataError(f"{path}: format {raw['format']!r} version {raw['version']!r} is not known here")
        shards = tuple(ShardInfo(url=str(folder / row.pop("name")), **row) for row in raw["shards"])
        return DatasetManifest(
            shards=shards,
            classes=tuple(raw["classes"]),
            kind=raw["kind"],
            class_counts=tuple(raw["class_counts"]),
            source=raw["source"],
        )
    except FileNotFoundError:
        raise DataError(f"{path}: the shards have no manifest (sample counts); {_HOW_TO_MAKE}") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a readable manifest ({error!r}); {_HOW_TO_MAKE}") from error


def _manifest_json(manifest: DatasetManifest) -> str:
    """Return the manifest as JSON text, one shard a line."""
    head = {
        "format": MANIFEST_FORMAT,
        "version": MANIFEST_VERSION,
        "kind": manifest.kind,
        "source": manifest.source,
        "classes": list(manifest.classes),
        "class_counts": list(manifest.class_counts),
    }
    lines = [f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in head.items()]
    rows = []
    for shard in manifest.shards:
        row = asdict(shard)
        rows.append(json.dumps({"name": Path(row.pop("url")).name, **row}))
    return "{" + ",\n".join(lines) + ',\n"shards": [\n' + ",\n".join(rows) + "\n]}\n"


def load_index(folder: Path) -> np.ndarray:
    """Map the index beside the shards of a folder, rows of `INDEX_DTYPE`; nothing is read before it is used.

    Raises:
        DataError: it is missing or of another format.
    """
    path = folder / INDEX_NAME
    try:
        index = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable index of samples ({error}); {_HOW_TO_MAKE}") from error
    if index.dtype != INDEX_DTYPE:
        raise DataError(f"{path}: an index of another format; {_HOW_TO_MAKE}")
    return index


def write_manifest(
    folder: Path,
    names: Sequence[str],
    *,
    classes: Sequence[str],
    kind: str = "classification",
    source: dict[str, Any] | None = None,
) -> DatasetManifest:
    """Index the shards of a folder and write `index.npy` and `manifest.json` beside them, each whole or not at all.

    Args:
        folder: with the shards.
        names: file names of the shards; they fix the order of the sample ids.
        classes: names in label order.
        kind: what the labels are.
        source: what to record about the shards' making.

    Raises:
        DataError: a shard that can't be used; names shard and key.
    """
    parts = [index_shard(folder / name) for name in names]
    index = np.concatenate(parts)
    labels = index["label"]
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    manifest = DatasetManifest(
        shards=tuple(
            _shard_info(folder / name, part, start) for name, part, start in zip(names, parts, starts, strict=False)
        ),
        classes=tuple(classes),
        kind=kind,
        class_counts=tuple(np.bincount(labels[labels >= 0], minlength=len(classes)).tolist()),
        source=source or {},
    )
    _write_whole(folder / INDEX_NAME, lambda path: np.save(path, index))
    _write_whole(folder / MANIFEST_NAME, lambda path: path.write_text(_manifest_json(manifest), encoding="utf-8"))
    return manifest


def _shard_info(path: Path, index: np.ndarray, first_row: int) -> ShardInfo:
    return ShardInfo(
        url=str(path),
        samples=len(index),
        num_bytes=path.stat().st_size,
        labelled=int((index["label"] >= 0).sum()),
        max_label=int(index["label"].max(initial=-1)),
        first_row=first_row,
    )


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    write(temporary)
    temporary.replace(path)
