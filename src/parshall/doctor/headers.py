"""Verdicts on the headers of a stream's response: the id, the type, caching and compression."""

import re
from collections.abc import Sequence

from parshall.doctor.model import Check, Finding, fault, ok, unchecked, warning
from parshall.doctor.wire import Answer
from parshall.kernel.headers import STREAM_ID_HEADER
from parshall.kernel.ids import STREAM_ID_PATTERN
from parshall.kernel.sse import Event

_NO_HEADER = "there is no id header"
_NEEDS_HEADER = (Check.ID_BEFORE_BODY, Check.ID_FIRST, Check.ID_ONCE, Check.ID_FORMAT, Check.ID_UNCHANGED)
VALUE_CHARS_MAX = 120


def of_id(answer: Answer, events: Sequence[Event], *, proposed: str, fronts: Sequence[str]) -> list[Finding]:
    """Whether the id of the stream arrives in the header, alone, whole and unchanged."""
    told = told_id(events)
    values = answer.all(STREAM_ID_HEADER)
    findings = [_proposed(told, proposed)]
    if not values:
        findings.append(fault(Check.ID_PRESENT, _missing(answer, told)))
        return findings + [unchecked(check, _NO_HEADER) for check in _NEEDS_HEADER]
    shown = f"{STREAM_ID_HEADER}: {values[0]}"[:VALUE_CHARS_MAX]
    return [
        *findings,
        ok(Check.ID_PRESENT, shown),
        ok(Check.ID_BEFORE_BODY, _times(answer)),
        _first(answer, fronts),
        _once(values),
        _unchanged(values[0].partition(",")[0].strip(), told),
        _form(values[0].partition(",")[0].strip(), told),
    ]


def of_type(answer: Answer) -> Finding:
    """Content-Type."""
    value = answer.one("Content-Type")
    kind, _, parameters = value.lower().partition(";")
    if kind.strip() != "text/event-stream":
        return fault(Check.CONTENT_TYPE, f"it is {value!r}; browsers read events of text/event-stream only")
    if "charset" in parameters and "utf-8" not in parameters:
        return warning(Check.CONTENT_TYPE, f"{value}: events are UTF-8 whatever it says")
    return ok(Check.CONTENT_TYPE, value)


def of_cache_control(answer: Answer) -> Finding:
    """Cache-Control."""
    value = answer.one("Cache-Control").lower()
    words = {word.strip() for word in value.split(",")}
    if not words & {"no-cache", "no-store"} or "public" in words:
        return fault(Check.CACHE_CONTROL, f"it is {value!r}: whoever stands between may keep the stream")
    if "no-transform" not in words:
        return warning(Check.CACHE_CONTROL, f"{value}: without no-transform whoever stands between may compress it")
    return ok(Check.CACHE_CONTROL, value)


def of_compression(identity: Answer, offered: Answer) -> Finding:
    """Content-Encoding of a stream whose client accepts compression, and of one whose client does not."""
    for answer, asked in ((identity, "identity only"), (offered, "gzip, deflate, br")):
        encoding = answer.one("Content-Encoding").lower()
        if encoding not in ("", "identity"):
            return fault(
                Check.COMPRESSION,
                f"Content-Encoding: {encoding} (the client accepted {asked}); a compressor holds events back until it "
                "has enough of them",
            )
    return ok(Check.COMPRESSION, "not compressed, though the client would have accepted gzip, deflate and br")


def told_id(events: Sequence[Event]) -> str | None:
    """The id in the first event; None where it tells none."""
    if not events or events[0].event != "session":
        return None
    try:
        found = events[0].json()["streamingSessionId"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _proposed(told: str | None, proposed: str) -> Finding:
    if told is None:
        return fault(Check.ID_PROPOSED, "the first event is no `session` event with an id")
    if told != proposed:
        return fault(Check.ID_PROPOSED, f"proposed {proposed}, and the stream is {told}: the request header got lost")
    return ok(Check.ID_PROPOSED, f"the stream has the proposed id {proposed}")


def _missing(answer: Answer, told: str | None) -> str:
    if any(name.lower() == STREAM_ID_HEADER.lower() for name, _ in answer.trailers):
        return f"{STREAM_ID_HEADER} comes behind the body, in a trailer that clients do not read"
    for name, value in answer.headers:
        if told is not None and value.strip() == told:
            return f"{STREAM_ID_HEADER} is missing; its value arrives under another name, {name}"
    return f"{STREAM_ID_HEADER} is not among the {len(answer.headers)} headers of the response"


def _times(answer: Answer) -> str:
    first = answer.pieces[0][0] if answer.pieces else answer.seconds
    return f"the head came after {answer.head_seconds:.3f} s, the body from {first:.3f} s to {answer.seconds:.3f} s"


def _first(answer: Answer, fronts: Sequence[str]) -> Finding:
    names = [name for name, _ in answer.headers]
    before = names[: [name.lower() for name in names].index(STREAM_ID_HEADER.lower())]
    if answer.version != "1.1":
        return unchecked(Check.ID_FIRST, f"the answer is HTTP/{answer.version}")
    if not before:
        return ok(Check.ID_FIRST, "the first header of the response")
    order = f"behind {', '.join(before)}"
    if fronts:
        return ok(Check.ID_FIRST, f"{order}, put there by what stands in front ({fronts[0]}); the order means nothing")
    return warning(Check.ID_FIRST, f"{order}, and nothing names itself that could have put them there")


def _once(values: Sequence[str]) -> Finding:
    if len(values) > 1 or "," in values[0]:
        joined = ", ".join(values)[:VALUE_CHARS_MAX]
        return fault(Check.ID_ONCE, f"there {len(values)} times; clients read {joined!r}, which is no id")
    return ok(Check.ID_ONCE, "exactly one")


def _unchanged(value: str, told: str | None) -> Finding:
    if told is None:
        return unchecked(Check.ID_UNCHANGED, "the first event tells no id")
    if value != told:
        return fault(Check.ID_UNCHANGED, f"the header says {value[:VALUE_CHARS_MAX]!r}, the first event {told!r}")
    return ok(Check.ID_UNCHANGED, "header and first event agree")


def _form(value: str, told: str | None) -> Finding:
    if told is not None and value != told:
        return unchecked(Check.ID_FORMAT, "the header's value is not the one that the server set")
    if not re.fullmatch(STREAM_ID_PATTERN, value):
        return fault(Check.ID_FORMAT, f"{value[:VALUE_CHARS_MAX]!r} does not match {STREAM_ID_PATTERN}")
    return ok(Check.ID_FORMAT, f"matches {STREAM_ID_PATTERN}")
