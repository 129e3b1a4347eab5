"""The dataset manifest: counts, sizes and classes of the shards, in the file `manifest.json`."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import DataError
from datasets.files.s3 import is_remote
from datasets.files.urls import folder_of, is_packed, join, name_of, read_file, replace_file, tag_of, write_file
from datasets.shards.tar_index import INDEX_NAME
from datasets.transforms.formats import PixelFormat

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "crescendo-shards"
MANIFEST_VERSION = 1
KINDS = ("classification", "segmentation", "multilabel", "regression")

HOW_TO_MAKE = (
    "write shards with `python -m jobs.prepare SOURCE --out DIR`, or index your own with `python -m jobs.index URL`"
)
_INDEX_NAME = re.compile(r"index(-[0-9a-f]{12})?\.npy")
_OPTIONAL = {"rows": "", "copy_of": "", "etag": "", "mtime_ns": 0, "inode": 0, "pieces": "", "unpacked_bytes": 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One tar of a dataset, as its manifest describes it."""

    url: str
    """Where the shard is: an absolute path of this machine, or s3://BUCKET/KEY."""
    samples: int
    """Number of samples in it."""
    num_bytes: int
    """Size of the file in bytes; a shard of another size is not the one that was counted."""
    labelled: int
    """How many of the samples have a label (in segmentation: a mask; multi-label: a list of classes, empty or not)."""
    max_label: int
    """The largest label in it; -1 when it has none."""
    first_row: int
    """Row of its first sample in the index."""
    rows: str = ""
    """Digest of its rows of the index, so that manifest and index belong together; empty in older manifests."""
    copy_of: str = ""
    """`rows` of the shard that it is a smaller copy of; empty: it is none, or an older one."""
    etag: str = ""
    """ETag of the object in S3; empty for a local file."""
    mtime_ns: int = 0
    """When the local file was changed last, in nanoseconds since 1970; 0 in S3."""
    inode: int = 0
    """Number of the local file on its disk; 0 in S3."""
    pieces: str = ""
    """Digest of pieces of the local file; looked at when its time is another one. Empty in S3."""
    unpacked_bytes: int = 0
    """Size of the tar inside a compressed shard; 0 for a plain one."""
    index: str = ""
    """Folder of the index; empty: the shard's own."""
    index_name: str = INDEX_NAME
    """Name of the index in that folder."""
    weight: float = 1.0
    """How often an epoch uses the shard: samples per epoch / samples."""

    @property
    def path(self) -> Path:
        """The file, where it is a local one."""
        return Path(self.url)

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return name_of(self.url)

    @property
    def index_folder(self) -> str:
        """Where the index lies that the shard's rows are in."""
        return self.index or folder_of(self.url)

    @property
    def index_url(self) -> str:
        """The index that the shard's rows are in."""
        return join(self.index_folder, self.index_name)

    @property
    def used(self) -> int:
        """Samples that an epoch takes from it."""
        return round(self.samples * self.weight)

    @property
    def packed(self) -> bool:
        """Whether it must be unpacked before it can be read by offset."""
        return is_packed(self.url)

    @property
    def is_cached(self) -> bool:
        """Whether it is read through the node's cache, where there is one."""
        return self.packed or is_remote(self.url)

    @property
    def stored_bytes(self) -> int:
        """Bytes that it takes in the cache."""
        return self.unpacked_bytes if self.packed else self.num_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetManifest:
    """The shards of one split with their counts, in the order that fixes the global sample ids."""

    shards: tuple[ShardInfo, ...]
    """The shards; sample ids count through them in this order."""
    classes: tuple[str, ...]
    """Class names; a label (in segmentation: a mask's value) is an index into them. Empty for data without classes. In
    regression: names of the targets."""
    kind: str = "classification"
    """What the labels are: `classification` (one class a sample), `multilabel` (any number), `segmentation` or
    `regression` (numbers)."""
    class_counts: tuple[int, ...] = ()
    """Samples that have each class (in segmentation: that are sampled by it), over the whole folder; empty where not
    every shard of the folder is used."""
    targets: tuple[tuple[float, float], ...] = ()
    """In regression: mean and standard deviation of each target over the whole folder; empty as `class_counts` is."""
    source: dict[str, Any] = field(default_factory=dict)
    """What the shards were made from and how, as `jobs.prepare` recorded it."""
    copies: tuple[int, ...] = ()
    """Short sides in pixels of the smaller copies in the folders `short-SIDE` next to the shards."""

    @property
    def pixels(self) -> PixelFormat | None:
        """What the images hold, where they can't be read as RGB; None: RGB, or nobody has looked."""
        found = self.source.get("pixels")
        return PixelFormat(found["type"], found["channels"]) if found else None

    @property
    def num_samples(self) -> int:
        """Samples over all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def outputs(self) -> str:
        """What is learned, in words: `4 classes`, or in regression `2 targets`."""
        one, several = ("target", "targets") if self.kind == "regression" else ("class", "classes")
        return f"{len(self.classes)} {one if len(self.classes) == 1 else several}"

    @property
    def num_bytes(self) -> int:
        """Bytes over all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def shard_counts(self) -> np.ndarray:
        """Samples that an epoch takes from each shard, int64 [shards]: all of them where no weights are given."""
        return np.array([shard.used for shard in self.shards], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """Hex digest of what fixes ids and labels: names, counts and sizes of shards, their rows, class names.

        Not the folder. A manifest from before the rows' digests keeps the fingerprint that it had.
        """
        rows = [
            (shard.name, shard.samples, shard.num_bytes, shard.rows)[: 4 if shard.rows else 3] for shard in self.shards
        ]
        what = [self.kind, self.classes, rows, *([self.targets] if self.targets else [])]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def read_manifest(folder: str | Path) -> DatasetManifest:
    """Read a folder's `manifest.json` as it stands, without a look at the shards.

    Raises:
        DataError: it is missing or not a manifest of this format.
    """
    folder = str(folder)
    place = join(folder, MANIFEST_NAME)
    try:
        raw = json.loads(read_file(place))
        if (raw["format"], raw["version"]) != (MANIFEST_FORMAT, MANIFEST_VERSION):
            raise DataError(f"{place}: format {raw['format']!r} version {raw['version']!r} is not known here")
        index = _checked_name(raw.get("index", INDEX_NAME))
        return DatasetManifest(
            shards=tuple(
                ShardInfo(url=join(folder, row.pop("name")), index=folder, index_name=index, **row)
                for row in raw["shards"]
            ),
            classes=tuple(raw["classes"]),
            kind=raw["kind"],
            class_counts=tuple(raw["class_counts"]),
            targets=tuple((float(mean), float(deviation)) for mean, deviation in raw.get("targets", ())),
            source=raw["source"],
            copies=tuple(raw.get("copies", ())),
        )
    except FileNotFoundError:
        raise DataError(f"{place}: the shards have no manifest (sample counts); {HOW_TO_MAKE}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{place}: not a readable manifest ({error!r}); {HOW_TO_MAKE}") from error


def _checked_name(name: str) -> str:
    if not _INDEX_NAME.fullmatch(name):
        raise ValueError(f"index {name!r}")
    return name


class ConflictError(DataError):
    """Somebody else wrote the manifest in the meantime; theirs was left as it is."""


def manifest_version(folder: str | Path) -> str:
    """Return what `save_manifest` must find again: asked for before what a new manifest depends on is read."""
    return tag_of(join(str(folder), MANIFEST_NAME))


def save_manifest(
    folder: str | Path, manifest: DatasetManifest, rows: Sequence[np.ndarray] | None = None, *, version: str
) -> None:
    """Write the index (unless it stays as it is), then the manifest: what has a manifest is whole.

    An index that is there stays there: who has read the manifest before still reads the one that it names.

    Args:
        folder: that takes both.
        manifest: of the shards.
        rows: of the index, shard by shard; None: the index stays.
        version: of the manifest that this one takes the place of.

    Raises:
        ConflictError: the folder's manifest is not the one of this `manifest_version` any more.
    """
    folder = str(folder)
    if rows is not None:
        # As np.save writes them joined, which would take their memory twice more.
        parts = [np.ascontiguousarray(part).view(np.uint8).data for part in rows if len(part)]
        write_file(join(folder, manifest.shards[0].index_name), _index_head(rows), *parts)
    put_manifest(folder, _manifest_json(manifest, folder).encode(), version=version)


def _index_head(rows: Sequence[np.ndarray]) -> bytes:
    stream = io.BytesIO()
    head = {
        "descr": np.lib.format.dtype_to_descr(rows[0].dtype),
        "fortran_order": False,
        "shape": (sum(map(len, rows)),),
    }
    np.lib.format.write_array_header_1_0(stream, head)
    return stream.getvalue()


def put_manifest(folder: str | Path, data: bytes, *, version: str) -> None:
    """Write a manifest's bytes; see `save_manifest`."""
    place = join(str(folder), MANIFEST_NAME)
    if not replace_file(place, data, version):
        raise ConflictError(
            f"{place}: another command wrote it while this one was at work; it was left as it is: run this again"
        )


def wids_json(manifest: DatasetManifest, *, name: str) -> str:
    """Return the manifest in the JSON form that wids reads: URLs and counts of the shards."""
    shards = [{"url": shard.url, "nsamples": shard.samples, "filesize": shard.num_bytes} for shard in manifest.shards]
    return json.dumps(
        {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards}, indent=1
    )


def _manifest_json(manifest: DatasetManifest, folder: str) -> str:
    """Return the manifest as JSON text, one shard a line."""
    head = {
        "format": MANIFEST_FORMAT,
        "version": MANIFEST_VERSION,
        "kind": manifest.kind,
        "source": manifest.source,
        "classes": list(manifest.classes),
        "class_counts": list(manifest.class_counts),
        **({"targets": manifest.targets} if manifest.targets else {}),
        "copies": list(manifest.copies),
        "index": manifest.shards[0].index_name,
    }
    lines = [f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in head.items()]
    rows = [json.dumps(_row(shard, folder)) for shard in manifest.shards]
    return "{" + ",\n".join(lines) + ',\n"shards": [\n' + ",\n".join(rows) + "\n]}\n"


def _row(shard: ShardInfo, folder: str) -> dict[str, Any]:
    """Return what is written of a shard: its name only if it is in the manifest's folder, which may then be moved."""
    row = asdict(shard)
    url = row.pop("url")
    beside = _full(folder_of(url)) == _full(folder.rstrip("/"))
    del row["index"], row["index_name"], row["weight"]
    kept = {name: value for name, value in row.items() if _OPTIONAL.get(name) != value}
    return {"name": name_of(url) if beside else url, **kept}


def _full(folder: str) -> str:
    """Return a folder as an absolute path or a URL."""
    return folder if is_remote(folder) else str(Path(folder or "/").absolute())  # of a file in / it is empty
