"""Adoption: what a dead producer left undone is ended, settled from the log and closed; each step may be repeated."""

import asyncio
import contextlib
import random
from collections.abc import Container, Sequence

from parshall.chat.frames import text_frame
from parshall.chat.model import Ending, Outcome, Stream
from parshall.chat.ports import (
    EVENTS_PER_READ_MAX,
    Lease,
    LeaseLost,
    LogAway,
    LogUnavailable,
    TextDelta,
)
from parshall.chat.producers import Producers
from parshall.chat.turn import Parts
from parshall.kernel import sse
from parshall.kernel.errors import ParshallError
from parshall.kernel.ids import StreamId
from parshall.kernel.metering import Usage, UsageSource
from parshall.kernel.telemetry import log

MOVES_AT_ONCE = 8
"""Streams that one pass has in hand at a time: each waits for several stores."""
TERMINAL = frozenset({"done", "error"})

_logger = log("streams")


class Recovery:
    """Finishes streams that no running producer will."""

    def __init__(self, parts: Parts, *, producers: Producers, openings: Container[StreamId], owner: str) -> None:
        """`producers` are those of this process, and `openings` what it is about to produce: both are left alone."""
        self._producers = producers
        self._openings = openings
        self._log = parts.stream_log
        self._ledger = parts.ledger
        self._concluder = parts.concluder
        self._records = parts.concluder.records
        self._clock = parts.clock
        self._owner = owner
        self._moving: set[StreamId] = set()

    async def sweep(self, *, undo_before: int) -> int:
        """One pass over everything unfinished; how many streams it moved on. One that fails does not stop the rest.

        A turn without any event is undone only if it is from before `undo_before` (microseconds).
        """
        moved = 0
        async for page in self._records.unfinished():
            try:
                left = await self._left(page)
                for start in range(0, len(left), MOVES_AT_ONCE):
                    moved += await self._try_all(left[start : start + MOVES_AT_ONCE], undo_before)
            except LogAway as error:  # nothing of the rest could be moved on either
                _logger.warning("sweep_cut_short", reason=error.detail)
                break
        return moved

    async def _try_all(self, stream_ids: Sequence[StreamId], undo_before: int) -> int:
        """Move these on at once, each to its end; how many moved. Raises what one of them has raised."""
        tries = (self._try(stream_id, undo_before) for stream_id in stream_ids)
        results = await asyncio.gather(*tries, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results.count(True)

    async def rescue(self, stream_id: StreamId) -> bool:
        """End a stream now that nobody produces; whether it has moved on. Raises LogAway."""
        return await self._try(stream_id, undo_before=0)

    async def _left(self, page: Sequence[Stream]) -> list[StreamId]:
        """Those of the streams that nobody holds; in any order, so that processes that sweep at once share the work."""
        ours = [stream for stream in page if not self._is_ours(stream.id)]
        asked = [stream.id for stream in ours if stream.closed_at is None]
        held = await self._log.held(asked, at=self._clock())
        left = [stream.id for stream in ours if stream.id not in held]
        random.shuffle(left)
        return left

    def _is_ours(self, stream_id: StreamId) -> bool:
        """A stream goes from opening to producing without a gap: it is found in one of them for all of that time."""
        return stream_id in self._producers or stream_id in self._openings

    async def _try(self, stream_id: StreamId, undo_before: int) -> bool:
        """Move one stream on, unless this process has it in hand. Raises LogAway."""
        # One that is not ours now was opened by a process that died, or has ended since it was found: the record tells.
        if self._is_ours(stream_id) or stream_id in self._moving:
            return False
        self._moving.add(stream_id)
        try:
            stream = await self._records.find(stream_id)
            return stream is not None and await self._move_on(stream, undo_before)
        except LogAway:
            raise
        except ParshallError as error:
            _logger.warning("stream_not_recovered", stream=stream_id, reason=error.detail)
            return False
        finally:
            self._moving.discard(stream_id)

    async def _move_on(self, stream: Stream, undo_before: int) -> bool:
        """Do for one stream what is still to be done; False when somebody else holds it or nothing could be done."""
        if stream.closed_at is not None and stream.settlement is not None:
            return False
        if stream.closed_at is not None:
            return (await self._concluder.settle(stream)).settlement is not None
        if stream.ending is None and (await self._log.read(stream.id, after=0, limit=1)) == ([], True):
            return stream.created_at < undo_before and await self._undo(stream)
        lease = await self._log.acquire(
            stream.id, owner=self._owner, at=self._clock(), until=self._producers.lease_until()
        )
        if lease is None:
            return await self._note_closed(stream)
        try:
            logged = await self._logged(stream)
            if stream.ending is None and not logged.events:
                await self._undo(stream)
                await self._log.close_stream(lease)  # who waits for the first event must not wait for ever
                return True
            if stream.ending is None:
                await self._adopt(stream, lease, logged)
            else:
                await self._finish(stream, lease, logged)
        finally:  # a log that was closed has no lease; one that could not be is free for the next sweep
            with contextlib.suppress(LeaseLost, LogUnavailable):
                await self._log.release(lease)
        return True

    async def _undo(self, stream: Stream) -> bool:
        """Forget a turn that died before its first event: no header went out, so nobody was told of it."""
        await self._ledger.void(stream_id=stream.id)
        await self._records.forget(stream.id)
        _logger.warning("stream_undone", stream=stream.id)
        return True

    async def _note_closed(self, stream: Stream) -> bool:
        """The log is held by another, or was closed in the instant before its process died."""
        _, closed = await self._log.read(stream.id, after=2**62, limit=1)
        if closed and stream.ending is not None:
            await self._records.close(stream.id)
        return closed

    async def _adopt(self, stream: Stream, lease: Lease, logged: "Logged") -> None:
        """End a stream whose producer died: the partial answer and its tokens are what the log holds (S4)."""
        if not await self._records.claim(stream.id, epoch=lease.epoch):
            return
        _logger.warning("stream_adopted", stream=stream.id, events=logged.events, output_tokens=logged.tokens)
        usage = Usage()
        if logged.tokens:
            usage = Usage(
                input_tokens=stream.input_tokens,
                output_tokens=logged.tokens,
                reasoning_tokens=logged.reasoning_tokens,
            )
        ending = Ending(
            outcome=Outcome.INTERRUPTED,
            finish_reason=Outcome.INTERRUPTED.value,
            usage=usage,
            usage_source=UsageSource.LOG,
            delivered_tokens=None,
            ended_at=self._clock(),
            retryable=True,
        )
        ended = await self._concluder.end(stream, ending, text=logged.text, lease=lease)
        await self._concluder.close(ended, lease, next_offset=logged.events + 1)

    async def _finish(self, stream: Stream, lease: Lease, logged: "Logged") -> None:
        """Settle and close a stream whose process died between its end and the closing of its log."""
        settled = stream if stream.settlement is not None else await self._concluder.settle(stream)
        if logged.has_terminal or logged.events == 0:  # without any event it was lost, and stays forgotten
            await self._concluder.seal(settled, lease)
        else:
            added = await self._add_rest(settled, lease, logged)
            await self._concluder.close(settled, lease, next_offset=logged.events + 1 + added)

    async def _add_rest(self, stream: Stream, lease: Lease, logged: "Logged") -> int:
        """Log what came while the log was away, as one event: readers get the answer that was kept; how many events."""
        assert stream.ending is not None
        kept = await self._records.answer(stream.id)
        text = kept.removeprefix(logged.text)
        if not kept.startswith(logged.text) or not text:
            return 0
        total = max(stream.ending.usage.output_tokens, logged.tokens)
        offset = logged.events + 1
        rest = text_frame(TextDelta(text, total - logged.tokens), offset, total)
        await self._log.append(lease, [rest], first_offset=offset)
        return 1

    async def _logged(self, stream: Stream) -> "Logged":
        logged = Logged()
        while True:
            frames, _ = await self._log.read(stream.id, after=logged.events, limit=EVENTS_PER_READ_MAX)
            if not frames:
                return logged
            for frame in frames:
                logged.add(frame)


class Logged:
    """What the log of one stream holds, read event by event."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.events = 0
        self.tokens = 0
        self.reasoning_tokens = 0
        self.has_terminal = False
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._texts)

    def add(self, frame: bytes) -> None:
        """Count one more event."""
        self.events += 1
        for event in sse.parse([frame]):
            self.has_terminal = event.event in TERMINAL
            if event.event not in ("chunk", "reasoning"):
                continue
            data = event.json()
            self.tokens += data["tokens"]
            if event.event == "chunk":
                self._texts.append(data["text"])
            else:
                self.reasoning_tokens += data["tokens"]
