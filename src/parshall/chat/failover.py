"""What follows a failure before the first token: the same model again after a pause, else the next one that is able."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from parshall.chat.catalog import Catalog, Choice
from parshall.chat.counts import CRASHED, count_failure
from parshall.chat.frames import model_frame
from parshall.chat.meter import Meter
from parshall.chat.model import Ask, Message, Outcome, Stream
from parshall.chat.ports import Lease, LeaseLost, Ledger, Prompt, Provider, ProviderFailure, Take
from parshall.chat.prompt import compose_prompt
from parshall.chat.records import Records
from parshall.chat.writer import Writer
from parshall.kernel import trace
from parshall.kernel.errors import ParshallError, Unavailable
from parshall.kernel.telemetry import log

ASKED_AGAIN = frozenset({"provider_busy", "provider_unreachable"})
"""Failures of a provider that has not begun: any other may have been billed and would fail alike."""
REPRICE_SECONDS_MAX = 5.0

_logger = log("streams")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a model is asked again before it has begun, and after what pauses (seconds)."""

    times_max: int = 2
    pause_seconds_min: float = 0.25
    pause_seconds_max: float = 10.0

    def pause(self, failure: ProviderFailure, *, asked: int, chance: float) -> float | None:
        """Seconds until a model that was asked so often is asked again; None for never.

        Pauses double, and `chance` in [0, 1) spreads those who failed together. What the provider asks for is waited
        for, or not asked again at all where it is more than `pause_seconds_max`.
        """
        wanted = failure.pause_seconds or 0.0
        if failure.reason not in ASKED_AGAIN or asked > self.times_max or wanted > self.pause_seconds_max:
            return None
        doubled = min(self.pause_seconds_min * 2.0 ** (asked - 1), self.pause_seconds_max)
        return min(max(doubled * (0.5 + chance / 2), wanted * (1 + chance / 4)), self.pause_seconds_max)


class Enough(Exception):
    """Whoever takes an answer wants no more of it."""

    def __init__(self, outcome: Outcome) -> None:
        """`outcome` is how the stream ends by that."""
        super().__init__(outcome)
        self.outcome = outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Whom to ask for an answer, what, and what is paid for it. `provider_name` is that of the model's card."""

    stream: Stream
    provider: Provider
    provider_name: str
    prompt: Prompt
    meter: Meter

    async def ask(self, take: Take) -> Outcome:
        """Give the answer to `take` until the provider or an Enough ends it; a provider that fails is counted."""
        told = {"gen_ai.provider.name": self.provider_name, "gen_ai.request.model": self.stream.model_id}
        try:
            with trace.span("provider", "client", stream=self.stream.id, attributes=told):
                try:
                    await self.provider.stream(self.prompt, take)
                except Enough as enough:
                    return enough.outcome
                return Outcome.COMPLETED
        except ProviderFailure as failure:
            count_failure(self.provider_name, failure.reason)
            raise
        except (ParshallError, LeaseLost, AssertionError):
            raise
        except Exception:
            count_failure(self.provider_name, CRASHED)
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a prompt is made of, whichever model it is for."""

    history: Sequence[Message]
    ask: Ask
    output_tokens_max: int

    async def prompt(self, choice: Choice) -> tuple[Prompt, int]:
        """The prompt for a model and its input tokens. Raises PromptTooLong."""
        return await compose_prompt(choice, self.history, self.ask, output_tokens_max=self.output_tokens_max)


class Failover:
    """Hands streams over to the next model, under the reservation that they have."""

    def __init__(self, *, catalog: Catalog, ledger: Ledger, records: Records, slice_tokens: int) -> None:
        """What every stream of this process shares."""
        self._catalog = catalog
        self._ledger = ledger
        self._records = records
        self._slice_tokens = slice_tokens

    async def next(
        self, stream: Stream, conversation: Conversation, *, tried: set[str], lease: Lease, writer: Writer
    ) -> Attempt | None:
        """The attempt with the first stand-in that is able, announced as the next event; None where none is.

        `tried` are models that are not asked again; those that this looks at are added. Raises LeaseLost,
        LogUnavailable.
        """
        while (choice := await self._catalog.stand_in(tried)) is not None:
            tried.add(choice.card.id)
            try:
                attempt = await self._moved(stream, conversation, choice, lease)
            except LeaseLost:
                raise
            except (TimeoutError, ParshallError) as refusal:
                if isinstance(refusal, Unavailable | TimeoutError):
                    _logger.warning("failover_failed", stream=stream.id, reason=str(refusal) or "timeout")
                    return None
                _logger.info("stand_in_passed_over", stream=stream.id, model=choice.card.id, reason=str(refusal))
                continue
            await writer.write([model_frame(choice.card.id, writer.next_offset, fallback_applied=True)])
            return attempt
        return None

    async def _moved(self, stream: Stream, conversation: Conversation, choice: Choice, lease: Lease) -> Attempt:
        """Ledger first, then the record: wherever a process dies, no token is logged and so nothing is charged."""
        prompt, input_tokens = await conversation.prompt(choice)
        moved = replace(stream, model_id=choice.card.id, fallback_applied=True, input_tokens=input_tokens)
        async with asyncio.timeout(REPRICE_SECONDS_MAX):
            granted = await self._ledger.reprice(
                stream_id=stream.id,
                model_id=moved.model_id,
                input_tokens=input_tokens,
                output_tokens_max=prompt.output_tokens_max,
                slice_tokens=min(self._slice_tokens, prompt.output_tokens_max),
            )
        await self._records.move(moved, epoch=lease.epoch)
        meter = Meter(granted, output_tokens_max=prompt.output_tokens_max)
        return Attempt(
            stream=moved, provider=choice.provider, provider_name=choice.card.provider, prompt=prompt, meter=meter
        )
