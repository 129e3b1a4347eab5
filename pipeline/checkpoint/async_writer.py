"""Writes checkpoints in a thread: no step waits for storage, not even while it is unavailable."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import NamedTuple, Protocol

from infra.storage.base import Storage, StorageError
from pipeline.checkpoint.catalog import BestRule, list_checkpoints
from pipeline.checkpoint.format import Snapshot, write_checkpoint
from pipeline.checkpoint.head import FencedError, Writer, commit, cursor_of, unique_key
from pipeline.checkpoint.pruning import prune
from pipeline.training_config import CheckpointConfig

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""Pause between two tries to write a checkpoint that storage didn't take."""


class SaverStoppedError(Exception):
    """Raised by `before_manifest`: this run may complete no more checkpoints."""


class SaverEvents(Protocol):
    """What a saver tells. Called in the thread that writes."""

    def before_manifest(self) -> None:
        """Called between a checkpoint's files and its manifest: make safe what a resumed run won't make again."""

    def saved(self, uri: str, cursor: int) -> None:
        """A checkpoint is complete."""

    def pruned(self) -> None:
        """Older checkpoints that aren't kept are gone. May raise StorageError: the next one's turn will do."""

    def waits(self, line: str) -> None:
        """Storage didn't take a checkpoint; training continues, and it will be tried again."""

    def gave_up(self, line: str) -> None:
        """Storage didn't take any checkpoint for too long: the run must end."""


class _Waiting(NamedTuple):
    """A snapshot and its folder, which stays the same when it is tried again: each try writes all of it."""

    snapshot: Snapshot
    key: str


class Saver:
    """Writes snapshots one at a time, in a thread of its own.

    The rule: at most one snapshot is being written and at most one waits. A newer one takes the place of the one that
    waits, since only the newest is resumed from. While storage takes nothing, the one in hand is tried again every
    `RETRY_S`, unless a newer one waits: then that one is. When storage has refused for `config.give_up_s`, or has not
    ended to take a file for so long, the saver gives up and says so; it takes nothing more then.

    Ray Train's own asynchronous upload is not used for this: with it, Ray's controller writes a list of checkpoints
    into the same storage at every report, and ends the run when storage is away at that moment.

    `writer` is what the worker group has claimed; None: nobody else can write here, and there is no head.
    """

    def __init__(
        self, storage: Storage, config: CheckpointConfig, events: SaverEvents, *, writer: Writer | None = None
    ) -> None:
        self.storage, self.config, self.events, self.writer = storage, config, events, writer
        self._waiting: _Waiting | None = None
        self._fenced: FencedError | None = None
        self._busy = self._given_up = self._has_told = False
        self._moved_at, self._failing_since, self._refused = 0.0, math.inf, ""
        self._changed = threading.Condition()

    def take(self, snapshot: Snapshot) -> None:
        """Make `snapshot` the next one to be written; returns at once. Raises `FencedError`, as `wait`."""
        self._check_not_fenced()
        if self._gives_up():
            return
        cursor = snapshot.state.cursor
        key = unique_key(cursor, self.writer.epoch) if self.writer is not None else snapshot.key
        with self._changed:
            self._waiting = _Waiting(snapshot, key)
            if not self._busy:
                self._busy, self._moved_at = True, time.monotonic()
                threading.Thread(target=self._work, name="saver", daemon=True).start()

    def wait(self, timeout: float | None = None) -> bool:
        """Return when nothing waits or is being written; whether it came to that within `timeout` seconds.

        Raises:
            FencedError: a newer worker group writes now. This one's work counts for nothing: it must end.
        """
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        while True:
            with self._changed:
                now = time.monotonic()
                patience_s = max(0.1, self._owed_since + self.config.give_up_s - now)
                done = self._changed.wait_for(lambda: not self._busy, min(patience_s, deadline - now, 60.0))
            self._check_not_fenced()
            if done:
                return True
            if time.monotonic() >= deadline:
                return False
            self._gives_up()

    def catch_up(self) -> None:
        """Tell of the newest checkpoint, unless this saver has told of one: who wrote it may have been killed before.

        Raises:
            FencedError: as `wait`.
        """
        if self._has_told:
            return
        try:
            if keys := list_checkpoints(self.storage):
                self._tell(keys[-1], cursor_of(keys[-1]) or 0)
        except StorageError as error:
            log.warning("the newest checkpoint is not told of: %s", error)

    def _check_not_fenced(self) -> None:
        if self._fenced is not None:
            raise self._fenced

    def _work(self) -> None:
        """Write the newest snapshot that waits, and those that come meanwhile."""
        while (waiting := self._next()) is not None:
            try:
                self._write(waiting)
                self._failing_since, self._refused = math.inf, ""
            except (SaverStoppedError, FencedError) as error:
                log.error("no more checkpoints are written: %s", error)
                self._fenced = error if isinstance(error, FencedError) else None
                self._end()
                return
            except Exception as error:  # whatever it is, a checkpoint is missing: never silently
                self._failing_since = min(self._failing_since, time.monotonic())
                self._refused = _one_line(error)
                if self._gives_up():
                    return
                self.events.waits(f"a checkpoint waits for storage, training continues: {self._refused}")
                with self._changed:
                    self._waiting = self._waiting or waiting
                time.sleep(RETRY_S)

    def _next(self) -> _Waiting | None:
        with self._changed:
            waiting, self._waiting = self._waiting, None
            if waiting is None or self._given_up:
                self._busy = False
                self._changed.notify_all()
                return None
            return waiting

    @property
    def _owed_since(self) -> float:
        """Since when storage has refused, or not taken a file, whichever is longer."""
        return min(self._failing_since, self._moved_at)

    def _moved(self) -> None:
        self._moved_at = time.monotonic()

    def _gives_up(self) -> bool:
        """Give up if storage has taken nothing for too long, whether it refuses or a write of it never ends.

        The thread that writes can't tell the latter, so those that hand over and wait look as well.
        """
        with self._changed:
            owed_s = time.monotonic() - self._owed_since
            if self._given_up or not self._busy or owed_s <= self.config.give_up_s:
                return self._given_up
            self._given_up = True
        why = self._refused or "writing a file of it does not end"
        self.events.gave_up(f"no checkpoint could be written for {owed_s:.0f} s, the run ends here: {why}")
        self._end()
        return True

    def _end(self) -> None:
        with self._changed:
            self._given_up, self._busy = True, False
            self._changed.notify_all()

    def _write(self, waiting: _Waiting) -> None:
        self._moved()
        key = waiting.key
        write_checkpoint(self.storage, waiting.snapshot, self.events.before_manifest, self._moved, key=key)
        if self.writer is not None:
            commit(self.storage, key, self.writer)
        self._tell(key, waiting.snapshot.state.cursor)

    def _tell(self, key: str, cursor: int) -> None:
        """Tell of a checkpoint that is valid, and delete those that aren't kept beside it."""
        self._has_told = True
        self.events.saved(f"{self.storage.uri}/{key}", cursor)
        try:
            prune(self.storage, self.config.keep, best_rule(self.config), written=key, writer=self.writer)
            self.events.pruned()
        except StorageError as error:  # the next one's turn will sweep
            log.warning("old checkpoints stay for now: %s", error)


def best_rule(config: CheckpointConfig) -> BestRule | None:
    """Return which checkpoint stays as the best one, if one does."""
    return BestRule(config.best_metric, config.best_is == "highest") if config.best_metric else None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, StorageError) else f"{type(error).__name__}: {text}"
