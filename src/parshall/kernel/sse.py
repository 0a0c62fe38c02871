"""Server-Sent Events (WHATWG HTML §9.2): frames that survive every reader, and a parser for our own clients."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

RETRY_MILLISECONDS = 1000
PING = b": ping\n\n"
"""A comment frame: keeps idle proxies from cutting the connection and is invisible to readers."""
GOODBYE = b"retry: %d\n\n" % RETRY_MILLISECONDS
"""Sent when the server ends a reader before the stream has ended: reconnect and resume."""

EVENT_BYTES_MAX = 4 * 1024 * 1024
"""No event may be longer, counted in bytes of its lines."""
RETRY_DIGITS_MAX = 9

_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"), check_circular=False).encode


def frame(offset: int, event: str, data: Mapping[str, Any], *, retry: bool = False) -> bytes:
    """One event as bytes: LF only, ASCII-escaped JSON on a single line, so that no line-based reader can split it.

    The id comes last: there are clients that resume after an id as soon as they have read its line, and what they were
    cut off from before it would be lost to them.
    Raises ValueError for a NaN or an infinity, which JSON cannot say.
    """
    assert offset > 0 and event.isidentifier()
    head = f"retry: {RETRY_MILLISECONDS}\n" if retry else ""
    return f"{head}event: {event}\ndata: {_encode(data)}\nid: {offset}\n\n".encode("ascii")


def notice(event: str, data: Mapping[str, Any]) -> bytes:
    """An event that is not kept: without an id, so that whoever resumes still names the last one that is."""
    assert event.isascii() and event.replace("-", "_").isidentifier()
    return f"event: {event}\ndata: {_encode(data)}\n\n".encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One dispatched event; `id` is the last event id in force, empty where none was given."""

    id: str
    event: str
    data: str

    def json(self) -> Any:
        """The data parsed as JSON. Raises json.JSONDecodeError."""
        return json.loads(self.data)


class EventParser:
    """An incremental parser of `text/event-stream` bytes, as §9.2.6 describes it."""

    def __init__(self) -> None:
        """Start at the beginning of a stream, with no last event id."""
        self.last_id = ""
        """The id to resume after: that of the last event dispatched, not of one that was cut off in the middle."""
        self.retry_milliseconds: int | None = None
        self._rest = b""
        self._after_cr = False
        self._begun = False
        self._event_bytes = 0
        self._id = ""
        self._event = ""
        self._lines: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Take the next bytes; yield each event that they complete. Raises ValueError on one over EVENT_BYTES_MAX."""
        *lines, self._rest = (self._rest + self._with_lf(chunk)).split(b"\n")
        for line in lines:
            event = self._line(line)
            if event is not None:
                yield event
        self._limit(self._event_bytes + len(self._rest))

    def _with_lf(self, chunk: bytes) -> bytes:
        """The chunk with LF as its only line end; a CR LF may come in two chunks."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" not in chunk:
            return chunk
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _line(self, raw: bytes) -> Event | None:
        line = raw.decode("utf-8", "replace")
        if not self._begun:
            self._begun, line = True, line.removeprefix("\ufeff")
        if not line:
            return self._dispatch()
        self._event_bytes += len(raw)
        self._limit(self._event_bytes)
        self._field(*line.partition(":")[::2])
        return None

    def _field(self, name: str, value: str) -> None:
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._lines.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= RETRY_DIGITS_MAX:
                self.retry_milliseconds = int(value)

    def _dispatch(self) -> Event | None:
        lines, event = self._lines, self._event
        self._lines, self._event, self._event_bytes = [], "", 0
        self.last_id = self._id
        if not lines:
            return None
        return Event(id=self.last_id, event=event or "message", data="\n".join(lines))

    def _limit(self, event_bytes: int) -> None:
        if event_bytes > EVENT_BYTES_MAX:
            raise ValueError("an event of the stream is longer than any event may be")


def parse(frames: Iterable[bytes]) -> Iterator[Event]:
    """The events of complete frames, as read back from a log."""
    parser = EventParser()
    for chunk in frames:
        yield from parser.feed(chunk)
