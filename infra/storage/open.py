"""Objects in S3 or in a local folder, by URI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from infra.storage.base import Storage, StorageError
from infra.storage.local import LocalStorage

if TYPE_CHECKING:
    from infra.storage.s3 import S3Storage


def open_storage(uri: str | Path, *, what: str = "storage") -> Storage:
    """Open `s3://bucket/prefix`, `file:///folder` or a plain folder; nothing is made or asked of a server yet.

    S3 takes its keys, region and endpoint from where boto3 does: the environment (`AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`), the AWS profile, or the machine's role. Raises `StorageError`, which
    begins with `what`, such as a flag.
    """
    text = str(uri)
    scheme, separator, _ = text.partition("://")
    if not separator:
        if not text:
            raise StorageError(f"{what}: the URI is empty; give a folder or s3://bucket/prefix")
        return LocalStorage(text)
    if scheme == "file":
        return LocalStorage(unquote(urlsplit(text).path))
    if scheme == "s3":
        return _open_s3(text, what)
    raise StorageError(f"{what}: {scheme}:// is not supported; give a folder, file:///folder or s3://bucket/prefix")


def _open_s3(uri: str, what: str) -> S3Storage:
    from infra.storage.s3 import S3Storage

    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise StorageError(f"{what}: an S3 URI holds no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if not parts.netloc or parts.query or parts.fragment:
        raise StorageError(f"{what}: {uri!r} is not an S3 URI; expected s3://bucket/prefix")
    return S3Storage(parts.netloc, parts.path.strip("/"))
