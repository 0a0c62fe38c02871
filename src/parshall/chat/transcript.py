"""What the log holds of an answer: its text, and how many tokens were used by the end of each event."""

from collections.abc import Sequence

from parshall.chat.ports import TextDelta


class Transcript:
    """The events of one answer, without those around them."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.totals: list[int] = []
        """Output tokens up to the end of each event."""
        self.reasoning_tokens = 0
        self.bytes = 0
        """Of all text in UTF-8, thoughts included."""
        self._texts: list[str] = []

    def add(self, events: Sequence[TextDelta], before: int) -> None:
        """Note events, behind so many tokens."""
        total = before
        for event in events:
            text = event.text
            total += event.tokens
            self.totals.append(total)
            self.bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            if event.reasoning:
                self.reasoning_tokens += event.tokens
            else:
                self._texts.append(text)

    @property
    def text(self) -> str:
        """The answer, without thoughts."""
        return "".join(self._texts)

    def tokens_of(self, events: int) -> int:
        """The tokens of so many events, or of all where there are no more."""
        index = min(events, len(self.totals))
        return self.totals[index - 1] if index > 0 else 0
