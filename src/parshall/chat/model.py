"""Chat's values and pure rules: chat sessions, messages, turns, outcomes and receipts."""

import hashlib
import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from parshall.kernel.clock import rfc3339
from parshall.kernel.credits import wire
from parshall.kernel.errors import Conflict, Invalid, NotFound
from parshall.kernel.ids import SessionId, StreamId, UserId
from parshall.kernel.metering import Settlement, Usage, UsageSource

TITLE_CHARACTERS_MAX = 100
MESSAGE_CHARACTERS_MAX = 10_000
PER_PAGE_MAX = 100
DEFAULT_TITLE = "New chat"

MessageRole = Literal["user", "assistant"]
OnDisconnect = Literal["continue", "stop"]


class Outcome(StrEnum):
    """How a stream ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    ABANDONED = "abandoned"
    CREDIT_LIMIT = "credit_limit"
    PROVIDER_ERROR = "provider_error"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"

    @property
    def is_failure(self) -> bool:
        """Whether the terminal event is `error`: nobody wanted the stream to end like this."""
        return self in (Outcome.PROVIDER_ERROR, Outcome.TIMEOUT, Outcome.INTERRUPTED)


SENTENCES = {
    Outcome.COMPLETED: "The answer is complete.",
    Outcome.STOPPED: "The answer was stopped on request; what was generated is kept and charged.",
    Outcome.ABANDONED: "Nobody was reading, so the answer was stopped; what was generated is kept and charged.",
    Outcome.CREDIT_LIMIT: "The credits ran out; what was paid for is kept. Top up and ask again to go on.",
    Outcome.PROVIDER_ERROR: "The model provider failed; what was generated is kept and charged. Ask again.",
    Outcome.TIMEOUT: "The answer took too long and was stopped; what was generated is kept and charged.",
    Outcome.INTERRUPTED: "The server stopped during the answer; what was generated is kept and charged. Ask again.",
}


class StreamActive(Conflict):
    """Another stream of this chat session still runs; `streamingSessionId` names it."""

    code = "stream_active"
    title = "A stream is active"
    default = "Another answer of this chat session is still running; attach to it, stop it, or wait for its end."


class StreamIdMismatch(Invalid):
    """The id of an update is not one of this chat session's streams; `details` says why."""

    code = "stream_id_mismatch"
    title = "Streaming session ID mismatch"
    default = "Streaming session ID mismatch: send the id from the X-Streaming-Session-Id header or the session event."


class StreamForgotten(NotFound):
    """The events of an old stream are gone; its receipt and the chat session's history remain."""

    code = "stream_forgotten"
    title = "Stream no longer kept"
    default = "The events of this stream are no longer kept; read the answer in the chat session's history."


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSession:
    """A conversation of one user. Times are microseconds since the epoch."""

    id: SessionId
    user_id: UserId
    title: str
    model_id: str | None
    source: str | None
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a chat session; `stream_id` names the turn that it belongs to."""

    id: str
    role: MessageRole
    content: str
    stream_id: StreamId | None
    tokens: int
    created_at: int

    def wire(self) -> dict[str, Any]:
        """The message as clients read it."""
        return {
            "id": self.id,
            "role": self.role,
            "content": self.content,
            "streamingSessionId": self.stream_id,
            "tokens": self.tokens,
            "createdAt": rfc3339(self.created_at),
            "timestamp": rfc3339(self.created_at),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a client asks of a chat session. Limits are checked at the edge."""

    message: str
    model_id: str | None = None
    output_tokens_max: int | None = None
    temperature: float | None = None
    on_disconnect: OnDisconnect = "continue"

    def fingerprint(self, *, user_id: UserId, session_id: SessionId) -> str:
        """Equal for equal requests only: tells a repeated request from another one under the same id (M4)."""
        parts = [
            user_id,
            session_id,
            self.message,
            self.model_id,
            self.output_tokens_max,
            self.temperature,
            self.on_disconnect,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What is known when a stream ends, before accounting has settled it. `error_code` only where it failed."""

    outcome: Outcome
    finish_reason: str
    usage: Usage
    usage_source: UsageSource
    delivered_tokens: int | None
    ended_at: int
    error_code: str | None = None
    error_message: str | None = None
    retryable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The record of one turn's stream. `epoch` is the lease that may end it; `closed_at` that of its log."""

    id: StreamId
    session_id: SessionId
    user_id: UserId
    fingerprint: str
    requested_model: str | None
    model_id: str
    fallback_applied: bool
    on_disconnect: OnDisconnect
    input_tokens: int
    epoch: int
    created_at: int
    ending: Ending | None = None
    settlement: Settlement | None = None
    closed_at: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may still be generating."""
        return self.ending is None

    def repeats(self, *, user_id: UserId, session_id: SessionId, fingerprint: str) -> bool:
        """Whether a request is this very one again."""
        return (self.user_id, self.session_id, self.fingerprint) == (user_id, session_id, fingerprint)

    def ended(self, ending: Ending) -> "Stream":
        """The same stream, ended."""
        assert self.ending is None
        return replace(self, ending=ending)

    def settled(self, settlement: Settlement | None) -> "Stream":
        """The same stream with what accounting answered; None while that is pending."""
        assert self.ending is not None
        return replace(self, settlement=settlement)


def receipt(stream: Stream) -> dict[str, Any]:
    """The receipt of an ended stream, as API.md describes it; amounts are absent (null) while settlement is pending."""
    ending, settlement = stream.ending, stream.settlement
    assert ending is not None
    amounts: dict[str, Any] = dict.fromkeys(_AMOUNTS)
    if settlement is not None:
        amounts = {
            "reservedCredits": wire(settlement.reserved),
            "chargedCredits": wire(settlement.charged),
            "returnedCredits": wire(settlement.returned),
            "uncollectedCredits": wire(settlement.uncollected),
            "balanceAfter": wire(settlement.balance_after),
            "priceVersion": settlement.price_version,
            "transfers": list(settlement.transfers),
        }
    return {
        "streamingSessionId": stream.id,
        "outcome": ending.outcome.value,
        "modelId": stream.model_id,
        **ending.usage.wire(),
        "deliveredTokens": ending.delivered_tokens,
        "usageSource": ending.usage_source.value,
        **amounts,
        "settlement": "pending" if settlement is None else "settled",
    }


_AMOUNTS = (
    "reservedCredits",
    "chargedCredits",
    "returnedCredits",
    "uncollectedCredits",
    "balanceAfter",
    "priceVersion",
    "transfers",
)


def terminal(stream: Stream) -> tuple[str, dict[str, Any]]:
    """Name and data of the one terminal event (S3)."""
    ending = stream.ending
    assert ending is not None
    shared = {"usage": ending.usage.wire(), "receipt": receipt(stream)}
    sentence = ending.error_message or SENTENCES[ending.outcome]
    if ending.outcome.is_failure:
        code = ending.error_code or ending.outcome.value
        return "error", {
            "error": code.upper(),
            "code": code,
            "message": sentence,
            "retryable": ending.retryable,
            **shared,
        }
    return "done", {
        "status": "complete" if ending.outcome is Outcome.COMPLETED else "incomplete",
        "message": sentence,
        "tokensUsed": ending.usage.input_tokens + ending.usage.output_tokens,
        "finishReason": ending.finish_reason,
        **shared,
    }


def title_from(message: str) -> str:
    """A title for a chat session that has none: the beginning of its first message."""
    line = " ".join(message.split())
    if len(line) <= 50:
        return line or DEFAULT_TITLE
    return line[:49].rstrip() + "…"


def comparison(*, client: str, server: str) -> Literal["exact", "prefix", "different"]:
    """How the text that a client holds relates to the one in the log."""
    if client == server:
        return "exact"
    return "prefix" if server.startswith(client) else "different"
