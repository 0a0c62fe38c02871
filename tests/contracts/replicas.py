"""Two replicas of accounting on the same records, for tests of what races between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from tests.ledgers import check_books, read_books
from tests.postgres import Engine

from parshall.accounting.pricing import Price
from parshall.accounting.service import Accounting
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.ids import StreamId, UserId

PACKAGE = "parshall.accounting"
START = 1_800_000_000 * SECOND
RESERVATION_SECONDS = 30


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


@dataclass
class Replicas:
    """Several ledgers on one set of records and one clock; every token costs one microcredit."""

    engine: Engine
    each: Sequence[Accounting] = ()
    at: int = START

    @classmethod
    async def open(cls, engine: Engine, *, count: int = 2) -> "Replicas":
        made = cls(engine)
        made.each = [
            Accounting(
                engine.open(PACKAGE, clock=lambda: made.at),
                directory=Nobody(),
                clock=lambda: made.at,
                reservation_seconds=RESERVATION_SECONDS,
            )
            for _ in range(count)
        ]
        price = Price(input=MICRO, cached_input=MICRO, output=MICRO, reasoning=MICRO)
        await made.each[0].prices.put("*", price, set_by="test")
        return made

    def spread(self, streams: Sequence[StreamId]) -> list[tuple[Accounting, StreamId]]:
        """Each stream with a replica, in turn."""
        return list(zip(cycle(self.each), streams, strict=False))

    async def grant(self, who: str, amount: int) -> None:
        until = self.at + DAY
        await self.each[0].allocate(who, Credits(amount), expires_at=until, granted_by="root")

    def check(self) -> None:
        """The books of all replicas together."""
        check_books(self.engine.look(PACKAGE, read_books))

    async def close(self) -> None:
        for accounting in self.each:
            await accounting.close()


def streams_of(number: int, count: int) -> list[StreamId]:
    """Ids that no other number gives."""
    return [StreamId(f"stream-1800000000-{number:08x}{each:08x}") for each in range(count)]
