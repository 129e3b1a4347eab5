"""Records a run in MLflow from a thread of its own: training never waits, and each metric arrives exactly once."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from infra.redact import redacted_values
from infra.storage.base import Storage, StorageError, checked_key
from infra.timeouts import call_with_timeout
from infra.tracking import mlflow_run
from infra.tracking.charts import view_url
from infra.tracking.config import TrackingConfig, explained
from infra.tracking.delivery import Delivery
from infra.tracking.errors import TrackingError, error_code
from infra.tracking.images import image_files
from infra.tracking.lineage import CheckpointModel, Dataset, models_json
from infra.tracking.mlflow_run import TABLES_TAG, MlflowRun, page_url, valid_name
from infra.tracking.outbox import File, Outbox, Row
from infra.tracking.row_log import RowLog, TakenOverError
from infra.tracking.spool import Spool
from infra.tracking.system_metrics import SystemRecorder, of_node

log = logging.getLogger(__name__)

STATUSES = ("FINISHED", "FAILED", "KILLED")
MAX_PAUSE_S = 15.0
SETTLE_S = 1.0
SPOOL_TIMEOUT_S = 120.0
"""How long storage may take for what MLflow was not sent; a process that ends must not hang with its storage."""
IMAGES_TAG = "mlflow.loggedImages"
"""By which it knows that there are pictures by step."""


class Tracker:
    """Records one training run as one MLflow run, over any number of restarts.

    Calls only put things into an `Outbox` and return in microseconds; a daemon thread sends them. While MLflow is
    slow, down or gone, they stay there and are sent later. What a process that died had sent is read from MLflow at
    the start, per metric, and is not sent again when training repeats those steps.

    Nothing is lost when the process dies as well: the run's identity is kept in `storage`, the run's own folder, and
    `persist`, called before a checkpoint becomes valid, keeps there what MLflow has not confirmed yet. Rows are written
    down there before they are sent (`row_log.py`). Of two processes that keep the record of one run, that
    of the later `epoch` continues, and the other sends nothing more; None: of the same one as the last.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_name: str,
        *,
        storage: Storage,
        epoch: int | None = None,
        node: str = "",
    ) -> None:
        self.config = config
        self.run_id: str | None = None
        """The MLflow run's id; None until MLflow has answered once."""
        self.url = ""
        """The run's page on an MLflow server; empty until it has answered, and without a server."""
        self.charts_url = ""
        """The first charts of the experiment's runs, likewise."""
        self._run_name = run_name
        self._outbox = Outbox(config.max_unsent)
        self._delivery = Delivery(self._outbox)
        self._system = SystemRecorder(config.system_interval_s) if config.system_metrics else None
        self._node = node
        self._tables: set[str] = set()
        self._spool = Spool(storage, self._outbox, epoch)
        self._row_log = RowLog(storage, epoch)
        self._is_open = False
        self._run: MlflowRun | None = None
        self._key = ""
        self._status = ""
        self._finished = self._stopping = self._abandoned = False
        self._down_since = 0.0
        self._problem = ""
        self._wake = threading.Event()
        self._quiet = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @property
    def unsent(self) -> int:
        """Values, params, tags and files that MLflow has not confirmed yet."""
        return len(self._outbox)

    @property
    def problem(self) -> str:
        """One line on what keeps MLflow from being written, or an empty text."""
        return self._problem

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of a step, 0 or more. A step that a metric has reached already is not taken again."""
        values = {valid_name(name): float(value) for name, value in metrics.items()}
        self._outbox.add_row(Row(step, time.time_ns() // 1_000_000, values))

    def log_load(self, node: str, values: Mapping[str, float]) -> None:
        """Record the load of one of the run's nodes, as its next step."""
        metrics = of_node(node, values)
        self.log_metrics(metrics, self.last_step(metrics) + 1)

    def last_step(self, names: Iterable[str]) -> int:
        """Return the last step of the metrics of these names; -1 without one.

        Those of an earlier process are among them once MLflow has answered.
        """
        return self._outbox.last_step(map(valid_name, names))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record params as text, cut at MLflow's 6,000 characters. A changed one becomes the tag `changed.NAME`.

        Users, passwords and keys are left out, here and in tags.
        """
        self._outbox.add_labels("params", redacted_values({name: str(value) for name, value in params.items()}))

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags as text, cut at MLflow's 8,000 characters."""
        self._outbox.add_labels("tags", redacted_values({name: str(value) for name, value in tags.items()}))

    def set_description(self, markdown: str) -> None:
        """Set the text at the top of the run's page."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_artifact_bytes(self, path: str, content: bytes) -> None:
        """Record an artifact of this path and content."""
        self._outbox.add_file(File(checked_key(path), content))

    def log_table(self, path: str, content: str) -> None:
        """Record a table, JSON with `columns` and `data`, as an artifact that MLflow's page shows as one."""
        self._tables |= {path}
        self.log_artifact_bytes(path, content.encode())
        self.set_tags({TABLES_TAG: json.dumps([{"path": name, "type": "table"} for name in sorted(self._tables)])})

    def log_image(self, key: str, png: bytes, step: int) -> None:
        """Record a picture of a step: MLflow's page has a slider over those of a key. The same step is replaced."""
        for file in image_files(key, png, step):
            self._outbox.add_file(file)
        self.set_tags({IMAGES_TAG: "true"})

    def log_inputs(self, datasets: Sequence[Dataset]) -> None:
        """Record what the run reads, once: those that the run has are left as they are. The page shows the first."""
        texts = {f"{one.name} {one.digest}": one.to_json() for one in datasets}
        self._outbox.add_labels("inputs", texts)

    def log_checkpoints(self, models: Sequence[CheckpointModel]) -> None:
        """Record which checkpoints are kept, as models of MLflow: those of the run that are not among them are deleted.

        Their metrics must have been logged before.
        """
        self._outbox.add_labels("models", {"kept": models_json(models)})

    def flush(self, timeout: float) -> bool:
        """Wait until MLflow has confirmed all of it; return whether it did within `timeout` seconds."""
        return self._wait_until(lambda: not len(self._outbox), timeout)

    def persist(self, timeout: float = 2.0) -> None:
        """Make all that was recorded so far outlive this process: in MLflow, or else in `storage`.

        To be called, from a thread that may wait, between the snapshot of a checkpoint and its manifest: then every
        row up to the checkpoint's step is in MLflow or in the spool, and later ones are made again by a resume.

        Raises:
            StorageError: the spool can't be written.
        """
        if self._abandoned:
            return
        self.flush(0.0 if self._down_since else timeout)
        self._write_spool("")

    def close(self, status: str = "FINISHED", timeout: float = 30.0) -> bool:
        """Send the rest and end the MLflow run; spool what can't be sent. Return whether all was sent.

        Raises:
            StorageError: the spool can't be written.
        """
        assert status in STATUSES
        if self._abandoned:
            return False
        self._status = status
        done = self._wait_until(lambda: self._finished, timeout)
        self._stopping = True
        self._wake.set()
        self._thread.join(1.0)
        if self._abandoned:
            return False
        self._write_spool("" if self._finished else status)
        if not done:
            log.warning("tracking: %d items were not sent to MLflow; kept in %s", self.unsent, self._spool.location)
        return done

    def abandon(self) -> None:
        """Write nothing any more, neither to MLflow nor to storage: the run is another process's now."""
        self._abandoned = self._stopping = True
        self._wake.set()
        self._thread.join(1.0)

    def set_uri(self, uri: str) -> None:
        """Go on with the MLflow server of another address; what it has of the run already is not sent again."""
        self.config = replace(self.config, uri=uri).absolute()
        self._run = None
        self._wake.set()

    def _work(self) -> None:
        pause = self.config.send_interval_s
        while not self._stopping:
            try:
                self._send()
                pause = self.config.send_interval_s
            except TakenOverError as error:
                log.warning("tracking: nothing more is sent: %s", error)
                self._abandoned = self._stopping = True
            except Exception as error:  # whatever goes wrong with tracking, training continues
                self._note_failure(error)
                pause = min(2 * pause, MAX_PAUSE_S)
            with self._quiet:
                self._quiet.notify_all()
            if not self._stopping:
                self._wake.wait(pause)
            self._wake.clear()

    def _send(self) -> None:
        self._spool.load()
        run = self._run or self._connect()
        if self._system is not None and not self._status and (load := self._system.sample()):
            self.log_load(self._node, load)
        # What is written down before them names every metric of the run: worth it for as many values.
        while rows := self._outbox.rows(max(mlflow_run.MAX_VALUES_PER_CALL, self._outbox.num_metrics)):
            self._row_log.add(run.run_id, rows)
            run.send_rows(rows)
            self._outbox.confirm_rows(rows)
        if len(self._outbox) or self._status:
            self._row_log.check()
        self._delivery.labels(run)
        self._note_success()
        self._delivery.rest(run)
        ended = bool(self._status and not self._finished and not len(self._outbox))
        if ended:
            run.finish(self._status)
            self._finished = True  # whatever storage says of it below
        if not len(self._outbox):
            with suppress(StorageError, TimeoutError):  # MLflow is well: the next send tries it again
                call_with_timeout(SPOOL_TIMEOUT_S, self._spool.clear)
        if ended:
            with suppress(StorageError, TimeoutError):  # then MLflow is asked
                call_with_timeout(SPOOL_TIMEOUT_S, partial(self._row_log.end, self._status))

    def _connect(self) -> MlflowRun:
        config = self.config
        path = mlflow_run.sqlite_path(config.uri)
        if path is not None and not path.is_file():
            raise TrackingError(
                f"{path} is not on this machine; a SQLite file serves one machine, name an MLflow server"
            )
        self._key = self._key or self._spool.run_key(self._run_name)
        experiment_id = mlflow_run.open_experiment(config.uri, config.experiment, config.experiment_location())
        if self._down_since:  # it first works off what was asked of it: rows, and to make this very run
            time.sleep(SETTLE_S)
        run = mlflow_run.open_run(
            config.uri,
            experiment_id,
            name=self._run_name,
            key=self._key,
            run_id=self.run_id,
            parent_run_id=config.parent_run_id,
        )
        self._resume(run)
        self._outbox.settle(run.sent_steps())
        self.run_id = run.run_id
        if config.uri.startswith("http"):
            self.charts_url = view_url(config.uri, experiment_id)
            self.url = page_url(config.uri, experiment_id, run.run_id)
        if self.config is config:  # else `set_uri` came in between
            self._run = run
        return run

    def _resume(self, run: MlflowRun) -> None:
        """Take over, once, what an earlier process has sent to this MLflow run, or had begun to send."""
        if not self._is_open:
            sent = self._row_log.open()
            self._outbox.resume(sent.rows, sent.last_steps if sent.run_id == run.run_id else {})
            self._is_open = True

    def _write_spool(self, status: str) -> None:
        try:
            call_with_timeout(SPOOL_TIMEOUT_S, lambda: self._spool.write(status))
        except TakenOverError as error:
            log.warning("tracking: unsent rows are not kept: %s", error)
            self._abandoned = self._stopping = True
        except TimeoutError:
            raise StorageError(f"{self._spool.location} could not be written: storage does not answer") from None

    def _wait_until(self, done: Callable[[], bool], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        with self._quiet:
            while not done():
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    return False
                self._wake.set()
                self._quiet.wait(min(left, 0.25))
        return True

    def _note_failure(self, error: Exception) -> None:
        if error_code(error) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            self._run = None  # deleted, or another database stands behind the server now: find or make it again
        if not self._down_since:
            self._down_since = time.monotonic()
            log.warning("tracking waits, training continues: %s", explained(self.config, error))
        self._problem = str(explained(self.config, error))

    def _note_success(self) -> None:
        if self._down_since:
            log.warning("tracking resumed after %.0f s: everything is sent", time.monotonic() - self._down_since)
        self._down_since, self._problem = 0.0, ""
