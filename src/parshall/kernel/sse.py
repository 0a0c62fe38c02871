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

LINE_BYTES_MAX = 4 * 1024 * 1024

_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False).encode


def frame(offset: int, event: str, data: Mapping[str, Any], *, retry: bool = False) -> bytes:
    """One event as bytes: LF only, ASCII-escaped JSON on a single line, so that no line-based reader can split it."""
    head = f"retry: {RETRY_MILLISECONDS}\n" if retry else ""
    return f"{head}id: {offset}\nevent: {event}\ndata: {_encode(data)}\n\n".encode("ascii")


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
        self.retry_milliseconds: int | None = None
        self._rest = b""
        self._event = ""
        self._lines: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Take the next bytes; yield each event that they complete. Raises ValueError on a line over LINE_BYTES_MAX."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            raise ValueError("a line of the event stream is longer than any event may be")
        for raw in lines:
            event = self._line(raw.removesuffix(b"\r").decode("utf-8", "replace"))
            if event is not None:
                yield event

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._lines.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self.last_id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_milliseconds = int(value)
        return None

    def _dispatch(self) -> Event | None:
        lines, event = self._lines, self._event
        self._lines, self._event = [], ""
        if not lines:
            return None
        return Event(id=self.last_id, event=event or "message", data="\n".join(lines))


def parse(frames: Iterable[bytes]) -> Iterator[Event]:
    """The events of complete frames, as read back from a log."""
    parser = EventParser()
    for chunk in frames:
        yield from parser.feed(chunk)
