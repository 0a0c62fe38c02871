"""One reader of one stream: bytes ready to be sent, and word to the producer of who reads and how far."""

from collections.abc import AsyncIterator
from typing import Protocol

from parshall.chat.ports import LogUnavailable, Tail
from parshall.chat.turn import Producer
from parshall.kernel.telemetry import log

_logger = log("streams")


class Reading(Protocol):
    """What a response sends: bytes until they end, or until somebody ends them."""

    @property
    def ended(self) -> bool:
        """Whether the terminal event was handed out."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Itself."""
        ...

    async def __anext__(self) -> bytes:
        """The next bytes; empty after a silence."""
        ...

    def interrupt(self) -> None:
        """End the iteration, whoever waits in it."""
        ...

    def leave(self) -> None:
        """Stop reading; may be called again."""
        ...


class Reader:
    """One reader of one stream; iterating gives bytes ready to be sent, empty after a silence."""

    def __init__(self, tail: Tail, producer: Producer | None, *, after: int) -> None:
        """A reader is counted from its making until `leave`."""
        self._tail = tail
        self._producer = producer
        self._offset = after
        self._gone = False
        if producer is not None:
            producer.audience.joined()

    @property
    def ended(self) -> bool:
        """Whether the terminal event was handed out."""
        return self._tail.ended

    def __aiter__(self) -> "Reader":
        """The reader itself."""
        return self

    async def __anext__(self) -> bytes:
        """The next events. A log that fails ends the reading; `ended` then tells that more may come."""
        if self._producer is not None:  # what was handed out before has been sent by now
            self._producer.audience.delivered(self._offset)
        try:
            frames = await anext(self._tail)
        except LogUnavailable as error:
            _logger.warning("reader_cut", reason=error.detail)
            raise StopAsyncIteration from error
        self._offset += len(frames)
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def interrupt(self) -> None:
        """End the iteration, whoever waits in it."""
        self._tail.close()

    def leave(self) -> None:
        """Stop reading; may be called again."""
        self._tail.close()
        if self._producer is not None and not self._gone:
            self._producer.audience.delivered(self._offset)
            self._producer.audience.left()
        self._gone = True
