"""Storage in S3, or in a server that speaks its protocol."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore import exceptions as aws
from botocore.config import Config

from infra.storage.base import PROBE_KEY, Data, MissingKeyError, Storage, StorageAwayError, StorageError, checked_key
from infra.storage.buffers import Joined
from infra.storage.local import LocalStorage

Result = TypeVar("Result")

PATIENCE_S = 120.0
"""For how long a call goes on trying while the server is down or busy."""
CHECK_PATIENCE_S = 5.0
"""The same for `check_writable`, behind which a user waits."""
PART_BYTES = 8 << 20
"""Objects above this go in parts of this size."""

_CLIENT = Config(
    retries={"mode": "standard", "total_max_attempts": 3},
    connect_timeout=5,
    read_timeout=60,
    tcp_keepalive=True,
    max_pool_connections=16,
    request_checksum_calculation="when_supported",
    response_checksum_validation="when_supported",
)
_TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
_TRANSFER.max_in_memory_upload_chunks = 4  # boto3 has no argument for it; each is a copy of `PART_BYTES`

_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the AWS profile)"
_CAUSES = {
    "NoSuchBucket": "the bucket does not exist; create it, or correct the URI",
    "AccessDenied": "access is denied; the credentials need s3:GetObject, PutObject, DeleteObject and ListBucket",
    "403": "access is denied, or the credentials are wrong; " + _CREDENTIALS,
    "InvalidAccessKeyId": "the server does not know the access key; " + _CREDENTIALS,
    "SignatureDoesNotMatch": "the server refuses the secret key; " + _CREDENTIALS,
    "ExpiredToken": "the session token has expired; get new credentials",
    "InvalidToken": "the session token is not valid; get new credentials",
    "RequestTimeTooSkewed": "this machine's clock and the server's differ too much; set the clock (NTP)",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION to it",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION to it",
    "InsufficientStorage": "the server's disk is full; free some space there",
    "QuotaExceeded": "the bucket's quota is used up; free some space there",
}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_REFUSED = {"PreconditionFailed", "412"}
_BUSY = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "ConditionalRequestConflict", "BadDigest"}

_TRANSPORT = (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, aws.FlexibleChecksumError)


class S3Storage(Storage):
    """A prefix of a bucket. Calls are tried again, with growing pauses, until `patience_s` is over.

    Uploads carry checksums, which the server verifies, and go in parts above `PART_BYTES`.
    """

    def __init__(self, bucket: str, prefix: str = "", *, patience_s: float = PATIENCE_S, client: Any = None) -> None:
        super().__init__(f"s3://{bucket}/{prefix}".rstrip("/"))
        self.bucket, self.prefix, self.patience_s = bucket, prefix, patience_s
        self._client = client or _make_client(self.uri)
        self._uploads: Any = None

    def __reduce__(self) -> tuple[object, ...]:
        return S3Storage, (self.bucket, self.prefix)

    @property
    def custom_endpoint(self) -> str | None:
        """The server's URL, or None where it is AWS itself."""
        return _custom_endpoint(self._client)

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        region: str = self._client.meta.region_name
        return "us-east-1" if region in (None, "aws-global") else region

    def sub(self, prefix: str) -> S3Storage:
        """Return the storage of a longer prefix, over the same connections."""
        joined = f"{self.prefix}/{checked_key(prefix)}".lstrip("/")
        return S3Storage(self.bucket, joined, patience_s=self.patience_s, client=self._client)

    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        """Return an object's bytes and ETag."""

        def get() -> tuple[bytes, str]:
            answer = self._client.get_object(**self._at(key))
            return answer["Body"].read(), answer["ETag"]

        return self._call("read", key, get)

    def write(self, key: str, *data: Data) -> None:
        """Write an object, in parts when it is large."""
        if sum(len(part) for part in data) > PART_BYTES:
            self._call("write", key, lambda: self._upload(Joined(data), key))
        else:
            body = b"".join(data)
            self._call("write", key, lambda: self._client.put_object(Body=body, **self._at(key)))

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
        """Write an object into a local file, by a temporary name beside it."""

        def get(temporary: Path) -> None:
            with temporary.open("wb") as file:
                self._client.download_fileobj(Fileobj=file, Config=_TRANSFER, **self._at(key))

        target = Path(path).absolute()
        LocalStorage(target.parent).fill(target.name, lambda temporary: self._call("read", key, lambda: get(temporary)))

    def list(self, prefix: str = "") -> dict[str, int]:
        """Return the keys that begin with `prefix`, in order, with their sizes in bytes."""
        base = f"{self.prefix}/" if self.prefix else ""

        def pages() -> dict[str, int]:
            found = {}
            pager = self._client.get_paginator("list_objects_v2")
            for page in pager.paginate(Bucket=self.bucket, Prefix=base + prefix):
                for item in page.get("Contents", ()):
                    found[item["Key"].removeprefix(base)] = item["Size"]
            return found

        found = self._call("list", prefix, pages)
        return {key: found[key] for key in sorted(found) if not key.rpartition("/")[2].startswith(".")}

    def exists(self, key: str) -> bool:
        """Say whether there is an object of this key."""
        try:
            self._call("look up", key, lambda: self._client.head_object(**self._at(key)))
        except MissingKeyError:
            return False
        return True

    def delete(self, *keys: str) -> None:
        """Remove objects, up to 1,000 in a request."""
        for start in range(0, len(keys), 1000):
            self._delete_chunk(keys[start : start + 1000])

    def check_writable(self) -> None:
        """Write, read and remove a small object within seconds, or raise `StorageError`."""
        hasty = S3Storage(self.bucket, self.prefix, patience_s=CHECK_PATIENCE_S, client=self._client)
        probe = f"{PROBE_KEY}-{uuid.uuid4().hex}"
        hasty.write(probe, b"probe")
        hasty.read(probe)
        hasty.delete(probe)

    def _delete_chunk(self, keys: Sequence[str]) -> None:
        names = [{"Key": self._at(key)["Key"]} for key in keys]
        request = {"Bucket": self.bucket, "Delete": {"Objects": names, "Quiet": True}}
        answer = self._call("delete", keys[0], lambda: self._client.delete_objects(**request))
        for failed in answer.get("Errors", ()):
            cause = _CAUSES.get(failed.get("Code", ""), failed.get("Code", "unknown error"))
            raise StorageError(f"cannot delete s3://{self.bucket}/{failed.get('Key', '')}: {cause}")

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{checked_key(key)}".lstrip("/")}

    def _upload(self, file: Any, key: str) -> None:
        """Upload a file in parts. The threads stay for the next one: new ones would each keep memory of their own."""
        if self._uploads is None:
            # A part's checksum, whose header is signed, is enough: to hash it too is most of what an upload costs.
            client = _make_client(self.uri, sign_bodies=False)
            self._uploads = create_transfer_manager(client, _TRANSFER)
        at = self._at(key)
        self._uploads.upload(file, at["Bucket"], at["Key"]).result()

    def _put_if(self, key: str, data: Data, condition: dict[str, str]) -> str | None:
        """Write under a condition; return the new tag, or None when the condition did not hold."""
        tries = 0

        def put() -> str | None:
            nonlocal tries
            tries += 1
            try:
                tag: str = self._client.put_object(Body=_plain(data), **self._at(key), **condition)["ETag"]
            except aws.ClientError as error:
                if _code(error) not in _REFUSED | _MISSING:
                    raise
                # A lost answer may hide that an earlier try of ours was the one that won.
                tried_before = tries > 1 or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                return self._tag_if_equal(key, data) if tried_before else None
            return tag

        return self._call("write", key, put)

    def _tag_if_equal(self, key: str, data: Data) -> str | None:
        found, tag = self.read_with_etag(key)
        return tag if found == data else None

    def _call(self, action: str, key: str, function: Callable[[], Result]) -> Result:
        """Run `function`, again while the fault may pass and `patience_s` lasts; explain what does not pass."""
        deadline = time.monotonic() + self.patience_s
        pause = 0.25
        while True:
            try:
                return function()
            except (aws.BotoCoreError, aws.ClientError) as error:
                if not _may_pass(error) or time.monotonic() + pause > deadline:
                    # `from None`: a botocore message can hold the endpoint's user and password.
                    raise self._explain(action, key, error) from None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 8.0)

    def _explain(self, action: str, key: str, error: Exception) -> StorageError:
        where = f"cannot {action} {self.location(key)}"
        if isinstance(error, aws.ClientError):
            code = _code(error)
            if code in _MISSING:
                return MissingKeyError(f"{where}: it does not exist")
            kind = StorageAwayError if _may_pass(error) else StorageError
            return kind(f"{where}: {_CAUSES.get(code, 'the server answers ' + code)}")
        if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)):
            return StorageError(f"{where}: no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        server = _without_secrets(self.custom_endpoint) if self.custom_endpoint else "AWS"
        if isinstance(error, aws.SSLError):
            return StorageError(f"{where}: the certificate of {server} is not trusted; set AWS_CA_BUNDLE")
        if isinstance(error, _TRANSPORT):
            return StorageAwayError(f"{where}: no answer from {server}; check the network and AWS_ENDPOINT_URL")
        return StorageError(f"{where}: {type(error).__name__} from {server}")


def _make_client(uri: str, *, sign_bodies: bool = True) -> Any:
    settings: dict[str, Any] = {} if sign_bodies else {"payload_signing_enabled": False}
    try:
        session = boto3.session.Session()  # of its own: the default one is not safe to share between threads
        client = session.client("s3", config=_CLIENT.merge(Config(s3=settings)))
        if _custom_endpoint(client):
            # Bucket names as host names need DNS entries, which a server of one's own rarely has.
            client = session.client("s3", config=_CLIENT.merge(Config(s3=settings | {"addressing_style": "path"})))
    except (aws.BotoCoreError, ValueError) as error:
        raise StorageError(
            f"cannot open {uri}: {type(error).__name__}; check AWS_ENDPOINT_URL and the profile"
        ) from None
    return client


def _custom_endpoint(client: Any) -> str | None:
    url: str = client.meta.endpoint_url
    return None if (urlsplit(url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")) else url


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _code(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _may_pass(error: Exception) -> bool:
    """Say whether the same call may succeed later: the server is away, slow, busy or broken."""
    if isinstance(error, aws.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or _code(error) in _BUSY
    return isinstance(error, _TRANSPORT) and not isinstance(error, aws.SSLError)


def _plain(data: Data) -> bytes | bytearray:
    return bytes(data) if isinstance(data, memoryview) else data
