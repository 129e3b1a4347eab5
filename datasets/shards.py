"""Shards as files: URL expansion, the dataset manifest with its counts, and the member index of one tar."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "crescendo-shards"
MANIFEST_VERSION = 1

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
LABEL_EXTENSION = "cls"

# WebDataset's own rule: a key ends at the first dot of the file name; dots in folders belong to the key.
_MEMBER = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]+)$")
_HOW_TO_MAKE = "write shards with `python -m jobs.prepare SOURCE --out DIR`"


class DataError(ValueError):
    """The data, or what the configuration says of it, can't be used; one line with the cure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One tar of a dataset, as its manifest describes it."""

    url: str
    """Where the shard is: a path of this machine."""
    samples: int
    """Number of samples in it."""
    num_bytes: int
    """Size of the file in bytes; a shard of another size is not the one that was counted."""
    labelled: int
    """How many of the samples have a label."""
    max_label: int
    """The largest label in it; -1 when it has none."""

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.url).name


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
        rows = [(shard.name, shard.samples, shard.num_bytes) for shard in self.shards]
        return hashlib.sha256(json.dumps([self.kind, self.classes, rows]).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardIndex:
    """Where the samples of one tar are, so that one `pread` fetches an image."""

    keys: tuple[str, ...]
    """Sample keys in the tar's order."""
    offsets: np.ndarray
    """First byte of each image in the tar, int64 [samples]."""
    sizes: np.ndarray
    """Bytes of each image, int64 [samples]."""
    labels: np.ndarray
    """Label of each sample, int64 [samples]; -1 where there is none."""


def expand_urls(url: str) -> list[str]:
    """Name every shard of a folder, a brace list such as `DIR/train-{000000..000009}.tar`, or several joined by `::`.

    Raises:
        DataError: a part names nothing that is there.
    """
    urls: list[str] = []
    for part in filter(None, url.split("::")):
        folder = Path(part)
        urls += _folder_shards(folder) if folder.is_dir() else braceexpand.braceexpand(part)
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
    seen: dict[Path, DatasetManifest] = {}
    for name in expand_urls(url):
        folder = Path(name).parent
        if folder not in seen:
            seen[folder] = read_manifest(folder)
        shards.append(_checked_shard(name, seen[folder]))
    first, *others = seen.values()
    for folder, manifest in seen.items():
        if (manifest.classes, manifest.kind) != (first.classes, first.kind):
            raise DataError(f"{folder}: its classes are not those of the other folders of {url!r}")
    whole = not others and len(shards) == len(first.shards)
    return DatasetManifest(
        shards=tuple(shards),
        classes=first.classes,
        kind=first.kind,
        class_counts=first.class_counts if whole else (),
        source=first.source,
    )


def _checked_shard(name: str, manifest: DatasetManifest) -> ShardInfo:
    path = Path(name)
    info = next((shard for shard in manifest.shards if shard.name == path.name), None)
    if info is None:
        raise DataError(f"{name}: {MANIFEST_NAME} beside it does not list this shard; {_HOW_TO_MAKE}")
    size = path.stat().st_size
    if size != info.num_bytes:
        raise DataError(
            f"{name}: {size} bytes, but {MANIFEST_NAME} says {info.num_bytes}: changed since; prepare it again"
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


def manifest_json(manifest: DatasetManifest) -> str:
    """Write the manifest as JSON text, shards by name, one a line."""
    head = {
        "format": MANIFEST_FORMAT,
        "version": MANIFEST_VERSION,
        "kind": manifest.kind,
        "source": manifest.source,
        "classes": list(manifest.classes),
        "class_counts": list(manifest.class_counts),
    }
    rows = []
    for shard in manifest.shards:
        row = asdict(shard)
        del row["url"]
        rows.append(json.dumps({"name": shard.name, **row}))
    body = ",\n".join(f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in head.items())
    return "{" + body + ',\n"shards": [\n' + ",\n".join(rows) + "\n]}\n"


def index_shard(path: str | Path) -> ShardIndex:
    """Walk the headers of one tar, group its members into samples and read the labels.

    Raises:
        DataError: not a tar, a sample without an image, or a label that is no number; names shard and key.
    """
    keys: list[str] = []
    rows: list[tuple[int, int, int]] = []
    for key, members in _samples(path):
        image = next((members[ext] for ext in members if ext in IMAGE_EXTENSIONS), None)
        if image is None:
            raise DataError(f"{path}: sample {key!r} has no image, only {', '.join(sorted(members))}")
        keys.append(key)
        rows.append((image[0], image[1], _label(path, key, members)))
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return ShardIndex(keys=tuple(keys), offsets=table[:, 0], sizes=table[:, 1], labels=table[:, 2])


_Members = dict[str, tuple[int, int, bytes]]


def _samples(path: str | Path) -> Iterator[tuple[str, _Members]]:
    """Yield (key, {extension: (offset, size, content of small members)}) in the tar's order."""
    current, members = "", _Members()
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                match = _MEMBER.match(info.name)
                if not info.isreg() or match is None:
                    continue
                key, extension = match[1], match[2].lower()
                if key != current and members:
                    yield current, members
                    members = {}
                current = key
                stream = tar.extractfile(info) if extension == LABEL_EXTENSION else None
                members[extension] = (info.offset_data, info.size, stream.read() if stream else b"")
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: not a readable tar ({error}); prepare it again") from error
    if members:
        yield current, members


def _label(path: str | Path, key: str, members: _Members) -> int:
    if LABEL_EXTENSION not in members:
        return -1
    text = members[LABEL_EXTENSION][2]
    try:
        label = int(text)
    except ValueError:
        raise DataError(f"{path}: the label of sample {key!r} is {text[:40]!r}, not a class number") from None
    if label < 0:
        raise DataError(f"{path}: the label of sample {key!r} is {label}; class numbers start at 0")
    return label


def describe_shard(path: str | Path) -> ShardInfo:
    """Count one shard by walking it.

    Raises:
        DataError: as `index_shard`.
    """
    labels = index_shard(path).labels
    return ShardInfo(
        url=str(path),
        samples=len(labels),
        num_bytes=Path(path).stat().st_size,
        labelled=int((labels >= 0).sum()),
        max_label=int(labels.max(initial=-1)),
    )


def write_manifest(
    folder: Path,
    shards: Sequence[ShardInfo],
    *,
    classes: Sequence[str],
    class_counts: Sequence[int] = (),
    kind: str = "classification",
    source: dict[str, Any] | None = None,
) -> DatasetManifest:
    """Put `manifest.json` beside the shards, whole or not at all."""
    manifest = DatasetManifest(
        shards=tuple(shards),
        classes=tuple(classes),
        kind=kind,
        class_counts=tuple(class_counts),
        source=source or {},
    )
    temporary = folder / f".{MANIFEST_NAME}.tmp"
    temporary.write_text(manifest_json(manifest), encoding="utf-8")
    temporary.replace(folder / MANIFEST_NAME)
    return manifest
