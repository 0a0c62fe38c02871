"""Why a streaming session id that a client names is refused, and the way out; rules, and a count of the refusals."""

import re
from enum import StrEnum
from typing import Any

from parshall.chat.model import Stream
from parshall.kernel import metrics
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.ids import STREAM_ID_PATTERN, MalformedStreamId, StreamId, parse_stream_id

PAGE = "/documentation/TROUBLESHOOTING.md"
CLOCK_AHEAD_MAX = DAY
"""An id whose time is further in the future was not made by any server's clock."""

_UNITS = {10: SECOND, 13: SECOND // 1000}
"""Digits of an id to the microseconds that each of them counts: seconds, or a browser's milliseconds."""
_ABSENT = frozenset({"", "undefined", "null", "none", "nan", "[object object]"})
_ID = re.compile(STREAM_ID_PATTERN)
_INVENTED = re.compile(r"(?:stream|session|fallback|temp|client|local)[-_][0-9]+(?:[-_.][0-9a-z]{1,20})?\Z")


class Reason(StrEnum):
    """What is wrong with an id; the same words head the sections of the page on it."""

    MALFORMED = "malformed"
    NOT_RECEIVED = "not_received"
    MADE_UP = "made_up"
    UNKNOWN = "unknown"
    OTHER_CHAT_SESSION = "other_chat_session"
    OLDER_THAN_RETENTION = "older_than_retention"
    FINISHED_LONG_AGO = "finished_long_ago"
    LOG_LOST = "log_lost"


_TOLD = {
    Reason.MALFORMED: (
        "This is not a streaming session id",
        "send it exactly as it came in the X-Streaming-Session-Id header or the session event",
    ),
    Reason.NOT_RECEIVED: (
        "The client has no streaming session id to send, so it never read one",
        "take it from the session event, or propose one when asking; `parshall doctor` finds where the header is lost",
    ),
    Reason.MADE_UP: (
        "The client made this streaming session id up after the fact, so that it names no stream",
        "take it from the session event, or propose one when asking, and never invent one later",
    ),
    Reason.UNKNOWN: (
        "No stream of yours has this id",
        "check the deployment and the user; if asking was refused, no stream began: ask again",
    ),
    Reason.OTHER_CHAT_SESSION: (
        "This id belongs to another chat session of yours",
        "send the update to the chat session in which the stream was asked for",
    ),
    Reason.OLDER_THAN_RETENTION: (
        "No stream of yours has this id, and by its time it would be older than what is kept",
        "take the newest id of the chat session; what was answered is in its history",
    ),
    Reason.FINISHED_LONG_AGO: (
        "This stream ended so long ago that its events are no longer kept",
        "read the answer in the chat session's history, and the receipt here with Accept: application/json",
    ),
    Reason.LOG_LOST: (
        "The events of this stream were lost with the stream log",
        "read the answer in the chat session's history, and the receipt here with Accept: application/json",
    ),
}


def sentence(reason: Reason) -> str:
    """What is wrong and the way out, for people."""
    what, way_out = _TOLD[reason]
    return f"{what}; {way_out}."


def told(reason: Reason) -> dict[str, Any]:
    """The members of a problem document that name the reason, the way out and the page on it."""
    page = f"{PAGE}#{reason.value}"
    way_out = _TOLD[reason][1]
    return {"type": page, "reason": reason.value, "wayOut": way_out[0].upper() + way_out[1:] + ".", "help": page}


def refused(reason: Reason) -> dict[str, Any]:
    """As `told`, for an id that is refused now: once for each refusal, so that it is counted once."""
    metrics.stream_id_refusals.labels(reason.value).inc()
    return told(reason)


for _reason in Reason:  # from 0 on: what rises from nothing to one must show as a rise
    metrics.stream_id_refusals.labels(_reason.value)


def named_id(text: str) -> StreamId:
    """`text` as a streaming session id. Raises MalformedStreamId with the reason; the text is not echoed."""
    try:
        return parse_stream_id(text)
    except MalformedStreamId as error:
        reason = malformation(text)
        raise MalformedStreamId(sentence(reason), **refused(reason)) from error


def malformation(text: str) -> Reason:
    """What a text that is no streaming session id most likely is."""
    plain = text.strip().lower()
    if plain in _ABSENT:
        return Reason.NOT_RECEIVED
    changed = _ID.match(plain)  # an id once, in other case or with space around it
    return Reason.MADE_UP if _INVENTED.match(plain) and not changed else Reason.MALFORMED


def of_unknown(stream_id: StreamId, *, at: int, retention_seconds: float) -> Reason:
    """The reason for an id that no stream of the caller has.

    It follows from the id alone, so that somebody else's stream and none at all are answered alike.
    """
    made_at = _made_at(stream_id)
    if made_at is None or made_at > at + CLOCK_AHEAD_MAX:
        return Reason.MADE_UP
    return Reason.OLDER_THAN_RETENTION if made_at < at - retention_seconds * SECOND else Reason.UNKNOWN


def of_forgotten(stream: Stream, *, at: int, retention_seconds: float) -> Reason:
    """The reason why the events of a known stream are gone."""
    ended_at = stream.ending.ended_at if stream.ending else at
    return Reason.FINISHED_LONG_AGO if ended_at <= at - retention_seconds * SECOND else Reason.LOG_LOST


def _made_at(stream_id: StreamId) -> int | None:
    """The instant that an id names, in microseconds; None where its digits are no time."""
    digits = stream_id.split("-")[1]
    unit = _UNITS.get(len(digits))
    return None if unit is None else int(digits) * unit
