"""Pieces of an answer as events of its stream."""

from collections.abc import Sequence

from parshall.chat.ports import TextDelta
from parshall.kernel import sse


def chunk_frame(delta: TextDelta, offset: int, total: int) -> bytes:
    """The event of a piece at an offset; `total` are the output tokens up to its end."""
    name = "reasoning" if delta.reasoning else "chunk"
    return sse.frame(offset, name, {"text": delta.text, "tokens": delta.tokens, "totalTokens": total})


def merged(deltas: Sequence[TextDelta]) -> list[TextDelta]:
    """Neighbours of one kind as one delta: what arrived in one read is one event."""
    if len(deltas) == 1:
        return [deltas[0]]
    runs: list[TextDelta] = []
    start = 0
    for index in range(1, len(deltas) + 1):
        if index == len(deltas) or deltas[index].reasoning != deltas[start].reasoning:
            run = deltas[start:index]
            text, tokens = "".join(delta.text for delta in run), sum(delta.tokens for delta in run)
            runs.append(TextDelta(text, tokens, deltas[start].reasoning))
            start = index
    return runs
