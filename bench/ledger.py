"""Measures the ledger on SQLite and PostgreSQL, beside one statement an operation: `python bench/ledger.py`.

A pair is a reserve and a settle, each on the disk before it is answered. Every configuration takes its turn in every
round, on records of its own, first as fast as it goes, then with streams that arrive half as fast. After each turn the
books are checked: nothing is held, and what was charged is what the balances lack.

With --history the same account is measured in ledgers of different lengths instead: it owns half of the transfers,
every other stream being its own, and the rest is spread over accounts of 500 transfers each (bench/history.py). Each
turn gets a copy of the ledger as it was built.

With --flush the disk takes so much longer to bring a commit to safety (bench/disk.py).
"""

import argparse
import asyncio
import contextlib
import gc
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.baselines import Opened, connections, naive, one_statement
from bench.disk import check_slowed, flush_milliseconds, slowed
from bench.engines import Databases, Engine, Files
from bench.history import PRICE, build
from bench.measuring import Books, Result, measure
from bench.tables import Rivals, ledger
from tests.postgres import Server

from parshall.accounting.service import Accounting
from parshall.app.config import Settings
from parshall.app.local import local
from parshall.kernel import clock
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.ids import StreamId, UserId, new_stream_id
from parshall.kernel.metering import Usage, UsageSource

MANY = 1000
START = 1_000_000 * MICRO
USAGE = Usage(input_tokens=100, output_tokens=200)
ENGINES = ("sqlite", "postgres")
ROUNDS = 5
SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to keep the books: `at_once` streams on so many accounts, in a database that `place` makes."""

    engine: str
    name: str
    accounts: int
    at_once: int
    opened: Opened
    place: Callable[[], AbstractContextManager[str]]
    rivals: Sequence[Rivals]


# ── Parshall ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Parshall:
    """Accounting as a turn of a chat uses it."""

    def __init__(self, accounting: Accounting, ids: Sequence[UserId], model_id: str) -> None:
        self._accounting = accounting
        self._ids = ids
        self._model_id = model_id
        self._available = 0

    async def start(self) -> None:
        """Give every account credits that last for the measurement."""
        until = clock.now() + clock.DAY
        give = self._accounting.allocate
        await asyncio.gather(*(give(id, Credits(START), expires_at=until, granted_by="bench") for id in self._ids))
        self._available, _ = await self._sums()

    async def reserve(self, account: int) -> StreamId:
        """The id of a new stream."""
        stream = new_stream_id(at=clock.now())
        await self._accounting.reserve(
            stream_id=stream,
            user_id=self._ids[account],
            model_id=self._model_id,
            input_tokens=USAGE.input_tokens,
            output_tokens_max=1024,
            slice_tokens=256,
        )
        return stream

    async def settle(self, stream: StreamId) -> None:
        """Charge less than was held."""
        await self._accounting.settle(stream_id=stream, usage=USAGE, source=UsageSource.PROVIDER, outcome="completed")

    async def check(self, pairs: int) -> None:
        """Nothing held; what was charged is what the balances lack."""
        cost = await self._accounting.prices.calculate(self._model_id, USAGE)
        assert await self._sums() == (self._available - pairs * cost, 0)

    async def _sums(self) -> tuple[int, int]:
        balances = [await self._accounting.balance(id) for id in self._ids]
        return sum(each.available for each in balances), sum(each.reserved for each in balances)


def parshall(model_id: str, *, owner: str | None = None) -> Opened:
    """Accounting as the server composes it with its defaults; `owner` is an account that is there already."""

    @asynccontextmanager
    async def opened(url: str, accounts: int) -> AsyncIterator[Books]:
        ids = [UserId(f"account-{number}") for number in range(accounts)] if owner is None else [UserId(owner)]
        with tempfile.TemporaryDirectory(prefix="parshall-bench-home-") as home:
            async with local(Settings(home_dir=Path(home), accounting_database_url=url)) as parts:
                books = _Parshall(parts.accounting, ids, model_id)
                await books.start()
                yield books

    return opened


# ── Configurations ──────────────────────────────────────────────────────────────────────────────────────────────────


def side_by_side(engine: Engine) -> Iterator[Configuration]:
    """One statement an operation, and Parshall, each on one hot account and on many."""
    for name, accounts, at_once, opened in _BASELINES[engine.name]:
        yield _measured(engine, name, accounts, at_once, opened)
    for accounts, at_once in ((1, 1), (1, 64), (1, 256), (MANY, 64), (MANY, 256)):
        yield _measured(engine, f"Parshall, {at_once} at once", accounts, at_once, parshall("flow"))


_POOLS = {1: "one statement, 1 connection"} | {count: f"one statement, {count} connections" for count in (8, 16)}
_BASELINES: dict[str, list[tuple[str, int, int, Opened]]] = {
    "sqlite": [
        ("one statement", 1, 1, one_statement),
        ("one statement", MANY, 1, one_statement),
        ("naive", 1, 1, naive),
        ("naive", MANY, 1, naive),
    ],
    "postgres": [
        *((name, 1, count, connections(count)) for count, name in _POOLS.items()),
        (_POOLS[16], MANY, 16, connections(16)),
    ],
}


def _measured(engine: Engine, name: str, accounts: int, at_once: int, opened: Opened) -> Configuration:
    spread = "one account" if accounts == 1 else f"{accounts} accounts"
    rivals = {"one statement": ["one statement"]}
    if engine.name == "postgres":
        best = [*_POOLS.values()] if accounts == 1 else [_POOLS[16]]
        rivals = {"best one statement": best, _POOLS[16]: [_POOLS[16]]}
    return Configuration(
        engine=engine.name,
        name=f"{name}, {spread}",
        accounts=accounts,
        at_once=at_once,
        opened=opened,
        place=engine.empty,
        rivals=[
            Rivals(title=f"× {title}", value="pairs_per_second", names=[f"{rival}, {spread}" for rival in names])
            for title, names in rivals.items()
        ],
    )


@contextlib.contextmanager
def with_histories(engine: Engine, lengths: Sequence[int]) -> Iterator[list[Configuration]]:
    """Parshall on the account that owns half of the history, for each length; longer ones are held to the shortest."""
    with contextlib.ExitStack() as stack:
        built = []
        for transfers in sorted(lengths):
            url, began = stack.enter_context(engine.empty()), time.perf_counter()
            built.append((transfers, url, build(url, transfers, hot=True)))
            print(f"{engine.name}: {transfers:,} built in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        yield [_after(engine, each, min(lengths), at_once) for at_once in (1, 64) for each in built]


def _after(engine: Engine, built: tuple[int, str, str], shortest: int, at_once: int) -> Configuration:
    transfers, url, owner = built
    name = "Parshall, {} at once after {:,} transfers"
    ratios = {"pairs/s": "pairs_per_second", "settle p50": "full_settle_p50", "CPU": "cpu_us_per_pair"}
    return Configuration(
        engine=engine.name,
        name=name.format(at_once, transfers),
        accounts=1,
        at_once=at_once,
        opened=parshall(PRICE.model_id, owner=owner),
        place=lambda: engine.copy(url),
        rivals=[
            Rivals(title=f"{title} × shortest", value=value, names=[name.format(at_once, shortest)])
            for title, value in ratios.items()
        ],
    )


# ── Running ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Measure in turn, print the tables, keep the raw results where asked to."""
    given = _arguments()
    if given.flush:
        slowed(given.flush)
    tempfile.tempdir = None if given.folder is None else str(given.folder.resolve())
    print(f"A flush takes {flush_milliseconds():.2f} ms.", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        engines: list[Engine] = [Files()] if "sqlite" in given.engines else []
        if "postgres" in given.engines:
            server = stack.enter_context(Server.start(fsync=True))
            check_slowed(server.pid)
            engines.append(Databases(server))
        configurations: list[Configuration] = []
        for engine in engines:
            if given.history:
                configurations += stack.enter_context(with_histories(engine, given.history))
            else:
                configurations += side_by_side(engine)
        chosen = [each for each in configurations if not given.only or any(part in each.name for part in given.only)]
        results = _rounds(chosen, given)
    for engine in given.engines:
        mine = [each for each in chosen if each.engine == engine]
        if mine:
            measured = [one for one in results if one["engine"] == engine]
            print(f"{engine}\n\n{ledger(measured, {each.name: each.rivals for each in mine})}\n")


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--seconds", type=float, default=SECONDS, help="of each of the two halves of a turn")
    arguments.add_argument("--engines", type=_listed(str), default=list(ENGINES), help="sqlite,postgres")
    arguments.add_argument("--only", nargs="+", help="configurations whose name contains one of these")
    arguments.add_argument("--history", type=_listed(int), default=[], help="lengths in transfers, with commas")
    arguments.add_argument("--folder", type=Path, help="measure the disk that this folder is on")
    arguments.add_argument(
        "--flush", type=float, default=0, metavar="MS", help="milliseconds by which every flush takes longer"
    )
    arguments.add_argument("--out", type=Path, help="keep the raw results in this JSON file")
    given = arguments.parse_args()
    if given.flush < 0:
        arguments.error("--flush takes milliseconds by which a flush takes longer, so 0 or more")
    if not set(given.engines) <= set(ENGINES):
        arguments.error(f"--engines takes {' and '.join(ENGINES)}")
    return given


def _listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part) for part in text.split(",")]


def _rounds(configurations: Sequence[Configuration], given: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    for number in range(given.rounds):
        for each in configurations:
            with each.place() as url:
                result = uvloop.run(_turn(each, url, given.seconds))
            results.append({"round": number, "engine": each.engine, "name": each.name, **result})
            rate = f"{result['pairs_per_second']:8.0f} pairs/s"
            print(f"round {number}  {each.engine:9}{each.name:48}{rate}", file=sys.stderr)
        if given.out:
            given.out.write_text(json.dumps(results, indent=1))
    return results


async def _turn(configuration: Configuration, url: str, seconds: float) -> Result:
    accounts = configuration.accounts
    async with configuration.opened(url, accounts) as books:
        gc.collect()
        gc.freeze()  # as the server does once it has started
        try:
            return await measure(books, accounts=accounts, at_once=configuration.at_once, seconds=seconds)
        finally:
            gc.unfreeze()  # else what is left of this turn would stay for ever


if __name__ == "__main__":
    main()
