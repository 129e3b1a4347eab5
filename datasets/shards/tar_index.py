"""The index of a tar: where its samples are, so that one `pread` or ranged request fetches an image."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.errors import DataError
from datasets.files.s3 import RemoteFile
from datasets.files.urls import is_packed, name_of, open_shard
from datasets.shards.label_text import (
    LARGEST_BYTES,
    parse_json_label,
    parse_labels,
    parse_name,
    parse_number,
    parse_targets,
)
from datasets.shards.tar_walk import FILE, SPARSE, Member, TarError, TarWalk
from datasets.transforms.formats import ARRAYS, IMAGE_EXTENSIONS

INDEX_NAME = "index.npy"
"""What an index was called when it was written over by the next one; it is still read."""
INDEX_DTYPE = np.dtype([("offset", "<i8"), ("size", "<i4"), ("label", "<i4")])
"""One row a sample: first byte of the image in the tar, bytes of the image, label (-1 where there is none)."""
MASK_DTYPE = np.dtype([*INDEX_DTYPE.descr, ("mask_offset", "<i8"), ("mask_size", "<i4")])
"""The same with the place of the sample's mask, `.labels` or `.targets` member; mask_offset is 0 where there is none.

Of a multi-label sample `label` is its largest class, -1 where it has none; of one with targets -1; of one with a mask
the class that it is sampled by, -1 where no `.cls` says it."""

MASK_EXTENSION = "mask.png"
LABELS_EXTENSION = "labels"
"""Classes of a multi-label sample: numbers in decimal, ascending, separated by one space; empty for none."""
TARGETS_EXTENSION = "targets"
"""What is to be estimated of a sample: numbers in decimal, separated by one space."""
LABEL_EXTENSIONS = ("cls", "json", "txt", LABELS_EXTENSION, TARGETS_EXTENSION)

_META = re.compile(r"__[^/]*__($|/)")
# WebDataset's own rule: a key ends at the first dot of the file name; dots in folders belong to the key.
_MEMBER = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]+)$")
_NAME_BYTES = 100
HEADER_BYTES = 512
_BLOCK_BYTES = 1 << 20
"""What is read of a shard in S3 at a time. A request takes as long as 1 MB or more of its answer, so images of 100 kB
are read through, ten at a time, in a tenth of the time that a request for each header would take."""
_PACKED_BLOCK_BYTES = 4 << 20
_LARGEST_LABEL_BYTES = 1 << 20
_UNIQUE = "give every sample a key of its own and write its members one after another"

OTHER_EXTENSION = "files of other extensions"
SECOND_IMAGE = "second images of a sample"
PLURALS = {"directory": "directories", "member of unknown type": "members of unknown type"}


class ShardIndex(NamedTuple):
    """What one pass over a shard's headers finds."""

    rows: np.ndarray
    """One row a sample, of `MASK_DTYPE`."""
    names: Sequence[str]
    """Class names, each once, where labels are text (`.txt`, `.json`); empty where they are numbers or missing."""
    keys: np.ndarray
    """Digest of each sample's key, uint64 [samples]: equal keys in several shards are found by it."""
    skipped: Counter[str]
    """Why members belong to no sample, and how many."""
    examples: dict[str, str]
    """One of the members for each reason in `skipped`."""
    warning: str
    """What is odd about the file's end; empty: nothing."""
    several: Counter[int] | None = None
    """Of multi-label samples: class -> samples that have it. None: the shard has no multi-label sample."""
    targets: np.ndarray | None = None
    """Of samples with targets: float64 [samples with targets, targets]. None: the shard has none."""
    named: np.ndarray | None = None
    """Place of each sample's class name in `names`, -1 where its label is no text: int32 [samples]. None: there are no
    names."""


def index_shard(path: str | Path) -> np.ndarray:
    """Index a local shard whose labels are numbers: rows of `MASK_DTYPE`.

    Raises:
        DataError: as `scan_shard`.
    """
    return scan_shard(RemoteFile(str(path), 0, "")).rows


def scan_shard(file: RemoteFile, *, json_field: str = "label") -> ShardIndex:
    """Walk the headers of one tar, group its members into samples and read the labels.

    Members are told apart by their names only and read by their place in the tar: nothing is unpacked, so a name with
    `..`, an absolute name, a link or a device leads nowhere.

    Args:
        file: the shard, local or in S3.
        json_field: of a `.json` member, where the label is: a number or a class name.

    Raises:
        DataError: not a tar up to its end, a sample without an image, two of one key, or a label that can't be used;
            names shard and byte or key.
    """
    rows, named, digests = [], [], []
    names: dict[str, int] = {"": -1}
    several: Counter[int] | None = None
    targets: list[tuple[float, ...]] = []
    members = _Members(file)
    for key, sample in _samples(file, members):
        row, name = _row(file, key, sample, json_field)
        if (labels := _several(file, key, sample)) is not None:
            several = Counter() if several is None else several
            several.update(labels)
        elif (numbers := _targets(file, key, sample)) is not None:
            if targets and len(numbers) != len(targets[0]):
                raise DataError(f"{file.url}: sample {key!r} has {len(numbers)} targets, others have {len(targets[0])}")
            targets.append(numbers)
        rows.append(row)
        named.append(names.setdefault(name, len(names) - 1))
        digests.append(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest())
        members.skip_all(key, sample)
    return ShardIndex(
        np.array(rows, dtype=MASK_DTYPE),
        tuple(names)[1:],
        np.frombuffer(b"".join(digests), dtype="<u8"),
        members.skipped,
        members.examples,
        members.warning,
        several,
        np.array(targets, dtype=np.float64) if targets else None,
        np.array(named, dtype=np.int32) if len(names) > 1 else None,
    )


def image_members(file: RemoteFile, *, json_field: str = "label") -> Iterator[tuple[str, str, int, int, int | str]]:
    """Yield (key, extension, offset, size, label) of the image of each sample, as `scan_shard` would index it.

    The label is a class number, a class name, or -1 where there is none or there are several.

    Raises:
        DataError: as `scan_shard`.
    """
    for key, sample in _samples(file, _Members(file)):
        (offset, size, label, _, _), name = _row(file, key, sample, json_field)
        extension = _image_extension(sample)
        assert extension is not None
        yield key, extension, offset, size, name or (label if _several(file, key, sample) is None else -1)


def rows_digest(rows: np.ndarray) -> str:
    """Return the digest of a shard's rows of the index: places and labels of its samples."""
    return blake2b(rows.tobytes(), digest_size=12).hexdigest()


def index_name(digests: Iterable[str]) -> str:
    """Return the name of the index that holds the rows of these digests: another content is never written over it."""
    return f"index-{blake2b(' '.join(digests).encode(), digest_size=6).hexdigest()}.npy"


def key_at(file: RemoteFile, number: int) -> str:
    """Return the key of a shard's sample by its number in the shard."""
    return next(itertools.islice(_samples(file, _Members(file)), number, None))[0]


def key_of(header: bytes) -> str:
    """Return the key in a member's header, the 512 bytes before its data, for messages; a long one is cut."""
    try:
        name = tarfile.TarInfo.frombuf(header, "utf-8", "replace").name
    except tarfile.HeaderError:
        name = header[:_NAME_BYTES].split(b"\0")[0].decode(errors="replace")
    match = _MEMBER.match(name)
    return match[1] if match else name


class _Part(NamedTuple):
    """One file of a sample."""

    offset: int
    size: int
    content: bytes | None
    """Where it is a label; None where it is too large for one."""


_Sample = dict[str, _Part]
"""extension -> file, in the tar's order"""


class _Members:
    """The files of a shard that may belong to a sample: (key, extension, file); counts all others."""

    def __init__(self, file: RemoteFile) -> None:
        self.file, self.warning = file, ""
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def skip(self, reason: str, name: str) -> None:
        """Count a member that belongs to no sample."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, name)

    def skip_all(self, key: str, sample: _Sample) -> None:
        """Count the files of a sample that nothing is read of."""
        for extension in sample.keys() - {MASK_EXTENSION, *LABEL_EXTENSIONS, _image_extension(sample)}:
            is_image = extension in IMAGE_EXTENSIONS
            self.skip(SECOND_IMAGE if is_image else OTHER_EXTENSION, f"{key}.{extension}")

    def __iter__(self) -> Iterator[tuple[str, str, _Part]]:
        packed = is_packed(self.file.url)
        block_bytes = _PACKED_BLOCK_BYTES if packed else _BLOCK_BYTES
        try:
            with contextlib.ExitStack() as stack:
                stream = stack.enter_context(open_shard(self.file, block_bytes=block_bytes))
                walk = TarWalk(stack.enter_context(gzip.GzipFile(fileobj=stream)) if packed else stream)
                for member in walk:
                    if (found := self._part(walk, member)) is not None:
                        yield found
                self.warning = walk.warning
        except (TarError, gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
            raise DataError(f"{self.file.url}: not a readable tar ({error}); write it again") from error

    def _part(self, walk: TarWalk, member: Member) -> tuple[str, str, _Part] | None:
        match = _MEMBER.match(member.name)
        if reason := _no_sample(member, match is not None):
            self.skip(reason, member.name)
            return None
        assert match is not None
        key, extension = match[1], match[2].lower()
        used = extension == MASK_EXTENSION or extension in IMAGE_EXTENSIONS or extension in LABEL_EXTENSIONS
        if used and (member.kind == SPARSE or member.size > LARGEST_BYTES):
            what = "is stored sparse" if member.kind == SPARSE else f"has {member.size} bytes"
            raise DataError(f"{self.file.url}: member {member.name!r} {what}; write it as a plain file below 2 GiB")
        if extension not in LABEL_EXTENSIONS:
            return key, extension, _Part(member.offset, member.size, b"")
        content = walk.read(member) if member.size <= _LARGEST_LABEL_BYTES else None
        return key, extension, _Part(member.offset, member.size, content)


def _no_sample(member: Member, has_key: bool) -> str:
    """Return why a member belongs to no sample; empty: it does."""
    if member.kind not in (FILE, SPARSE):
        return PLURALS.get(member.kind, f"{member.kind}s")
    if _META.match(member.name):
        return "files of WebDataset's own (__NAME__)"
    if name_of(member.name).startswith("."):
        return "hidden files"
    return "" if has_key else "files without an extension"


def _samples(file: RemoteFile, members: _Members) -> Iterator[tuple[str, _Sample]]:
    """Yield (key, files) in the tar's order; the files of a sample lie next to each other.

    Raises:
        DataError: a key comes again; names it.
    """
    current, sample, seen = "", _Sample(), set[str]()
    for key, extension, part in members:
        if key != current or not sample:
            if sample:
                yield current, sample
            if key in seen:
                raise DataError(f"{file.url}: sample {key!r} occurs twice, or its members are not adjacent; {_UNIQUE}")
            current, sample = key, {}
            seen.add(key)
        if extension in sample:
            raise DataError(f"{file.url}: '{key}.{extension}' occurs twice; {_UNIQUE}")
        sample[extension] = part
    if sample:
        yield current, sample


def _row(file: RemoteFile, key: str, sample: _Sample, json_field: str) -> tuple[tuple[int, int, int, int, int], str]:
    """Return a sample's row of the index, and its class name where that is its label."""
    extension = _image_extension(sample)
    if extension is None:
        there = ", ".join(sorted(sample))
        raise DataError(
            f"{file.url}: sample {key!r} has no image, only {there}; a key ends at the first dot of the file's name"
        )
    image = sample[extension]
    if image.size > LARGEST_BYTES:
        raise DataError(f"{file.url}: the image of sample {key!r} has {image.size} bytes; it must be below 2 GiB")
    label: int | str
    if (labels := _several(file, key, sample)) is None and _targets(file, key, sample) is not None:
        label, truth = -1, sample[TARGETS_EXTENSION]
    elif labels is None:
        label = _label(sample, json_field, f"{file.url}: the label of sample {key!r} is")
        truth = sample.get(MASK_EXTENSION, _Part(0, 0, b""))
    else:
        label, truth = max(labels, default=-1), sample[LABELS_EXTENSION]
    number, name = (label, "") if isinstance(label, int) else (-1, label)
    return (image.offset, image.size, number, truth.offset, truth.size), name


def _image_extension(sample: _Sample) -> str | None:
    """Return which file of a sample is its image: the first one, or an array where there is no other."""
    images = (extension for extension in sample if extension in IMAGE_EXTENSIONS)
    return next(images, ARRAYS if ARRAYS in sample else None)


def _several(file: RemoteFile, key: str, sample: _Sample) -> tuple[int, ...] | None:
    """Return the classes of a multi-label sample; None: it is none. A `.cls` goes before `.labels`."""
    if LABELS_EXTENSION not in sample or "cls" in sample:
        return None
    message = f"{file.url}: the labels of sample {key!r} are"
    return parse_labels(_content(sample[LABELS_EXTENSION], message), message)


def _targets(file: RemoteFile, key: str, sample: _Sample) -> tuple[float, ...] | None:
    """Return the targets of a sample that has these and no label; None: it is none."""
    if TARGETS_EXTENSION not in sample or sample.keys() & {"cls", "json", "txt", LABELS_EXTENSION, MASK_EXTENSION}:
        return None
    message = f"{file.url}: the targets of sample {key!r} are"
    return parse_targets(_content(sample[TARGETS_EXTENSION], message), message)


def _label(sample: _Sample, json_field: str, message: str) -> int | str:
    """Return the label: a class number, a class name, or -1; `.cls` goes before `.json` before `.txt`."""
    if "cls" in sample:
        return parse_number(_content(sample["cls"], message), message)
    if "json" in sample:
        value = parse_json_label(_content(sample["json"], message), json_field, message)
        if value is not None:
            return value
    if "txt" in sample:
        return parse_name(_content(sample["txt"], message), message) or -1
    return -1


def _content(part: _Part, message: str) -> bytes:
    if part.content is None:
        raise DataError(f"{message} in a file of {part.size} bytes; at most {_LARGEST_LABEL_BYTES} are read")
    return part.content
