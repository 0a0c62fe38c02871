"""What a provider gave as the frames of a stream's log: neighbours of one kind together, and none of them too large."""

from collections.abc import Sequence
from itertools import groupby
from json.encoder import encode_basestring_ascii as quoted

from parshall.chat.ports import TextDelta
from parshall.kernel import sse

EVENT_CHARACTERS_MAX = 5_000
"""Longer text is logged as several events, so that neither a log nor a reader has to hold one of any size.

A character takes up to 12 bytes of a line, and many a client gives up at a line of 64 KiB.
"""


def joined(deltas: Sequence[TextDelta]) -> list[TextDelta]:
    """Neighbours of one kind as one delta: what arrived in one read is one event, unless it is too long for one."""
    if len(deltas) == 1 and len(deltas[0].text) <= EVENT_CHARACTERS_MAX:
        return [deltas[0]]
    events: list[TextDelta] = []
    for reasoning, run in groupby(deltas, lambda delta: delta.reasoning):
        parts = list(run)
        events += _cut("".join(part.text for part in parts), sum(part.tokens for part in parts), reasoning)
    return events


def _cut(text: str, tokens: int, reasoning: bool) -> list[TextDelta]:
    """Pieces that one event can hold; each has its share of the tokens, and together they have them all."""
    pieces: list[TextDelta] = []
    counted = 0
    for start in range(0, len(text) or 1, EVENT_CHARACTERS_MAX):
        end = min(start + EVENT_CHARACTERS_MAX, len(text))
        until = tokens * end // len(text) if text else tokens
        pieces.append(TextDelta(text[start:end], until - counted, reasoning))
        counted = until
    return pieces


def beginning(delta: TextDelta, tokens: int) -> TextDelta:
    """About as much of a delta as `tokens` of its tokens hold; no text where that is less than a character."""
    assert 0 <= tokens < delta.tokens
    return TextDelta(delta.text[: len(delta.text) * tokens // delta.tokens], tokens, delta.reasoning)


def text_frame(delta: TextDelta, offset: int, total: int) -> bytes:
    """The event `chunk` or `reasoning`; `total` are the output tokens up to its end.

    As `sse.frame` makes it, at a quarter of the time: there is one for every few tokens.
    """
    name = "reasoning" if delta.reasoning else "chunk"
    data = f'{{"text":{quoted(delta.text)},"tokens":{delta.tokens},"totalTokens":{total}}}'
    return f"event: {name}\ndata: {data}\nid: {offset}\n\n".encode("ascii")


def model_frame(model_id: str, offset: int, *, fallback_applied: bool) -> bytes:
    """The event `model`: who answers from here on."""
    return sse.frame(offset, "model", {"model": model_id, "fallbackApplied": fallback_applied})
