"""The producer of one stream: reads the provider, meters every token, logs it, and ends the stream."""

import asyncio
import random
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeVar

from parshall.chat.audience import Audience
from parshall.chat.charge import Counted, charged
from parshall.chat.conclude import Concluder
from parshall.chat.counts import CRASHED, count_first_token
from parshall.chat.credit import Credit
from parshall.chat.failover import Attempt, Conversation, Enough, Failover, Retries
from parshall.chat.frames import beginning, joined, text_frame
from parshall.chat.model import Ending, Outcome, Stream
from parshall.chat.peers import Peers
from parshall.chat.ports import (
    KEPT,
    Delta,
    Lease,
    LeaseLost,
    Ledger,
    LogUnavailable,
    ProviderFailure,
    StreamLog,
    TextDelta,
    UsageReport,
)
from parshall.chat.transcript import Transcript
from parshall.chat.writer import Writer
from parshall.kernel.clock import Clock
from parshall.kernel.metering import Usage
from parshall.kernel.tasks import end
from parshall.kernel.telemetry import log

OPENING_EVENTS = 2
"""`session` and `model` come before the first chunk."""

T = TypeVar("T")

_logger = log("streams")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What every producer of this process shares. Times in seconds."""

    ledger: Ledger
    stream_log: StreamLog
    concluder: Concluder
    failover: Failover
    retries: Retries
    clock: Clock
    slice_tokens: int
    stream_seconds_max: float
    grace_seconds: float
    peers: Peers


class Producer:
    """Owns one stream from its first event to its last; readers come and go without touching it."""

    def __init__(self, first: Attempt, conversation: Conversation, *, lease: Lease, parts: Parts) -> None:
        """Nothing runs before `run`; the opening events are already in the log."""
        self.lease = lease
        self._attempt = first
        self._credit = Credit(first.meter, parts.ledger, first.stream.id, slice_tokens=parts.slice_tokens)
        self._conversation = conversation
        self._tried = {first.stream.model_id}
        self._parts = parts
        self._opening = OPENING_EVENTS
        self._writer = Writer(parts.stream_log, lease, next_offset=OPENING_EVENTS + 1)
        self._transcript = Transcript()
        self._gathered: list[TextDelta] = []
        self._reported: Usage | None = None
        self._finish_reason = "stop"
        self._stopped: Outcome | None = None
        self._failure: ProviderFailure | None = None
        self._work: asyncio.Task[None] | None = None
        needs_reader = first.stream.on_disconnect == "stop"
        self.audience = Audience(
            lambda: self.stop(Outcome.ABANDONED),
            grace_seconds=parts.grace_seconds if needs_reader else None,
            elsewhere=lambda: parts.peers.elsewhere(lease.stream_id),
            clock=parts.clock,
        )
        self._task: asyncio.Task[object] | None = None
        self._waiting = False

    @property
    def stream(self) -> Stream:
        """The stream as its record has it: of the model that answers now."""
        return self._attempt.stream

    async def run(self) -> Stream:
        """Produce the stream to its end and return it settled (or pending). Raises LeaseLost when fenced."""
        self._task = asyncio.current_task()
        try:
            outcome = await self._generate_in_time()
            return await self._end(outcome)
        finally:
            await self._writer.close()

    async def _generate_in_time(self) -> Outcome:
        timer = asyncio.get_running_loop().call_later(self._parts.stream_seconds_max, self.stop, Outcome.TIMEOUT)
        self.audience.watch()
        try:
            return await self._generate()
        finally:
            timer.cancel()
            await self.audience.close()
            await self._credit.close()
            if self._work is not None:
                await end(self._work)

    def stop(self, outcome: Outcome) -> None:
        """Have the stream end with this outcome after the event that is being logged; the first caller decides."""
        if self._stopped is not None:
            return
        self._stopped = outcome
        if self._waiting and self._task is not None:
            self._task.cancel()

    # ── Generation ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _generate(self) -> Outcome:
        try:
            return await self._answer()
        except ProviderFailure as failure:
            if self._stopped is not None:
                return self._stopped
            self._failure = failure
            return Outcome.PROVIDER_ERROR
        except LogUnavailable as error:
            self._failure = ProviderFailure(error.detail, code=error.code)
            return Outcome.PROVIDER_ERROR
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            assert self._task is not None
            self._task.uncancel()
            return self._stopped
        except (LeaseLost, AssertionError):
            raise
        except Exception as error:
            _logger.exception("provider_crashed", stream=self.stream.id)
            self._failure = ProviderFailure(code=CRASHED, retryable=not isinstance(error, ValueError))
            return Outcome.PROVIDER_ERROR

    async def _answer(self) -> Outcome:
        """Follow the first attempt that gives a token. Raises the ProviderFailure behind which there is none left."""
        asked = 0
        while True:
            asked += 1
            if self._stopped is not None:
                return self._stopped
            try:
                return await self._wait_for(self._attempt.ask(self._take))
            except ProviderFailure as failure:
                if self._transcript.totals or self._stopped is not None:
                    raise
                self._reported, self._finish_reason = None, "stop"
                pause = self._parts.retries.pause(failure, asked=asked, chance=random.random())  # noqa: S311 - spreads load
                _logger.warning("attempt_failed", stream=self.stream.id, reason=failure.reason, again_in_seconds=pause)
                if pause is not None:
                    await self._wait_for(asyncio.sleep(pause))
                elif failure.elsewhere and await self._fail_over():
                    asked = 0
                else:
                    raise

    async def _fail_over(self) -> bool:
        """Have another model answer; False where none can."""
        attempt = await self._parts.failover.next(
            self.stream, self._conversation, tried=self._tried, lease=self.lease, writer=self._writer
        )
        if attempt is None:
            return False
        self._attempt, self._credit.meter = attempt, attempt.meter
        self._opening += 1
        return True

    async def _wait_for(self, awaited: Awaitable[T]) -> T:
        """Wait for the world; `stop` ends the waiting."""
        self._waiting = True
        try:
            return await awaited
        finally:
            self._waiting = False

    def _take(self, batch: Sequence[Delta]) -> Awaitable[None] | None:
        """Meter and log one batch. Raises Enough when the stream must end here."""
        if self._stopped is not None:
            raise Enough(self._stopped)
        for at, delta in enumerate(batch):
            if not self._count(delta):
                return self._undisturbed(self._take_dear(batch[at:]))
        kept = self._log_gathered()
        if kept is not KEPT:
            return self._undisturbed(self._taken(kept))
        self._look_ahead()
        return None

    def _count(self, delta: Delta) -> bool:
        """Count a delta; False where it is not paid for."""
        if isinstance(delta, TextDelta):
            if not self._credit.meter.count(delta.tokens):
                return False
            self._gathered.append(delta)
        elif isinstance(delta, UsageReport):
            self._reported = delta.usage
        else:
            self._finish_reason = delta.reason
        return True

    def _look_ahead(self) -> None:
        """See that the stream can go on."""
        if self._writer.full:
            self._finish_reason = "length"
            raise Enough(Outcome.COMPLETED)
        self._credit.look_ahead()

    def _undisturbed(self, work: Coroutine[None, None, None]) -> Awaitable[None]:
        """Work that `stop` lets come to its end."""
        self._waiting = False
        self._work = asyncio.create_task(self._done(work))
        return self._work

    async def _done(self, work: Coroutine[None, None, None]) -> None:
        await work
        if self._stopped is not None:
            raise Enough(self._stopped)
        self._waiting = True

    async def _taken(self, kept: Awaitable[None]) -> None:
        await kept
        self._look_ahead()

    async def _take_dear(self, batch: Sequence[Delta]) -> None:
        """Take what is left of a batch, of which the first delta is to be paid for yet."""
        for delta in batch:
            while not self._count(delta):
                assert isinstance(delta, TextDelta)
                await self._log_gathered()
                if not await self._credit.afford(delta.tokens, wanted=lambda: self._stopped is None):
                    self._take_beginning(delta)
                    await self._log_gathered()
                    raise Enough(self._cut())
        await self._taken(self._log_gathered())

    def _take_beginning(self, delta: TextDelta) -> None:
        """Of a delta that is not paid for whole, take what is: a provider may send an answer in one piece."""
        meter = self._credit.meter
        left = meter.granted - meter.used
        if left and self._stopped is None and (part := beginning(delta, left)).text and meter.count(left):
            self._gathered.append(part)

    def _cut(self) -> Outcome:
        if self._stopped is not None:
            return self._stopped
        if self._credit.failure is not None:
            self._failure = self._credit.failure
            return Outcome.PROVIDER_ERROR
        if self._credit.meter.at_own_limit:
            self._finish_reason = "length"
            return Outcome.COMPLETED
        return Outcome.CREDIT_LIMIT

    def _log_gathered(self) -> Awaitable[None]:
        """Append what was gathered as events: neighbours of one kind become one event."""
        if not self._gathered:
            return KEPT
        events, self._gathered = joined(self._gathered), []
        before = total = self._credit.meter.used - sum(event.tokens for event in events)
        frames: list[bytes] = []
        for offset, event in enumerate(events, self._writer.next_offset):
            total += event.tokens
            frames.append(text_frame(event, offset, total))
        try:
            kept = self._writer.write(frames)
        except LogUnavailable:
            self._credit.meter.used = before  # what the log will not hold is neither charged nor kept (S4)
            raise
        if kept is not KEPT:
            return self._logged(kept, events, before)
        self._note(events, before)
        return KEPT

    async def _logged(self, kept: Awaitable[None], events: Sequence[TextDelta], before: int) -> None:
        try:
            await kept
        except LogUnavailable:
            self._credit.meter.used = before
            raise
        self._note(events, before)

    def _note(self, events: Sequence[TextDelta], before: int) -> None:
        """Note what the log now holds, or will, behind so many tokens."""
        if not self._transcript.totals:
            count_first_token(self.stream, self._parts.concluder.label, at=self._parts.clock())
        self._transcript.add(events, before)

    # ── Ending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self, outcome: Outcome) -> Stream:
        """Keep the answer and settle it before anything waits for a log that is away; then close the log."""
        concluder = self._parts.concluder
        if self._parts.peers.shared:
            await self.audience.hear()
        ended = await concluder.end(self.stream, self._ending(outcome), text=self._transcript.text, lease=self.lease)
        if await self._writer.finish():
            await concluder.close(ended, self.lease, next_offset=self._writer.next_offset)
        else:
            _logger.warning("log_left_to_the_sweep", stream=self.stream.id)
        return ended

    def _ending(self, outcome: Outcome) -> Ending:
        usage, source = charged(outcome, self._reported, self._counted())
        failure = self._failure if outcome is Outcome.PROVIDER_ERROR else None
        return Ending(
            outcome=outcome,
            finish_reason=self._finish_reason if outcome is Outcome.COMPLETED else outcome.value,
            usage=usage,
            usage_source=source,
            delivered_tokens=self._transcript.tokens_of(self.audience.offset - self._opening),
            ended_at=self._parts.clock(),
            error_code=None if failure is None else failure.reason,
            error_message=None if failure is None else failure.detail,
            retryable=outcome.is_failure and (failure is None or failure.retryable),
        )

    def _counted(self) -> Counted:
        return Counted(
            input_tokens=self.stream.input_tokens,
            output_tokens=self._credit.meter.used,
            reasoning_tokens=self._transcript.reasoning_tokens,
            text_bytes=self._transcript.bytes,
            output_tokens_max=self._attempt.prompt.output_tokens_max,
        )
