"""What a server tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from prismrec.serving.scorer import ServedModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class ServerMetrics:
    """Counts and times of one server process.

    Args:
        model: gives the model that serves now.
    """

    def __init__(self, model: Callable[[], ServedModel]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "prismrec_requests",
            "Answered requests.",
            ["path", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "prismrec_request_seconds",
            "From a request's head to its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._rows = Counter("prismrec_rows", "Scored rows.", registry=self._registry)
        self._batch = Histogram(
            "prismrec_batch_rows",
            "Rows scored together.",
            buckets=_SIZES,
            registry=self._registry,
        )
        self.rollovers = Counter(
            "prismrec_rollovers", "Changes to another version.", registry=self._registry
        )
        self.failed_checks = Counter(
            "prismrec_failed_checks",
            "Looks at the registry, or loads of a version, that failed.",
            registry=self._registry,
        )
        self._registry.register(_OfModel(model))

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def scored(self, rows: int) -> None:
        """Count rows that were scored together, those of requests that failed left out."""
        self._batch.observe(rows)
        self._rows.inc(rows)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _OfModel:
    """What is told of the model that serves now."""

    def __init__(self, model: Callable[[], ServedModel]) -> None:
        self._model = model

    def collect(self) -> Iterator[Metric]:
        model = self._model()
        version = "" if model.version is None else str(model.version)
        info = GaugeMetricFamily(
            "prismrec_model_info", "The model that serves now.", labels=["name", "version"]
        )
        info.add_metric([model.name, version], 1)
        yield info
        tables = GaugeMetricFamily("prismrec_table_bytes", "Memory of its tables.")
        tables.add_metric([], model.inference.table_bytes)
        yield tables
        unknown = CounterMetricFamily(
            "prismrec_unknown_ids",
            "Ids that it did not know, since it was loaded.",
            labels=["feature", "version"],
        )
        for feature, count in sorted(model.inference.unknown_ids.copy().items()):
            unknown.add_metric([feature, version], count)
        yield unknown
