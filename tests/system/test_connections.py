"""The limit on connections, on a real port: who comes too late is told or cut, and everybody else goes on."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import httpx2
import psutil
import pytest
from tests.scripted import Script
from tests.serving import Server, serving, text_of, upstream

from parshall.app.arrival import SURPLUS_MAX, SURPLUS_SECONDS
from parshall.app.front import DESCRIPTORS_WANTED

MOST = 12
EVENTS = 40
LONG = f"fake-n{EVENTS}-ms50"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*", "REQUEST_HEAD_SECONDS": "60"}
    with (
        upstream() as url,
        serving(tmp_path_factory.mktemp("home"), OPENAI_BASE_URL=url, MAX_CONNECTIONS=str(MOST), **settings) as running,
    ):
        yield running


@contextlib.contextmanager
def connected(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that ask nothing."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10)) for _ in range(count)
        ]


def look(server: Server, path: str) -> httpx2.Response:
    """One request on a connection of its own."""
    return httpx2.get(server.url + path, headers={"Connection": "close"}, timeout=10)


def until(server: Server, path: str, status: int, seconds: float = 10) -> httpx2.Response:
    """The first answer with that status: that a connection has gone is noticed a moment later."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            answer = look(server, path)
            if answer.status_code == status:
                return answer
        time.sleep(0.02)
    raise AssertionError(f"{path} is not answered with {status}")


def test_who_comes_too_late_is_told_so_and_running_streams_and_health_go_on(server: Server) -> None:
    caller = server.customer("patient")
    session = caller.session()
    with caller.streaming("POST", f"/api/chat/sessions/{session}/stream", {"message": LONG}) as (_, events):
        first = next(events)
        with connected(server, MOST):
            refused = until(server, "/api/version", 503)
            assert refused.headers["Retry-After"] == "1" and refused.headers["Connection"] == "close"
            assert refused.json()["code"] == "connections_full"
            for path in ("/health", "/api/health?x=1"):
                well = look(server, path)
                assert well.status_code == 200 and well.headers["Connection"] == "close"
            assert look(server, "/healthy").status_code == 503
            assert text_of([first, *events]) == Script(n=EVENTS).text()
        assert until(server, "/api/version", 200)
    caller.close()


def test_a_flood_beyond_that_is_cut_and_costs_no_descriptors(server: Server) -> None:
    with connected(server, MOST):
        until(server, "/api/version", 503)
        with connected(server, SURPLUS_MAX + 20) as flood:
            cut = 0
            for each in flood[-10:]:
                each.settimeout(SURPLUS_SECONDS / 2)
                with contextlib.suppress(TimeoutError):
                    cut += gone(each)
            assert cut == 10
            assert until(server, "/health", 200, SURPLUS_SECONDS + 5), "the silent ones in front have been let go"
    assert until(server, "/api/version", 200)
    told = [json.loads(line) for line in server.output if line.startswith("{")]
    assert len([record for record in told if record["event"] == "connections_full"]) == 1, "once a minute is enough"


def gone(line: socket.socket) -> bool:
    """Whether the other side has closed."""
    try:
        return line.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_NOFILE"), reason="only Linux tells the limits of another process")
def test_a_server_has_room_for_as_many_as_it_may_open(server: Server) -> None:
    """A shell's 1024 open files are few: the process asks for what the system lets it have."""
    assert server.process is not None
    soft, hard = psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert soft >= min(DESCRIPTORS_WANTED, hard)
