"""EXIF orientation, wherever it is in a file."""

from __future__ import annotations

import struct

_ORIENTATION_TAG = 0x0112
_SHORT = 3
_ENTRY_BYTES = 12
_EXIF = b"Exif\0\0"
# Start of scan and end of image: no EXIF comes after them.
_PIXELS = frozenset({0xDA, 0xD9})
# Markers without a length: TEM and the restarts.
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


def orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, in EXIF data; 1 where it says none.

    Stored pixels are shown as they are (1), mirrored left to right (2), turned by 180 degrees (3), mirrored top to
    bottom (4), transposed (5), turned by 90 degrees clockwise (6), transposed along the other diagonal (7), or turned
    anticlockwise (8).
    """
    tiff = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    if first + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for place in range(first + 2, min(first + 2 + count * _ENTRY_BYTES, len(tiff) - _ENTRY_BYTES + 1), _ENTRY_BYTES):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, place)
        if tag == _ORIENTATION_TAG:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1


def jpeg_orientation(data: bytes) -> int:
    """Return the orientation of a JPEG: of the first EXIF segment before its pixels, however late that comes."""
    place, end = 2, len(data) - 4
    while place < end:
        if data[place] != 0xFF:  # a decoder skips what lies between segments
            place = data.find(b"\xff", place)
            if place < 0:
                break
            continue
        kind = data[place + 1]
        if kind in _PIXELS:
            break
        if kind in (0xFF, 0x00):
            place += 1
        elif kind in _BARE:
            place += 2
        else:
            length = data[place + 2] << 8 | data[place + 3]
            if kind == 0xE1 and data.startswith(_EXIF, place + 4):
                return orientation(data[place + 4 : place + 2 + length])
            place += 2 + length
    return 1


def png_orientation(data: bytes) -> int:
    """Return the orientation of a PNG: of its eXIf chunk, which may lie before or after the pixels."""
    place = 8
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] == b"eXIf":
            return orientation(data[place + 8 : place + 8 + length])
        place += 12 + length
    return 1
