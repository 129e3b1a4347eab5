"""Fills the node's cache ahead of the loader, by plan: which shards the coming steps use, and when."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from datasets.cache.shard_cache import Fetched, ShardCache, shard_key
from datasets.cache.shared_files import file_mode, open_lock
from datasets.errors import DataError
from datasets.shards.manifest import ShardInfo
from infra.storage.file_lock import is_same_file, lock_within

log = logging.getLogger(__name__)

_DOWNLOADS_AT_ONCE = 4
_LOOK_AGAIN_S = 1.0
RETRY_S = 60.0
"""Pause after something went wrong, as a full disk: it may be cured, while reading continues by ranges."""
_PLAN_DTYPE = np.dtype([("key", "S32"), ("next_use", "<i8")])

Plan = Callable[[int], Iterable[tuple[int, int]]]
"""cursor -> (shard number, samples until its next use), nearest first; each shard once"""


class Prefetcher:
    """Threads of the training process that download the shards of its plan, nearest first.

    The plan is published in the cache's folder, so that no process on the node evicts what another needs sooner.

    Args:
        cache: of this node.
        shards: of the manifest that the plan counts in.
        plan: of this process.
        replan_every: samples after which the plan is made again.
    """

    def __init__(
        self, cache: ShardCache, shards: tuple[ShardInfo, ...], plan: Plan, *, cursor: int, replan_every: int
    ) -> None:
        self._cache, self._shards, self._plan, self._replan_every = cache, shards, plan, replan_every
        self._cursor, self._planned = cursor, cursor
        self._due: list[tuple[int, int]] = []
        self._changed, self._stop = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def advance(self, cursor: int) -> None:
        """Say how far the loader is; makes a new plan now and then."""
        self._cursor = cursor
        if cursor - self._planned >= self._replan_every:
            self._changed.set()

    def close(self) -> None:
        """End after the downloads that are under way, without waiting for them."""
        self._stop.set()
        self._changed.set()

    def _run(self) -> None:
        """Fill the cache until `close`; what goes wrong is said once, and tried again after a while."""
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="download") as pool:
            while not self._stop.is_set():
                try:
                    with PublishedPlan(self._cache.folder) as published:
                        self._fill(published, pool)
                except Exception as error:  # reading continues by ranges, and raises there what can't be read at all
                    self._say(error)
                    self._stop.wait(RETRY_S)

    def _fill(self, published: PublishedPlan, pool: ThreadPoolExecutor) -> None:
        while not self._stop.is_set():
            self._changed.clear()
            self._make_plan(published)
            tasks = [pool.submit(self._download, published) for _ in range(_DOWNLOADS_AT_ONCE)]
            failed = [error for task in tasks if (error := task.exception()) is not None]
            if failed:
                raise failed[0]
            if self._said:
                self._said.clear()
                log.info("the shard cache is being filled again")
            if not self._stop.is_set():
                self._changed.wait(_LOOK_AGAIN_S if self._due else None)

    def _say(self, error: Exception) -> None:
        known = isinstance(error, (DataError, OSError))
        line = str(error) if known else f"{type(error).__name__}: {error}"
        if (kind := re.sub(r"[\d.]+", "", line)) not in self._said:
            self._said.add(kind)
            log.error("the shard cache is not being filled, reading continues by range: %s", line, exc_info=not known)

    def _make_plan(self, published: PublishedPlan) -> None:
        self._planned = self._cursor
        uses = list(self._plan(self._planned))
        published.write({shard_key(self._shards[shard]): distance for shard, distance in uses})
        self._due = uses

    def _download(self, published: PublishedPlan) -> None:
        """Fetch shard after shard, until all are here, there is no room, or the plan is old."""
        skipped = []
        while not (self._stop.is_set() or self._changed.is_set()):
            with self._lock:
                if not self._due:
                    break
                shard, distance = self._due.pop(0)
            result = self._cache.fetch(self._shards[shard], next_use=distance, uses=published.merged)
            if result is Fetched.ELSEWHERE:
                skipped.append((shard, distance))
            elif result is Fetched.NO_ROOM:
                with self._lock:
                    self._due = []
        with self._lock:
            self._due = skipped + self._due


class PublishedPlan:
    """This process's plan as a file in the cache's folder; it counts while the process lives and holds its lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "plans"
        self._path = self._folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock_path = self._path.with_suffix(".lock")

    def __enter__(self) -> PublishedPlan:
        self._make_folder()
        while True:
            self._lock = open_lock(self._lock_path, file_mode(self._folder))
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if is_same_file(self._lock_path, self._lock):
                return self
            os.close(self._lock)  # removed before it was locked, as one that a dead process left

    def __exit__(self, *_: object) -> None:
        for path in (self._path, self._lock_path):
            path.unlink(missing_ok=True)
        fcntl.flock(self._lock, fcntl.LOCK_UN)  # a process forked meanwhile has the descriptor, too
        os.close(self._lock)

    def _make_folder(self) -> None:
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir()
            self._folder.chmod(stat.S_IMODE(self._folder.parent.stat().st_mode))  # for all who share the cache

    def write(self, uses: Mapping[str, int]) -> None:
        """Publish when each shard, by its key in the cache, is used next."""
        rows = np.array([(key.encode(), distance) for key, distance in uses.items()], dtype=_PLAN_DTYPE)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(rows.tobytes())
        temporary.chmod(file_mode(self._folder))
        temporary.replace(self._path)

    def merged(self) -> dict[str, int]:
        """Return the next use of every shard in any living process's plan; removes the plans of dead ones."""
        merged: dict[str, int] = {}
        for lock_path in self._folder.glob("*.lock"):
            path = lock_path.with_suffix("")
            with contextlib.suppress(OSError):
                if lock_path != self._lock_path and _is_free(lock_path):
                    path.unlink(missing_ok=True)
                    path.with_suffix(".tmp").unlink(missing_ok=True)
                    lock_path.unlink(missing_ok=True)
                    continue
                for key, distance in np.frombuffer(path.read_bytes(), dtype=_PLAN_DTYPE).tolist():
                    name = key.decode()
                    merged[name] = min(distance, merged.get(name, distance))
        return merged


def _is_free(path: Path) -> bool:
    with path.open("rb") as file:
        return lock_within(file.fileno(), 0.0)
