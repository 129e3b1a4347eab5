"""What each failure is taken for, and so whether it is tried again."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as aws

from datasets.errors import DataAwayError, DataError, MissingDataError
from infra.storage import s3_client
from infra.storage.base import MissingKeyError, StorageAwayError, StorageError
from infra.storage.failures import FailureClass, failure_class, reworded
from infra.storage.lease import check_conditional_writes
from infra.storage.s3 import S3Storage
from infra.storage.s3_client import PART_BYTES
from infra.storage.s3_errors import class_of, explained
from infra.tracking.errors import TrackingAwayError, TrackingError
from pipeline.run.worker import DifferentStartError
from tests.support.fault_proxy import fault_proxy
from tests.support.servers import S3Server

TRANSIENT, OPERATOR, DATA, BUG = FailureClass


def answer(code: str, status: int) -> aws.ClientError:
    response: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return aws.ClientError(response, "PutObject")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StorageAwayError("x"), TRANSIENT),
        (DataAwayError("x"), TRANSIENT),
        (DifferentStartError("x"), TRANSIENT),
        (TrackingAwayError("x"), TRANSIENT),
        (TrackingError("x"), OPERATOR),
        (StorageError("x"), OPERATOR),
        (MissingKeyError("x"), OPERATOR),
        (DataError("x"), DATA),
        (ValueError("epochs is 0"), OPERATOR),
        (ConnectionResetError(), TRANSIENT),
        (TimeoutError(), TRANSIENT),
        (OSError(errno.ENOSPC, "full"), TRANSIENT),
        (OSError(errno.EACCES, "denied"), OPERATOR),
        (OSError("broken image"), BUG),
        (KeyError("x"), BUG),
        (RuntimeError("NCCL"), BUG),
    ],
)
def test_every_failure_has_a_class(error: Exception, expected: FailureClass) -> None:
    assert failure_class(error) is expected
    again = reworded(error, "said better")
    assert failure_class(again) is expected
    assert type(again) is type(error)


def test_an_error_of_other_words_and_of_another_process_keeps_its_fields() -> None:
    error = MissingDataError.at("s3://b/train", "no such shard")
    for again in (reworded(error, "data.train: none"), pickle.loads(pickle.dumps(error))):
        assert again.place == "s3://b/train"
    assert str(reworded(error, "data.train: none")) == "data.train: none"
    assert str(error) == "s3://b/train: no such shard"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answer("InternalError", 500), TRANSIENT),
        (answer("SlowDown", 503), TRANSIENT),
        (answer("InsufficientStorage", 507), TRANSIENT),
        (answer("TooManyRequests", 429), TRANSIENT),
        (answer("RequestTimeout", 400), TRANSIENT),
        (answer("InternalError", 0), TRANSIENT),  # of one key among many
        (answer("NotImplemented", 501), OPERATOR),
        (answer("501", 501), OPERATOR),
        (answer("AccessDenied", 403), OPERATOR),
        (answer("ExpiredToken", 400), OPERATOR),
        (answer("InvalidRange", 416), DATA),
        (aws.CredentialRetrievalError(provider="iam-role", error_msg="x"), TRANSIENT),
        (aws.MetadataRetrievalError(error_msg="x"), TRANSIENT),
        (aws.EndpointConnectionError(endpoint_url="http://u:pw@h"), TRANSIENT),
        (aws.ReadTimeoutError(endpoint_url="http://u:pw@h"), TRANSIENT),
        (aws.SSLError(endpoint_url="http://u:pw@h", error="x"), OPERATOR),
        (aws.PartialCredentialsError(provider="env", cred_var="x"), OPERATOR),
        (aws.UnauthorizedSSOTokenError(), OPERATOR),
        (aws.ParamValidationError(report="x"), OPERATOR),
    ],
)
def test_the_line_of_a_failed_call_has_the_class_of_its_cause(error: Exception, expected: FailureClass) -> None:
    assert class_of(error) is expected
    line = explained("write", "s3://bucket/key", error, "http://h")
    assert failure_class(line) is expected
    assert str(line).startswith("cannot write s3://bucket/key: ")
    assert "pw" not in str(line)
    assert "\n" not in str(line)


def test_a_server_without_conditional_writes_is_said_at_once(
    s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_proxy(s3_server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fault = lambda request: "501" if request.method == "PUT" else ""
        with pytest.raises(StorageError, match=r"501 NotImplemented.*conditional writes; use one that does") as caught:
            check_conditional_writes(S3Storage(*s3_uri.removeprefix("s3://").split("/")))
        assert not isinstance(caught.value, StorageAwayError)
        assert sum(request.method == "PUT" for request in proxy.requests) == 1


class Metadata(ThreadingHTTPServer):
    """An instance's metadata service, which can be away."""

    daemon_threads = True

    def __init__(self, keys: dict[str, str]) -> None:
        self.away, self.asked, service = True, 0, self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked += 1
                name = self.path.rstrip("/").rpartition("/")[2]
                body = "token" if name == "token" else "role" if name == "security-credentials" else _role(keys)
                self.send_response(500 if service.away else 200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("x-aws-ec2-metadata-token-ttl-seconds", "60")
                self.end_headers()
                self.wfile.write(body.encode())

            do_PUT = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def _role(keys: dict[str, str]) -> str:
    id_, secret = keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"]
    return (
        f'{{"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "{id_}", "SecretAccessKey": "{secret}", '
        '"Token": "", "Expiration": "2126-01-01T00:00:00Z"}'
    )


@pytest.fixture
def metadata(s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Metadata]:
    """Credentials come from a metadata service and from nowhere else."""
    service = Metadata(s3_server.client_environment())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{service.server_address[1]}/")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield service
    service.shutdown()
    service.server_close()


def test_credentials_that_are_away_for_a_moment_cost_that_moment(metadata: Metadata, s3_uri: str) -> None:
    storage = S3Storage(*s3_uri.removeprefix("s3://").split("/"), patience_s=60)
    writer = threading.Thread(target=storage.write, args=("a", b"x"))
    writer.start()
    while metadata.asked < 3:
        time.sleep(0.01)
    metadata.away = False
    writer.join(60)
    assert storage.read("a") == b"x"


def test_credentials_that_stay_away_end_as_storage_that_is_away(metadata: Metadata, s3_uri: str) -> None:
    storage = S3Storage(*s3_uri.removeprefix("s3://").split("/"), patience_s=0.5)
    with pytest.raises(StorageAwayError, match="no AWS credentials found"):
        storage.write("a", b"x")


def test_a_key_that_could_not_be_deleted_for_now_is_deleted_again(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = S3Storage(*s3_uri.removeprefix("s3://").split("/"), patience_s=30)
    storage.write("a", b"x")
    real, answers = s3_client.client().delete_objects, [{"Errors": [{"Key": "a", "Code": "InternalError"}]}]
    monkeypatch.setattr(
        s3_client.client(), "delete_objects", lambda **request: answers.pop() if answers else real(**request)
    )
    storage.delete("a")
    assert not storage.exists("a")


def _use(storage: S3Storage, size: int) -> None:
    storage.write("child", bytes(size))
    os._exit(0 if storage.read("parent") == b"x" else 1)


def test_a_process_forked_at_any_moment_makes_its_own_connections(s3_uri: str) -> None:
    storage = S3Storage(*s3_uri.removeprefix("s3://").split("/"))
    storage.write("parent", b"x")
    storage.write("large", bytes(2 * PART_BYTES))  # the threads of transfers run
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with s3_client._lock:
            held.set()
            forked.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    child = multiprocessing.get_context("fork").Process(target=_use, args=(storage, 2 * PART_BYTES))
    child.start()
    child.join(60)
    forked.set()
    holder.join()
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0
    assert storage.list("child") == {"child": 2 * PART_BYTES}
