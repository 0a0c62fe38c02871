"""A program that performs one request after the other, each in a process of its own that ends at a given step."""

# Each line on stdin is a run: {"url", "at", "request", "step"}. It is done in a fork of this process, which has nothing
# open: the fork opens the records, and `os._exit` ends it at the numbered step. Each answer on stdout is a line
# {"answer": …} as soon as it is known, and {"exit": …, "where": …} when the fork has ended.

import asyncio
import json
import os
import sys
from typing import Any

from sqlalchemy import Engine, event
from tests.postgres import open_url
from tests.simulation.clients import RESERVATION_SECONDS
from tests.simulation.requested import Request, perform
from tests.simulation.steps import named
from tests.simulation.world import PACKAGE, Nobody

from parshall.accounting.service import Accounting
from parshall.kernel.errors import ParshallError

CRASHED = 70


def say(**what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def exit_at(step: int) -> None:
    """End this process behind its `step`-th statement from now on; a commit counts as one before it is sent."""
    passed = 0

    def count(name: str) -> None:
        nonlocal passed
        passed += 1
        if passed == step:
            say(exit=CRASHED, where=f"step {step}, {name}")
            os._exit(CRASHED)

    event.listen(Engine, "after_cursor_execute", lambda _c, _cursor, statement, *_: count(f"behind {named(statement)}"))
    event.listen(Engine, "commit", lambda _connection: count("before the commit"))


async def run(url: str, at: int, request: Request, step: int) -> None:
    database = open_url(url, PACKAGE, lambda: at)
    ledger = Accounting(database, directory=Nobody(), clock=lambda: at, reservation_seconds=RESERVATION_SECONDS)
    exit_at(step)
    try:
        answer = repr(await perform(ledger, request))
    except ParshallError as refusal:
        answer = refusal.code
    say(answer=answer)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            asyncio.run(run(order["url"], order["at"], Request.restore(order["request"]), order["step"]))
            say(exit=0, where="")
            os._exit(0)  # without a farewell to the database, as every other step
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) not in (0, CRASHED):
            say(exit=1, where="it failed")


if __name__ == "__main__":
    main()
