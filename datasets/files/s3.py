"""Shards and manifests in S3: reads by range, lists, writes; tried again while the server is away, slow or broken."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from datasets.errors import DataAwayError, DataError

Result = TypeVar("Result")
log = logging.getLogger(__name__)

PATIENCE_S = 900.0
"""For how long reading samples goes on trying while the server is down or busy."""
CHECK_PATIENCE_S = 30.0
"""The same for what a user waits for: lists and manifests."""
_PART_BYTES = 16 << 20
_SAY_AFTER_S = 5.0
_MISSING = {"NoSuchKey", "404", "NotFound"}
_NOT_WRITTEN = "access is denied; the credentials need s3:PutObject"
_BUSY = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException"}
_CAUSES = {
    "NoSuchBucket": "the bucket does not exist",
    "AccessDenied": "access is denied; the credentials need s3:GetObject and s3:ListBucket",
    "403": "access is denied, or the credentials are wrong; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the server does not know the access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the server refuses the secret key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; get new credentials",
    "InvalidRange": "it is shorter than its index says: changed since; run `python -m jobs.index` again",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION to it",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION to it",
}


class RemoteFile(NamedTuple):
    """One object, as a list shows it."""

    url: str
    size: int
    """in bytes"""
    etag: str
    """without quotes"""


class MissingError(DataError):
    """There is no such object."""


def is_remote(url: str) -> bool:
    """Say whether a URL is an object or prefix in S3."""
    return url.startswith("s3://")


def read(
    url: str, *, start: int = 0, length: int | None = None, etag: str = "", patience_s: float = PATIENCE_S
) -> bytes:
    """Return an object's bytes [start, start + length), or all of them.

    Raises:
        DataError: missing, not allowed, not reachable for `patience_s`, or of another ETag than `etag`.
    """
    request = _at(url)
    if length is not None:
        if length == 0:
            return b""
        request["Range"] = f"bytes={start}-{start + length - 1}"

    def get() -> bytes:
        answer = _client().get_object(**request)
        if etag and _plain_tag(answer["ETag"]) != etag:
            raise changed(url, _plain_tag(answer["ETag"]), etag)
        data: bytes = answer["Body"].read()
        return data

    return _call("read", url, get, patience_s)


def changed(url: str, found: str, known: str) -> DataError:
    """Return the error for an object that is not the one that was indexed."""
    return DataError(
        f"{url}: its ETag is {found}, but it was indexed with {known}: changed since; run `python -m jobs.index` again"
    )


def list_folder(url: str, *, patience_s: float = CHECK_PATIENCE_S) -> list[RemoteFile]:
    """Return the objects directly under a prefix, in the order of their names."""
    bucket, key = _split(url.rstrip("/") + "/")

    def pages() -> list[RemoteFile]:
        pager = _client().get_paginator("list_objects_v2")
        return [
            RemoteFile(f"s3://{bucket}/{item['Key']}", item["Size"], _plain_tag(item["ETag"]))
            for page in pager.paginate(Bucket=bucket, Prefix=key.lstrip("/"), Delimiter="/")
            for item in page.get("Contents", ())
        ]

    return sorted(_call("list", url, pages, patience_s))


def write(url: str, data: bytes, *, patience_s: float = CHECK_PATIENCE_S) -> None:
    """Write an object."""
    _call("write", url, lambda: _client().put_object(Body=data, **_at(url)), patience_s)


def upload(url: str, path: Path, *, patience_s: float = PATIENCE_S) -> None:
    """Write a local file as an object, in parts when it is large."""
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4)
    where = _at(url)

    def put() -> None:
        with path.open("rb") as file:  # `upload_file` would hide what went wrong in an error of its own
            _client().upload_fileobj(file, where["Bucket"], where["Key"], Config=parts)

    _call("write", url, put, patience_s)


def delete(url: str, *, patience_s: float = CHECK_PATIENCE_S) -> None:
    """Delete an object; it may be gone already."""
    _call("delete", url, lambda: _client().delete_object(**_at(url)), patience_s)


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise DataError(f"{url}: no bucket in it; write s3://BUCKET/PREFIX")
    return bucket, key


def _at(url: str) -> dict[str, str]:
    bucket, key = _split(url)
    return {"Bucket": bucket, "Key": key}


def _plain_tag(etag: str) -> str:
    return etag.strip('"')


_clients: dict[int, Any] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    """A forked process makes a client and a lock of its own: connections can't be shared, and a lock may be held."""
    global _clients, _lock
    _clients, _lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _client() -> Any:
    """Return this process's client; its endpoint and credentials are those of the environment."""
    with _lock:
        key = hash((os.environ.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_ACCESS_KEY_ID")))
        if key not in _clients:
            _clients[key] = _make_client()
        return _clients[key]


def _make_client() -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 2},
        connect_timeout=5,
        read_timeout=30,
        tcp_keepalive=True,
        max_pool_connections=64,
    )
    try:
        session = boto3.session.Session()
        client = session.client("s3", config=config)
        if not (urlsplit(client.meta.endpoint_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
            # Bucket names as host names need DNS entries, which a server of one's own rarely has.
            client = session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})))
    except (BotoCoreError, ValueError) as error:
        raise DataError(f"S3: {type(error).__name__}; check AWS_ENDPOINT_URL, AWS_REGION and the profile") from None
    return client


def _call(action: str, url: str, function: Callable[[], Result], patience_s: float) -> Result:
    """Run `function`, again with growing pauses while the fault may pass; explain what does not pass."""
    from botocore.exceptions import BotoCoreError, ClientError

    began, pause, said = time.monotonic(), 0.1, False
    while True:
        try:
            return function()
        except (BotoCoreError, ClientError) as error:
            waited = time.monotonic() - began
            if not _may_pass(error) or waited + pause > patience_s:
                # `from None`: a botocore message can hold the endpoint's user and password.
                raise _explain(action, url, error) from None
            if waited > _SAY_AFTER_S and not said:
                said = True
                log.warning("%s; trying again for up to %.0f s", _explain(action, url, error), patience_s)
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, 5.0)


def _may_pass(error: Exception) -> bool:
    from botocore import exceptions as aws

    if isinstance(error, aws.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or _code(error) in _BUSY
    transport = (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, aws.FlexibleChecksumError)
    return isinstance(error, transport) and not isinstance(error, aws.SSLError)


def _explain(action: str, url: str, error: Exception) -> DataError:
    from botocore import exceptions as aws

    where = f"{url}: cannot {action} it"
    if isinstance(error, aws.ClientError):
        code = _code(error)
        if code in _MISSING:
            return MissingError(f"{where}: it does not exist")
        kind = DataAwayError if _may_pass(error) else DataError
        cause = _CAUSES.get(code, f"the server answers {code}")
        return kind(f"{where}: {_NOT_WRITTEN if (action, code) == ('write', 'AccessDenied') else cause}")
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)):
        return DataError(f"{where}: no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, aws.SSLError):
        return DataError(f"{where}: the server's certificate is not trusted; set AWS_CA_BUNDLE")
    return DataAwayError(f"{where}: no answer ({type(error).__name__}); check the network and AWS_ENDPOINT_URL")


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))
