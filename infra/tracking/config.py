"""`TrackingConfig`: where runs are recorded, with the driver's check that it works."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace

from infra.redact import check_uri, one_line, redacted
from infra.storage.base import StorageError
from infra.storage.failures import is_transient
from infra.storage.local import LocalStorage
from infra.tracking.errors import TrackingAwayError, TrackingError, error_code
from infra.tracking.mlflow_run import make_client, open_experiment, sqlite_path

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


_WRONG_ADDRESS = re.compile("Name or service not known|nodename nor servname|Invalid URL|CERTIFICATE_VERIFY_FAILED")
_NO_CONNECTION = re.compile("OperationalError|InterfaceError")
"""SQLAlchemy's names, of any database, of errors that are not of a statement."""
_REFUSED = re.compile(
    "authentication|denied|does not exist|Unknown database|could not translate host name", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where and how a run is recorded in MLflow."""

    uri: str = field(default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///runs/mlflow.db")
    """MLflow server (`http://host:5000`) or database. Default: MLFLOW_TRACKING_URI, or else a SQLite file, which serves
    runs on one machine only."""
    experiment: str = "crescendo"
    """MLflow experiment for the run; created if it does not exist."""
    artifact_location: str = ""
    """Where a new experiment keeps its artifacts. Empty: the server's default, or next to the SQLite file."""
    system_metrics: bool = True
    """Record system metrics of every node: CPU, memory, disk, network, GPU."""
    system_interval_s: float = 10.0
    """Seconds between two records of the system metrics."""
    send_interval_s: float = 1.0
    """Seconds for which metrics are collected before they are sent together."""
    parent_run_id: str = ""
    """Parent MLflow run of this one: that of a sweep or a search."""
    extra_params: tuple[tuple[str, str], ...] = ()
    """Additional MLflow params, as name and value."""
    max_unsent: int = 1_000_000
    """Metric values that are kept while MLflow is unavailable (about 100 bytes of memory each); later ones are
    dropped."""

    def __post_init__(self) -> None:
        if self.uri.partition(":")[0].partition("+")[0].lower() not in SCHEMES:
            raise ValueError(
                f"tracking.uri is {redacted(self.uri)!r}: expected http(s)://HOST, sqlite:///FILE or a database URI"
            )
        if self.uri.startswith("sqlite") and re.fullmatch(r"sqlite:///(?!:memory:)[^?]+", self.uri) is None:
            raise ValueError(f"tracking.uri is {redacted(self.uri)!r}: expected sqlite:///FILE")
        if not self.uri.startswith("sqlite"):
            check_uri("tracking.uri", self.uri)
        if not self.experiment:
            raise ValueError("tracking.experiment is empty: give it a name")
        for name in ("system_interval_s", "send_interval_s", "max_unsent"):
            if getattr(self, name) <= 0:
                raise ValueError(f"tracking.{name} is {getattr(self, name)}: expected a number above 0")

    def absolute(self) -> TrackingConfig:
        """Return the config with the SQLite file's absolute path, which means the same in every process."""
        path = sqlite_path(self.uri)
        return self if path is None else replace(self, uri=f"sqlite:///{path.absolute()}")

    def ui_command(self) -> str:
        """Return what opens the MLflow UI over these runs."""
        if self.uri.startswith("http"):
            return redacted(self.uri)
        return f".venv/bin/mlflow ui --workers 1 --backend-store-uri {redacted(self.uri)}"

    def experiment_location(self) -> str | None:
        """Return where a new experiment keeps its artifacts; None: where the server says."""
        path = sqlite_path(self.uri)
        if self.artifact_location or path is None:
            return self.artifact_location or None
        return str(path.absolute().parent / "artifacts")


def check(config: TrackingConfig) -> None:
    """Raise `TrackingError` if nothing answers at the URI, or its file cannot be written. Leaves nothing behind."""
    if config.uri.startswith("sqlite"):
        check_file(config)
        return
    try:
        make_client(config.uri).get_experiment_by_name(config.experiment)
    except Exception as error:
        raise explained(config, error) from None


def check_file(config: TrackingConfig) -> None:
    """Raise `TrackingError` if the URI is a SQLite file that cannot be written. MLflow isn't imported for it."""
    path = sqlite_path(config.uri)
    if path is not None:
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        try:
            LocalStorage(parent).check_writable()
        except StorageError as error:
            raise _kind(is_transient(error))(f"tracking.uri is {config.uri}: {error}") from None
        if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
            raise TrackingError(f"tracking.uri is {config.uri}: {path} can't be written; choose another file")


def prepare(config: TrackingConfig) -> None:
    """Make the tables of a new SQLite file (seconds, once) and the experiment. Call it on the driver.

    Raises:
        TrackingError: as `check`, or the experiment was deleted.
    """
    check(config)
    try:
        open_experiment(config.uri, config.experiment, config.experiment_location())
    except Exception as error:
        raise explained(config, error) from None


def explained(config: TrackingConfig, error: Exception) -> TrackingError:
    """Return an error of MLflow or its database as one line without secrets."""
    if isinstance(error, TrackingError):
        return error
    if isinstance(error, StorageError):
        return _kind(is_transient(error))(str(error))
    text = one_line(error)
    where = f"tracking.uri is {redacted(config.uri)}"
    if isinstance(error, ModuleNotFoundError):
        return TrackingError(f"{where}: the database driver {error.name!r} is not installed in .venv")
    if "out-of-date database schema" in text:
        return TrackingError(f"{where}: an older MLflow made this database; run `mlflow db upgrade` on a copy of it")
    if not config.uri.startswith("http"):
        return _kind(_is_busy(config, str(error)))(f"{where}: the database can't be used: {text}")
    if error_code(error) in ("PERMISSION_DENIED", "UNAUTHENTICATED") or re.search(r"error code (401|403)\b", text):
        cure = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return TrackingError(f"{where}: the server refuses the credentials; {cure}")
    if re.search(r"error code \d|JSON", text):
        kind = _kind(re.search(r"error code (429|50[234])\b", text) is not None)  # also of a proxy before a server
        return kind(f"{where}: what answers there is not an MLflow server, or is failing: {text}")
    if error_code(error) == "INTERNAL_ERROR" or isinstance(error, OSError):  # there was no answer to read
        # What waiting doesn't cure is the operator's to mend, as for an S3 server.
        kind = _kind(_WRONG_ADDRESS.search(str(error)) is None)
        return kind(f"{where}: no answer; start the MLflow server, or correct the URI")
    return TrackingError(f"{where}: {text}")


def _is_busy(config: TrackingConfig, text: str) -> bool:
    """Say whether a database may be used later, by what its driver says."""
    if sqlite_path(config.uri) is not None:
        return any(words in text for words in ("database is locked", "disk I/O error", "database or disk is full"))
    return bool(_NO_CONNECTION.search(text)) and not _REFUSED.search(text)


def _kind(away: bool) -> type[TrackingError]:
    return TrackingAwayError if away else TrackingError
