"""Sends to MLflow what is no metric: params, tags, datasets, checkpoints, files. One fault holds up no other kind."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from infra.redact import one_line
from infra.tracking.errors import error_code
from infra.tracking.lineage import ModelSync, send_datasets
from infra.tracking.mlflow_run import REFUSALS, MlflowRun
from infra.tracking.outbox import Outbox

log = logging.getLogger(__name__)

PAUSE_S = 5.0
_UNKNOWN = re.compile(r"error code (404|405|501)\b")
"""What a server says that is older than such entities."""


class Delivery:
    """Empties an outbox but for its rows. Only for the thread that sends."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._refused: set[tuple[str, str]] = set()
        self._wait_until: dict[str, float] = {}
        self._models = ModelSync()

    def labels(self, run: MlflowRun) -> None:
        """Send params and tags; raise what MLflow raises."""
        self._label("params", run.send_params)
        self._label("tags", run.send_tags)

    def rest(self, run: MlflowRun) -> None:
        """Send files, which may have a store of their own, datasets and models: none of them holds up metrics."""
        self._patiently("artifacts", lambda: self._files(run))
        self._patiently("datasets", lambda: self._label("inputs", lambda texts: self._datasets(run, texts)))
        self._patiently("models", lambda: self._label("models", lambda texts: self._checkpoints(run, texts)))

    def _label(self, kind: str, send: Callable[[dict[str, str]], dict[str, str]]) -> None:
        labels = self._outbox.labels(kind)
        if not labels:
            return
        for name, why in send(labels).items():
            if (kind, name) not in self._refused:
                log.warning("tracking: MLflow refuses one of the %s, the run has the others: %s: %s", kind, name, why)
                self._refused.add((kind, name))
        self._outbox.confirm_labels(kind, labels)

    def _datasets(self, run: MlflowRun, texts: dict[str, str]) -> dict[str, str]:
        return _refusal(lambda: send_datasets(run, texts))

    def _checkpoints(self, run: MlflowRun, texts: dict[str, str]) -> dict[str, str]:
        return _refusal(lambda: self._models.send(run, texts["kept"]))

    def _files(self, run: MlflowRun) -> None:
        for file in self._outbox.files():
            run.send_file(file)
            self._outbox.confirm_file(file)

    def _patiently(self, what: str, send: Callable[[], None]) -> None:
        """Send, and after a fault not again for a while."""
        if time.monotonic() < self._wait_until.get(what, 0.0):
            return
        try:
            send()
            self._wait_until.pop(what, None)
        except Exception as error:
            if what not in self._wait_until:
                log.warning("tracking: %s wait, metrics continue: %s", what, one_line(error))
            self._wait_until[what] = time.monotonic() + PAUSE_S


def _refusal(send: Callable[[], None]) -> dict[str, str]:
    """Send all at once; return why MLflow refuses it for good. What may pass is raised."""
    try:
        send()
    except Exception as error:
        if error_code(error) not in (*REFUSALS, "ENDPOINT_NOT_FOUND") and not _UNKNOWN.search(str(error)):
            raise
        return {"all": one_line(error)}
    return {}
