"""Tars as others may write them, whole and damaged."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Iterable, Mapping

import webdataset as wds

Formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def tar_bytes(members: Iterable[tuple[str, bytes]], *, format: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a tar of plain files, in this order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def sample_members(count: int, *, folder: str = "", seed: int = 0) -> list[tuple[str, bytes]]:
    """Return (name, data) of `count` samples with an image (of random bytes) and a label of two classes each."""
    draws, members = random.Random(seed), list[tuple[str, bytes]]()
    for number in range(count):
        key = f"{folder}{number:04d}"
        data = draws.randbytes(draws.randrange(1, 1500))
        members += [(f"{key}.jpg", data), (f"{key}.cls", str(number % 2).encode())]
    return members


def webdataset_keys(data: bytes) -> list[str]:
    """Return the keys of the samples with an image that `webdataset` itself finds in a tar."""
    source = [{"url": "x", "stream": io.BytesIO(data)}]
    samples: Iterable[Mapping[str, object]] = wds.tariterators.group_by_keys(wds.tariterators.tar_file_expander(source))
    return [str(sample["__key__"]) for sample in samples if "jpg" in sample]


def mutated(data: bytes, draws: random.Random) -> tuple[str, bytes]:
    """Return what was done to a tar, and what became of it; whole members are never taken out.

    Those that leave its members as they were in one piece, such as bytes of its end marker, are among them.
    """
    changed, how = bytearray(data), draws.choice(MUTATIONS)
    at = draws.randrange(len(data))
    block = at // 512 * 512
    if how == "flip a bit":
        changed[at] ^= 1 << draws.randrange(8)
    elif how == "flip bytes":
        for _ in range(draws.randrange(2, 20)):
            changed[draws.randrange(len(data))] = draws.randrange(256)
    elif how == "zero sectors":
        last = len(data.rstrip(b"\0")) - 1
        start = min(block, last // 512 * 512)
        stop = min(start + 512 * draws.randrange(1, 9), last)
        changed[start:stop] = bytes(stop - start)
    elif how == "cut":
        del changed[at:]
    elif how == "cut at a block":
        del changed[block:]
    elif how == "take bytes out":
        del changed[at : at + draws.randrange(1, 400)]
    elif how == "put bytes in":
        changed[at:at] = draws.randbytes(draws.randrange(1, 600))
    elif how == "repeat blocks":
        changed[block:block] = data[block : block + 512 * draws.randrange(1, 9)]
    elif how == "append garbage":
        changed += draws.randbytes(draws.randrange(1, 2000))
    elif how == "append a tar":
        changed += tar_bytes(sample_members(draws.randrange(1, 4), folder="more/"))
    elif how == "overwrite blocks":
        size = 512 * draws.randrange(1, 5)
        other = draws.randrange(len(data)) // 512 * 512
        changed[block : block + size] = data[other : other + size][: len(data) - block]
    return how, bytes(changed)


MUTATIONS = (
    "flip a bit",
    "flip bytes",
    "zero sectors",
    "cut",
    "cut at a block",
    "take bytes out",
    "put bytes in",
    "repeat blocks",
    "append garbage",
    "append a tar",
    "overwrite blocks",
)


def packed(data: bytes) -> bytes:
    """Return the tar compressed."""
    return gzip.compress(data, 1, mtime=0)
