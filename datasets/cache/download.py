"""Downloads a shard from S3, or unpacks a compressed one, into a file on this node."""

from __future__ import annotations

import gzip
import os
import shutil
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from datasets.errors import DataError
from datasets.files import s3
from datasets.files.s3 import RemoteFile
from datasets.files.urls import open_shard
from datasets.shards.manifest import ShardInfo

_CHUNK_BYTES = 8 << 20


PART = ".part"
"""Ends the name of a file that is being filled."""
GROWTH_S = 300.0
"""A download that has written nothing for so long hangs: 8 MiB at 28 kB/s."""


def is_downloading(folder: Path) -> bool:
    """Say whether a shard is on its way into a cache's folder: whoever waits for it does not hang."""
    grown_s = []
    for part in folder.glob(f"*{PART}"):
        with suppress(FileNotFoundError):
            grown_s.append(part.stat().st_mtime)
    return any(time.time() - second < GROWTH_S for second in grown_s)


def download(shard: ShardInfo, file: BinaryIO) -> None:
    """Write the shard into the file, unpacked, and down to the disk: what is renamed is whole, whatever happens."""
    source = RemoteFile(shard.url, shard.num_bytes, shard.etag)
    if shard.packed:
        file.truncate(0)
        with open_shard(source, block_bytes=_CHUNK_BYTES) as packed, gzip.open(packed) as stream:
            try:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                raise DataError(f"{shard.url}: damaged compressed shard ({error}); write it again") from error
    else:
        for start in range(0, shard.num_bytes, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, shard.num_bytes - start)
            data = s3.read(shard.url, start=start, length=length, etag=shard.etag)
            os.pwrite(file.fileno(), data, start)
    file.flush()
    os.fdatasync(file.fileno())
