"""The producer of one stream: reads the provider, meters every token, logs it, and ends the stream."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from parshall.chat.chunks import chunk_frame, merged
from parshall.chat.conclude import Concluder
from parshall.chat.meter import Meter
from parshall.chat.model import Ending, Outcome, Stream
from parshall.chat.ports import (
    Delta,
    Finish,
    Lease,
    LeaseLost,
    Ledger,
    LogUnavailable,
    Prompt,
    Provider,
    ProviderFailure,
    StreamLog,
    TextDelta,
    UsageReport,
)
from parshall.chat.writer import Writer
from parshall.kernel.clock import Clock
from parshall.kernel.errors import InsufficientCredits, ParshallError
from parshall.kernel.metering import Usage, UsageSource
from parshall.kernel.telemetry import log

EXTEND_SECONDS_MAX = 5.0
EXTEND_RETRY_SECONDS = 0.2
OPENING_EVENTS = 2
"""`session` and `model` come before the first chunk."""

_logger = log("streams")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What every producer of this process shares. Times in seconds."""

    ledger: Ledger
    stream_log: StreamLog
    concluder: Concluder
    clock: Clock
    slice_tokens: int
    stream_seconds_max: float
    grace_seconds: float


class Producer:
    """Owns one stream from its first event to its last; readers come and go without touching it."""

    def __init__(
        self, stream: Stream, prompt: Prompt, *, provider: Provider, meter: Meter, lease: Lease, parts: Parts
    ) -> None:
        """Nothing runs before `run`; the opening events are already in the log."""
        self.stream = stream
        self.lease = lease
        self._prompt = prompt
        self._provider = provider
        self._meter = meter
        self._parts = parts
        self._writer = Writer(parts.stream_log, lease, next_offset=OPENING_EVENTS + 1)
        self._texts: list[str] = []
        self._totals: list[int] = []
        self._delivered_offset = 0
        self._gathered: list[TextDelta] = []
        self._reasoning_tokens = 0
        self._reported: Usage | None = None
        self._finish_reason = "stop"
        self._stopped: Outcome | None = None
        self._failure: ProviderFailure | None = None
        self._extension: asyncio.Task[None] | None = None
        self._readers = 0
        self._grace: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._waiting = False

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
        self._watch_readers()
        try:
            return await self._generate()
        finally:
            timer.cancel()
            self._forget_grace()
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

    # ── Readers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def joined(self) -> None:
        """A reader has come."""
        self._readers += 1
        self._forget_grace()

    def left(self) -> None:
        """A reader has gone; the last one may take the stream with it, after the grace period."""
        self._readers -= 1
        self._watch_readers()

    def delivered(self, offset: int) -> None:
        """A reader was sent everything up to this offset."""
        self._delivered_offset = max(self._delivered_offset, offset)

    def _watch_readers(self) -> None:
        if self._readers == 0 and self.stream.on_disconnect == "stop" and self._grace is None:
            loop = asyncio.get_running_loop()
            self._grace = loop.call_later(self._parts.grace_seconds, self.stop, Outcome.ABANDONED)

    def _forget_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    # ── Generation ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _generate(self) -> Outcome:
        try:
            async with aclosing(self._provider.stream(self._prompt)) as deltas:
                return await self._follow(deltas)
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
            self._failure = ProviderFailure(code="provider_crashed", retryable=not isinstance(error, ValueError))
            return Outcome.PROVIDER_ERROR

    async def _follow(self, deltas: AsyncIterator[Sequence[Delta]]) -> Outcome:
        """Log batch after batch until the provider ends, the credits do, or somebody stops it."""
        while self._stopped is None:
            self._waiting = True
            try:
                batch = await anext(deltas, None)
            finally:
                self._waiting = False
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
        events = merged(self._gathered)
        self._gathered.clear()
        total = self._meter.used - sum(event.tokens for event in events)
        before = total
        frames: list[bytes] = []
        for event in events:
            total += event.tokens
            frames.append(chunk_frame(event, self._writer.next_offset + len(frames), total))
        try:
            await self._writer.write(frames)
        except LogUnavailable:
            self._meter.used = before  # what the log will not hold is neither charged nor kept (S4)
            raise
        self._keep(events, before)

    def _keep(self, events: Sequence[TextDelta], total: int) -> None:
        """Note what the log now holds, or will."""
        for event in events:
            total += event.tokens
            self._totals.append(total)
            if event.reasoning:
                self._reasoning_tokens += event.tokens
            else:
                self._texts.append(event.text)

    # ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _afford(self, tokens: int) -> bool:
        """Wait until that many more tokens are paid for; False when they never will be."""
        await self._log_gathered()
        while not self._meter.fits(tokens) and not self._meter.final and self._stopped is None:
            if self._extension is None:
                self._extension = asyncio.create_task(self._extend())
            await self._extension
        return self._meter.fits(tokens)

    async def _extend(self) -> None:
        """Reserve the next slice (RFC 8506's update interrogation), repeating the same step until answered."""
        step = self._meter.step = self._meter.step + 1
        try:
            async with asyncio.timeout(EXTEND_SECONDS_MAX):
                await self._extend_by(step)
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

    async def _extend_by(self, step: int) -> None:
        while True:
            try:
                granted = await self._parts.ledger.extend(
                    stream_id=self.stream.id, step=step, output_tokens=self._parts.slice_tokens
                )
            except ParshallError as error:
                if error.status != 503:
                    raise
                await asyncio.sleep(EXTEND_RETRY_SECONDS)
            else:
                self._meter.extend(granted)
                return

    # ── Ending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self, outcome: Outcome) -> Stream:
        """Keep the answer and settle it before anything waits for a log that is away; then close the log."""
        concluder = self._parts.concluder
        ended = await concluder.end(self.stream, self._ending(outcome), text="".join(self._texts), lease=self.lease)
        if await self._writer.finish():
            await concluder.close(ended, self.lease, next_offset=self._writer.next_offset)
        else:
            _logger.warning("log_left_to_the_sweep", stream=self.stream.id)
        return ended

    def _ending(self, outcome: Outcome) -> Ending:
        usage, source = self._usage(outcome)
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

    def _usage(self, outcome: Outcome) -> tuple[Usage, UsageSource]:
        """The provider's word for a whole answer if it can be true, else our own count.

        A failure without a single token of output costs nothing; a stop by the user pays for the prompt.
        """
        if outcome is Outcome.COMPLETED and self._reported is not None and self._believable(self._reported):
            return self._reported, UsageSource.PROVIDER
        if outcome.is_failure and self._meter.used == 0:
            return Usage(), UsageSource.COUNTED
        return Usage(
            input_tokens=self.stream.input_tokens,
            output_tokens=self._meter.used,
            reasoning_tokens=self._reasoning_tokens,
        ), UsageSource.COUNTED

    def _believable(self, usage: Usage) -> bool:
        """Whether a provider's numbers can belong to this turn: at most twice what was asked for, and not nothing."""
        output_max = 2 * max(self._prompt.output_tokens_max, self._meter.used)
        input_max = 2 * self.stream.input_tokens + 1024
        silent = usage.output_tokens == 0 and self._meter.used > 0
        return not silent and usage.output_tokens <= output_max and usage.input_tokens <= input_max

    def _delivered_tokens(self) -> int:
        index = min(self._delivered_offset - OPENING_EVENTS, len(self._totals))
        return self._totals[index - 1] if index > 0 else 0
