"""How one stream arrived: its times, its events, and whether all of it is there and right."""

import json
from dataclasses import dataclass

from answers import Answer, stamped
from load import Record
from parshall.kernel.sse import Event, EventParser

MILLISECOND = 1_000_000


class Wrong(Exception):
    """The stream is not what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One right stream. Times in milliseconds: from the request to its first event and its first word, and how long
    the first word was under way from the provider's write to the client's read."""

    first_event: float
    first_word: float
    under_way: float
    words: int


def arrival(record: Record, asked: Answer, *, metered: bool) -> Arrival:
    """Take a stream apart. `metered` ones must bear Parshall's id, terminal event and receipt. Raises Wrong."""
    if record.failure is not None:
        raise Wrong(record.failure)
    head, content = received(record)
    events = list(EventParser().feed(content))
    words = _metered_words(head, events, asked) if metered else _plain_words(events)
    text = "".join(words)
    if not asked.is_whole(text):
        raise Wrong(f"the answer differs: {text[:80]!r}…")
    first_word_at = first_read(record, b"@")
    return Arrival(
        first_event=(first_read(record, b"\n\n") - record.asked_at) / MILLISECOND,
        first_word=(first_word_at - record.asked_at) / MILLISECOND,
        under_way=(first_word_at - stamped(text)) / MILLISECOND,
        words=len(words),
    )


def received(record: Record) -> tuple[bytes, bytes]:
    """Head and content of an answer in chunks."""
    head, _, body = b"".join(data for _, data in record.reads).partition(b"\r\n\r\n")
    return head, _dechunked(body)


def first_read(record: Record, mark: bytes) -> int:
    """When the read with that in it came."""
    return next(at for at, data in record.reads if mark in data)


def _dechunked(body: bytes) -> bytes:
    """The content of a chunked body (RFC 9112 §7.1)."""
    content: list[bytes] = []
    position = 0
    while True:
        line = body.index(b"\r\n", position)
        size = int(body[position:line], 16)
        if size == 0:
            return b"".join(content)
        content.append(body[line + 2 : line + 2 + size])
        position = line + 2 + size + 2


def _plain_words(events: list[Event]) -> list[str]:
    if not events or events[-1].data != "[DONE]":
        raise Wrong("the answer does not end with [DONE]")
    words: list[str] = []
    for event in events[:-1]:
        for choice in json.loads(event.data)["choices"]:
            if choice["delta"].get("content"):
                words.append(choice["delta"]["content"])
    return words


def _metered_words(head: bytes, events: list[Event], asked: Answer) -> list[str]:
    names = [event.event for event in events]
    if not head.split(b"\r\n")[1].lower().startswith(b"x-streaming-session-id:"):
        raise Wrong("the id is not the first header")
    if names[:2] != ["session", "model"] or names[-1] != "done" or set(names[2:-1]) - {"chunk"}:
        raise Wrong(f"unexpected events: {names[:2]} … {names[-1:]}")
    if [event.id for event in events] != [str(n + 1) for n in range(len(events))]:
        raise Wrong("the ids of the events have gaps")
    receipt = events[-1].json()["receipt"]
    if receipt["settlement"] != "settled" or receipt["outputTokens"] != asked.events or not receipt["chargedCredits"]:
        raise Wrong(f"the receipt is wrong: {receipt}")
    return [str(event.json()["text"]) for event in events[2:-1]]
