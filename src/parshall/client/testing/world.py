"""What a fake deployment knows: users, chat sessions, streams and credits, by the rules of the real one made small."""

import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parshall.kernel import clock
from parshall.kernel.credits import wire
from parshall.kernel.metering import Usage
from parshall.kernel.sse import frame

TOKEN_PRICE = 1000
"""Microcredits a token, read or written. A token is a word of a question, or a piece of an answer."""
OUTPUT_TOKENS_MAX = 1024
MODEL_ID = "fake"
SLICE_TOKENS = 256
"""Of output, reserved at the beginning even where the answer will be shorter."""
PAUSE_MILLISECONDS = 20
"""What a reader that was cut is asked to wait; the real server asks for a second, which tests need not spend."""
DEFAULT_ANSWER = "This is a scripted answer."
_PIECES = re.compile(r"\S*\s*")


class Refused(Exception):
    """The request is answered with a problem document."""

    def __init__(self, status: int, code: str, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.extra = extra


@dataclass(kw_only=True)
class Person:
    """A user with their credits, in microcredits."""

    name: str
    password: str
    available: int
    reserved: int = 0
    role: str = "enduser"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The user on the wire."""
        named = {"id": self.id, "username": self.name, "email": f"{self.name}@example.org"}
        return {**named, "isVerified": False, "role": self.role, "createdAt": clock.rfc3339(clock.now())}

    def balance(self) -> dict[str, Any]:
        """The balance on the wire."""
        return {
            "userId": self.id,
            "totalCredits": wire(self.available + self.reserved),
            "availableCredits": wire(self.available),
            "reservedCredits": wire(self.reserved),
            "activeAllocations": [],
            "organisation": None,
        }

    def post(self, kind: str, amount: int, debit: str, credit: str, stream_id: str | None = None) -> int:
        """Add a line to the statement; its number."""
        number = len(self.entries) + 1
        self.entries.append(
            {
                "id": number,
                "at": clock.rfc3339(clock.now()),
                "kind": kind,
                "credits": wire(amount),
                "debit": debit,
                "credit": credit,
                "balanceAfter": wire(self.available),
                "allocationId": None,
                "streamingSessionId": stream_id,
                "notes": "",
                "hash": "",
            }
        )
        return number


@dataclass(kw_only=True)
class ChatSession:
    """A chat session with its messages as they are on the wire."""

    owner: Person
    title: str | None
    model_id: str | None
    source: str | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    made_at: str = field(default_factory=lambda: clock.rfc3339(clock.now()))
    messages: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The chat session in a list."""
        named = {"id": self.id, "sessionId": self.id, "title": self.title, "modelId": self.model_id}
        return {**named, "source": self.source, "createdAt": self.made_at, "updatedAt": self.made_at}

    def say(self, role: str, content: str, stream_id: str, tokens: int) -> None:
        """Keep a message."""
        now = clock.rfc3339(clock.now())
        said = {"id": uuid.uuid4().hex, "role": role, "content": content, "streamingSessionId": stream_id}
        self.messages.append({**said, "tokens": tokens, "createdAt": now, "timestamp": now})


class Answer:
    """One stream: its events, and when each of them is there. All times are read from one clock that only rises."""

    def __init__(
        self,
        *,
        stream_id: str,
        chat: ChatSession,
        asked: Mapping[str, Any],
        pieces: Sequence[str],
        delay_seconds: float,
    ) -> None:
        """Reserve, and begin. Raises Refused (402) where not even one token can be paid."""
        self.id = stream_id
        self.chat = chat
        self.asked = asked
        self.cut = False
        """Whether a reader of it has been cut already."""
        self.ending: dict[str, Any] | None = None
        self._pieces = list(pieces)[: asked.get("maxTokens") or OUTPUT_TOKENS_MAX]
        self._shortened = len(self._pieces) < len(pieces)
        self._delay_seconds = delay_seconds
        self._began = time.monotonic()
        self._input_tokens = max(1, len(str(asked["message"]).split()))
        self._paid = self._reserve(chat.owner)
        chat.say("user", str(asked["message"]), stream_id, self._input_tokens)

    def _reserve(self, owner: Person) -> int:
        """Hold credits for the question and as much of the answer as there are credits for; how many tokens that is."""
        needed = (self._input_tokens + 1) * TOKEN_PRICE
        if owner.available < needed:
            raise Refused(
                402,
                "insufficient_credits",
                "There are not enough available credits; ask for a grant or wait until running streams settle.",
                requiredCredits=wire(needed),
                availableCredits=wire(owner.available),
                reservedCredits=wire(owner.reserved),
            )
        affordable = owner.available // TOKEN_PRICE - self._input_tokens
        self._reserved = (self._input_tokens + min(affordable, max(len(self._pieces), SLICE_TOKENS))) * TOKEN_PRICE
        owner.available -= self._reserved
        owner.reserved += self._reserved
        owner.post("reserve", self._reserved, "available", "reserved", self.id)
        return min(affordable, len(self._pieces))

    @property
    def is_running(self) -> bool:
        """Whether its terminal event is still to come."""
        self._end_if_due()
        return self.ending is None

    def frames(self, after: int) -> list[bytes]:
        """The events behind that offset that are there by now."""
        self._end_if_due()
        events = self._events()
        begins = b"retry: %d\n" % PAUSE_MILLISECONDS
        return [
            begins * (offset == 1) + frame(offset, name, members)
            for offset, (name, members) in enumerate(events, start=1)
            if offset > after
        ]

    def seconds_to_wait(self) -> float:
        """Until the next event is there."""
        passed = time.monotonic() - self._began
        return self._delay_seconds - passed % self._delay_seconds if self._delay_seconds else 0.0

    def stop(self) -> None:
        """End it where it stands; nothing happens where it has ended."""
        if self.is_running:
            self._end("stopped", "stopped", self._there())

    def receipt(self) -> dict[str, Any] | None:
        """What it used and cost, once it has ended."""
        return self.ending["receipt"] if self.is_running is False and self.ending else None

    def state(self) -> dict[str, Any]:
        """How it stands, on the wire."""
        ended = not self.is_running
        receipt = self.receipt()
        return {
            "streamingSessionId": self.id,
            "sessionId": self.chat.id,
            "modelId": self._model_id(),
            "fallbackApplied": False,
            "state": "ended" if ended else "active",
            "outcome": receipt["outcome"] if receipt else None,
            "createdAt": self.chat.made_at,
            "endedAt": clock.rfc3339(clock.now()) if ended else None,
            "usage": self.ending["usage"] if self.ending else None,
            "receipt": receipt,
        }

    def text(self) -> str:
        """What is there of the answer."""
        return "".join(self._pieces[: self._count()])

    # ── Within ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _model_id(self) -> str:
        return str(self.asked.get("modelId") or self.chat.model_id or MODEL_ID)

    def _there(self) -> int:
        """Pieces that have been produced by now."""
        passed = time.monotonic() - self._began
        return min(self._paid, int(passed / self._delay_seconds)) if self._delay_seconds else self._paid

    def _count(self) -> int:
        return self._there() if self.ending is None else int(self.ending["usage"]["outputTokens"])

    def _events(self) -> list[tuple[str, dict[str, Any]]]:
        opening = {"streamingSessionId": self.id, "sessionId": self.chat.id, "modelId": self._model_id()}
        events: list[tuple[str, dict[str, Any]]] = [
            ("session", {**opening, "reservedCredits": wire(self._reserved), "resumed": False}),
            ("model", {"model": self._model_id(), "fallbackApplied": False}),
        ]
        for number, piece in enumerate(self._pieces[: self._count()], start=1):
            events.append(("chunk", {"text": piece, "tokens": 1, "totalTokens": number}))
        return events if self.ending is None else [*events, ("done", self.ending)]

    def _end_if_due(self) -> None:
        if self.ending is None and self._there() == self._paid:
            short = "length" if self._shortened else "stop"
            limited = self._paid < len(self._pieces)
            self._end("credit_limit" if limited else "completed", "credit_limit" if limited else short, self._paid)

    def _end(self, outcome: str, finish_reason: str, tokens: int) -> None:
        """Charge what was produced, and return the rest."""
        usage = Usage(input_tokens=self._input_tokens, output_tokens=tokens).wire()
        text = "".join(self._pieces[:tokens])
        self.ending = {
            "status": "complete" if outcome == "completed" else "incomplete",
            "message": "The answer is complete." if outcome == "completed" else f"The answer ended: {outcome}.",
            "tokensUsed": self._input_tokens + tokens,
            "finishReason": finish_reason,
            "usage": usage,
            "receipt": self._settled(outcome, usage, len(text.encode())),
        }
        self.chat.say("assistant", text, self.id, tokens)

    def _settled(self, outcome: str, usage: Mapping[str, int], text_bytes: int) -> dict[str, Any]:
        owner, charged = self.chat.owner, (self._input_tokens + usage["outputTokens"]) * TOKEN_PRICE
        returned = self._reserved - charged
        owner.reserved -= self._reserved
        transfers = [owner.post("charge", charged, "reserved", "revenue", self.id)]
        owner.available += returned
        if returned:
            transfers.append(owner.post("release", returned, "reserved", "available", self.id))
        return {
            "streamingSessionId": self.id,
            "outcome": outcome,
            "modelId": self._model_id(),
            **usage,
            "deliveredTokens": usage["outputTokens"] if text_bytes else 0,
            "usageSource": "counted",
            "reservedCredits": wire(self._reserved),
            "chargedCredits": wire(charged),
            "returnedCredits": wire(returned),
            "uncollectedCredits": 0,
            "balanceAfter": wire(owner.available),
            "priceVersion": f"*@{clock.rfc3339(0)}",
            "transfers": transfers,
            "settlement": "settled",
        }


def pieces_of(answer: str | Sequence[str]) -> list[str]:
    """An answer as the pieces that it comes in: those given, or its words."""
    return [piece for piece in _PIECES.findall(answer) if piece] if isinstance(answer, str) else list(answer)
