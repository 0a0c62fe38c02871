"""Verdicts on what a stream leaves behind: resuming it, its charge, acknowledging it, and caches."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from parshall.doctor.model import Check, Finding, fault, ok, unchecked, warning
from parshall.doctor.wire import Answer
from parshall.kernel.headers import REQUEST_ID_HEADER
from parshall.kernel.sse import Event

HITS = (
    ("X-Cache", "hit"),
    ("X-Cache-Status", "hit"),
    ("X-Proxy-Cache", "hit"),
    ("CF-Cache-Status", "hit"),
    ("Cache-Status", "hit"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """What the credits of the user were and are, and what the receipt says. In credits."""

    before: Decimal
    after: Decimal
    later: Decimal
    """After the same id was sent again and the stream was resumed."""
    charged: Decimal | None
    is_settled: bool


def of_offset(by_header: Sequence[Event], by_query: Sequence[Event], *, after: str) -> Finding:
    """Whether Last-Event-ID reaches the server: `?after=` says what it would have done."""
    if not by_query:
        return unchecked(Check.LAST_EVENT_ID, "the stream cannot be resumed at all")
    first, wanted = _first(by_header), by_query[0].id
    if first == wanted:
        return ok(Check.LAST_EVENT_ID, f"after {after} the stream goes on with {first}")
    return fault(
        Check.LAST_EVENT_ID,
        f"sent with Last-Event-ID: {after} the stream begins with {first or 'nothing'}, with ?after={after} with "
        f"{wanted}: the header does not arrive",
    )


def of_resume(whole: Sequence[Event], rest: Sequence[Event], *, after: str) -> Finding:
    """Whether what was read before and what the resumed stream gives make the whole, each event once."""
    position = next((index for index, event in enumerate(whole) if event.id == after), len(whole) - 1)
    wanted = whole[position + 1 :]
    if list(rest) == list(wanted):
        return ok(Check.RESUME, f"after {after} came the other {len(rest)} events, the same as before")
    ids, had = [event.id for event in rest], {event.id for event in whole[: position + 1]}
    twice = [event_id for event_id in ids if event_id in had or ids.count(event_id) > 1]
    missing = [event.id for event in wanted if event.id not in ids]
    if twice or missing:
        return fault(Check.RESUME, f"{len(missing)} events are missing and {len(twice)} came again after {after}")
    return fault(Check.RESUME, f"the events after {after} differ from what was sent before")


def of_charge(money: Money) -> Finding:
    """Whether the balance moved once, by what the receipt says."""
    if money.charged is None:
        return fault(Check.CHARGED_ONCE, "the terminal event carries no receipt")
    if not money.is_settled:
        return unchecked(Check.CHARGED_ONCE, "the settlement is pending")
    moved, more = money.before - money.after, money.after - money.later
    times = f"{money.before} before, {money.after} after, {money.later} after resuming and repeating"
    seen = f"{times}; the receipt says {money.charged}"
    if more:
        return fault(Check.CHARGED_ONCE, f"{seen}: resuming or repeating moved {more} more")
    if moved == money.charged:
        return ok(Check.CHARGED_ONCE, seen)
    if not moved:
        return warning(Check.CHARGED_ONCE, f"{seen}: somebody else pays, an organisation perhaps")
    return fault(Check.CHARGED_ONCE, f"{seen}: {moved} were taken")


def of_right_update(answer: Answer, document: dict[str, Any]) -> Finding:
    """An acknowledgement with the id of the stream and its text."""
    if answer.status != 200:
        return fault(Check.UPDATE_RIGHT, f"refused with status {answer.status}: {document.get('message', '')}")
    if document.get("matches") is not True:
        return fault(Check.UPDATE_RIGHT, "the server holds another text than the one that arrived")
    return ok(Check.UPDATE_RIGHT, "status 200; the text that arrived is the one that the server holds")


def of_wrong_update(answer: Answer, document: dict[str, Any]) -> Finding:
    """An acknowledgement with an id that nobody has."""
    details = document.get("details")
    if answer.status != 400:
        return fault(Check.UPDATE_WRONG, f"status {answer.status} instead of 400")
    if not isinstance(details, dict) or not {"expected", "received", "reason"} <= details.keys():
        return fault(Check.UPDATE_WRONG, "status 400, but the body that says why does not arrive: it was replaced")
    return ok(Check.UPDATE_WRONG, f"status 400, reason {details['reason']!r}, the expected id named")


def of_caching(first: Answer, second: Answer) -> Finding:
    """Two equal requests, one after the other: an answer that comes twice was kept by somebody."""
    marked = [f"{name}: {second.one(name)}" for name, word in HITS if word in second.one(name).lower()]
    ids = [answer.one(REQUEST_ID_HEADER) for answer in (first, second)]
    if ids[0] and ids[0] == ids[1]:
        return fault(Check.NOT_CACHED, f"two requests got the one answer {ids[0]} {' '.join(marked)}".strip())
    if marked:
        return fault(Check.NOT_CACHED, f"the second of two requests was answered from a cache ({marked[0]})")
    if second.one("Age") not in ("", "0"):
        return fault(Check.NOT_CACHED, f"the answer is {second.one('Age')} s old (Age)")
    if not ids[0]:
        return unchecked(
            Check.NOT_CACHED, f"answers have no {REQUEST_ID_HEADER} to tell them apart, and no sign of a cache"
        )
    return ok(Check.NOT_CACHED, "two requests got two answers")


def _first(events: Sequence[Event]) -> str | None:
    return events[0].id if events else None
