"""`parshall up --workers N`: one port, several processes; one that dies is replaced, and all end in order."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.ledgers import check_ledger
from tests.replicas import check_world
from tests.scraping import TOKEN, scrape
from tests.scripted import Script
from tests.serving import Server, serving, stream_id_of, text_of, upstream
from tests.system.test_process import begin
from tests.system.test_starts import failing
from tests.valkey import Valkey

pytestmark = [
    pytest.mark.one_process("--split and --workers do not go together"),
    pytest.mark.executed("processes, their starts and their ends are what it is about"),
]

ID = "stream-1620847252-00000000000000b7"


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture
def shared(scripted: str, postgres_url: str, valkey: Valkey) -> dict[str, str]:
    return {
        "EMBEDDED_MODEL": "off",
        "OPENAI_BASE_URL": scripted,
        "OPENAI_MODELS": "fake,*",
        "DATABASE_URL": postgres_url,
        "STREAM_LOG_URL": valkey.url,
        "LEASE_SECONDS": "2",
    }


def workers_of(server: Server) -> list[psutil.Process]:
    assert server.process is not None
    return psutil.Process(server.process.pid).children()


def until(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_share_the_port_and_one_that_is_killed_is_replaced(
    tmp_path: Path, shared: dict[str, str], postgres_url: str
) -> None:
    with serving(tmp_path, "--workers", "2", **shared) as server:
        until(lambda: any("2 workers serve" in line for line in server.output))
        alice = server.customer("alice")
        seen = {}
        for _ in range(6):
            caller = server.user("alice", "alice-password")  # a connection of its own: to either worker
            events = caller.ask(caller.session(), "fake-n5-nousage")
            seen[stream_id_of(events)] = events
            assert text_of(events) == Script(n=5).text()
        session = alice.session()
        reading = begin(alice, session, ID, "fake-n300-ms10-nousage")
        reading.has_chunks(5)
        for worker in workers_of(server):
            worker.kill()
            until(lambda gone=worker: not gone.is_running() and len(workers_of(server)) == 2)  # type: ignore[misc]
            until(lambda: ready(server) >= 2)
            server.output.append("-- the next one\n")
        reading.whole()
        caller = server.user("alice", "alice-password")
        assert caller.ended(ID)["outcome"] == "interrupted"
        seen[ID] = caller.resume(ID)
        assert text_of(caller.ask(session, "fake-n2")) == Script(n=2).text()
        check_world(postgres_url, server.user(), seen=seen)
        code, _ = server.stop()
        assert code == 0 and not [line for line in server.output if "Traceback" in line]
    check_ledger(postgres_url)


def ready(server: Server) -> int:
    """How many workers have said that they answer, since the last one was killed."""
    last = max((index for index, line in enumerate(server.output) if line.startswith("--")), default=-1)
    return sum("listens on" in line for line in server.output[last + 1 :]) + (2 if last < 0 else 1)


@pytest.mark.timeout(240)
def test_metrics_are_those_of_all_workers_of_which_dead_ones_leave_what_they_have_counted(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    with serving(tmp_path, "--workers", "2", METRICS_TOKEN=TOKEN, DRAIN_SECONDS="0.5", **shared) as server:
        until(lambda: any("2 workers serve" in line for line in server.output))
        alice = server.customer("alice")
        for _ in range(8):
            caller = server.user("alice", "alice-password")  # a connection of its own: to either worker
            caller.ask(caller.session(), "fake-n5")
        counted = [scrape(server.url) for _ in range(6)]  # each likewise
        assert {each.sum("parshall_streams_ended_total", outcome="completed") for each in counted} == {8}
        assert {each.sum("parshall_tokens_total", model="fake", direction="output") for each in counted} == {40}
        reading = begin(alice, alice.session(), ID, "fake-n900-ms10-nousage")
        reading.has_chunks(5)
        until(lambda: scrape(server.url).sum("parshall_open_streams") == 1)
        workers = workers_of(server)
        for worker in workers:
            worker.kill()
        until(lambda: not any(worker.is_running() for worker in workers) and len(workers_of(server)) == 2)
        reading.whole()
        server.user("alice", "alice-password").ended(ID)
        after = scrape(server.url)
        assert after.sum("parshall_open_streams") == after.sum("parshall_open_readers") == 0
        assert after.sum("parshall_streams_ended_total", outcome="completed") == 8
        assert after.sum("parshall_streams_ended_total", outcome="interrupted") == 1
        assert (tmp_path / f"metrics-{server.port}").is_dir()
        assert server.stop()[0] == 0
        assert not (tmp_path / f"metrics-{server.port}").exists()
        assert not [line for line in server.output if "Traceback" in line]


def test_when_the_parent_dies_so_do_its_workers_in_order(tmp_path: Path, shared: dict[str, str]) -> None:
    with serving(tmp_path, "--workers", "2", **shared) as server:
        until(lambda: any("2 workers serve" in line for line in server.output))
        workers = workers_of(server)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=15)
        assert not alive


def test_without_what_workers_share_a_start_is_one_sentence(tmp_path: Path, valkey: Valkey) -> None:
    alone = Server(home=tmp_path, arguments=("--workers", "3"))
    failing(alone, "PARSHALL_DATABASE_URL=postgresql://", "PARSHALL_STREAM_LOG_URL=valkey://")
    half = Server(home=tmp_path, arguments=("--workers", "3"), settings={"STREAM_LOG_URL": valkey.url})
    assert "STREAM_LOG_URL" not in failing(half, "PARSHALL_DATABASE_URL=postgresql://")
