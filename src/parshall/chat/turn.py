"""The producer of one stream: reads the provider, meters every token, logs it, and ends the stream."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from parshall.chat.audience import Audience
from parshall.chat.charge import Counted, charged
from parshall.chat.conclude import Concluder
from parshall.chat.counts import CRASHED, count_first_token
from parshall.chat.failover import Attempt, Conversation, Failover, Retries
from parshall.chat.frames import beginning, joined, text_frame
from parshall.chat.meter import extension
from parshall.chat.model import Ending, Outcome, Stream
from parshall.chat.peers import Peers
from parshall.chat.ports import (
    Delta,
    Finish,
    Lease,
    LeaseLost,
    Ledger,
    LogUnavailable,
    ProviderFailure,
    StreamLog,
    TextDelta,
    UsageReport,
)
from parshall.chat.writer import Writer
from parshall.kernel.clock import Clock
from parshall.kernel.errors import InsufficientCredits, ParshallError
from parshall.kernel.metering import Usage
from parshall.kernel.telemetry import log

EXTEND_SECONDS_MAX = 5.0
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
        self._meter = first.meter
        self._conversation = conversation
        self._tried = {first.stream.model_id}
        self._parts = parts
        self._opening = OPENING_EVENTS
        self._writer = Writer(parts.stream_log, lease, next_offset=OPENING_EVENTS + 1)
        self._texts: list[str] = []
        self._totals: list[int] = []
        self._gathered: list[TextDelta] = []
        self._reasoning_tokens = 0
        self._text_bytes = 0
        self._reported: Usage | None = None
        self._finish_reason = "stop"
        self._stopped: Outcome | None = None
        self._failure: ProviderFailure | None = None
        self._extension: asyncio.Task[None] | None = None
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
            if self._extension is not None:
                self._extension.cancel()
                await asyncio.gather(self._extension, return_exceptions=True)

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
            try:
                async with self._attempt.asked() as deltas:
                    return await self._follow(deltas)
            except ProviderFailure as failure:
                if self._totals or self._stopped is not None:
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
        self._attempt, self._meter = attempt, attempt.meter
        self._opening += 1
        return True

    async def _wait_for(self, awaited: Awaitable[T]) -> T:
        """Wait for the world; `stop` ends the waiting."""
        self._waiting = True
        try:
            return await awaited
        finally:
            self._waiting = False

    async def _follow(self, deltas: AsyncIterator[Sequence[Delta]]) -> Outcome:
        """Log batch after batch until the provider ends, the credits do, or somebody stops it."""
        while self._stopped is None:
            batch = await self._wait_for(anext(deltas, None))
            if batch is None:
                return Outcome.COMPLETED
            cut = await self._take(batch)
            if cut is not None:
                return cut
        return self._stopped

    async def _take(self, batch: Sequence[Delta]) -> Outcome | None:
        """Meter and log one batch; an outcome when the stream must end here."""
        for delta in batch:
            match delta:
                case TextDelta():
                    if not self._meter.fits(delta.tokens) and not await self._afford(delta.tokens):
                        self._take_beginning(delta)
                        await self._log_gathered()
                        return self._cut()
                    self._meter.count(delta.tokens)
                    self._gathered.append(delta)
                case UsageReport():
                    self._reported = delta.usage
                case Finish():
                    self._finish_reason = delta.reason
        await self._log_gathered()
        if self._writer.full:
            self._finish_reason = "length"
            return Outcome.COMPLETED
        if self._meter.runs_low and self._extension is None:
            self._extension = asyncio.create_task(self._extend())
        return None

    def _take_beginning(self, delta: TextDelta) -> None:
        """Of a delta that is not paid for whole, take what is: a provider may send an answer in one piece."""
        left = self._meter.granted - self._meter.used
        if left and self._stopped is None and (part := beginning(delta, left)).text:
            self._meter.count(left)
            self._gathered.append(part)

    def _cut(self) -> Outcome:
        if self._stopped is not None:
            return self._stopped
        if self._failure is not None:
            return Outcome.PROVIDER_ERROR
        if self._meter.at_own_limit:
            self._finish_reason = "length"
            return Outcome.COMPLETED
        return Outcome.CREDIT_LIMIT

    async def _log_gathered(self) -> None:
        """Append what was gathered as events: neighbours of one kind become one event."""
        if not self._gathered:
            return
        events = joined(self._gathered)
        self._gathered.clear()
        before = total = self._meter.used - sum([event.tokens for event in events])
        frames: list[bytes] = []
        totals: list[int] = []
        for event in events:
            total += event.tokens
            totals.append(total)
            frames.append(text_frame(event, self._writer.next_offset + len(frames), total))
        try:
            await self._writer.write(frames)
        except LogUnavailable:
            self._meter.used = before  # what the log will not hold is neither charged nor kept (S4)
            raise
        if not self._totals:
            count_first_token(self.stream, self._parts.concluder.label, at=self._parts.clock())
        self._totals += totals
        self._keep(events)

    def _keep(self, events: Sequence[TextDelta]) -> None:
        """Note what the log now holds, or will."""
        for event in events:
            text = event.text
            self._text_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            if event.reasoning:
                self._reasoning_tokens += event.tokens
            else:
                self._texts.append(text)

    # ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _afford(self, tokens: int) -> bool:
        """Wait until that many more tokens are paid for; False when they never will be."""
        await self._log_gathered()
        while not self._meter.fits(tokens) and not self._meter.final and self._stopped is None:
            if self._extension is None:
                missing = self._meter.used + tokens - self._meter.granted
                self._extension = asyncio.create_task(self._extend(missing))
            await self._extension
        return self._meter.fits(tokens)

    async def _extend(self, missing: int = 0) -> None:
        """Reserve the next slice (RFC 8506's update interrogation), or `missing` tokens where those are more."""
        step = self._meter.step = self._meter.step + 1
        output_tokens = max(self._parts.slice_tokens, missing)
        try:
            async with asyncio.timeout(EXTEND_SECONDS_MAX):
                self._meter.extend(await extension(self._parts.ledger, self.stream.id, step, output_tokens))
        except InsufficientCredits:
            self._meter.refuse()
        except (TimeoutError, ParshallError) as error:
            _logger.warning("extension_failed", stream=self.stream.id, reason=str(error) or type(error).__name__)
            self._failure = ProviderFailure(
                "Accounting cannot be reached, so no further output could be paid for; ask again shortly.",
                code="accounting_unavailable",
            )
            self._meter.refuse()
        finally:
            self._extension = None

    # ── Ending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self, outcome: Outcome) -> Stream:
        """Keep the answer and settle it before anything waits for a log that is away; then close the log."""
        concluder = self._parts.concluder
        if self._parts.peers.shared:
            await self.audience.hear()
        ended = await concluder.end(self.stream, self._ending(outcome), text="".join(self._texts), lease=self.lease)
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
            delivered_tokens=self._delivered_tokens(),
            ended_at=self._parts.clock(),
            error_code=None if failure is None else failure.reason,
            error_message=None if failure is None else failure.detail,
            retryable=outcome.is_failure and (failure is None or failure.retryable),
        )

    def _counted(self) -> Counted:
        return Counted(
            input_tokens=self.stream.input_tokens,
            output_tokens=self._meter.used,
            reasoning_tokens=self._reasoning_tokens,
            text_bytes=self._text_bytes,
            output_tokens_max=self._attempt.prompt.output_tokens_max,
        )

    def _delivered_tokens(self) -> int:
        index = min(self.audience.offset - self._opening, len(self._totals))
        return self._totals[index - 1] if index > 0 else 0
