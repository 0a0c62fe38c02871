"""One reader of one stream: bytes ready to be sent, and word to the producer of who reads and how far."""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from parshall.chat.peers import Attendance
from parshall.chat.ports import LogUnavailable, Tail
from parshall.kernel.pushing import Push
from parshall.kernel.telemetry import log

WRITE_BYTES_MAX = 65_536
"""Events are sent in pieces of about this size: one of them waits in memory for a client that does not read."""

PUSHED_MAX = 4
"""More events at once go out in pieces."""

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

    def __init__(self, tail: Tail, attendance: Attendance | None, *, after: int) -> None:
        """A reader is counted, where the stream may still need one, from its making until `leave`."""
        self._tail = tail
        self._attendance = attendance
        self._offset = after
        self._frames: deque[bytes] = deque()
        self._gone = False
        if attendance is not None:
            attendance.joined()

    @property
    def ended(self) -> bool:
        """Whether the terminal event was handed out."""
        return self._tail.ended

    def __aiter__(self) -> "Reader":
        """The reader itself."""
        return self

    async def __anext__(self) -> bytes:
        """The next events. A log that fails ends the reading; `ended` then tells that more may come."""
        if self._attendance is not None:  # what was handed out before has been sent by now
            self._attendance.delivered(self._offset)
        if self._frames:
            return self._piece()
        try:
            frames = await anext(self._tail)
        except LogUnavailable as error:
            _logger.warning("reader_cut", reason=error.detail)
            raise StopAsyncIteration from error
        if len(frames) == 1:
            self._offset += 1
            return frames[0]
        self._frames.extend(frames)
        return self._piece()

    def _piece(self) -> bytes:
        """As many of the frames at hand as make one write; nothing after a silence."""
        piece: list[bytes] = []
        size = 0
        while self._frames and (not piece or size + len(self._frames[0]) <= WRITE_BYTES_MAX):
            piece.append(self._frames.popleft())
            size += len(piece[-1])
        self._offset += len(piece)
        return b"".join(piece)

    def push_to(self, push: Push) -> None:
        """Give what comes while the iteration is waited in to `push`, as long as that takes it."""
        self._push = push
        self._tail.push = self._pushed

    def _pushed(self, frames: Sequence[bytes]) -> bool:
        if len(frames) > PUSHED_MAX or not self._push(frames[0] if len(frames) == 1 else b"".join(frames)):
            return False
        self._offset += len(frames)
        if self._attendance is not None:
            self._attendance.delivered(self._offset)
        return True

    def interrupt(self) -> None:
        """End the iteration, whoever waits in it."""
        self._frames.clear()
        self._tail.close()

    def leave(self) -> None:
        """Stop reading; may be called again."""
        self._tail.close()
        if self._attendance is not None and not self._gone:
            self._attendance.delivered(self._offset)
            self._attendance.left()
        self._gone = True
