"""The values that the client gives: events of a stream, receipts, balances; amounts are exact decimal credits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

OBSERVER_EVENTS = frozenset({"observer", "history-start", "history-end", "observer-end"})
"""What an observer is told beside the events of the stream."""
TERMINAL_EVENTS = frozenset({"done", "error", "observer-end"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One event of a stream: its offset (1, 2, … without gaps), its name on the wire and its members.

    What an observer is told beside the stream has the offset of the event before it.
    """

    offset: int
    event: str
    data: Mapping[str, Any]

    @property
    def terminal(self) -> bool:
        """Whether the stream ends with this event."""
        return self.event in TERMINAL_EVENTS

    @property
    def text(self) -> str:
        """The piece of the answer that it brings; empty for any event but `chunk`."""
        return _text(self.data, "text") if self.event == "chunk" else ""

    @property
    def receipt(self) -> "Receipt | None":
        """The receipt that a terminal event carries."""
        return Receipt.read(self.data.get("receipt"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one stream used and cost. Amounts are decimal credits; `raw` is the receipt as it came."""

    stream_id: str
    outcome: str
    model_id: str
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    usage_source: str
    reserved: Decimal
    charged: Decimal
    returned: Decimal
    balance_after: Decimal
    settlement: str
    raw: Mapping[str, Any] = field(compare=False, repr=False)

    @property
    def is_pending(self) -> bool:
        """Whether accounting has not settled yet: the amounts are still to come."""
        return self.settlement == "pending"

    @staticmethod
    def read(wire: object) -> "Receipt | None":
        """The receipt in a wire object; None where there is none."""
        if not isinstance(wire, Mapping) or "streamingSessionId" not in wire:
            return None
        return Receipt(
            stream_id=_text(wire, "streamingSessionId"),
            outcome=_text(wire, "outcome"),
            model_id=_text(wire, "modelId"),
            input_tokens=_count(wire, "inputTokens"),
            cached_input_tokens=_count(wire, "cachedInputTokens"),
            output_tokens=_count(wire, "outputTokens"),
            reasoning_tokens=_count(wire, "reasoningTokens"),
            usage_source=_text(wire, "usageSource"),
            reserved=_amount(wire, "reservedCredits"),
            charged=_amount(wire, "chargedCredits"),
            returned=_amount(wire, "returnedCredits"),
            balance_after=_amount(wire, "balanceAfter"),
            settlement=_text(wire, "settlement"),
            raw=wire,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """An account's credits: all of them, those free to use, those that running streams hold."""

    total: Decimal
    available: Decimal
    reserved: Decimal

    @staticmethod
    def read(wire: Mapping[str, Any]) -> "Balance":
        """The balance in the answer of GET /api/credits/balance."""
        return Balance(
            total=_amount(wire, "totalCredits"),
            available=_amount(wire, "availableCredits"),
            reserved=_amount(wire, "reservedCredits"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The user that a login named."""

    id: str
    username: str
    role: str

    @staticmethod
    def read(wire: Mapping[str, Any]) -> "Account":
        """The user in the answer of a login."""
        return Account(id=_text(wire, "id"), username=_text(wire, "username"), role=_text(wire, "role"))


def _text(wire: Mapping[str, Any], name: str) -> str:
    value = wire.get(name)
    return "" if value is None else str(value)


def _count(wire: Mapping[str, Any], name: str) -> int:
    value = wire.get(name)
    return value if isinstance(value, int) else 0


def _amount(wire: Mapping[str, Any], name: str) -> Decimal:
    try:
        return Decimal(str(wire.get(name) or 0))
    except InvalidOperation:
        return Decimal(0)
