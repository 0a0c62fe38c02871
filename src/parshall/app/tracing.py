"""Traces by OTLP over HTTP, where the standard variables of OpenTelemetry ask for them; off otherwise.

The packages of the extra `otel` are imported only then. An exporter that is away costs nobody else anything: spans
wait in a bounded queue, what does not fit is dropped, and the end of the process waits for FLUSH_SECONDS_MAX at most.
"""

import functools
import os
import re
import secrets
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from parshall import __version__
from parshall.kernel import trace
from parshall.kernel.errors import StartupError
from parshall.kernel.trace import Kind, Place, Value

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.trace import Span as OtelSpan

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_HEADER = re.compile(r"\s*[\w!#$%&'*+.^`|~-]+\s*=[ !#-+\--:<-\[\]-~]*", re.ASCII)
FLUSH_SECONDS_MAX = 2.0
"""What the end of the process may wait for spans that are still to be sent."""


@contextmanager
def tracing(service: str) -> Iterator[None]:
    """Make and export spans while the block runs, if that is asked for. Raises StartupError where it cannot be.

    `service` names this process where OTEL_SERVICE_NAME does not.
    """
    if not is_wanted():
        yield
        return
    provider = _provider(service)
    trace.install(_Tracer(provider))
    try:
        yield
    finally:
        trace.install(None)
        _flush(provider)


def is_wanted() -> bool:
    """Whether the environment asks for traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "none" and any(map(os.environ.get, ENDPOINTS))


def _provider(service: str) -> "TracerProvider":
    with exporting(PROTOCOLS, HEADERS):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create(told_of(service))
        provider = TracerProvider(resource=resource, id_generator=_ids(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def told_of(service: str) -> dict[str, str]:
    """What an export tells of this process."""
    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    return {"service.version": __version__, "service.instance.id": _instance(), **name}


@functools.cache
def _instance() -> str:
    """This process, in traces and metrics alike."""
    return uuid.uuid4().hex


@contextmanager
def exporting(protocols: tuple[str, str], headers: tuple[str, str]) -> Iterator[None]:
    """Around the making of an exporter. Raises StartupError where variables or packages are not as they must be."""
    if next(filter(None, map(os.environ.get, protocols)), PROTOCOL) != PROTOCOL:
        raise StartupError(f"What is exported is {PROTOCOL} alone; set {protocols[1]} to that, or unset it.")
    _check_headers(headers)
    try:
        yield
    except ImportError as error:
        raise StartupError(
            f"{ENDPOINTS[1]} is set and the packages that export are missing: install parshall[otel], or unset the "
            "variable."
        ) from error
    except ValueError as error:
        raise StartupError(f"A variable of OpenTelemetry is wrong: {error}; correct or unset it.") from error


def _check_headers(headers: tuple[str, str]) -> None:
    """Headers hold secrets, and the library logs those that it cannot read. Raises StartupError."""
    for variable in headers:
        parts = filter(str.strip, os.environ.get(variable, "").split(","))
        if not all(map(_HEADER.fullmatch, parts)):
            raise StartupError(f"{variable} is not a list of name=value with commas; correct or unset it.")


def _flush(provider: "TracerProvider") -> None:
    """Send what waits. The thread is left behind where that takes too long: it ends with the process."""
    sending = threading.Thread(target=provider.shutdown, name="traces-flush", daemon=True)
    sending.start()
    sending.join(FLUSH_SECONDS_MAX)


def _ids() -> "IdGenerator":
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Ids(IdGenerator):
        """A trace that begins here has the id that its log lines have."""

        def generate_span_id(self) -> int:
            return secrets.randbits(64) or 1

        def generate_trace_id(self) -> int:
            place = trace.current()
            return secrets.randbits(128) or 1 if place is None else int(place.trace_id, 16)

    return Ids()


class _Tracer:
    """The Tracer of kernel/trace.py on OpenTelemetry's."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace as otel

        self._otel: Any = otel
        self._tracer = provider.get_tracer("parshall", __version__)
        self._kinds = {
            "server": otel.SpanKind.SERVER,
            "client": otel.SpanKind.CLIENT,
            "internal": otel.SpanKind.INTERNAL,
        }

    def start(self, name: str, kind: Kind, parent: Place | None, attributes: Mapping[str, Value]) -> Place:
        """A span that runs, in its place below `parent`; the caller's flag says whether it is recorded."""
        otel = self._otel
        started = self._tracer.start_span(
            name, context=otel.set_span_in_context(self._above(parent)), kind=self._kinds[kind], attributes=attributes
        )
        found = started.get_span_context()
        return Place(
            trace_id=otel.format_trace_id(found.trace_id),
            span_id=otel.format_span_id(found.span_id),
            flags=f"{found.trace_flags:02x}",
            span=_Span(started),
        )

    def _above(self, parent: Place | None) -> Any:
        otel = self._otel
        if parent is None or parent.span_id is None:
            return otel.INVALID_SPAN
        context = otel.SpanContext(
            trace_id=int(parent.trace_id, 16),
            span_id=int(parent.span_id, 16),
            is_remote=parent.span is None,
            trace_flags=otel.TraceFlags(int(parent.flags, 16) & 1),
        )
        return otel.NonRecordingSpan(context)


class _Span:
    """The Span of kernel/trace.py on OpenTelemetry's."""

    def __init__(self, span: "OtelSpan") -> None:
        self._span = span

    def name(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, key: str, value: Value) -> None:
        self._span.set_attribute(key, value)

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def fail(self, reason: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR, reason)

    def end(self) -> None:
        self._span.end()
