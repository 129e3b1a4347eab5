"""One contract for both storages, and each one's faults; S3 is a real server."""

from __future__ import annotations

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.storage import s3, s3_client
from infra.storage.base import MissingKeyError, Storage, StorageAwayError, StorageError
from infra.storage.buffers import Joined
from infra.storage.lease import check_conditional_writes
from infra.storage.local import LocalStorage
from infra.storage.open import open_storage
from infra.storage.s3 import S3Storage
from infra.storage.s3_client import PART_BYTES
from tests.support.servers import S3Server


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "store" if request.param == "local" else request.getfixturevalue("s3_uri"))


def test_an_object_is_read_back_as_written(storage: Storage) -> None:
    storage.write("run/a", b"first")
    storage.write("run/a", memoryview(b"second"))
    storage.write("run/empty", b"")
    assert storage.read("run/a") == b"second"
    assert storage.read("run/empty") == b""
    assert storage.exists("run/a")
    assert not storage.exists("run")


def test_missing_objects_have_an_error_of_their_own(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(MissingKeyError, match=r"cannot read .*no/such: it does not exist"):
        storage.read("no/such")
    with pytest.raises(MissingKeyError, match="no/such"):
        storage.download("no/such", tmp_path / "out")
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "store"])
    storage.delete("no/such")
    assert storage.list("no") == {}


def test_list_gives_keys_and_sizes_in_order(storage: Storage) -> None:
    for key in ("runs/b/2", "runs/b/10", "runs/a", "other"):
        storage.write(key, key.encode())
    assert list(storage.list()) == ["other", "runs/a", "runs/b/10", "runs/b/2"]
    assert storage.list("runs/b/") == {"runs/b/10": 9, "runs/b/2": 8}
    assert list(storage.list("runs/b/1")) == ["runs/b/10"]
    assert list(storage.sub("runs/b").list()) == ["10", "2"]


def test_deleted_objects_and_their_folders_are_gone(storage: Storage) -> None:
    for key in ("a/b/c", "a/b/d", "e"):
        storage.write(key, b"x")
    storage.delete("a/b/c", "a/b/d", "no/such")
    assert list(storage.list()) == ["e"]
    if isinstance(storage, LocalStorage):
        assert [path.name for path in storage.root.iterdir()] == ["e"]


def test_large_files_go_up_and_down_unchanged(storage: Storage, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * (PART_BYTES // (1 << 20) * 2 + 1)
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_bytes(data)
    storage.upload("big/file", source)
    storage.write("big/memory", data[:1000], memoryview(data)[1000:-1], data[-1:])
    storage.download("big/file", target)
    assert target.read_bytes() == data
    assert storage.read("big/memory") == data
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    with pytest.raises(StorageError, match="no such file"):
        storage.upload("big/file", tmp_path / "missing")


def test_of_many_first_writers_one_wins(storage: Storage) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: storage.write_if_absent("lease", b"owner %d" % i), range(16)))
    assert sum(won) == 1
    assert storage.read("lease") == b"owner %d" % won.index(True)


def test_a_replacement_needs_the_current_tag(storage: Storage) -> None:
    assert storage.write_if_match("lease", b"x", "no tag") is None
    storage.write("lease", b"one")
    tag = storage.read_with_etag("lease")[1]
    with ThreadPoolExecutor(8) as pool:
        tags = list(pool.map(lambda i: storage.write_if_match("lease", b"owner %d" % i, tag), range(8)))
    winners = [i for i, new in enumerate(tags) if new is not None]
    assert len(winners) == 1
    data, current = storage.read_with_etag("lease")
    assert data == b"owner %d" % winners[0]
    assert current == tags[winners[0]]
    assert storage.write_if_match("lease", b"late", tag) is None
    if isinstance(storage, LocalStorage):
        assert [path.name for path in storage.root.iterdir()] == ["lease"]  # no lock is left


def test_a_lock_is_held_by_one_although_its_file_is_removed_each_time(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("count", b"0")

    def add(_: int) -> None:
        while True:
            value, tag = storage.read_with_etag("count")
            if storage.write_if_match("count", b"%d" % (int(value) + 1), tag):
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(64)))
    assert storage.read("count") == b"64"


def test_a_storage_pickles_as_its_uri(storage: Storage) -> None:
    storage.write("a", b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.read("a") == b"1"
    assert b"secret" not in pickle.dumps(storage)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../../up", "folder/", "a\\b"])
def test_keys_stay_inside(storage: Storage, key: str) -> None:
    with pytest.raises(StorageError, match="expected a relative name"):
        storage.write(key, b"x")


def test_check_writable_leaves_nothing(storage: Storage) -> None:
    storage.check_writable()
    assert storage.list() == {}


def test_a_write_killed_half_way_leaves_the_old_object(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a", b"old")
    code = (
        "import os, signal, infra.storage.local as s\n"
        "s.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"s.LocalStorage({str(tmp_path)!r}).write('a', b'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert storage.read("a") == b"old"
    assert list(storage.list()) == ["a"]


def test_a_full_disk_is_said_and_leaves_the_old_object(tmp_path: Path) -> None:
    full = LocalStorage("/dev/full")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        full.write("a", b"x")
    storage = LocalStorage(tmp_path)
    storage.write("a", b"old")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(StorageAwayError, match=r"cannot write .*: the disk is full; free some space"):
        storage.fill("a", lambda temporary: Path("/dev/full").write_bytes(b"x" * 10_000))
    assert storage.read("a") == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "full"]


def test_a_file_too_large_for_the_limit_is_one_line(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from infra.storage.open import LocalStorage, StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        f"    LocalStorage({str(tmp_path)!r}).write('a', bytes(5000))\n"
        "except StorageError as error:\n"
        "    sys.exit(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tried", [lambda storage: storage.check_writable(), check_conditional_writes])
@pytest.mark.parametrize("place", ["not made", "below a file", "s3"])
def test_what_is_tried_in_vain_is_named_not_the_file_it_is_tried_with(
    tried: Callable[[Storage], object],
    place: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    causes = {"below a file": "a part of the path is a file", "not made": "no permission; .* choose other storage"}
    cause = {**causes, "s3": "the server refuses the secret key"}.get(place, "")
    if place == "s3":
        uri = f"{request.getfixturevalue('s3_uri')}/mine"
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    else:
        uri = "/proc/crescendo" if place == "not made" else f"{tmp_path}/file/mine"
    with pytest.raises(StorageError, match=rf"^cannot (write|delete) {re.escape(uri)}: .*{cause}") as caught:
        tried(open_storage(uri))
    assert "probe" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://bucket/x", "gs:// is not supported"),
        ("s3:///x", "is not an S3 URI"),
        ("", "the URI is empty"),
    ],
)
def test_a_wrong_uri_is_said(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        open_storage(uri)


def test_secrets_in_an_s3_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(StorageError, match="holds no keys") as caught:
        open_storage("s3://AKIA:topsecret@bucket/x")
    assert "topsecret" not in str(caught.value)


def test_a_missing_bucket_is_said(s3_uri: str) -> None:
    with pytest.raises(StorageError, match="cannot read s3://no-such-bucket/x/a: the bucket does not exist"):
        open_storage("s3://no-such-bucket/x").read("a")


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("AWS_SECRET_ACCESS_KEY", "refuses the secret key; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "does not know the access key; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_wrong_credentials_are_said_without_the_secret(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv(variable, "wrong-secret-value")
    with pytest.raises(StorageError, match=message) as caught:
        open_storage(s3_uri).check_writable()
    assert not isinstance(caught.value, StorageAwayError)  # trying again would not help
    assert "wrong-secret-value" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_credentials_are_said(s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="no AWS credentials found"):
        open_storage(s3_uri).check_writable()


def test_an_unreachable_server_is_said_within_seconds(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "CHECK_PATIENCE_S", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(StorageAwayError, match=r"no answer from http://127\.0\.0\.1:9; check the network") as caught:
        open_storage(s3_uri).check_writable()
    assert "hunter2" not in str(caught.value)
    assert time.monotonic() - start < 15


def test_a_server_down_during_writes_costs_nothing_but_time(s3_server: S3Server, s3_uri: str) -> None:
    storage = S3Storage(*s3_uri.removeprefix("s3://").split("/"), patience_s=60)
    data = os.urandom(3 * PART_BYTES)
    storage.write("before", b"before")

    def write() -> None:
        storage.write("small", b"small")
        storage.write("large", data)

    s3_server.kill()
    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(1.5)
    s3_server.start()
    s3_server.restart()  # once more, in the middle of the transfer
    writer.join(60)
    assert not writer.is_alive()
    assert storage.read("before") == b"before"
    assert storage.read("small") == b"small"
    assert storage.read("large") == data


def test_a_lost_answer_to_a_first_write_is_no_defeat(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(s3_uri)
    put, calls = s3_client.client().put_object, []

    def put_and_lose_the_first_answer(**request: object) -> object:
        calls.append(request)
        answer = put(**request)
        if len(calls) == 1:
            raise s3.aws.ReadTimeoutError(endpoint_url="x")
        return answer

    monkeypatch.setattr(s3_client.client(), "put_object", put_and_lose_the_first_answer)
    assert storage.write_if_absent("lease", b"me")
    assert len(calls) == 2
    assert not storage.write_if_absent("lease", b"someone else")


@pytest.mark.parametrize("size", [1, 3, 7, 100, -1])
def test_buffers_read_as_the_file_that_they_are(size: int) -> None:
    buffers = (b"", b"abc", memoryview(b"d"), b"", bytearray(b"efghij"), b"")
    file, whole = Joined(buffers), b"abcdefghij"
    assert file.seek(0, io.SEEK_END) == len(whole)
    assert file.read() == b""
    for start in range(len(whole) + 2):
        file.seek(start)
        read = b"".join(iter(lambda: file.read(size), b""))
        assert read == whole[start:]
        assert file.tell() == max(start, len(whole))
