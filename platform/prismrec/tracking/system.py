"""Load of the machine, sampled in a thread: processor, memory, disk, network and GPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

_log = logging.getLogger(__name__)


class SystemSampler:
    """Samples the machine every `interval_s` seconds, at the start and at the end.

    MLflow's own sampler ends for good when the server is away once; this one hands its numbers to
    the run's queue like every other metric.

    Args:
        record: takes metrics by name (`system/...`) and the number of the sample.
        interval_s: seconds between samples.
    """

    def __init__(
        self, record: Callable[[dict[str, float], int], None], interval_s: float = 10.0
    ) -> None:
        self._record = record
        self._interval_s = interval_s
        self._monitors = _monitors()
        self._stop = threading.Event()
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the last sample and end the thread."""
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        self._sample()
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        metrics: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            metrics |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        self._record({f"system/{name}": float(v) for name, v in metrics.items()}, self._count)
        self._count += 1


def _monitors() -> list[BaseMetricsMonitor]:
    monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception as error:  # noqa: BLE001  the driver raises its own errors where no GPU is
        _log.debug("no GPU is sampled: %s", error)
    return monitors
