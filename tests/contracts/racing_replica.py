"""A replica in a process of its own: `racing_replica.py URL NUMBER ROUNDS` begins when it is told and says what it won.

For each round it is granted 100 under a key that all replicas share, then asks for 32 reservations of 10 at once.
"""

import asyncio
import sys

import msgspec
from tests.contracts.replicas import PACKAGE, START, Nobody, streams_of
from tests.postgres import open_url

from parshall.accounting.changes import Terms
from parshall.accounting.once import Once
from parshall.accounting.service import Accounting
from parshall.kernel.clock import DAY, now
from parshall.kernel.credits import Credits
from parshall.kernel.ids import UserId
from parshall.kernel.metering import Slice

STREAMS = 32


async def main(url: str, number: int, rounds: int) -> None:
    accounting = Accounting(
        open_url(url, PACKAGE, lambda: START), directory=Nobody(), clock=now, reservation_seconds=600
    )
    print("ready", flush=True)  # noqa: T201 - the test reads it
    await asyncio.to_thread(sys.stdin.readline)
    won = {f"user-{turn}": await raced(accounting, number, turn) for turn in range(rounds)}
    await accounting.close()
    print(msgspec.json.encode(won).decode(), flush=True)  # noqa: T201 - as above


async def raced(accounting: Accounting, number: int, turn: int) -> tuple[str, list[int]]:
    """The grant's id and what was reserved."""
    user = UserId(f"user-{turn}")
    once = Once.of(user, 100, caller=UserId("root"), operation="allocate", key=user)
    granting = accounting.allocating(user, Credits(100), Terms(expires_at=START + DAY, granted_by="root"))
    grant = await accounting.answer_once(granting, render=lambda made: made.id, status=201, once=once)
    answers = await asyncio.gather(
        *(
            accounting.reserve_whole(stream_id=stream_id, user_id=user, model_id="any", tokens=10)
            for stream_id in streams_of(1000 * number + turn, STREAMS)
        ),
        return_exceptions=True,
    )
    return grant, [answer.reserved for answer in answers if isinstance(answer, Slice)]


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
