"""Other processes that serve the same streams: word to the one that produces a stream, and of who reads it where."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from parshall.kernel.ids import StreamId

OnStop = Callable[[StreamId], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """The readers of a stream in other processes.

    `left_at` is when the last of them went (microseconds, 0 where none was), `offset` the furthest that any was sent.
    """

    present: bool
    left_at: int
    offset: int


NOBODY = Elsewhere(present=False, left_at=0, offset=0)


class Attendance(Protocol):
    """Where a reader says that it reads and how far, so that its stream goes on for it."""

    def joined(self) -> None:
        """A reader has come."""
        ...

    def left(self) -> None:
        """A reader has gone."""
        ...

    def delivered(self, offset: int) -> None:
        """A reader was sent everything up to this offset."""
        ...


class Peers(Protocol):
    """The processes beside this one. What is said may be lost with them: whoever says it looks for what came of it."""

    shared: bool
    """Whether there may be any at all."""

    def listen(self, on_stop: OnStop) -> None:
        """From now on, have `on_stop` called with each stream of this process that another wants to end."""
        ...

    async def stop(self, stream_id: StreamId) -> bool:
        """Ask whoever produces the stream to end it; False where nobody holds it. Raises LogUnavailable."""
        ...

    def readers(self, stream_id: StreamId) -> Attendance | None:
        """Where readers here of a stream that another process produces are counted; None where there is no other."""
        ...

    async def elsewhere(self, stream_id: StreamId) -> Elsewhere:
        """Who reads, in other processes, a stream that this one produces. Raises LogUnavailable."""
        ...

    async def close(self) -> None:
        """Say that nobody reads here any more, and listen no longer."""
        ...


class NoPeers:
    """A process that serves its streams alone."""

    shared = False

    def listen(self, on_stop: OnStop) -> None:
        """Nobody speaks."""

    async def stop(self, stream_id: StreamId) -> bool:  # noqa: ARG002 - the port's
        """What is not produced here is produced nowhere."""
        return False

    def readers(self, stream_id: StreamId) -> None:  # noqa: ARG002 - the port's
        """Nobody else produces."""
        return

    async def elsewhere(self, stream_id: StreamId) -> Elsewhere:  # noqa: ARG002 - the port's
        """Nobody else reads."""
        return NOBODY

    async def close(self) -> None:
        """Nothing is open."""
