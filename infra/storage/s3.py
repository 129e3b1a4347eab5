"""Storage in S3, or in a server that speaks its protocol."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from botocore import exceptions as aws

from infra.storage import s3_client
from infra.storage.base import Data, MissingKeyError, Storage, StorageError, checked_key, probe_key
from infra.storage.buffers import Joined
from infra.storage.failures import FailureClass
from infra.storage.local import LocalStorage
from infra.storage.s3_client import PART_BYTES
from infra.storage.s3_errors import MISSING, REFUSED, S3_ERRORS, class_of, code_of, explained

Result = TypeVar("Result")
log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""How long a call is retried while the server is down or busy."""
CHECK_PATIENCE_S = 5.0
"""The same for `check_writable`, behind which a user waits."""
SAY_AFTER_S = 5.0
"""A call that was tried for so long says so in the log, once."""


class RemoteObject(NamedTuple):
    """An object, as a list shows it."""

    key: str
    size: int
    """in bytes"""
    etag: str
    """as the server writes it, in quotes"""


class S3Storage(Storage):
    """A prefix of a bucket. Calls are tried again, with growing pauses, until `patience_s` is over.

    Uploads carry checksums, which the server verifies, and go in parts above `PART_BYTES`. All storages of a process
    share its connections; a forked process makes its own.
    """

    def __init__(self, bucket: str, prefix: str = "", *, patience_s: float = PATIENCE_S) -> None:
        super().__init__(f"s3://{bucket}/{prefix}".rstrip("/"))
        self.bucket, self.prefix, self.patience_s = bucket, prefix, patience_s

    def __reduce__(self) -> tuple[object, ...]:
        return S3Storage, (self.bucket, self.prefix)

    def sub(self, prefix: str) -> S3Storage:
        """Return the storage of a longer prefix."""
        joined = f"{self.prefix}/{checked_key(prefix)}".lstrip("/")
        return S3Storage(self.bucket, joined, patience_s=self.patience_s)

    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        """Return an object's bytes and ETag."""
        return self.read_range(key)

    def read_range(self, key: str, start: int = 0, length: int | None = None) -> tuple[bytes, str]:
        """Return an object's bytes [start, start + length), or all of them, and its ETag.

        Raises:
            MissingKeyError: there is no such object.
            ChangedObjectError: it ends before `start`.
        """
        span = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}

        def get() -> tuple[bytes, str]:
            answer = s3_client.client().get_object(**self._at(key), **span)
            return answer["Body"].read(), answer["ETag"]

        return self._call("read", key, get)

    def write(self, key: str, *data: Data) -> None:
        """Write an object, in parts when it is large."""
        if sum(len(part) for part in data) > PART_BYTES:
            self._call("write", key, lambda: self._upload(Joined(data), key))
        else:
            body = b"".join(data)
            self._call("write", key, lambda: s3_client.client().put_object(Body=body, **self._at(key)))

    def write_if_absent(self, key: str, data: Data) -> bool:
        """Write an object unless there is one; decided by the server (`If-None-Match`)."""
        return self._put_if(key, data, {"IfNoneMatch": "*"}) is not None

    def write_if_match(self, key: str, data: Data, etag: str) -> str | None:
        """Replace an object of this ETag; decided by the server (`If-Match`)."""
        return self._put_if(key, data, {"IfMatch": etag})

    def upload(self, key: str, path: str | Path) -> None:
        """Write a local file as an object, in parts when it is large."""
        if not Path(path).is_file():
            raise StorageError(f"cannot upload {path}: there is no such file")

        def put() -> None:
            with Path(path).open("rb") as file:
                self._upload(file, key)

        self._call("write", key, put)

    def download(self, key: str, path: str | Path) -> None:
        """Write an object into a local file, by a temporary name next to it."""

        def get(temporary: Path) -> None:
            at = self._at(key)
            with temporary.open("wb") as file:
                s3_client.transfers().download(at["Bucket"], at["Key"], file).result()

        target = Path(path).absolute()
        LocalStorage(target.parent).fill(target.name, lambda temporary: self._call("read", key, lambda: get(temporary)))

    def list(self, prefix: str = "") -> dict[str, int]:
        """Return the keys that begin with `prefix`, in order, with their sizes in bytes."""
        found = {item.key: item.size for item in self._listed(prefix)}
        return {key: found[key] for key in sorted(found) if not key.rpartition("/")[2].startswith(".")}

    def list_folder(self, folder: str = "") -> Sequence[RemoteObject]:
        """Return the objects directly in a folder, in the order of their keys; not those of folders in it."""
        return sorted(self._listed(f"{folder}/" if folder else "", Delimiter="/"))

    def _listed(self, prefix: str, **options: str) -> Sequence[RemoteObject]:
        base = f"{self.prefix}/" if self.prefix else ""

        def pages() -> Sequence[RemoteObject]:
            pager = s3_client.client().get_paginator("list_objects_v2")
            return [
                RemoteObject(item["Key"].removeprefix(base), item["Size"], item["ETag"])
                for page in pager.paginate(Bucket=self.bucket, Prefix=base + prefix, **options)
                for item in page.get("Contents", ())
            ]

        return self._call("list", prefix.rstrip("/"), pages)

    def exists(self, key: str) -> bool:
        """Say whether there is an object of this key."""
        try:
            self._call("look up", key, lambda: s3_client.client().head_object(**self._at(key)))
        except MissingKeyError:
            return False
        return True

    def delete(self, *keys: str) -> None:
        """Remove objects, up to 1,000 in a request."""
        for start in range(0, len(keys), 1000):
            self._delete_chunk(keys[start : start + 1000])

    def drop_unfinished(self, older_than_s: float) -> int:
        """Abort multipart uploads that were begun so long ago; their parts are kept, and paid for, until then."""
        hasty = S3Storage(self.bucket, self.prefix, patience_s=CHECK_PATIENCE_S)
        found = hasty._unfinished(older_than_s)
        for key, upload in found:
            hasty._call("abort an upload to", key, partial(hasty._abort, key, upload))
        return len(found)

    def _unfinished(self, older_than_s: float) -> Sequence[tuple[str, str]]:
        """Return key and id of the uploads that are so old, by the server's clock."""
        base = f"{self.prefix}/" if self.prefix else ""

        def pages() -> Sequence[tuple[str, str]]:
            pager = s3_client.client().get_paginator("list_multipart_uploads")
            return [
                (item["Key"].removeprefix(base), item["UploadId"])
                for page in pager.paginate(Bucket=self.bucket, Prefix=base)
                for item in page.get("Uploads", ())
                if _date_of(page) - item["Initiated"] > timedelta(seconds=older_than_s)
            ]

        return self._call("list the unfinished uploads to", "", pages)

    def _abort(self, key: str, upload: str) -> None:
        try:
            s3_client.client().abort_multipart_upload(UploadId=upload, **self._at(key))
        except aws.ClientError as error:
            if code_of(error) != "NoSuchUpload":  # else it has ended meanwhile
                raise

    def check_writable(self) -> None:
        """Write, read and remove a small object within seconds, or raise `StorageError`."""
        hasty = S3Storage(self.bucket, self.prefix, patience_s=CHECK_PATIENCE_S)
        probe = probe_key()
        hasty.write(probe, b"probe")
        hasty.read(probe)
        hasty.delete(probe)

    def _delete_chunk(self, keys: Sequence[str]) -> None:
        names = [{"Key": self._at(key)["Key"]} for key in keys]
        request = {"Bucket": self.bucket, "Delete": {"Objects": names, "Quiet": True}}

        def delete() -> None:
            answer = s3_client.client().delete_objects(**request)
            for failed in answer.get("Errors", ()):  # each key has an answer of its own
                raise aws.ClientError({"Error": failed}, "DeleteObjects")

        self._call("delete", keys[0], delete)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{checked_key(key)}".lstrip("/")}

    def _upload(self, file: Any, key: str) -> None:
        at = self._at(key)
        s3_client.transfers().upload(file, at["Bucket"], at["Key"]).result()

    def _put_if(self, key: str, data: Data, condition: dict[str, str]) -> str | None:
        """Write under a condition; return the new tag, or None when the condition did not hold."""
        tries = 0

        def put() -> str | None:
            nonlocal tries
            tries += 1
            try:
                tag: str = s3_client.client().put_object(Body=_plain(data), **self._at(key), **condition)["ETag"]
            except aws.ClientError as error:
                if code_of(error) not in REFUSED | MISSING:
                    raise
                # A lost answer may hide that an earlier try of ours was the one that won.
                return self._tag_if_equal(key, data) if tries > 1 else None
            return tag

        return self._call("write", key, put)

    def _tag_if_equal(self, key: str, data: Data) -> str | None:
        found, tag = self.read_with_etag(key)
        return tag if found == data else None

    def _call(self, action: str, key: str, function: Callable[[], Result]) -> Result:
        """Run `function`, again while the fault may pass and `patience_s` lasts; explain what does not pass."""
        began, pause, said = time.monotonic(), 0.1, False
        while True:
            try:
                return function()
            except S3_ERRORS as error:
                waited = time.monotonic() - began
                failure = explained(action, self.where(key), error, s3_client.endpoint())
                if class_of(error) is not FailureClass.TRANSIENT or waited + pause > self.patience_s:
                    # `from None`: a botocore message can hold the endpoint's user and password.
                    raise failure from None
                if waited > SAY_AFTER_S and not said:
                    said = True
                    log.warning("%s; retrying for up to %.0f s", failure, self.patience_s)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 5.0)


def _date_of(answer: dict[str, Any]) -> datetime:
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


def _plain(data: Data) -> bytes | bytearray:
    return bytes(data) if isinstance(data, memoryview) else data
