"""W3C Trace Context: the trace that a request belongs to, taken from the caller and handed to the next service.

Spans are made where a tracer is installed (app/tracing.py), and cost a comparison where none is. A task inherits the
span in which it was started, which may end before it.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol

TRACEPARENT_HEADER = "traceparent"
STREAM_ATTRIBUTE = "parshall.streaming_session_id"
Kind = Literal["server", "client", "internal"]
Value = str | int | float | bool
_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:-[!-~]{0,400})?\Z"
)


class Span(Protocol):
    """A span that runs."""

    def name(self, name: str) -> None:
        """Call it otherwise: a route is known only after it was found."""
        ...

    def set(self, key: str, value: Value) -> None:
        """Say something about it."""
        ...

    def event(self, name: str) -> None:
        """Something happened in it now."""
        ...

    def fail(self, reason: str) -> None:
        """It went wrong."""
        ...

    def end(self) -> None:
        """It is over."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a trace this task stands; ids and flags in hex. Without `span_id` it began the trace itself."""

    trace_id: str
    span_id: str | None
    flags: str
    span: Span | None = None


class Tracer(Protocol):
    """What makes spans."""

    def start(self, name: str, kind: Kind, parent: Place | None, attributes: Mapping[str, Value]) -> Place:
        """A span that runs, in its place below `parent`."""
        ...


_current: ContextVar[Place | None] = ContextVar("trace", default=None)
_tracer: Tracer | None = None
_NO_SPAN = nullcontext()


def install(tracer: Tracer | None) -> None:
    """Have this process make spans from now on, or none any more."""
    global _tracer
    _tracer = tracer


def current() -> Place | None:
    """Where this task stands; None outside of any request."""
    return _current.get()


def begin(header: str) -> str:
    """Take part in the trace of a `traceparent`, or begin one where that says nothing valid; the trace id."""
    found = _PARENT.match(header)
    trace_id, span_id, flags = (found[1], found[2], found[3]) if found else (secrets.token_hex(16), None, "00")
    _current.set(Place(trace_id=trace_id, span_id=span_id, flags=flags))
    return trace_id


def traceparent() -> str:
    """What the next service is told: the trace of this task, which is a new one outside of any request."""
    place = _current.get() or Place(trace_id=secrets.token_hex(16), span_id=None, flags="00")
    span_id = secrets.token_hex(8) if place.span is None else place.span_id
    return f"00-{place.trace_id}-{span_id}-{place.flags}"


def span(
    name: str, kind: Kind = "internal", *, stream: str | None = None, attributes: Mapping[str, Value] | None = None
) -> AbstractContextManager[None]:
    """A span around the block, which may name a stream. An exception fails it; a cancelled one has merely ended."""
    if _tracer is None:
        return _NO_SPAN
    named = {} if stream is None else {STREAM_ATTRIBUTE: stream}
    return _running(_tracer, name, kind, named | dict(attributes or {}))


@contextmanager
def _running(tracer: Tracer, name: str, kind: Kind, attributes: Mapping[str, Value]) -> Iterator[None]:
    place = tracer.start(name, kind, _current.get(), attributes)
    before = _current.set(place)
    assert place.span is not None
    try:
        yield
    except Exception as error:
        place.span.fail(type(error).__name__)
        raise
    finally:
        _current.reset(before)
        place.span.end()


def running() -> Span | None:
    """The span of this task, where one is made."""
    place = _current.get()
    return None if place is None else place.span


def of_stream(stream_id: str) -> None:
    """Have the span of this task name a stream."""
    if (found := running()) is not None:
        found.set(STREAM_ATTRIBUTE, stream_id)
