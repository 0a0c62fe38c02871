"""The numbered steps of a unit of work, and a database that dies at one of them or waits there."""

# Step 0 is the moment before the unit begins, step k the one behind its k-th statement; whatever lies beyond the last
# statement is the moment behind the commit, when all is kept and nobody has been told.

import asyncio
import re
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection, Engine, event

from parshall.kernel.database import Database, Work

T = TypeVar("T")
WAIT_SECONDS_MAX = 20

_thread = threading.local()
_STATEMENT = re.compile(r"\s*(\w+)(?:.*?\b(?:FROM|INTO)|(?<=UPDATE))\s+\"?(\w+)", re.DOTALL)


class Crash(Exception):
    """The process has ended: whoever waits for it gets no answer."""


@dataclass
class Death:
    """Die at a step of a unit of work; `unit` counts those that the replica begins from now on."""

    step: int
    unit: int = 0
    where: str = ""  # once it has happened

    @property
    def committed(self) -> bool:
        return self.where == COMMITTED


COMMITTED = "behind the commit"


@dataclass
class Pause:
    """Wait at a step of the next unit of work, with all its locks, until told to go on; a `fatal` one ends there."""

    step: int
    fatal: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    resumed: threading.Event = field(default_factory=threading.Event)


@dataclass
class Late:
    """Let the next unit of work begin only when told so."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    resumed: asyncio.Event = field(default_factory=asyncio.Event)


Plan = Death | Pause | Late


@contextmanager
def numbered_steps() -> Iterator[None]:
    """Count statements meanwhile, of engines that are made within."""
    event.listen(Engine, "after_cursor_execute", _count)
    try:
        yield
    finally:
        event.remove(Engine, "after_cursor_execute", _count)


def _count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
    unit: _Unit | None = getattr(_thread, "unit", None)
    if unit is not None:
        unit.passed(statement)


def named(statement: str) -> str:
    """A statement for the trace: its verb and its table."""
    found = _STATEMENT.match(statement)
    return f"{found[1]} {found[2]}" if found else statement[:30]


class MortalDatabase:
    """The real database as one process has it open: once the process is dead nothing of it reaches the records."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.plan: Plan | None = None
        self.dead = False

    async def read(self, work: Work[T], *, brief: bool = False) -> T:
        self._live()
        return await self._database.read(work, brief=brief)

    async def write(self, work: Work[T], *, brief: bool = False) -> T:
        self._live()
        unit = _Unit(self)
        if isinstance(unit.plan, Late):
            unit.plan.reached.set()
            await unit.plan.resumed.wait()
        result = await self._database.write(lambda connection: unit.run(work, connection), brief=brief)
        unit.committed()
        return result

    def instant(self, connection: Connection) -> int:
        return self._database.instant(connection)

    def version(self, connection: Connection) -> Hashable:
        return self._database.version(connection)

    async def close(self) -> None:
        await self._database.close()

    def _live(self) -> None:
        if self.dead:
            raise Crash


class _Unit:
    """A unit of work as its steps go by."""

    def __init__(self, database: MortalDatabase) -> None:
        self._database = database
        self._step = 0
        self.plan = _planned(database)

    def run(self, work: Work[T], connection: Connection) -> T:
        self._step = -1
        _thread.unit = self
        try:
            self.passed("")
            return work(connection)
        finally:
            _thread.unit = None

    def passed(self, statement: str) -> None:
        self._database._live()
        self._step += 1
        if self.plan is None or isinstance(self.plan, Late) or self.plan.step != self._step:
            return
        if isinstance(self.plan, Pause):
            self.plan.reached.set()
            self.plan.resumed.wait(WAIT_SECONDS_MAX)
            if not self.plan.fatal:
                return
        self._die(f"behind step {self._step}, {named(statement)}" if statement else "before it began")

    def committed(self) -> None:
        if isinstance(self.plan, Death) and not self._database.dead:
            self._die(COMMITTED)
        self._database._live()

    def _die(self, where: str) -> None:
        if isinstance(self.plan, Death):
            self.plan.where = where
        self._database.dead = True
        raise Crash


def _planned(database: MortalDatabase) -> Plan | None:
    """The plan, if it is for this unit."""
    plan = database.plan
    if isinstance(plan, Death) and plan.unit > 0:
        plan.unit -= 1
        return None
    database.plan = None
    return plan
