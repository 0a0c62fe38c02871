"""Accounting as another service sees it over HTTP: the ledger of streams, and the prices of models."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from parshall.accounting.model import ModelWithoutPrice, ReservationEnded, StepOutOfOrder, UnknownReservation
from parshall.accounting.pricing import ANY_MODEL, Price, PriceVersion
from parshall.kernel.clock import Clock, instant
from parshall.kernel.credits import Credits, parse_credits
from parshall.kernel.errors import Conflict, InsufficientCredits, KeyReused, ParshallError, Unavailable
from parshall.kernel.headers import STREAM_ID_HEADER, USER_ID_HEADER
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Slice, Usage, UsageSource
from parshall.kernel.peer import Peer, Refusal

PRICES_SECONDS_MAX = 10.0
"""How long prices are shown before accounting is asked again. What a stream costs accounting decides by itself."""
USERS_KEPT_MAX = 10_000
T = TypeVar("T")

_REFUSALS: tuple[type[ParshallError], ...] = (
    InsufficientCredits,
    KeyReused,
    ReservationEnded,
    StepOutOfOrder,
    UnknownReservation,
    ModelWithoutPrice,
    Conflict,
)


class _Answer(msgspec.Struct, rename="camel"):
    """What these routes have in common: camelCase, decimal credits, RFC 3339 times."""


class _Slice(_Answer):
    allocated_credits: Decimal
    granted_output_tokens: int
    expires_at: datetime
    final: bool

    def slice(self) -> Slice:
        return Slice(
            reserved=_micro(self.allocated_credits),
            output_tokens=self.granted_output_tokens,
            expires_at=instant(self.expires_at),
            final=self.final,
        )


class _Receipt(_Answer):
    outcome: str
    reserved_credits: Decimal
    charged_credits: Decimal
    returned_credits: Decimal
    uncollected_credits: Decimal
    balance_after: Decimal
    price_version: str
    transfers: tuple[int, ...]

    def settlement(self) -> Settlement:
        return Settlement(
            outcome=self.outcome,
            reserved=_micro(self.reserved_credits),
            charged=_micro(self.charged_credits),
            returned=_micro(self.returned_credits),
            uncollected=_micro(self.uncollected_credits),
            balance_after=_micro(self.balance_after),
            price_version=self.price_version,
            transfers=self.transfers,
        )


class _Ended(_Answer):
    receipt: _Receipt | None


class _PriceVersion(_Answer):
    model_id: str
    input: Decimal
    cached_input: Decimal
    output: Decimal
    reasoning: Decimal
    effective_from: datetime

    def version(self) -> PriceVersion:
        price = Price(
            input=_micro(self.input),
            cached_input=_micro(self.cached_input),
            output=_micro(self.output),
            reasoning=_micro(self.reasoning),
        )
        return PriceVersion.of(self.model_id, price, effective_from=instant(self.effective_from), set_by="")


class _Prices(_Answer):
    prices: list[_PriceVersion]


class RemoteAccounting:
    """Chat's Ledger over HTTP. Each call is its own idempotency key, so that one whose answer is lost is repeated."""

    def __init__(self, peer: Peer, *, clock: Clock) -> None:
        """`peer` is accounting, called with this service's own token; it is closed with this."""
        self._peer = peer
        self.prices = RemotePrices(peer, clock=clock)
        self._users: OrderedDict[StreamId, UserId] = OrderedDict()

    async def close(self) -> None:
        """Close every connection."""
        await self._peer.close()

    async def reserve(
        self,
        *,
        stream_id: StreamId,
        user_id: UserId,
        model_id: str,
        input_tokens: int,
        output_tokens_max: int,
        slice_tokens: int,
    ) -> Slice:
        """Hold the prompt and a first slice, as `Accounting.reserve` does; raises what it does, and Unavailable."""
        self._users[stream_id] = user_id
        if len(self._users) > USERS_KEPT_MAX:
            self._users.popitem(last=False)
        body = {
            "modelId": model_id,
            "inputTokens": input_tokens,
            "maxOutputTokens": output_tokens_max,
            "sliceTokens": slice_tokens,
        }
        return (await self._call("initialize", stream_id, _Slice, body)).slice()

    async def extend(self, *, stream_id: StreamId, step: int, output_tokens: int) -> Slice:
        """Hold more, as `Accounting.extend` does; raises what it does, and Unavailable."""
        body = {"step": step, "outputTokens": output_tokens}
        return (await self._call("extend", stream_id, _Slice, body)).slice()

    async def reprice(
        self, *, stream_id: StreamId, model_id: str, input_tokens: int, output_tokens_max: int, slice_tokens: int
    ) -> Slice:
        """Go on with another model, as `Accounting.reprice` does; raises what it does, and Unavailable."""
        body = {
            "modelId": model_id,
            "inputTokens": input_tokens,
            "maxOutputTokens": output_tokens_max,
            "sliceTokens": slice_tokens,
        }
        return (await self._call("reprice", stream_id, _Slice, body)).slice()

    async def settle(self, *, stream_id: StreamId, usage: Usage, source: UsageSource, outcome: str) -> Settlement:
        """Charge what was used, as `Accounting.settle` does; raises what it does, and Unavailable."""
        body = {"usage": usage.wire(), "usageSource": source.value, "outcome": outcome}
        ended = await self._call("finalize", stream_id, _Ended, body)
        assert ended.receipt is not None, "what was finalized has a receipt"
        self._users.pop(stream_id, None)
        return ended.receipt.settlement()

    async def void(self, *, stream_id: StreamId) -> Settlement | None:
        """Return everything; None for an id that was never reserved. Raises Unavailable."""
        ended = await self._call("void", stream_id, _Ended, {})
        self._users.pop(stream_id, None)
        return None if ended.receipt is None else ended.receipt.settlement()

    async def _call(self, operation: str, stream_id: StreamId, into: type[T], body: dict[str, Any]) -> T:
        """A stream that an earlier process began is named by its id alone: accounting knows whose it is."""
        headers: dict[str, str] = {STREAM_ID_HEADER: stream_id}
        if (user_id := self._users.get(stream_id)) is not None:
            headers[USER_ID_HEADER] = user_id
        path = f"/api/streaming-sessions/{operation}"
        try:
            return await self._peer.call("POST", path, into, headers=headers, json={"sessionId": stream_id, **body})
        except Refusal as refusal:
            raise refusal.error(*_REFUSALS) from refusal


class RemotePrices:
    """What models cost, for showing it: remembered for PRICES_SECONDS_MAX, and for longer while accounting is away."""

    def __init__(self, peer: Peer, *, clock: Clock) -> None:
        """Asks that peer."""
        self._peer = peer
        self._clock = clock
        self._known: Sequence[PriceVersion] = ()
        self._until = 0.0
        self._asking = asyncio.Lock()

    async def in_force(self, model_id: str) -> PriceVersion:
        """What the model costs now. Raises ModelWithoutPrice, Unavailable."""
        known, at = await self._all(), self._clock()
        for wanted in (model_id, ANY_MODEL):
            versions = [each for each in known if each.model_id == wanted and each.effective_from <= at]
            if versions:
                return max(versions, key=lambda version: version.effective_from)
        raise ModelWithoutPrice

    async def _all(self) -> Sequence[PriceVersion]:
        async with self._asking:
            if time.monotonic() >= self._until:
                await self._ask()
                self._until = time.monotonic() + PRICES_SECONDS_MAX
        return self._known

    async def _ask(self) -> None:
        try:
            answer = await self._peer.call("GET", "/api/prices", _Prices)
        except Refusal as refusal:
            raise refusal.error() from refusal
        except Unavailable:
            if not self._known:
                raise
        else:
            self._known = [each.version() for each in answer.prices]


def _micro(amount: Decimal) -> Credits:
    return parse_credits(amount, allow_zero=True)
