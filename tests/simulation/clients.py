"""Simulated clients: each follows its stream or its change to the end and asks again until it knows."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.requested import Request

from parshall.kernel.clock import SECOND
from parshall.kernel.errors import ParshallError
from parshall.kernel.metering import Slice

TRIES_MAX = 5
"""After so many lost answers to a reservation a client gives it up and voids it, as chat does."""
RESERVATION_SECONDS = 30
CHANGES = ("allocate", "deduct", "set", "adjust", "remove")
MODELS = ("any", "own")


@dataclass(eq=False)
class Sent:
    """A request and how it fares. `follow` is its client, which says what comes next."""

    request: Request
    follow: "Stream | None" = None
    tries: int = 0
    again_at_tick: int = 0


@dataclass(eq=False)
class Stream:
    """A stream from its reservation to its end, or until its client is never heard of again."""

    chance: random.Random
    number: int
    user: str
    granted: int = 0
    step: int = 0
    wakes_at: int = 0  # an instant before which it sends nothing more
    extensions: int = field(init=False)
    ending: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"stream-1800000000-{self.number:032d}"
        self.read = self.chance.randint(0, 30)
        self.extensions = self.chance.randint(0, 3)
        self.ending = self.chance.choices(("settle", "void", "vanish", "late"), (12, 3, 2, 3))[0]

    def first(self) -> Request:
        whole = self.chance.random() < 0.2
        limit = self.chance.randint(1, 60)
        arguments: dict[str, Any] = {"user_id": self.user, "model_id": self.chance.choice(MODELS)}
        if whole:
            return self._request("reserve_whole", **arguments, tokens=limit)
        piece = self.chance.randint(1, 40)
        arguments |= {"input_tokens": self.read, "output_tokens_max": limit, "slice_tokens": piece}
        return self._request("reserve", **arguments)

    def after(self, sent: Sent, answer: Any, *, at: int) -> Request | None:
        """What it sends once it knows the answer to what it has sent."""
        kind = sent.request.kind
        if kind in ("settle", "void"):
            return None
        if isinstance(answer, Slice):
            self.granted = answer.output_tokens
            self.step = sent.request.arguments.get("step", 0)
            if self.step < self.extensions and not answer.final:
                return self.extend()
            return self.end(at=at)
        return self.end(at=at) if kind == "extend" else None

    def end(self, *, at: int) -> Request | None:
        if self.ending == "vanish":
            return None
        if self.ending == "void":
            return self.void()
        if self.ending == "late":
            self.wakes_at = at + self.chance.randint(RESERVATION_SECONDS - 2, 3 * RESERVATION_SECONDS) * SECOND
        return self.settle()

    def extend(self) -> Request:
        return self._request("extend", step=self.step + 1, output_tokens=self.chance.randint(1, 30))

    def settle(self) -> Request:
        written = self.chance.randint(0, self.granted)
        if self.chance.random() < 0.2:  # more than was paid for, as a provider's own count may say
            written += self.chance.randint(1, 60)
        usage = {
            "input_tokens": self.read,
            "cached_input_tokens": self.chance.randint(0, self.read),
            "output_tokens": written,
            "reasoning_tokens": self.chance.randint(0, written),
        }
        return self._request("settle", usage=usage, source="counted", outcome="completed")

    def void(self) -> Request:
        return self._request("void")

    def _request(self, kind: str, **arguments: Any) -> Request:
        return Request(kind=kind, id=self.id, arguments=arguments)


def change(chance: random.Random, number: int, account: str, *, at: int) -> Request:
    """Some change of a balance, under a key of its own."""
    kind = chance.choices(CHANGES, (16, 3, 2, 3, 2))[0]
    amount = chance.choice((chance.randint(1, 20), chance.randint(20, 300 if kind == "allocate" else 100)))
    if kind == "adjust" and chance.random() < 0.5:
        amount = -amount
    terms = {
        "expires_at": at + chance.choice((10, 45, 100, 300, 3600, 30_000)) * SECOND,
        "priority": chance.choice((0, 0, 1)),
    }
    arguments = {"account": account, "amount": amount} | ({} if kind == "deduct" else terms)
    return Request(kind=kind, id=f"key-{number}", arguments=arguments)


def price(chance: random.Random, number: int) -> Request:
    """A new price, of one model or of all without one, in fractions of a microcredit a token."""
    dearest = {"input": chance.randint(0, 2_000_000), "output": chance.randint(500_000, 4_000_000)}
    cheaper = {"cached_input": dearest["input"] // 2, "reasoning": chance.choice((1, 2)) * dearest["output"] // 2}
    arguments = {"model_id": chance.choice(("*", "own")), **dearest, **cheaper}
    return Request(kind="price", id=f"key-{number}", arguments=arguments)


@dataclass
class Network:
    """Packets on their way: lost, duplicated, late and out of order."""

    chance: random.Random
    calm: bool = False
    packets: list[tuple[int, Sent]] = field(default_factory=list)  # with the tick at which each arrives

    def send(self, sent: Sent, *, tick: int) -> None:
        sent.tries += 1
        sent.again_at_tick = tick + self.chance.randint(4, 12)
        copies = 1 if self.calm else self.chance.choices((0, 1, 2, 3), (8, 77, 12, 3))[0]
        for _ in range(copies):
            self.packets.append((tick + self._delay(), sent))

    def arrived(self, *, tick: int, most: int) -> list[Sent]:
        """Some of the packets that are there, in any order, off the network."""
        there = [packet for packet in self.packets if packet[0] <= tick]
        chosen = self.chance.sample(there, min(len(there), most))
        for packet in chosen:
            self.packets.remove(packet)
        return [sent for _, sent in chosen]

    def next_tick(self) -> int:
        """When the next packet arrives, or has arrived; 0 where none is on its way."""
        return min((tick for tick, _ in self.packets), default=0)

    def loses(self) -> bool:
        """Whether an answer gets lost on its way back."""
        return not self.calm and self.chance.random() < 0.12

    def _delay(self) -> int:
        if self.calm:
            return 0
        return self.chance.randint(20, 60) if self.chance.random() < 0.06 else self.chance.randint(0, 5)


def answers_of(pairs: Iterator[tuple[Sent, Any]]) -> str:
    """What was sent and answered, for the trace."""
    return "; ".join(f"{sent.request}: {shown(answer)}" for sent, answer in pairs)


def shown(answer: Any) -> str:
    if answer is None:
        return "nothing known"
    if isinstance(answer, ParshallError):
        return answer.code
    if isinstance(answer, Slice):
        return f"holds {answer.reserved} for {answer.output_tokens}{', final' if answer.final else ''}"
    if hasattr(answer, "charged"):
        beyond = f", {answer.uncollected} uncollected" if answer.uncollected else ""
        return f"{answer.outcome}, charged {answer.charged} of {answer.reserved}{beyond}"
    return str(answer) if isinstance(answer, int) else "done"
