"""What becomes of a turn that could not begin: its record goes at once, its credits once nobody asks for it again.

An id pays once: a reservation that was voided is not granted again. So a turn that failed because something was away,
and whose client may send it again under the same id, keeps its reservation for a while; the same request finds it.
Where accounting answers that there is none, it is asked again: a service that froze does what it had been sent once it
thaws, and may reserve after it was asked to void.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from sqlalchemy.exc import IntegrityError

from parshall.chat.model import Stream
from parshall.chat.ports import Ledger
from parshall.chat.records import Records
from parshall.kernel.clock import Clock
from parshall.kernel.errors import ParshallError, Unavailable
from parshall.kernel.ids import SessionId, StreamId, new_id
from parshall.kernel.telemetry import log

RETURN_SECONDS_MAX = 15.0
"""How long a client may take to come back. By then what was on its way to a store has arrived, or never will."""
LATE_SECONDS = (2.0, 30.0)
"""How long after an answer that nothing is reserved it is asked for again. What waited in a process that was stopped is
done within the first; TCP repeats what a network has held up within the second."""
UNDO_SECONDS_MAX = 2.0
"""How long a caller waits for an undoing; it goes on behind a store that is away."""
REMEMBERED_SECONDS = 60.0
RETRY_SECONDS = 0.25

T = TypeVar("T")

_logger = log("streams")


@dataclass(eq=False, slots=True)
class _Undo:
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    asked_again: bool = False
    task: "asyncio.Task[None] | None" = None


class Undoing:
    """The turns of this process that came to nothing, as long as anything of them may be left."""

    def __init__(self, *, records: Records, ledger: Ledger, clock: Clock) -> None:
        """Where turns leave their traces."""
        self._records = records
        self._ledger = ledger
        self._clock = clock
        self._undos: dict[StreamId, _Undo] = {}
        self._failed: dict[StreamId, int] = {}

    def __contains__(self, stream_id: object) -> bool:
        """Whether a record of that id may still be there."""
        undo = self._undos.get(stream_id)  # type: ignore[call-overload]  # as of any mapping
        return undo is not None and not undo.gone.is_set()

    async def undo(self, stream: Stream, *, void: bool, keep: bool = False, late: bool = False) -> None:
        """Leave nothing of a turn, unless by now the id is another process's turn.

        `void` says whether it may hold credits; with `keep` it holds them while its client may come back; `late` says
        that it may come to hold them yet. What cannot be undone within UNDO_SECONDS_MAX is undone as soon as it can be.
        """
        undo = self._undos[stream.id] = _Undo()
        self._remember(stream)
        undo.task = asyncio.create_task(
            self._run(undo, stream, void=void, keep=keep, late=late), name=f"{stream.id}-undo"
        )
        undo.task.add_done_callback(lambda _: self._end(stream.id, undo))
        waiting = asyncio.create_task(undo.gone.wait())
        await asyncio.wait({undo.task, waiting}, timeout=UNDO_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def make_way(self, stream_id: StreamId) -> None:
        """The id is asked for again: see that nothing of the turn before is in the way. Raises Unavailable."""
        undo = self._undos.get(stream_id)
        if undo is None or undo.task is None:
            return
        try:
            async with asyncio.timeout(UNDO_SECONDS_MAX):
                await undo.gone.wait()
                undo.asked_again = True
                undo.woken.set()
                await asyncio.wait({undo.task})
        except TimeoutError as error:
            raise Unavailable("What this request left before is still being undone; try again shortly.") from error

    def failed(self, stream: Stream) -> bool:
        """Whether a record is of a turn that failed here, and was kept by a store only after its undoing."""
        return self._failed.get(stream.id) == stream.created_at

    async def close(self) -> None:
        """Undo now what is still to be undone, and go on with none of it."""
        undos = tuple(self._undos.values())
        for undo in undos:
            undo.woken.set()
        tasks = {undo.task for undo in undos if undo.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=UNDO_SECONDS_MAX)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _remember(self, stream: Stream) -> None:
        self._failed[stream.id] = stream.created_at
        asyncio.get_running_loop().call_later(REMEMBERED_SECONDS, self._failed.pop, stream.id, None)

    def _end(self, stream_id: StreamId, undo: _Undo) -> None:
        if self._undos.get(stream_id) is undo:
            del self._undos[stream_id]

    async def _run(self, undo: _Undo, stream: Stream, *, void: bool, keep: bool, late: bool) -> None:
        try:
            if void and not (keep or late) and await self._at_once(stream):
                return
            await self._insist(lambda: self._remove(stream, void=False))
            if keep:
                undo.gone.set()
            if void:
                pauses = (RETURN_SECONDS_MAX if keep else 0.0, *(LATE_SECONDS if late else ()))
                await self._give_back_after(pauses, undo, stream)
        finally:
            undo.gone.set()

    async def _at_once(self, stream: Stream) -> bool:
        """Remove the turn in the order that a crash does not harm: what still has a record is found; False if not."""
        try:
            await self._remove(stream, void=True)
        except Unavailable as error:
            _logger.warning("undoing_put_off", stream=stream.id, reason=error.detail)
            return False
        return True

    async def _give_back_after(self, pauses: tuple[float, ...], undo: _Undo, stream: Stream) -> None:
        """Void after each pause, until there was something to void or the client has come back."""
        for pause in pauses:
            if await self._asked_again(undo, pause) or await self._give_back(stream):
                return
            undo.gone.set()  # what may be reserved yet, nobody waits for

    @staticmethod
    async def _asked_again(undo: _Undo, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await undo.woken.wait()
        except TimeoutError:
            pass
        return undo.asked_again

    async def _give_back(self, stream: Stream) -> bool:
        """Void the reservation, unless the id has become another turn's, here or elsewhere.

        None can begin meanwhile: a record of that id stands in everybody's way. Whether nothing is held any more.
        """
        stand_in = replace(stream, session_id=SessionId(new_id()), created_at=self._clock())
        self._remember(stand_in)
        await self._insist(lambda: self._add(stand_in))
        found = await self._insist(lambda: self._records.find(stream.id))
        if found is None or found.created_at != stand_in.created_at:
            return True
        return await self._insist(lambda: self._remove(stand_in, void=True))

    async def _add(self, stand_in: Stream) -> None:
        try:
            await self._records.add(stand_in)
        except IntegrityError:  # another turn's record, or this one's of a try whose answer was lost
            _logger.debug("undoing_found_a_record", stream=stand_in.id)

    async def _insist(self, step: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await step()
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)

    async def _remove(self, stream: Stream, *, void: bool) -> bool:
        """Forget a turn that never began, and return what it held. False where that may still be reserved."""
        current = await self._records.find(stream.id)
        if current is not None and (current.created_at, current.ending) != (stream.created_at, None):
            return True
        over = await self._void(stream.id) if void else True
        await self._records.forget(stream.id)
        return over

    async def _void(self, stream_id: StreamId) -> bool:
        """Return a reservation that may or may not have been made; whether it had been. Raises Unavailable."""
        try:
            return await self._ledger.void(stream_id=stream_id) is not None
        except Unavailable:
            raise
        except ParshallError as error:
            _logger.warning("void_failed", stream=stream_id, reason=error.detail)
            return True
