"""What was recorded of a stream's requests, told in order: each with its calls, and all of it as one timeline; pure."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from parshall.kernel.clock import rfc3339
from parshall.kernel.exchange import Document

EVENTS_MAX = 5_000
Event = Callable[..., tuple[int, Document]]
_ROLES = (
    ("POST", re.compile(r"/api/chat/sessions/[^/]+/stream"), "start"),
    ("POST", re.compile(r"/api/chat/sessions/[^/]+/messages"), "message"),
    ("POST", re.compile(r"/api/chat/sessions/[^/]+/update-stream"), "update-stream"),
    ("GET", re.compile(r"/api/chat/sessions/[^/]+/observe"), "observe"),
    ("POST", re.compile(r"/api/chat/streams/[^/]+/stop"), "stop"),
    ("GET", re.compile(r"/api/chat/streams/[^/]+"), "resume"),
)


def timeline_of(named: str, documents: Sequence[Document]) -> Document:
    """The exchanges about a stream, eldest first, with what was called for each; `timeline` is all that happened."""
    requests = [each for each in documents if each["kind"] == "request"]
    known = {each["id"] for each in requests}
    calls: dict[str, list[Document]] = defaultdict(list)
    for each in documents:
        if each["kind"] != "request":
            calls[each["parent"] if each["parent"] in known else ""].append(each)
    exchanges = [_told(each) | {"role": role_of(each), "calls": _all(calls[each["id"]])} for each in requests]
    events = sorted((event for each in documents for event in _events(each)), key=lambda event: event[0])
    return {
        "streamingSessionId": next((each["streamingSessionId"] for each in documents), None) or named,
        "exchanges": exchanges,
        "calls": _all(calls[""]),
        "timeline": [{"at": rfc3339(at), **event} for at, event in events[:EVENTS_MAX]],
    }


def role_of(document: Document) -> str:
    """What a request was for, as far as streams go."""
    request = document["request"]
    path = request["target"].partition("?")[0]
    return next(
        (role for method, form, role in _ROLES if method == request["method"] and form.fullmatch(path)), "other"
    )


def summary_of(document: Document) -> Document:
    """One request on a line of a list."""
    return {
        "id": document["id"],
        "at": rfc3339(document["at"]),
        "role": role_of(document),
        "method": document["request"]["method"],
        "target": document["request"]["target"],
        "status": status_of(document),
        "streamingSessionId": document["streamingSessionId"],
        "userId": document["userId"],
        "reason": document["reason"],
    }


def status_of(document: Document) -> int | None:
    """The status of the response; None where none went out."""
    response = document["response"]
    return None if response is None else response["status"]


def _all(documents: Sequence[Document]) -> list[Document]:
    return [_told(each) for each in documents]


def _told(document: Document) -> Document:
    return document | {"at": rfc3339(document["at"])}


def _events(document: Document) -> Iterator[tuple[int, Document]]:
    """What happened, with instants in microseconds."""
    at, exchange = document["at"], document["parent"] or document["id"]
    is_request = document["kind"] == "request"

    def event(milliseconds: float, what: str, **told: object) -> tuple[int, Document]:
        return at + round(milliseconds * 1000), {"exchange": exchange, "event": what, **told}

    asked = {name: document["request"][name] for name in ("method", "target")}
    if is_request:
        yield event(0, "request", role=role_of(document), **asked)
        yield from (
            event(0, "received", name=each["name"], value=each["value"]) for each in document["request"]["headers"]
        )
        yield from _response_events(document, event)
    else:
        yield event(0, document["kind"], to=document["to"], **asked)
        yield event(
            document["endedMilliseconds"], "answer", to=document["to"], status=status_of(document), hop=document["hop"]
        )


def _response_events(document: Document, event: Event) -> Iterator[tuple[int, Document]]:
    response = document["response"]
    if response is not None:
        for each in response["headers"]:
            yield event(each["milliseconds"], "set", name=each["name"], value=each["value"], place=each["place"])
        yield event(response["milliseconds"], "response", status=response["status"])
    if document["firstByteMilliseconds"] is not None:
        yield event(document["firstByteMilliseconds"], "first byte")
    for fault in document["faults"]:
        yield event(fault["milliseconds"], "fault", kind=fault["kind"], name=fault["name"], place=fault["place"])
    yield event(document["endedMilliseconds"], "end")
