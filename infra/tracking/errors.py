"""Errors of tracking, and how MLflow names its own."""

from __future__ import annotations

from infra.storage.failures import FailureClass


class TrackingError(ValueError):
    """Tracking cannot work as configured; one line that says why and what to do. Never holds a secret."""


class TrackingAwayError(TrackingError):
    """MLflow gave no answer, or its database or disk was busy or full; the same call may succeed later."""

    failure = FailureClass.TRANSIENT


def error_code(error: BaseException) -> str:
    """Return MLflow's name of an error, or an empty text for what is not MLflow's."""
    return str(getattr(error, "error_code", ""))
