"""A program that writes pairs of rows until it dies and prints each pair's number once that is acknowledged."""

import asyncio
import itertools
import os
import signal
import sys

from tests.contracts.tally_service import put
from tests.postgres import open_url

WRITERS = 20


async def acknowledge(url: str, package: str, acknowledgements_max: int) -> None:
    """Write until killed, or kill itself (-9) right after so many. Several writers, so that commits are shared."""
    database = open_url(url, package)
    numbers, acknowledged = itertools.count(), itertools.count(1)

    async def writer() -> None:
        for number in numbers:
            await database.write(lambda c, n=number: (put(f"left-{n}")(c), put(f"right-{n}")(c)))
            os.write(1, b"%d\n" % number)
            if next(acknowledged) == acknowledgements_max:
                os.kill(os.getpid(), signal.SIGKILL)

    await asyncio.gather(*(writer() for _ in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(acknowledge(sys.argv[1], sys.argv[2], int(sys.argv[3])))
