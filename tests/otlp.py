"""A receiver of OTLP over HTTP that a test runs: the spans and the metrics that came, decoded."""

import contextlib
import gzip
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span; ids in hex, `parent` empty for a root."""

    service: str
    name: str
    trace_id: str
    id: str
    parent: str
    attributes: dict[str, Any]
    events: tuple[str, ...]
    failed: bool
    began: int
    ended: int


Point = tuple[str, frozenset[tuple[str, str]]]
"""Name and labels, as Prometheus would have them: a bucket has `le`, and what lies below it counts too."""


@dataclass
class Receiver:
    """What has come so far."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    metrics: dict[str, dict[Point, float]] = field(default_factory=dict)
    """The newest export of each process, by its instance id."""

    def trace(self, trace_id: str, complete: Callable[[list[Span]], bool], seconds: float = 20) -> list[Span]:
        """The spans of a trace, once they are complete."""
        deadline = time.monotonic() + seconds
        while not complete(found := [span for span in self.spans if span.trace_id == trace_id]):
            assert time.monotonic() < deadline, sorted(span.name for span in found)
            time.sleep(0.05)
        return found


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port."""
    receiver = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/metrics":
                receiver.metrics |= points_of(body)
            else:
                receiver.spans += spans_of(body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield receiver
        finally:
            server.shutdown()


def spans_of(body: bytes) -> Iterator[Span]:
    """The spans of one export."""
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        told = {each.key: each.value.string_value for each in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    service=told["service.name"],
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    attributes={each.key: _value(each.value) for each in span.attributes},
                    events=tuple(event.name for event in span.events),
                    failed=span.status.code == 2,
                    began=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                )


def points_of(body: bytes) -> dict[str, dict[Point, float]]:
    """The points of one export, by the process that sent it."""
    found: dict[str, dict[Point, float]] = {}
    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        told = {each.key: each.value.string_value for each in resource.resource.attributes}
        points = found.setdefault(told["service.instance.id"], {})
        for metric in (each for scope in resource.scope_metrics for each in scope.metrics):
            points |= dict(_points(metric))
    return found


def _points(metric: Any) -> Iterator[tuple[Point, float]]:
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    if kind != "gauge":
        assert data.aggregation_temporality == 2, "since the start of the process"
    for point in data.data_points:
        labels = {each.key: each.value.string_value for each in point.attributes}
        if kind != "histogram":
            yield (metric.name + ("_total" if kind == "sum" else ""), frozenset(labels.items())), point.as_double
            continue
        total = 0
        for bound, count in zip([*point.explicit_bounds, float("inf")], point.bucket_counts, strict=True):
            total += count
            le = "+Inf" if bound == float("inf") else str(bound)
            yield (f"{metric.name}_bucket", frozenset({**labels, "le": le}.items())), total
        yield (f"{metric.name}_count", frozenset(labels.items())), point.count
        yield (f"{metric.name}_sum", frozenset(labels.items())), point.sum


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))
