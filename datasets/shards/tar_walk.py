"""Walks the headers of a tar and accounts for every byte: what follows the last member must be zeros.

Python's `tarfile` takes a header that it can't read for the end of the archive, so a flipped byte, a zeroed sector or a
second tar behind the first one would lose all samples from there on without a word. Only the parsing of one header
is left to it.
"""

from __future__ import annotations

import gzip
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
_LONGEST_NAME = 1 << 16
_LONGEST_PAX = 1 << 20
_READ_BYTES = 1 << 20
_MOST_ZEROS = 2 * BLOCK + tarfile.RECORDSIZE
"""End marker and padding, as tar programs write them."""
_LARGEST = 1 << 60
_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
_FILE_TYPE, _SPACE = ord(tarfile.REGTYPE), ord(" ")
FILE, SPARSE = "file", "sparse file"
_KINDS = {
    **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE), FILE),
    tarfile.GNUTYPE_SPARSE: SPARSE,
    tarfile.DIRTYPE: "directory",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    **dict.fromkeys((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE), "device"),
}
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_WITHOUT_DATA = ("directory", "hard link", "symbolic link", "device")

_CUT = "it may have been cut off after its last member"


class TarError(ValueError):
    """The file is no tar from some byte on."""


class Member(NamedTuple):
    """One member of a tar."""

    name: str
    kind: str
    """`file`, `sparse file`, `directory`, `hard link`, `symbolic link`, `device` or `member of unknown type`"""
    offset: int
    """First byte of its data."""
    size: int
    """Bytes that it has in the tar."""


class _Header(NamedTuple):
    """What is needed of a header."""

    type: bytes
    name: str
    size: int


class _Extended(NamedTuple):
    """What extended headers say of the member that follows them."""

    types: tuple[bytes, ...]
    name: str
    """empty: the name is in its own header"""
    sparse: bool
    size: int
    """-1: the size is in its own header"""


_NONE = _Extended((), "", False, -1)


class TarWalk:
    """Iterates over the members of a tar, in order; once.

    Args:
        stream: of the tar, unpacked; seekable.

    Raises:
        TarError: (while iterating) something that is neither a member nor zeros; names the byte.
    """

    def __init__(self, stream: BinaryIO | gzip.GzipFile) -> None:
        self._stream, self._known, self._last = stream, 0, ""
        self.warning = ""
        """After the last member: what is odd about the end of the file, if anything."""

    def __iter__(self) -> Iterator[Member]:
        position, extended = 0, _NONE
        while block := self._block(position):
            header = self._parsed(block, position)
            if header is None:
                break
            offset = position + BLOCK
            if header.type in _EXTENDED:
                extended, size = self._extended(extended, header, offset), header.size
            else:
                if header.type == tarfile.GNUTYPE_SPARSE:
                    offset = self._after_sparse_map(block, offset)
                member = _member(header, extended, offset)
                self._last, size, extended = member.name, member.size, _NONE
                yield member
            position = offset + -(-size // BLOCK) * BLOCK
        if extended is not _NONE:
            raise TarError(f"the member that an extended header describes is not there, at byte {position}")
        if not block:
            self.warning = f"it has no end marker: {_CUT}" if position else "it is empty: no byte in it"

    def read(self, member: Member) -> bytes:
        """Return a member's data, while iterating; fewer bytes than its size where the file ends."""
        self._stream.seek(member.offset)
        data = self._stream.read(member.size)
        self._known = max(self._known, member.offset + len(data))
        return data

    def _block(self, position: int) -> bytes:
        """Return the bytes of a header; none at the end of the file."""
        # With the byte before it: data that end before their size are cut off.
        before = int(position > self._known)
        self._stream.seek(position - before)
        data = self._stream.read(BLOCK + before)
        if before and not data:
            raise TarError(f"it ends within member {self._last!r}, before byte {position}")
        self._known = position - before + len(data)
        return data[before:]

    def _parsed(self, block: bytes, position: int) -> _Header | None:
        """Return a header; None where only zeros follow."""
        if (plain := _plain_header(block)) is not None:
            return plain
        if not block.strip(b"\0"):
            self._check_end(position, block)
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._no_header(block, position, str(error)) from None
        if not 0 <= header.size < _LARGEST:
            raise TarError(f"the member at byte {position} has size {header.size}")
        return _Header(header.type, header.name, header.size)

    def _no_header(self, block: bytes, position: int, why: str) -> TarError:
        kind = next((kind for magic, kind in _COMPRESSED.items() if block.startswith(magic)), "")
        if kind and not position:
            cure = "name it .tar.gz" if kind == "gzip" else "unpack it"
            return TarError(f"it is {kind}-compressed; {cure}")
        after = f" after member {self._last!r}" if self._last else ""
        return TarError(f"no tar header at byte {position}{after}: {why}")

    def _check_end(self, position: int, block: bytes) -> None:
        """Check that zeros are all that is left from `position`, where `block` was read, to the end of the file."""
        at, piece = position, block
        while piece:
            if rest := piece.lstrip(b"\0"):
                raise self._second_part(position, at + len(piece) - len(rest))
            at += len(piece)
            self._stream.seek(at)
            piece = self._stream.read(_READ_BYTES)
        if at - position < 2 * BLOCK:
            self.warning = f"its end marker is cut: {_CUT}"
        elif at - position > _MOST_ZEROS:
            self.warning = f"{at - position} zero bytes follow its last member: they may have been members"

    def _second_part(self, end: int, position: int) -> TarError:
        start = end + (position - end) // BLOCK * BLOCK
        self._stream.seek(start)
        try:
            tarfile.TarInfo.frombuf(self._stream.read(BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return TarError(f"after zeros from byte {end} on there are other bytes from byte {position} on")
        return TarError(
            f"after zeros from byte {end} on a member follows at byte {start}: the zeros overwrote members, or tars "
            "were joined by `cat`, of which WebDataset reads only the first (keep them as shards, or join them by "
            "`tar --concatenate`)"
        )

    def _extra(self, offset: int, size: int, most: int) -> bytes:
        """Return the data of a header that describes the next member."""
        if size > most:
            raise TarError(f"the extended header before byte {offset} has {size} bytes")
        data = self.read(Member("", FILE, offset, size))
        if len(data) < size:
            raise TarError(f"it ends within the extended header before byte {offset}")
        return data

    def _extended(self, known: _Extended, header: _Header, offset: int) -> _Extended:
        """Return what is known of the next member after one more header that describes it."""
        if header.type in known.types:  # no tar program writes that: the member of the first one is gone
            raise TarError(f"two extended headers of one member, the second before byte {offset}")
        most = _LONGEST_NAME if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK) else _LONGEST_PAX
        data = self._extra(offset, header.size, most)
        types = (*known.types, header.type)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            return known._replace(types=types, name=_decoded(data.split(b"\0")[0]))
        if header.type == tarfile.GNUTYPE_LONGLINK:
            return known._replace(types=types)
        records = _pax_records(data, offset)
        if header.type == tarfile.XGLTYPE:  # of the whole archive: nothing that matters here
            return known
        name = records.get("GNU.sparse.name", records.get("path", known.name))
        sparse = any(key.startswith("GNU.sparse.") for key in records)
        return _Extended(types, name, sparse, _pax_size(records, offset))

    def _after_sparse_map(self, block: bytes, offset: int) -> int:
        """Return where the data of an old GNU sparse member begin: after the blocks that continue with its map."""
        more = block[482]
        while more:
            data = self._block(offset)
            if len(data) < BLOCK:
                raise TarError(f"it ends within the header of a sparse member, at byte {offset}")
            more, offset = data[504], offset + BLOCK
        return offset


def _plain_header(block: bytes) -> _Header | None:
    """Return the header of a file as nearly all are, in a third of the time that `tarfile` takes; None: ask that.

    Its type is `0`, its size octal digits, and its checksum right.
    """
    size, end, check = block[124:135], block[135:136], block[148:156]
    digits = check.strip(b"\0 ")
    if len(block) != BLOCK or block[156] != _FILE_TYPE or end not in (b"\0", b" "):
        return None
    if not (size.isdigit() and digits.isdigit()):
        return None
    try:
        if sum(block) - sum(check) + 8 * _SPACE != int(digits, 8):
            return None
        length = int(size, 8)
    except ValueError:  # an 8 or a 9
        return None
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    return _Header(tarfile.REGTYPE, _decoded(prefix + b"/" + name if prefix else name), length)


def _member(header: _Header, extended: _Extended, offset: int) -> Member:
    kind = SPARSE if extended.sparse else _KINDS.get(header.type, "member of unknown type")
    size = header.size if extended.size < 0 else extended.size
    return Member(extended.name or header.name, kind, offset, 0 if kind in _WITHOUT_DATA else size)


def _pax_records(data: bytes, offset: int) -> dict[str, str]:
    records, at = {}, 0
    while at < len(data) and data[at]:
        match = _PAX_RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise TarError(f"the extended header at byte {offset} is not a list of PAX records")
        records[_decoded(match[2])] = _decoded(data[match.end() : end - 1])
        at = end
    return records


def _pax_size(records: dict[str, str], offset: int) -> int:
    size = records.get("size", "-1")
    if size != "-1" and not (size.isascii() and size.isdigit() and len(size) <= 18):
        raise TarError(f"the extended header at byte {offset} says size {size[:20]!r}")
    return int(size)


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
