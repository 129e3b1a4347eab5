"""Load of this machine, as MLflow's own monitors measure it."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

log = logging.getLogger(__name__)
PREFIX = "system/"


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
        """Return the values since the last call, named `system/...`."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {PREFIX + name: float(value) for name, value in monitor.aggregate_metrics().items()}
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


def _gpu_monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    for monitor in (GPUMonitor, ROCMMonitor):
        try:
            return [monitor()]
        except Exception as error:  # no such GPU, driver or library: each monitor raises its own type
            log.debug("no %s: %s", monitor.__name__, error)
    return []
