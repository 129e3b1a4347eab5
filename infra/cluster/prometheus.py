"""A run's state as metrics that Ray exports on each node, for Prometheus and Grafana."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)

EXPORT_EVERY_S = 5.0

GAUGES = {
    "crescendo_images_per_s": "Training images per second, all workers",
    "crescendo_step_s": "Seconds of an optimizer step",
    "crescendo_data_wait_share": "Share of the time that training waited for data (0 to 1)",
    "crescendo_loss": "Training loss",
    "crescendo_epoch": "Epochs trained",
    "crescendo_stage": "Current training stage, from 1",
    "crescendo_image_size": "Image size of the stage, in pixels",
    "crescendo_workers": "Training workers",
    "crescendo_seconds_left": "Estimated seconds to the run's end",
    "crescendo_checkpoint_age_s": "Seconds since the latest checkpoint was written",
    "crescendo_checkpoint_waits": "Times that a checkpoint could not be written to storage",
    "crescendo_recoveries": "Worker groups restarted after a failure",
}
"""Name and meaning of each; Ray puts `ray_` before the name. All have the label `run`."""


def gauge_values(status: Mapping[str, Any]) -> dict[str, float]:
    """Return the value of each gauge that a run's status knows."""
    values: dict[str, float | None] = {
        "crescendo_recoveries": status["recoveries"],
        "crescendo_workers": status["workers"]["count"],
        "crescendo_checkpoint_waits": status["checkpoint_waits"],
    }
    if checkpoint := status["checkpoint"]:
        values["crescendo_checkpoint_age_s"] = checkpoint["age_s"]
    if progress := status["progress"]:
        metrics, stage = status["metrics"], progress["spans"][progress["stage"]]["stage"]
        rate = metrics.get("train/images_per_s")
        values |= {
            "crescendo_images_per_s": rate,
            "crescendo_step_s": stage["batch_size"] / rate if rate else None,
            "crescendo_data_wait_share": metrics.get("train/data_wait_share"),
            "crescendo_loss": metrics.get("train/loss"),
            "crescendo_epoch": progress["cursor"] / progress["samples_per_epoch"],
            "crescendo_stage": progress["stage"] + 1,
            "crescendo_image_size": stage["image_size"],
            "crescendo_seconds_left": sum(status["left_s"]) if status["left_s"] else None,
        }
    return {name: float(value) for name, value in values.items() if value is not None}


def export_status(status: Callable[[], Mapping[str, Any]]) -> None:
    """Set the gauges from a run's status every few seconds, in a thread, for as long as this process lives."""
    threading.Thread(target=_export, args=(status,), name="metrics", daemon=True).start()


def _export(status: Callable[[], Mapping[str, Any]]) -> None:
    from ray.util.metrics import Gauge

    gauges = {name: Gauge(name, description, tag_keys=("run",)) for name, description in GAUGES.items()}
    pause = threading.Event()
    while not pause.wait(EXPORT_EVERY_S):
        try:
            now = status()
            for name, value in gauge_values(now).items():
                gauges[name].set(value, tags={"run": now["name"]})
        except Exception:  # a gap in a chart is no reason to leave the rest of it empty
            log.exception("metrics are not exported")
