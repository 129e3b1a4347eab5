"""Uploads prepared shards to S3; the manifest comes last, so that an incomplete upload is not a dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from datasets.files import s3
from datasets.files.urls import folder_of
from datasets.shards.manifest import MANIFEST_NAME, manifest_version, put_manifest


def staging_folder(url: str) -> Path:
    """Return the local folder in which shards for a prefix in S3 are written first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "crescendo" / "prepare" / hashlib.sha256(url.encode()).hexdigest()[:16]


def upload_folder(folder: Path, url: str, *, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Upload all files below a folder, manifests after everything else.

    Raises:
        DataError: S3 can't be written, or somebody else wrote a manifest there meanwhile.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    # A folder's manifest names its copies, so it comes after theirs.
    files.sort(key=lambda path: (path.name == MANIFEST_NAME, -len(path.parts)))
    targets = {path: f"{url.rstrip('/')}/{path.relative_to(folder)}" for path in files}
    versions = {
        path: manifest_version(folder_of(target)) for path, target in targets.items() if path.name == MANIFEST_NAME
    }
    for done, (path, target) in enumerate(targets.items(), start=1):
        if path in versions:
            put_manifest(folder_of(target), path.read_bytes(), version=versions[path])
        else:
            s3.upload(target, path)
        progress(done, len(files))
