"""Prepared shards into S3: uploaded from a folder of this machine, what makes them a dataset last."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from datasets.files import s3
from datasets.shards.manifest import MANIFEST_NAME


def staging_folder(url: str) -> Path:
    """Return the local folder in which shards for a prefix in S3 are written first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "crescendo" / "prepare" / hashlib.sha256(url.encode()).hexdigest()[:16]


def upload_folder(folder: Path, url: str, *, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Upload all files below a folder, manifests after everything else.

    Raises:
        DataError: S3 can't be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    # A folder's manifest names its copies, so it comes after theirs.
    files.sort(key=lambda path: (path.name == MANIFEST_NAME, -len(path.parts)))
    for done, path in enumerate(files, start=1):
        target = f"{url.rstrip('/')}/{path.relative_to(folder)}"
        s3.upload(target, path)
        progress(done, len(files))
