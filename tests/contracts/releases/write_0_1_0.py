"""A history as 0.1.0 wrote it: run with the code of that release, `write_0_1_0.py FOLDER` makes 0.1.0.sql and .json.

The first is the ledger's database, the second what that release itself answered about it. Both are committed: a
released version writes nothing new.
"""

# Made with `git archive b42e43d | tar -x -C OLD` and `PYTHONPATH=OLD/src python …/write_0_1_0.py FOLDER`.

import asyncio
import dataclasses
import json
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

from parshall.accounting.changes import Terms
from parshall.accounting.pricing import Price
from parshall.accounting.service import Accounting, Once
from parshall.kernel.clock import SECOND
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Usage, UsageSource
from parshall.kernel.sqlite import SqliteDatabase

START = 1_800_000_000 * SECOND
ANN, BOB, EVE = UserId("ann"), UserId("bob"), UserId("eve")
ROOT = UserId("root")


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


def stream(number: int) -> StreamId:
    return StreamId(f"stream-1800000000-{number:08x}")


class History:
    """What happens to three accounts in some two minutes."""

    def __init__(self, path: Path) -> None:
        self.at = START
        database = SqliteDatabase(path, package="parshall.accounting")
        self.ledger = Accounting(database, directory=Nobody(), clock=lambda: self.at, reservation_seconds=30)

    async def grant(self, who: UserId, amount: int, *, seconds: int = 86_400, priority: int = 0) -> None:
        until = self.at + seconds * SECOND
        await self.ledger.allocate(
            who, Credits(amount), expires_at=until, granted_by="root", priority=priority, notes="für ‘dich’"
        )

    async def reserve(self, number: int, who: UserId, *, read: int = 10, limit: int = 100, piece: int = 20) -> None:
        await self.ledger.reserve(
            stream_id=stream(number),
            user_id=who,
            model_id="any",
            input_tokens=read,
            output_tokens_max=limit,
            slice_tokens=piece,
        )
        self.at += SECOND

    async def extend(self, number: int, step: int, more: int = 20) -> None:
        await self.ledger.extend(stream_id=stream(number), step=step, output_tokens=more)
        self.at += SECOND

    async def settle(self, number: int, *, read: int = 10, written: int = 5, reasoning: int = 0) -> None:
        usage = Usage(input_tokens=read, cached_input_tokens=read // 2, output_tokens=written)
        usage = dataclasses.replace(usage, reasoning_tokens=reasoning)
        await self.ledger.settle(
            stream_id=stream(number), usage=usage, source=UsageSource.PROVIDER, outcome="completed"
        )
        self.at += SECOND

    async def once(self, key: str, amount: int) -> str:
        terms = Terms(expires_at=START + 86_400 * SECOND, granted_by="root")
        return await self.ledger.answer_once(
            self.ledger.allocating(ANN, Credits(amount), terms),
            render=lambda grant: json.dumps({"grantId": grant.id}),
            status=201,
            once=Once.of(ANN, amount, caller=ROOT, operation="allocate", key=key),
        )

    async def happen(self) -> None:
        price = Price(input=MICRO, cached_input=MICRO // 2, output=2 * MICRO, reasoning=3 * MICRO)
        await self.ledger.start()
        await self.ledger.put_price("any", price, set_by="root")
        await self.grant(ANN, 3000)
        await self.grant(ANN, 100, seconds=40)
        await self.grant(ANN, 500, priority=1)
        await self.grant(BOB, 150)
        await self.ended_in_every_way()
        await self.changed_by_hand()
        await self.still_running()

    async def ended_in_every_way(self) -> None:
        await self.reserve(1, ANN)  # of two grants, extended, settled; some of it goes back
        await self.extend(1, 1)
        await self.extend(1, 2)
        await self.settle(1, written=30, reasoning=3)
        await self.reserve(2, ANN)
        await self.settle(2, written=40)  # more than was reserved
        await self.reserve(3, BOB, limit=500, piece=20)
        await self.settle(3, written=100)  # more than there is
        await self.reserve(4, ANN)
        await self.ledger.void(stream_id=stream(4))
        await self.reserve(5, ANN, piece=40)  # of the grant that expires meanwhile
        self.at += 31 * SECOND
        await self.ledger.expire_due(self.at)
        await self.reserve(6, ANN)
        self.at += 31 * SECOND
        await self.ledger.expire_due(self.at)
        await self.settle(6, written=7)  # late

    async def changed_by_hand(self) -> None:
        terms = Terms(expires_at=self.at + 86_400 * SECOND, granted_by="root", notes="corrected")
        await self.ledger.deduct(ANN, Credits(11), note="an image")
        await self.ledger.adjust(ANN, -7, terms)
        await self.ledger.set_balance(EVE, Credits(400), terms)
        self.answer = await self.once("k1", 25)

    async def still_running(self) -> None:
        newer = Price(input=2 * MICRO, cached_input=MICRO, output=4 * MICRO, reasoning=4 * MICRO)
        await self.reserve(7, ANN)  # at the older price
        await self.ledger.put_price("any", newer, set_by="root")
        await self.extend(7, 1)
        await self.reserve(8, EVE, read=3)
        await self.ledger.reserve_whole(stream_id=stream(9), user_id=EVE, model_id="any", tokens=15)
        await self.reserve(10, EVE, read=3)
        await self.grant(BOB, 60, seconds=20)

    async def answers(self) -> dict[str, Any]:
        """What this release says of it all."""
        plain = dataclasses.asdict
        return {
            "at": self.at,
            "once": self.answer,
            "balances": {who: plain(await self.ledger.balance(who)) for who in (ANN, BOB, EVE)},
            "statements": {
                who: [plain(each) for each in await self.ledger.statement(who, after=0, limit=500)]
                for who in (ANN, BOB, EVE)
            },
            "receipts": {stream(n): plain(await self.ledger.receipt(stream(n))) for n in range(1, 11)},
            "grants": [plain(each) for each in await self.ledger.grants_all()],
            "prices": [plain(each) for each in await self.ledger.prices()],
        }


async def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "accounting.db"
        history = History(path)
        await history.happen()
        answers = await history.answers()
        await history.ledger.close()
        kept = sqlite3.connect(path)
        (folder / "0.1.0.sql").write_text("\n".join(kept.iterdump()) + "\n")
        kept.close()
        (folder / "0.1.0.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
