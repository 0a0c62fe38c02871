"""Metrics by OTLP over HTTP, where the standard variables of OpenTelemetry ask for them: those of this process.

They are read from the registry that `/metrics` shows and told as they are: sums and histograms since the start of the
process. The SDK's own instruments could not carry the histograms, its values can. Workers export each for itself.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from prometheus_client import Metric as Family
from prometheus_client.samples import Sample

from parshall import __version__
from parshall.app.tracing import FLUSH_SECONDS_MAX, exporting, told_of
from parshall.kernel import metrics
from parshall.kernel.errors import StartupError
from parshall.kernel.telemetry import log

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint, Metric, MetricExporter, MetricsData
    from opentelemetry.sdk.resources import Resource

ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HEADERS = ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
INTERVAL_MILLISECONDS = 60_000

_logger = log("metrics")


@contextmanager
def metering(service: str) -> Iterator[None]:
    """Export while the block runs, and once more at its end, if that is asked for. Raises StartupError."""
    if not is_wanted():
        yield
        return
    seconds = _interval_seconds()
    with exporting(PROTOCOLS, HEADERS):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.resources import Resource

        exports = _Exports(OTLPMetricExporter(), Resource.create(told_of(service)))
    ended = threading.Event()
    thread = threading.Thread(target=exports.run, args=(ended, seconds), name="metrics-export", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(FLUSH_SECONDS_MAX)  # it is left behind where that takes too long: it ends with the process


def is_wanted() -> bool:
    """Whether the environment asks for metrics."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return os.environ.get("OTEL_METRICS_EXPORTER", "otlp") == "otlp" and any(map(os.environ.get, ENDPOINTS))


def _interval_seconds() -> float:
    given = os.environ.get(INTERVAL) or str(INTERVAL_MILLISECONDS)
    if not (given.isascii() and given.isdigit() and int(given) > 0):
        raise StartupError(f"{INTERVAL} is a whole number of milliseconds; correct or unset it.")
    return int(given) / 1000


class _Exports:
    """One export after the other; what an exporter that is away does not take is in the next, for all are sums."""

    def __init__(self, exporter: "MetricExporter", resource: "Resource") -> None:
        self._exporter = exporter
        self._resource = resource
        self._since = time.time_ns()

    def run(self, ended: threading.Event, seconds: float) -> None:
        """Export every so many seconds, and at the end."""
        last = False
        while not last:
            last = ended.wait(seconds)
            try:
                self._exporter.export(told(self._resource, since=self._since, at=time.time_ns()))
            except Exception as error:  # whatever it is, the next export tells all of it
                _logger.warning("metrics_not_exported", reason=type(error).__name__)
        self._exporter.shutdown()


def told(resource: "Resource", *, since: int, at: int) -> "MetricsData":
    """What this process has counted from `since` until `at`, both in nanoseconds since the epoch."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    made = [_metric(family, since, at) for family in metrics.REGISTRY.collect() if family.samples]
    scope = ScopeMetrics(scope=InstrumentationScope("parshall", __version__), metrics=made, schema_url="")
    return MetricsData(
        resource_metrics=[ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url=resource.schema_url)]
    )


def _metric(family: Family, since: int, at: int) -> "Metric":
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Metric, NumberDataPoint, Sum

    def points(samples: Sequence[Sample]) -> list[NumberDataPoint]:
        return [NumberDataPoint(dict(each.labels), since, at, each.value) for each in samples]

    data: Any
    if family.type == "histogram":
        data = Histogram(_distributions(family.samples, since, at), AggregationTemporality.CUMULATIVE)
    elif family.type == "counter":
        data = Sum(points(family.samples), AggregationTemporality.CUMULATIVE, is_monotonic=True)
    else:
        data = Gauge(points(family.samples))
    return Metric(name=family.name, description=family.documentation, unit=family.unit, data=data)


def _distributions(samples: Sequence[Sample], since: int, at: int) -> list["HistogramDataPoint"]:
    """A point for each set of labels; Prometheus' buckets hold those below them too, and OTLP's do not."""
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    series: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for sample in samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        kind = sample.labels.get("le") or sample.name.rpartition("_")[2]
        series.setdefault(tuple(labels.items()), {})[kind] = sample.value
    made = []
    for labels_of, values in series.items():
        bounds = sorted(float(kind) for kind in values if kind not in ("sum", "count", "+Inf"))
        below = [0.0, *sorted(value for kind, value in values.items() if kind not in ("sum", "count"))]
        counts = [int(more - less) for less, more in pairwise(below)]
        total, count = values.get("sum", 0.0), int(values.get("count", below[-1]))
        made.append(
            HistogramDataPoint(dict(labels_of), since, at, count, total, counts, bounds, min=None, max=None)  # type: ignore[arg-type]
        )
    return made
