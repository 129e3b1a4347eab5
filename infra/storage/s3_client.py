"""This process's S3 clients: made on first use from the environment, and again in a forked process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore import exceptions as aws
from botocore.config import Config

from infra.storage.base import StorageError

PART_BYTES = 8 << 20
"""Objects above this go in parts of this size."""
_SETTINGS: dict[str, Any] = {
    "connect_timeout": 5,
    "read_timeout": 30,
    "tcp_keepalive": True,
    "max_pool_connections": 64,
    "request_checksum_calculation": "when_supported",
    "response_checksum_validation": "when_supported",
}
# Calls are tried again by `S3Storage`, by one policy. A part of a transfer by botocore: the whole would cost more.
_CALLS = Config(**_SETTINGS, retries={"mode": "standard", "total_max_attempts": 1})
_PARTS = Config(
    **_SETTINGS,
    retries={"mode": "standard", "total_max_attempts": 3},
    # A part's checksum, whose header is signed, is enough: to hash it too is most of what an upload costs.
    s3={"payload_signing_enabled": False},
)
_TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
_TRANSFER.max_in_memory_upload_chunks = 4  # boto3 has no argument for it; each is a copy of `PART_BYTES`
_VARIABLES = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_EC2_METADATA_SERVICE_ENDPOINT"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"),
)

_made: dict[tuple[str, int], Any] = {}
_lock = threading.RLock()


def _after_fork() -> None:
    """Connections and threads don't survive a fork, and a lock may be held."""
    global _made, _lock
    _made, _lock = {}, threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def client() -> Any:
    """Return the client for single calls. Safe in threads.

    Raises:
        StorageError: the environment's endpoint or profile is no good.
        NoCredentialsError: there are none now. It is not remembered: they may come.
    """
    return _kept("calls", lambda: _make_client(_CALLS))


def transfers() -> Any:
    """Return what moves files in parts. Its threads stay for the next file: new ones would each keep memory."""
    return _kept("parts", lambda: create_transfer_manager(_make_client(_PARTS), _TRANSFER))


def endpoint() -> str:
    """Return the server's name for messages, without user and password."""
    kept = _made.get(("calls", _environment()))
    url = os.environ.get("AWS_ENDPOINT_URL", "") if kept is None else kept.meta.endpoint_url
    return "AWS" if _is_aws(url) else f"{urlsplit(url).scheme}://{urlsplit(url).netloc.rpartition('@')[2]}"


def _is_aws(url: str) -> bool:
    return not url or (urlsplit(url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _kept(kind: str, make: Callable[[], Any]) -> Any:
    key = kind, _environment()
    with _lock:
        if key not in _made:
            _made[key] = make()
        return _made[key]


def _environment() -> int:
    return hash(tuple(os.environ.get(name) for name in _VARIABLES))


def _make_client(config: Config) -> Any:
    try:
        session = boto3.session.Session()  # of its own: the default one is not safe to share between threads
        if session.get_credentials() is None:
            raise aws.NoCredentialsError
        client = session.client("s3", config=config)
        if not _is_aws(client.meta.endpoint_url):
            # Bucket names as host names need DNS entries, which a server of one's own rarely has.
            path_style = Config(s3={**(config.s3 or {}), "addressing_style": "path"})
            client = session.client("s3", config=config.merge(path_style))
    except (aws.ProfileNotFound, aws.ConfigParseError, aws.InvalidRegionError, ValueError) as error:
        raise StorageError(
            f"cannot open S3: {type(error).__name__}; check AWS_ENDPOINT_URL, AWS_REGION and the profile"
        ) from None
    return client
