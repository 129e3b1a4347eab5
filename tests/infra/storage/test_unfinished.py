"""What writers that were killed leave of objects that never appeared, in S3 and in a folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.storage import s3_client
from infra.storage.base import Storage
from infra.storage.local import LocalStorage
from infra.storage.open import open_storage
from infra.storage.s3 import S3Storage
from infra.storage.s3_client import PART_BYTES
from pipeline.run.launch import UNFINISHED_S, drop_unfinished
from tests.support.fault_proxy import FaultProxy, Request, fault_proxy
from tests.support.killing import ROOT
from tests.support.servers import S3Server

DAY_S = 86400.0
BIG = bytes(3 * PART_BYTES)
WRITER = """
import sys, time
from infra.storage.local import LocalStorage
from infra.storage.open import open_storage

def slowly(path):
    path.write_bytes(b"half")
    print("begun", flush=True)
    time.sleep(600)

storage = open_storage(sys.argv[1])
if isinstance(storage, LocalStorage):
    storage.fill("weights/big", slowly)
storage.write("weights/big", bytes(int(sys.argv[2])))
"""


@pytest.fixture
def proxy(s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Before the S3 server that the environment names."""
    with fault_proxy(s3_server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "runs/one")
    request.getfixturevalue("proxy")
    return open_storage(f"{request.getfixturevalue('s3_uri')}/runs/one")


def hold_up_parts(proxy: FaultProxy) -> threading.Event:
    """Have the second part of an upload get no answer, and the third; return what says that this has begun."""
    held = threading.Event()

    def fault(request: Request) -> str:
        if "partNumber=2" in request.path or "partNumber=3" in request.path:
            held.set()
            return "stuck"
        return ""

    proxy.fault = fault
    return held


def kill_an_upload(storage: Storage, proxy: FaultProxy | None) -> None:
    """Have a process of its own write a large object, and SIGKILL it in the middle."""
    held = hold_up_parts(proxy) if proxy is not None else threading.Event()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, storage.uri, str(len(BIG))], cwd=ROOT, stdout=subprocess.PIPE
    )
    if proxy is None:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
    else:
        assert held.wait(60)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    if proxy is not None:
        proxy.fault = lambda request: ""


def left_in(storage: Storage) -> int:
    """Count what no list shows."""
    if isinstance(storage, LocalStorage):
        return sum(path.is_file() for path in storage.root.rglob(".*"))
    assert isinstance(storage, S3Storage)
    pages = s3_client.client().get_paginator("list_multipart_uploads").paginate(Bucket=storage.bucket)
    return sum(item["Key"].startswith(f"{storage.prefix}/") for page in pages for item in page.get("Uploads", ()))


def test_what_a_killed_upload_left_is_removed_once_it_is_old_and_nothing_else(
    storage: Storage, request: pytest.FixtureRequest
) -> None:
    proxy = request.getfixturevalue("proxy") if isinstance(storage, S3Storage) else None
    storage.write("weights/small", b"whole")
    other = open_storage(f"{storage.uri}-2")  # as a run whose name begins like this one's
    for one in (storage, other):
        kill_an_upload(one, proxy)
        assert left_in(one) == 1
    assert storage.drop_unfinished(DAY_S) == 0
    assert left_in(storage) == 1
    time.sleep(1.1 if proxy is None else 2.5)  # servers' clocks tell seconds
    assert storage.drop_unfinished(1.0) == 1
    assert (left_in(storage), left_in(other)) == (0, 1)
    assert storage.drop_unfinished(1.0) == 0
    assert list(storage.list()) == ["weights/small"]
    storage.write("weights/big", BIG)
    assert storage.list()["weights/big"] == len(BIG)


def test_a_living_upload_is_left_alone(s3_uri: str, proxy: FaultProxy) -> None:
    storage = open_storage(s3_uri)
    held = hold_up_parts(proxy)
    writer = threading.Thread(target=storage.write, args=("big", BIG))
    writer.start()
    assert held.wait(60)
    assert drop_unfinished(storage, UNFINISHED_S) == ""
    proxy.released.set()
    writer.join()
    assert storage.list() == {"big": len(BIG)}


def test_a_run_begins_with_a_line_of_what_was_removed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    assert drop_unfinished(storage, 0.0) == ""
    kill_an_upload(storage, None)
    time.sleep(0.1)
    assert drop_unfinished(storage, 0.0) == f"removed what 1 killed uploads to {tmp_path} had left"


@pytest.mark.parametrize(
    ("status", "said"),
    [("403", "the credentials need s3:ListBucketMultipartUploads"), ("501", "the server can't do this")],
)
def test_what_may_not_be_listed_is_one_line_and_no_end(s3_uri: str, proxy: FaultProxy, status: str, said: str) -> None:
    proxy.fault = lambda request: status if "uploads" in request.path else ""
    line = drop_unfinished(open_storage(f"{s3_uri}/runs/one"), DAY_S)
    assert line.startswith("what killed uploads have left may stay: cannot list the unfinished uploads to s3://")
    assert said in line
    assert "\n" not in line
