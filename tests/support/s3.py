"""Shards into an S3 server."""

from __future__ import annotations

from pathlib import Path

from datasets.files import s3


def put(folder: Path, uri: str, *, manifest: bool = False) -> str:
    """Upload a folder's shards, and return their prefix."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tar" or manifest:
            s3.upload(f"{uri}/{path.name}", path)
    return uri
