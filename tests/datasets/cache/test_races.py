"""The node's cache between processes and users: evicted, stopped, killed, a full disk, another's folder."""

from __future__ import annotations

import fcntl
import gzip
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datasets.cache import prefetch, shard_cache
from datasets.cache.prefetch import Prefetcher, PublishedPlan
from datasets.cache.shard_cache import Fetched, ShardCache, shard_key
from datasets.errors import DataError
from datasets.files import s3
from datasets.loading.reader import SampleReader
from datasets.shards.manifest import DatasetManifest
from datasets.shards.resolve import load_manifest
from jobs.index import main as index
from tests.support.forked import ends_well, go_on, in_process, wait_stopped, wait_until
from tests.support.shards import write_shards

NOBODY = 65534


pytestmark = pytest.mark.usefixtures("end_children")


@pytest.fixture
def packed(tmp_path: Path, s3_uri: str) -> DatasetManifest:
    """Two compressed shards in S3 of 20 samples each."""
    plain = write_shards(tmp_path / "plain", [20, 20])
    for path in sorted(plain.glob("*.tar")):
        source = tmp_path / f"{path.name}.gz"
        source.write_bytes(gzip.compress(path.read_bytes()))
        s3.upload(f"{s3_uri}/{source.name}", source)
    assert index([s3_uri, "--classes", str(plain / "manifest.json")]) == 0
    return load_manifest(s3_uri)


@pytest.fixture
def plain(tmp_path: Path, s3_uri: str) -> DatasetManifest:
    """The same two shards, uncompressed."""
    folder = write_shards(tmp_path / "plain", [20, 20])
    for path in folder.iterdir():
        s3.upload(f"{s3_uri}/{path.name}", path)
    return load_manifest(s3_uri)


def everything(tmp_path: Path) -> list[bytes]:
    reader = SampleReader(load_manifest(str(tmp_path / "plain")))
    return [reader.read(number).data for number in range(40)]


def room_for_one(manifest: DatasetManifest) -> int:
    return max(shard.stored_bytes for shard in manifest.shards) + 100


def test_processes_that_evict_each_others_compressed_shards_read_no_wrong_byte(
    packed: DatasetManifest, tmp_path: Path
) -> None:
    expected = everything(tmp_path)

    def read_all() -> None:
        for first in (0, 20):
            reader = SampleReader(packed, ShardCache(tmp_path / "cache", room_for_one(packed)))
            for step in range(20):
                number = (first + 20 * step + step // 2) % 40
                assert next(reader.read_each([number])).data == expected[number]
                reader.close()  # so that the shard is opened anew each time

    processes = [in_process(read_all) for _ in range(3)]
    assert [ends_well(process) for process in processes] == [True] * 3


def test_a_compressed_shard_that_is_evicted_before_it_is_opened_is_fetched_again(
    packed: DatasetManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, cache, lost = everything(tmp_path), ShardCache(tmp_path / "cache", 10**9), []
    real = os.open

    def lose_and_open(path: Path, *arguments: int) -> int:
        if str(path).endswith(".tar") and cache.folder in Path(path).parents and os.access(path, os.R_OK):
            lost.append(path)
            if len(lost) < 3:
                Path(path).unlink()
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", lose_and_open)
    reader = SampleReader(packed, cache)
    assert next(reader.read_each([3])).data == expected[3]
    assert len(lost) == 3
    reader.close()
    lost.clear()
    assert reader.describe(3).endswith("part-000000.tar.gz: sample '00000003'")


def test_a_process_that_is_stopped_after_its_rename_removes_nothing_of_its_successor(
    plain: DatasetManifest, tmp_path: Path
) -> None:
    folder, shard = tmp_path / "cache", plain.shards[0]

    def fetch_and_stop() -> None:
        for name in ("rename", "replace"):
            real = getattr(Path, name)

            def moved(self: Path, target: Path, real: Callable[..., Path] = real) -> Path:
                result = real(self, target)
                os.kill(os.getpid(), signal.SIGSTOP)
                return result

            setattr(Path, name, moved)
        ShardCache(folder, 10**9).fetch(shard)

    stopped = in_process(fetch_and_stop)
    wait_stopped(stopped)
    cache = ShardCache(folder, 10**9)
    path = cache.find(shard)
    assert path is not None
    path.unlink()  # evicted
    real = os.fdatasync

    def resume_the_other(descriptor: int) -> None:
        real(descriptor)
        go_on(stopped)
        assert ends_well(stopped)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", resume_the_other)  # while ours is on its way
        assert cache.fetch(shard) is Fetched.PRESENT
    assert path.read_bytes() == s3.read(shard.url)


def test_who_has_the_folder_locked_and_is_stopped_holds_nobody_up(
    plain: DatasetManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path / "cache", 10**9)
    monkeypatch.setattr(shard_cache, "_LOCK_WAIT_S", 0.1)

    def lock_and_stop() -> None:
        with cache._locked():
            os.kill(os.getpid(), signal.SIGSTOP)

    stopped = in_process(lock_and_stop)
    wait_stopped(stopped)
    assert cache.fetch(plain.shards[0]) is Fetched.ELSEWHERE
    assert SampleReader(plain, cache).read(3).data == everything(tmp_path)[3]
    go_on(stopped)
    assert ends_well(stopped)
    assert cache.fetch(plain.shards[0]) is Fetched.PRESENT


def test_a_process_that_is_forked_while_the_folder_is_locked_keeps_no_lock(
    plain: DatasetManifest, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path / "cache", 10**9)
    with cache._locked():
        loader = in_process(signal.pause)
    try:
        fetched = in_process(lambda: os._exit(0 if cache.fetch(plain.shards[0]) is Fetched.PRESENT else 1))
        assert ends_well(fetched, 8)
    finally:
        loader.kill()
        loader.join()


def test_a_plan_counts_although_another_process_looked_before_it_was_locked(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()

    def publish() -> None:
        real = fcntl.flock

        def stop_first(*arguments: int) -> None:
            fcntl.flock = real
            os.kill(os.getpid(), signal.SIGSTOP)
            real(*arguments)

        fcntl.flock = stop_first  # type: ignore[assignment]
        with PublishedPlan(folder) as plan:
            plan.write({"key": 7})
            (folder / "written").touch()
            signal.pause()

    stopped = in_process(publish)
    try:
        wait_stopped(stopped)
        ours = PublishedPlan(folder)
        assert ours.merged() == {}
        go_on(stopped)
        wait_until((folder / "written").exists)
        assert ours.merged() == {"key": 7}
    finally:
        stopped.kill()
        stopped.join()
    assert ours.merged() == {}
    assert list((folder / "plans").iterdir()) == []


def test_a_full_disk_is_said_once_and_the_cache_is_filled_when_there_is_room_again(
    plain: DatasetManifest, disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(prefetch, "RETRY_S", 0.05)
    ballast = disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2 << 20))
    cache = ShardCache(disk / "cache", 10**9)  # its folder takes no block of a tmpfs
    reader = SampleReader(plain, cache)
    filler = Prefetcher(cache, plain.shards, lambda _: [(0, 5), (1, 9)], cursor=0, replan_every=10)
    wait_until(lambda: "disk is full" in caplog.text or "No space left" in caplog.text)
    assert len(reader.read(3).data) > 0
    time.sleep(0.3)
    assert caplog.text.count("the shard cache is not being filled, reading continues by range") <= 2
    ballast.unlink()
    wait_until(lambda: len(list(cache.folder.glob("*.tar"))) == 2)
    wait_until(lambda: "the shard cache is being filled again" in caplog.text)
    filler.close()
    filler._thread.join(60)
    assert not list(cache.folder.glob("*.part"))


def test_a_plan_that_fails_is_said_with_its_traceback(
    plain: DatasetManifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def plan(cursor: int) -> list[tuple[int, int]]:
        raise KeyError("no such shard")

    filler = Prefetcher(ShardCache(tmp_path / "cache", 10**9), plain.shards, plan, cursor=0, replan_every=10)
    wait_until(lambda: "reading continues by range: KeyError" in caplog.text)
    assert "Traceback" in caplog.text
    filler.close()
    filler._thread.join(60)
    assert not filler._thread.is_alive()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="crescendo-users-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_two_users_share_a_folder_that_both_can_write(plain: DatasetManifest, shared: Path, mode: int) -> None:
    folder = shared / "cache"
    folder.mkdir()
    folder.chmod(mode)
    first, second = plain.shards

    def fill_under_a_strict_umask() -> None:
        os.umask(0o077)
        cache = ShardCache(folder, 10**9)
        with PublishedPlan(folder) as plan:
            plan.write({shard_key(first): 5})
            assert cache.fetch(first) is Fetched.PRESENT
            os.kill(os.getpid(), signal.SIGSTOP)

    def use_and_add() -> None:
        cache = ShardCache(folder, 10**9)
        reader = SampleReader(plain, cache)
        assert cache.open_present(first) is not None
        assert len(reader.read(3).data) > 0
        with PublishedPlan(folder) as plan:
            plan.write({shard_key(second): 5})
            assert plan.merged() == {shard_key(first): 5, shard_key(second): 5}
            assert cache.fetch(second, uses=plan.merged) is Fetched.PRESENT
        small = ShardCache(folder, room_for_one(plain))
        (folder / f"{shard_key(second)}.tar").unlink()
        # What is another user's may be evicted unless the folder says that each removes only what is its own.
        assert small.fetch(second) is (Fetched.NO_ROOM if mode == 0o1777 else Fetched.PRESENT)

    one = in_process(fill_under_a_strict_umask, user=NOBODY - 1)
    wait_stopped(one)
    assert ends_well(in_process(use_and_add, user=NOBODY))
    go_on(one)
    assert ends_well(one)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_another_users_folder_is_read_and_its_cure_is_said(
    plain: DatasetManifest, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(shared / "cache", 10**9)
    assert cache.fetch(plain.shards[0]) is Fetched.PRESENT
    said = shared / "said"
    said.touch(0o666)
    said.chmod(0o666)

    def train() -> None:
        logging.getLogger("datasets").addHandler(logging.FileHandler(said))
        theirs = ShardCache(shared / "cache", 10**9)
        reader = SampleReader(plain, theirs)
        assert theirs.open_present(plain.shards[0]) is not None
        assert len(reader.read(3).data) > 0
        assert len(reader.read(23).data) > 0  # by ranges
        filler = Prefetcher(theirs, plain.shards, lambda _: [(1, 9)], cursor=0, replan_every=10)
        wait_until(said.read_text)
        filler.close()
        filler._thread.join(60)
        with pytest.raises(DataError, match=r"Permission denied; give everyone who shares it write permission"):
            theirs.fetch(plain.shards[1])

    assert ends_well(in_process(train, user=NOBODY))
    assert "Permission denied" in said.read_text()
    assert said.read_text().count("reading continues by range") == 1
