"""Load of a run's machines, as MLflow's own monitors measure it, by the names that MLflow gives several nodes."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)
PREFIX = "system/"


def of_node(node: str, values: Mapping[str, float]) -> dict[str, float]:
    """Name values as MLflow does with MLFLOW_SYSTEM_METRICS_NODE_ID: `system/NODE/...`; of no node: `system/...`."""
    prefix = f"{PREFIX}{node}/" if node else PREFIX
    return {f"{prefix}{name}": value for name, value in values.items()}


class SystemSampler:
    """MLflow's CPU, memory, disk, network and GPU monitors, read when asked.

    Its `SystemMetricsMonitor` is not used: it gives up for good when the server is away once.
    """

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *_gpu_monitors()]
        self.sample()  # the first CPU share is since nothing, and says nothing

    def sample(self) -> dict[str, float]:
        """Return the values since the last call, by MLflow's names."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {name: float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values


class SystemRecorder:
    """Samples in the interval that is asked for. It fails once at most, with a warning: training continues without."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s, self._next = interval_s, 0.0
        self._sampler: SystemSampler | None = None

    def sample(self) -> dict[str, float]:
        """Return the values where they are due; else nothing."""
        now = time.monotonic()
        if now < self._next:
            return {}
        self._next = now + self._interval_s
        try:
            self._sampler = self._sampler or SystemSampler()
            return self._sampler.sample()
        except Exception as error:  # a missing psutil, a driver that fails: no reason to hold up the rest
            self._next = math.inf
            log.warning("tracking: no system metrics: %s", error)
            return {}


class NodeReporter:
    """Tells the load of a node where no tracker is, in a thread of its own, until it is closed."""

    def __init__(self, interval_s: float, tell: Callable[[dict[str, float]], None]) -> None:
        self._recorder, self._tell = SystemRecorder(interval_s), tell
        self._interval_s, self._ended = interval_s, threading.Event()
        threading.Thread(target=self._work, name="system-metrics", daemon=True).start()

    def close(self) -> None:
        """Have the thread end."""
        self._ended.set()

    def _work(self) -> None:
        while not self._ended.is_set():
            if values := self._recorder.sample():
                self._tell(values)
            self._ended.wait(self._interval_s)


def _gpu_monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    for monitor in (GPUMonitor, ROCMMonitor):
        try:
            return [monitor()]
        except Exception as error:  # no such GPU, driver or library: each monitor raises its own type
            log.debug("no %s: %s", monitor.__name__, error)
    return []
