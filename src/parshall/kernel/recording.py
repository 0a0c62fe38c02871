"""A trace in the making: what a request, its response and the calls that were made for it bring, noted as it comes.

Whoever sets headers or calls others asks for the recording of their task; there is one only where a request is traced.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, SupportsIndex

from starlette.types import Scope

from parshall.kernel import exchange
from parshall.kernel.errors import ParshallError
from parshall.kernel.exchange import FAULTS_MAX, SETS_MAX, Document, Fault, FaultKind, HeaderSet, Pairs, Started
from parshall.kernel.fingerprints import Fingerprints
from parshall.kernel.ids import new_id
from parshall.kernel.telemetry import log

RawHeaders = list[tuple[bytes, bytes]]
Sink = Callable[[Document], None]
NAMES_AS_SENT = "parshall.names_as_sent"
"""Where the scope has the names of the fields in their own case; without it they are in lower case."""
CALLS_MAX = 200
"""Calls to others that are kept of one request; a stream that is extended for an hour makes as many."""

current: ContextVar["Recording | None"] = ContextVar("recording", default=None)
"""The recording of a traced request, for its task and every task that it starts."""

_logger = log("headers")
_BETWEEN = (
    *("starlette.responses", "starlette.datastructures", "fastapi.responses"),
    *(__name__, "parshall.kernel.places", "parshall.kernel.headertrace"),
)
"""Modules between the code that wants a field set and the list that it ends in."""


class Recording:
    """One request, from its head to the last call that was made for it."""

    def __init__(
        self, scope: Scope, *, reason: str, service: str, fingerprints: Fingerprints, with_places: bool, at: int
    ) -> None:
        """`at` is the instant of the request; `with_places` notes the line of code of each write to a header."""
        self.id = new_id()
        self.reason = reason
        self.notes: list[str] = []
        self.with_places = with_places
        self.started: Started | None = None
        self.faults: list[Fault] = []
        self.stream_id: str | None = None
        self.voucher: str | None = None
        """The token of a service that asks for a report."""
        self._service = service
        self._fingerprints = fingerprints
        self._scope = scope
        self._at = at
        self._began = time.perf_counter()
        self._first_body: float | None = None
        self._sets: list[HeaderSet] = []
        self._copied: list[tuple[RawHeaders, RawHeaders]] = []
        """Lists that a layer further out has copied, as they are and as they were then."""
        self._on_their_way: set[int] = set()
        self._lists = 0
        self._calls: list[Document] = []
        self._sink: Sink | None = None

    @property
    def received(self) -> Pairs:
        """The fields of the request, as the server gives them."""
        fields = self._scope["headers"]
        names = self._scope.get(NAMES_AS_SENT, ())[: len(fields)]
        if len(names) == len(fields):
            fields = [(name, value) for name, (_, value) in zip(names, fields, strict=True)]
        return exchange.decoded(fields)

    # ── Writing headers ─────────────────────────────────────────────────────────────────────────────────────────────

    def listed(self, fields: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
        """A list with these fields, which notes what is written to it where places are recorded."""
        if isinstance(fields, list):
            self._copied.append((fields, list(fields)))
        return NotedList(self, fields) if self.with_places else list(fields)

    def noted(self, name: bytes, value: bytes | None, target: int) -> None:
        """A field has been set, or taken away (None). One that is set on a response that is on its way is late."""
        place = place_of_caller()
        with unharmed("note"):
            own, text = name.decode("latin-1"), None if value is None else value.decode("latin-1")
            if len(self._sets) < SETS_MAX:
                written = HeaderSet(seconds=self._seconds(), name=own, value=text, place=place, target=target)
                self._sets.append(written)
            if target in self._on_their_way:
                self.fault("late", own, place)

    def fault(self, kind: FaultKind, name: str, place: str | None = None) -> None:
        """Something was written that cannot be right."""
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(Fault(kind=kind, name=name, seconds=self._seconds(), place=place))

    def next_number(self) -> int:
        """The number of a further list."""
        self._lists += 1
        return self._lists

    # ── The response ────────────────────────────────────────────────────────────────────────────────────────────────

    def begun(self, status: int, fields: Sequence[tuple[bytes, bytes]]) -> Started:
        """The status line is going out, with these fields."""
        place = place_of_caller() if self.with_places else None
        decoded = exchange.decoded(fields)
        if self.started is not None:
            for name, _ in decoded:
                self.fault("late", name, place)
            return self.started
        target = number_of(fields)
        self.started = Started(seconds=self._seconds(), status=status, fields=decoded, place=place, target=target)
        self._on_their_way = {target, *(number_of(each) for each, _ in self._copied)} - {0}
        self.faults += exchange.faults_of(self.started, self._sets)
        return self.started

    def body(self) -> None:
        """A piece of the body is going out."""
        if self._first_body is None:
            self._first_body = self._seconds()

    # ── Calls ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def called(self, call: Document) -> None:
        """Another service or a provider has been asked; its document has everything but whose it is."""
        call |= {"id": new_id(), "parent": self.id}
        if self._sink is None:
            if len(self._calls) < CALLS_MAX:
                self._calls.append(call)
        else:
            self._sink(self._own(call))

    def redacted(self, fields: Pairs) -> list[Document]:
        """Fields as they may be kept."""
        return exchange.plain_fields(exchange.kept(fields, self._fingerprints.field))

    def redacted_target(self, target: str) -> str:
        """A URL as it may be kept."""
        return exchange.shortened(self._fingerprints.target(target), exchange.VALUE_CHARS_MAX)

    # ── The end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self, *, stream_id: str | None, user_id: str | None, request_id: str | None, sink: Sink | None) -> None:
        """The response is over: give all that there is to `sink`, and what is still to come as it comes."""
        self.stream_id, ended = stream_id, self._seconds()
        self._check_written_late()
        if sink is None:
            self._sink = _nowhere
            return
        for document in (self._document(ended) | {"userId": user_id, "requestId": request_id}, *self._calls):
            sink(self._own(document))
        self._calls.clear()
        self._sink = sink

    def _own(self, document: Document) -> Document:
        return document | {"service": self._service, "reason": self.reason, "streamingSessionId": self.stream_id}

    def _check_written_late(self) -> None:
        """Without places: a list that is another one than it was when it went out has been written to too late."""
        if self.with_places or self.started is None:
            return
        for fields, before in self._copied:
            for name, _ in [field for field in fields if field not in before]:
                self.fault("late", name.decode("latin-1"))

    def _document(self, ended: float) -> Document:
        scope, received = self._scope, self.received
        query = scope.get("query_string", b"").decode("latin-1")
        target = scope["path"] + (f"?{query}" if query else "")
        return {
            "id": self.id,
            "parent": None,
            "kind": "request",
            "at": self._at,
            "request": {
                "method": scope["method"],
                "scheme": scope.get("scheme", "http"),
                "httpVersion": scope.get("http_version", "1.1"),
                "target": self.redacted_target(target),
                "headers": self.redacted(received),
                "left": exchange.left_out(received),
            },
            "response": self._response(),
            "firstByteMilliseconds": _told(self._first_body),
            "endedMilliseconds": exchange.milliseconds(ended),
            "faults": [fault.wire() for fault in self.faults],
            "notes": self.notes,
        }

    def _response(self) -> Document | None:
        started = self.started
        if started is None:
            return None
        fields = exchange.response_fields(started, self._sets, first_body=self._first_body)
        for field in fields:
            field["value"] = exchange.shortened(
                self._fingerprints.field(field["name"], field["value"]), exchange.VALUE_CHARS_MAX
            )
        return {
            "status": started.status,
            "headers": fields,
            "left": exchange.left_out(started.fields),
            "milliseconds": exchange.milliseconds(started.seconds),
        }

    def _seconds(self) -> float:
        return time.perf_counter() - self._began


class NotedList(RawHeaders):
    """Header fields that tell a recording each write to them."""

    def __init__(self, recording: Recording, fields: Iterable[tuple[bytes, bytes]] = (), *, new: bool = False) -> None:
        """`new` fields count as written now; others were set before."""
        super().__init__(fields)
        self.number = recording.next_number()
        self._recording = recording
        if new:
            for name, value in self:
                recording.noted(name, value, self.number)

    def append(self, field: tuple[bytes, bytes]) -> None:
        """Set a field behind all others."""
        super().append(field)
        self._recording.noted(field[0], field[1], self.number)

    def extend(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Set some fields."""
        for field in fields:
            self.append(field)

    def insert(self, index: SupportsIndex, field: tuple[bytes, bytes]) -> None:
        """Set a field before others."""
        super().insert(index, field)
        self._recording.noted(field[0], field[1], self.number)

    def __setitem__(self, index: Any, field: Any) -> None:
        super().__setitem__(index, field)
        if isinstance(index, int):
            self._recording.noted(field[0], field[1], self.number)

    def __delitem__(self, index: Any) -> None:
        gone = self[index] if isinstance(index, int) else None
        super().__delitem__(index)
        if gone is not None:
            self._recording.noted(gone[0], None, self.number)


@contextmanager
def unharmed(step: str) -> Iterator[None]:
    """What fails in here is logged and dropped: a trace must not break what it traces."""
    try:
        yield
    except ParshallError as error:  # what is down says nothing about this code
        _logger.warning("header_trace_put_off", step=step, reason=error.detail)
    except Exception:
        _logger.exception("header_trace_failed", step=step)


def number_of(fields: object) -> int:
    """The number of a list that notes what is written to it; 0 for any other."""
    return fields.number if isinstance(fields, NotedList) else 0


def header_list(fields: Iterable[tuple[bytes, bytes]] = ()) -> RawHeaders:
    """A list of header fields to be written to; that of a traced request notes what is written."""
    recording = current.get()
    return list(fields) if recording is None else recording.listed(fields)


def place_of_caller() -> str:
    """The line of code that writes a header: the nearest that belongs neither to a response class nor to tracing."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _BETWEEN:
        frame = frame.f_back
    module = str(frame.f_globals.get("__name__", "?")).replace(".", "/")
    return f"{module}.py:{frame.f_lineno} {frame.f_code.co_qualname}"


def _nowhere(_document: Document) -> None:
    """The trace is not wanted after all."""


def _told(seconds: float | None) -> float | None:
    return None if seconds is None else exchange.milliseconds(seconds)
