"""Faults of the network between the server and its stores: every answer arrives whole, once, and is charged once."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.faultproxy import FaultProxy
from tests.persistent import PersistentClient
from tests.replicas import WHOLE, Replicas, replicas
from tests.serving import Caller, upstream
from tests.valkey import Valkey

pytestmark = pytest.mark.one_process(WHOLE)

LATENCY_SECONDS = 0.004
"""Of the network when nothing is wrong with it: wide enough for a fault to come between two steps."""
LEASE_SECONDS = 1.5
BACK_SECONDS_MAX = 5.0
"""What is promised: from the moment that the network passes everything again."""
END_SECONDS_MAX = 40.0


@dataclass(frozen=True)
class Fault:
    """What happens to one link, for how long, and whether that is long enough for /health to say so."""

    name: str
    begin: Callable[[FaultProxy], None]
    seconds: float = 0.0
    is_outage: bool = False
    may_end_answers: bool = False
    """Whether it lasts so long that an answer which needs what is away may end with what it has."""


SLOW = Fault("slow", lambda proxy: proxy.slow(0.05, jitter=0.03), 1.5)
CUT = Fault("cut", FaultProxy.cut)
RESET = Fault("reset", FaultProxy.reset)
HOLE = Fault("black hole", FaultProxy.blackhole, 2.0)
HOUR_HOLE = Fault("black hole longer than anybody waits", FaultProxy.blackhole, 20.0, True, may_end_answers=True)
LONG_HOLE = Fault("black hole longer than the lease", FaultProxy.blackhole, 2 * LEASE_SECONDS, is_outage=True)
REFUSAL = Fault("refusal", FaultProxy.refuse, 3.0, is_outage=True)


@dataclass
class Stage:
    """A world whose links to its stores run through proxies, and what its clients have seen so far."""

    world: Replicas
    links: dict[str, FaultProxy]
    """By the name that /health gives to what is behind them."""
    caller: Caller
    clients: list[PersistentClient]
    numbers: Iterator[int]

    def client(self, chunks: int, milliseconds: int) -> PersistentClient:
        """A client that asks for so many chunks, one each `milliseconds`; it has yet to start."""
        number = next(self.numbers)
        count_of = len(self.world.servers)
        urls = [self.world.servers[(number + step) % count_of].url for step in range(count_of)]
        made = PersistentClient(
            urls=urls,
            token=self.caller.token,
            session=self.caller.session(),
            stream_id=f"stream-1620847252-{number:016x}",
            message=f"fake-n{chunks}-ms{milliseconds}-nousage",
        )
        self.clients.append(made)
        return made

    def calm(self) -> None:
        for link in self.links.values():
            link.heal()
            link.slow(LATENCY_SECONDS)

    def down(self) -> set[str]:
        """What any replica says is down."""
        answers = [httpx2.get(f"{server.url}/health", timeout=10) for server in self.world.servers]
        assert {answer.status_code for answer in answers} <= {200, 503}
        return {name for answer in answers for name in answer.json().get("down", ())}


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, postgres_url: str, valkey: Valkey) -> Iterator[Stage]:
    number: int = getattr(request, "param", 1)
    with FaultProxy.to(_port(postgres_url)) as records, FaultProxy.to(valkey.port) as log, upstream() as model:
        settings: dict[str, Any] = {
            "DATABASE_URL": records.through(postgres_url),
            "STREAM_LOG_URL": log.through(valkey.url),
            "OPENAI_BASE_URL": model,
            "LEASE_SECONDS": str(LEASE_SECONDS),
        }
        with replicas(number, tmp_path, postgres_url, valkey, **settings) as world:
            links = {"chat database": records, "stream log": log}
            made = Stage(world, links, world.customer("alice", credits=1000, replica=0), [], count())
            made.calm()
            yield made


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def suffer(stage: Stage, fault: Fault, *down: str) -> None:
    """Let a fault come over streams that begin, run, end and settle, and see each of them whole.

    The moments of beginning and ending lie some milliseconds apart, so that the fault meets each step of some stream.
    """
    lasting = [stage.client(int(fault.seconds * 10) + 8, 100) for _ in range(2)]
    ending = [stage.client(4, 100 + 8 * step) for step in range(6)]
    beginning = [stage.client(3, 20) for _ in range(6)]
    during = [stage.client(3, 20) for _ in range(2)] if fault.seconds else []
    for client in (*lasting, *ending):
        client.start()
    _until(lambda: ending[0].chunks >= 3)
    for client in beginning[:3]:
        client.start()
        time.sleep(0.02)
    beginning[3].start()
    for name in down:
        fault.begin(stage.links[name])
    for client in (*beginning[4:], *during):
        client.start()
        time.sleep(0.02)
    over = time.monotonic() + fault.seconds
    if fault.is_outage:
        _until(lambda: stage.down() >= set(down), fault.seconds)
    time.sleep(max(0.0, over - time.monotonic()))
    stage.calm()
    _until(lambda: not stage.down(), BACK_SECONDS_MAX)
    deadline = time.monotonic() + END_SECONDS_MAX
    for client in (*lasting, *ending, *beginning, *during):
        client.check(deadline, may_fail=fault.may_end_answers)


def _until(what: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_whole(stage: Stage) -> None:
    """Everything is at rest, and is what the clients saw."""
    for link in stage.links.values():
        link.heal()
    seen = {client.stream_id: client.events for client in stage.clients}
    assert sorted(stage.world.check(seen, replica=0)) == sorted(seen)
    assert stage.caller.balance()["reservedCredits"] == 0


def test_over_every_fault_each_answer_arrives_whole_and_is_charged_once(stage: Stage) -> None:
    records, log = stage.links
    for fault, down in ((SLOW, (records, log)), (CUT, (records, log)), (RESET, (log,)), (REFUSAL, (records, log))):
        suffer(stage, fault, *down)
    for name in (records, log):
        suffer(stage, LONG_HOLE, name)
    check_whole(stage)


@pytest.mark.soak
@pytest.mark.parametrize("links", [("chat database",), ("stream log",), ("chat database", "stream log")], ids="+".join)
@pytest.mark.parametrize("fault", [SLOW, CUT, RESET, HOLE, LONG_HOLE, REFUSAL, HOUR_HOLE], ids=lambda fault: fault.name)
@pytest.mark.parametrize("stage", [1, 2], indirect=True)
def test_each_fault_on_each_link_and_on_both(stage: Stage, fault: Fault, links: tuple[str, ...]) -> None:
    for _ in range(3):
        suffer(stage, fault, *links)
    check_whole(stage)
