"""One request with its response, as far as headers go: what happened becomes a document; pure, with time as numbers."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Document = dict[str, Any]
Pairs = Sequence[tuple[str, str]]
FaultKind = Literal["late", "duplicate", "invalid"]

FIELDS_MAX = 100
"""Of one list of fields; the server takes no more in a request."""
NAME_CHARS_MAX = 128
VALUE_CHARS_MAX = 512
FAULTS_MAX = 50
SETS_MAX = 1000
LAWS: dict[FaultKind, str] = {"late": "H1", "duplicate": "H1", "invalid": "H2"}
"""The promise that a fault of this kind breaks (docs/ARCHITECTURE.md)."""

SINGLE = frozenset(
    {
        "access-control-allow-credentials",
        "access-control-allow-origin",
        "age",
        "content-length",
        "content-location",
        "content-range",
        "content-type",
        "date",
        "etag",
        "expires",
        "last-modified",
        "location",
        "ratelimit",
        "referrer-policy",
        "retry-after",
        "server",
        "x-accel-buffering",
        "x-content-type-options",
        "x-request-id",
        "x-streaming-session-id",
    }
)
"""Response fields that hold one value: two of them say nothing certain (RFC 9110 §5.3)."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_FORBIDDEN = re.compile(r"[\r\n\0]")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderSet:
    """One write to the header fields of a response; `value` None where the field was taken away.

    `place` is the line of code, where that is recorded; `target` is the number of the list that was written to.
    """

    seconds: float
    name: str
    value: str | None
    place: str | None = None
    target: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A write that the receiver cannot have understood, or did not get at all."""

    kind: FaultKind
    name: str
    seconds: float
    place: str | None = None

    def wire(self) -> Document:
        """As a member of a trace."""
        told = {"kind": self.kind, "law": LAWS[self.kind], "name": shortened(self.name, NAME_CHARS_MAX)}
        return told | {"milliseconds": milliseconds(self.seconds), "place": self.place}


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The status line with the fields as they went out, `seconds` after the request, sent by the code at `place`."""

    seconds: float
    status: int
    fields: Pairs
    place: str | None = None
    target: int = 0


def is_valid(name: str, value: str) -> bool:
    """Whether a field can be sent (RFC 9110 §5.1, §5.5)."""
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return bool(_TOKEN.match(name)) and not _FORBIDDEN.search(value)


def faults_of(started: Started, sets: Iterable[HeaderSet] = ()) -> list[Fault]:
    """What is wrong with the fields of a response."""
    found: list[Fault] = []
    seen: set[str] = set()
    made = list(sets)
    for name, value in started.fields:
        lower, place = name.lower(), _place_of(name, value, started, made)
        if not is_valid(name, value):
            found.append(Fault(kind="invalid", name=name, seconds=started.seconds, place=place))
        if lower in SINGLE and lower in seen:
            found.append(Fault(kind="duplicate", name=name, seconds=started.seconds, place=place))
        seen.add(lower)
    return found[:FAULTS_MAX]


def response_fields(started: Started, sets: Sequence[HeaderSet], *, first_body: float | None) -> list[Document]:
    """The fields of a response in the order in which they were set; `position` is their place on the wire.

    A field whose writing was not recorded was set, at the latest, when the response was begun.
    """
    told = []
    for position, (name, value) in enumerate(started.fields[:FIELDS_MAX]):
        last = _last_set(name, value, started, sets)
        number, made = last or (len(sets), HeaderSet(seconds=started.seconds, name=name, value=value))
        seconds = made.seconds
        entry = {
            "name": shortened(name, NAME_CHARS_MAX),
            "value": value,
            "position": position,
            "place": made.place or started.place,
            "milliseconds": milliseconds(seconds),
            "beforeBody": None if first_body is None else milliseconds(first_body - seconds),
        }
        told.append((number, position, entry))
    return [entry for _, _, entry in sorted(told, key=lambda each: each[:2])]


def plain_fields(fields: Pairs) -> list[Document]:
    """Fields in their order."""
    return [{"name": shortened(name, NAME_CHARS_MAX), "value": value} for name, value in fields[:FIELDS_MAX]]


def kept(fields: Pairs, redact: Callable[[str, str], str]) -> list[tuple[str, str]]:
    """The first FIELDS_MAX fields, made fit to be kept and cut to VALUE_CHARS_MAX."""
    return [(name, shortened(redact(name, value), VALUE_CHARS_MAX)) for name, value in fields[:FIELDS_MAX]]


def left_out(fields: Pairs) -> int:
    """How many fields are not kept."""
    return max(0, len(fields) - FIELDS_MAX)


def shortened(text: str, most: int) -> str:
    """The text, or the beginning of it and how much is missing."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most} more)"


def milliseconds(seconds: float) -> float:
    """As it stands in a trace."""
    return round(seconds * 1000, 3)


def decoded(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Fields as ASGI has them, as text."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]


def _place_of(name: str, value: str, started: Started, sets: Sequence[HeaderSet]) -> str | None:
    last = _last_set(name, value, started, sets)
    return (last[1].place if last else None) or started.place


def _last_set(name: str, value: str, started: Started, sets: Sequence[HeaderSet]) -> tuple[int, HeaderSet] | None:
    """The write that put a field where it is: of the response that was sent, else of one that it was copied from."""
    lower = name.lower()
    same = [(number, each) for number, each in enumerate(sets) if each.name.lower() == lower and each.value == value]
    own = [(number, each) for number, each in same if each.target == started.target]
    found = own or same
    return found[-1] if found else None
