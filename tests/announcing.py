"""A ledger that announces, with a clock of its own, and replicas of its outbox: for tests of what the webhook gets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.postgres import Engine

from parshall.accounting.announcements import Policy, Topic
from parshall.accounting.delivery import Deliverer
from parshall.accounting.outbox import Delivery, Outbox
from parshall.accounting.pricing import Price
from parshall.accounting.service import Accounting
from parshall.accounting.webhook import Webhook
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Usage, UsageSource

ANN = UserId("ann")
START = 1_800_000_000 * SECOND
LOW = 100
NOTICE = 3 * DAY
EVERYTHING = Policy(topics=frozenset(Topic), low_balance=LOW, notice=NOTICE)
SECRET = b"of the tests alone"
PATIENT_SECONDS = 20.0
BRIEF_SECONDS = 0.3
"""An attempt at a receiver that hangs; too brief for tests that count, on a slow machine."""


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


@dataclass
class Deployment:
    """Prices: 1 microcredit a token of input, 2 of output."""

    engine: Engine
    policy: Policy | None
    at: int = START
    accounting: Accounting = field(init=False)
    hooks: list[Webhook] = field(default_factory=list)

    def __post_init__(self) -> None:
        database = self.engine.open("parshall.accounting", clock=lambda: self.at)
        self.accounting = Accounting(
            database, directory=Nobody(), clock=lambda: self.at, reservation_seconds=30, policy=self.policy
        )

    def replica(self) -> Outbox:
        """The outbox as another process sees it."""
        return Outbox(self.engine.open("parshall.accounting", clock=lambda: self.at), self.policy)

    def deliverer(
        self,
        url: str,
        *,
        keys: tuple[bytes, ...] = (SECRET,),
        outbox: Outbox | None = None,
        seconds: float = PATIENT_SECONDS,
    ) -> Deliverer:
        hook = Webhook(url, keys=keys, source="parshall/accounting", clock=lambda: self.at, attempt_seconds=seconds)
        self.hooks.append(hook)
        return Deliverer(outbox or self.accounting.outbox, hook)

    def later(self, seconds: float) -> None:
        self.at += round(seconds * SECOND)

    async def grant(self, amount: int, *, seconds: int = 30 * 86_400, who: UserId = ANN) -> str:
        until = self.at + seconds * SECOND
        return (await self.accounting.allocate(who, Credits(amount), expires_at=until, granted_by="root")).id

    async def reserve(self, stream_id: StreamId, *, read: int = 10, piece: int = 20, who: UserId = ANN) -> None:
        await self.accounting.reserve(
            stream_id=stream_id,
            user_id=who,
            model_id="any",
            input_tokens=read,
            output_tokens_max=piece,
            slice_tokens=piece,
        )

    async def settle(self, stream_id: StreamId, *, read: int = 10, written: int = 5) -> None:
        usage = Usage(input_tokens=read, output_tokens=written)
        await self.accounting.settle(stream_id=stream_id, usage=usage, source=UsageSource.PROVIDER, outcome="completed")

    async def streams(self, count: int, *, first: int = 1) -> list[StreamId]:
        """So many streams of Ann, reserved and settled."""
        ids = [StreamId(f"stream-1800000000-{number:08x}") for number in range(first, first + count)]
        for stream_id in ids:
            await self.reserve(stream_id)
            await self.settle(stream_id)
        return ids

    async def waiting(self, topic: str | None = None) -> list[Delivery]:
        found = await self.accounting.outbox.all(limit=10_000)
        return [each for each in found if topic in (None, each.topic)]

    async def told(self, topic: str | None = None) -> list[tuple[str, str]]:
        """Topic and subject of all that waits."""
        return sorted((each.topic, each.subject) for each in await self.waiting(topic))

    async def drained(self, deliverer: Deliverer, *, rounds: int = 60) -> None:
        """Rounds until nothing waits, with the clock put forward to whatever is due next."""
        for _ in range(rounds):
            await deliverer.round()
            due = [each.due_at for each in await self.waiting() if each.due_at is not None]
            if not due:
                return
            self.at = max(self.at, min(due))
        raise AssertionError(f"still there: {await self.waiting()}")


@asynccontextmanager
async def deployment(engine: Engine, policy: Policy | None = EVERYTHING) -> AsyncIterator[Deployment]:
    made = Deployment(engine, policy)
    price = Price(input=MICRO, cached_input=MICRO, output=2 * MICRO, reasoning=2 * MICRO)
    await made.accounting.prices.put("*", price, set_by="test")
    try:
        yield made
    finally:
        for hook in made.hooks:
            await hook.close()
        await made.accounting.close()


def only(found: list[Any]) -> Any:
    (one,) = found
    return one
