"""Every use case with the process ending at every one of its steps: done once or not at all, and once after a retry."""

import asyncio
import itertools
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.postgres import Engine, open_url
from tests.simulation.clients import RESERVATION_SECONDS
from tests.simulation.crashing_ledger import CRASHED
from tests.simulation.records import Outside, Records, check_records
from tests.simulation.requested import Request, perform
from tests.simulation.world import PACKAGE, START, Nobody

from parshall.accounting.service import Accounting
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.credits import MICRO

ROOT = Path(__file__).parents[2]
STEPS_MAX = 60
STRIDE_QUICK = 9
LATER = START + RESERVATION_SECONDS * SECOND
TERMS = {"expires_at": START + DAY, "priority": 0}
PRICE = {"model_id": "any", "input": MICRO, "cached_input": MICRO // 2, "output": 2 * MICRO, "reasoning": 2 * MICRO}
USAGE = {"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 15, "reasoning_tokens": 0}


class Program:
    """The program that crashes for us (crashing_ledger.py)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, url: str, request: Request, *, at: int, step: int) -> tuple[str | None, int, str]:
        """What was answered before the process ended at that step, how it ended, and where."""
        order = {"url": url, "at": at, "request": request.stored(), "step": step}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = None
        while "exit" not in (said := json.loads(self._process.stdout.readline())):
            answer = said["answer"]
        return answer, said["exit"], said["where"]


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    command = [sys.executable, "-m", "tests.simulation.crashing_ledger"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Program(process)
        assert process.stdin is not None
        process.stdin.close()


# ── Use cases ───────────────────────────────────────────────────────────────────────────────────────────────────────
# Each has what happens before it (`at` START) and the request itself. `n` makes every run one of its own.


def stream(n: int) -> str:
    return f"stream-1800000000-{n:032d}"


def change(kind: str, n: int, amount: int, **arguments: Any) -> Request:
    return Request(kind=kind, id=f"key-{kind}-{n}", arguments={"account": f"user-{n}", "amount": amount} | arguments)


def reserving(n: int) -> Request:
    tokens = {"input_tokens": 10, "output_tokens_max": 100, "slice_tokens": 20}
    return Request(kind="reserve", id=stream(n), arguments={"user_id": f"user-{n}", "model_id": "any"} | tokens)


def settling(n: int, usage: dict[str, int] = USAGE) -> Request:
    arguments = {"usage": usage, "source": "counted", "outcome": "completed"}
    return Request(kind="settle", id=stream(n), arguments=arguments)


def whole(n: int) -> Request:
    arguments = {"user_id": f"user-{n}", "model_id": "any", "tokens": 30}
    return Request(kind="reserve_whole", id=stream(n), arguments=arguments)


def extending(n: int) -> Request:
    return Request(kind="extend", id=stream(n), arguments={"step": 1, "output_tokens": 20})


def repricing(n: int) -> Request:
    """Dearer, for its prompt is longer: it takes from both grants."""
    tokens = {"input_tokens": 90, "output_tokens_max": 80, "slice_tokens": 20}
    return Request(kind="reprice", id=stream(n), arguments={"model_id": "any"} | tokens)


def pricing(n: int) -> Request:
    return Request(kind="price", id=f"price-{n}", arguments=PRICE | {"model_id": f"model-{n}"})


def sweeping(n: int) -> Request:
    return Request(kind="sweep", id="all", arguments={})


def granted(n: int) -> list[Request]:
    """Two grants, so that what is taken and given back is of both."""
    return [change("allocate", n, 40, **TERMS), change("adjust", n, 200, **TERMS | {"priority": 1})]


def reserved(n: int) -> list[Request]:
    return [*granted(n), reserving(n)]


def due(n: int) -> list[Request]:
    soon = {"expires_at": LATER, "priority": 0}
    return [*reserved(n), change("set", n, 500, **soon)]


class UseCase(NamedTuple):
    """What comes before, the request, and its instant."""

    before: Callable[[int], list[Request]]
    request: Callable[[int], Request]
    at: int = START


USE_CASES = {
    "allocate": UseCase(lambda n: [], lambda n: change("allocate", n, 70, **TERMS)),
    "set_up": UseCase(granted, lambda n: change("set", n, 300, **TERMS)),
    "deduct": UseCase(granted, lambda n: change("deduct", n, 60)),
    "set_down": UseCase(granted, lambda n: change("set", n, 30, **TERMS)),
    "remove": UseCase(granted, lambda n: change("remove", n, 60, **TERMS)),
    "price": UseCase(granted, pricing),
    "reserve": UseCase(granted, reserving),
    "reserve_whole": UseCase(granted, whole),
    "extend": UseCase(reserved, extending),
    "reprice": UseCase(reserved, repricing),
    "settle": UseCase(reserved, settling),
    "settle_beyond": UseCase(reserved, lambda n: settling(n, USAGE | {"output_tokens": 2000})),
    "settle_late": UseCase(due, settling, LATER),
    "void": UseCase(reserved, lambda n: Request(kind="void", id=stream(n), arguments={})),
    "sweep": UseCase(due, sweeping, LATER),
}


def outcome(records: Records, n: int, request: Request) -> Any:
    """All that the books say of a run, but for what is drawn at random; every run comes to the same."""
    user = f"user-{n}"
    streams = [row for row in records.streams.values() if row.account_id == user]
    return (
        records.balances().get(user),
        [(row.state, row.reserved, row.step, row.charged, row.uncollected, row.usage_source) for row in streams],
        [(row.number, row.kind, row.amount) for row in records.books.transfers if row.account_id == user],
        request.id in records.keys,
        request.id in {row.set_by for row in records.prices.values()},
    )


@pytest.mark.parametrize("stride", [STRIDE_QUICK, pytest.param(1, marks=pytest.mark.soak)])
async def test_a_process_that_ends_at_any_step_has_done_it_once_or_not_at_all(
    engine: Engine, program: Program, stride: int
) -> None:
    """The quick form takes some steps of each use case, other ones each time; the long form takes every one."""
    async with opened(engine, START) as early, opened(engine, LATER) as late:
        with closing(Outside(engine.url(PACKAGE))) as outside:
            await perform(early, Request(kind="price", id="price-any", arguments=PRICE))
            runs = Runs({START: early, LATER: late}, outside, program, engine.url(PACKAGE))
            for name in USE_CASES:
                await runs.crash_everywhere(name, stride)


@dataclass
class Runs:
    """Runs of use cases, each with an account and an id of its own."""

    ledgers: dict[int, Accounting]
    outside: Outside
    program: Program
    url: str
    numbers: Iterator[int] = field(default_factory=itertools.count)

    async def crash_everywhere(self, name: str, stride: int) -> None:
        """The first run is undisturbed and says what has to come of the others; the last one ends of itself."""
        expected, code = await self.run(USE_CASES[name], 0, None)
        for step in range(random.randint(1, stride), STEPS_MAX, stride):
            _, code = await self.run(USE_CASES[name], step, expected)
            if code == 0:
                return
        raise AssertionError(f"{name} has more than {STEPS_MAX} steps")

    async def run(self, case: UseCase, step: int, expected: Any) -> tuple[Any, int]:
        """Prepare, crash at `step`, look, ask again, look; what has come of it and how the process ended."""
        n = next(self.numbers)
        await asyncio.gather(*(perform(self.ledgers[START], each) for each in case.before(n)))
        request = case.request(n)
        untouched = outcome(self.outside.records(), n, request)
        answer, code, where = self.program.run(self.url, request, at=case.at, step=step)
        found = self.found(n, request)
        expected = expected or found
        assert code in (0, CRASHED) and found in (untouched, expected), f"{request} by halves: {where}"
        assert answer is None or found == expected, f"M8: {request} was answered and is lost: {where}"
        again = repr(await perform(self.ledgers[case.at], request))
        assert answer in (None, again) or request.kind == "sweep", f"M3: {request}: {where}"
        assert self.found(n, request) == expected != untouched, f"{request} is not done once: {where}"
        return expected, code

    def found(self, n: int, request: Request) -> Any:
        """What came of a run, with all the books right."""
        records = self.outside.records()
        check_records(records)
        return outcome(records, n, request)


@asynccontextmanager
async def opened(engine: Engine, at: int) -> AsyncIterator[Accounting]:
    database = open_url(engine.url(PACKAGE), PACKAGE, lambda: at)
    ledger = Accounting(database, directory=Nobody(), clock=lambda: at, reservation_seconds=RESERVATION_SECONDS)
    yield ledger
    await ledger.close()
