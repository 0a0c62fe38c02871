"""What the stand-in provider answers: its model names say how many events, and how many milliseconds apart.

`flow-50-20` is fifty events of one word each, one every 20 ms; `flow-200-0` is two hundred as fast as they can be
written. The first word is the instant at which the provider wrote it, so that whoever reads it, through whatever stands
between, knows how long it was under way. The other words are always the same, so that the reader can check all of them.
"""

import re
from dataclasses import dataclass

_NAME = re.compile(r"flow-(\d{1,5})-(\d{1,5})\Z")
_STAMP = re.compile(r"@(\d+)")
_TEXT = (
    "A flume is set into the stream to measure what flows past without ever stopping it; water enters, narrows, falls "
    "through the throat, and leaves again as if nobody had looked, while on the wall beside it one single mark tells "
    "how much has gone by since the morning. Nothing is held back, nothing is lost, and in the end all of it is counted"
)
WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: `events` words, `seconds` apart."""

    events: int
    seconds: float

    @property
    def words(self) -> list[str]:
        """The words behind the stamp."""
        return [" " + WORDS[index % len(WORDS)] for index in range(1, self.events)]

    def is_whole(self, text: str) -> bool:
        """Whether `text` is this answer, to the last character."""
        found = _STAMP.match(text)
        return found is not None and text[found.end() :] == "".join(self.words)


def answer(model: str) -> Answer:
    """The answer that a model name asks for. Raises ValueError."""
    found = _NAME.match(model)
    if found is None:
        raise ValueError(f"{model!r} is no model of the stand-in provider; flow-50-20 is one")
    return Answer(events=max(1, int(found[1])), seconds=int(found[2]) / 1000)


def stamp(at_nanoseconds: int) -> str:
    """The first word."""
    return f"@{at_nanoseconds}"


def stamped(text: str) -> int:
    """The instant that the first word of an answer tells, in nanoseconds. Raises ValueError."""
    found = _STAMP.match(text)
    if found is None:
        raise ValueError("the answer does not begin with its stamp")
    return int(found[1])
