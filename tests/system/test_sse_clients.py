"""Clients of Server-Sent Events that others made, run as docs/CLIENTS.md shows them against a real server."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.clients.programs import node_folder
from tests.clients.proof import CUTS, Run, check_once, snippet
from tests.clients.relay import relay
from tests.ledgers import check_ledger
from tests.serving import Caller, Server, serving, text_of, upstream

from parshall.kernel.sse import parse

CLIENT_SECONDS_MAX = 60
INSTALLING = pytest.mark.timeout(600)
"""The first of these tests may have to install what it runs."""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture(scope="module")
def server(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    options = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": provider, "OPENAI_MODELS": "fake,*"}
    with serving(home, **options) as running:
        yield running
        running.kill()
    check_ledger(home / "accounting.db")


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[Caller]:
    made = server.customer("reader", credits=1000)
    yield made
    made.close()


@pytest.fixture
def run(caller: Caller) -> Run:
    return Run.of(caller)


def curl(folder: Path, code: str) -> Sequence[str]:
    return ["bash", "-c", f"set -e\n{code}\ncat answer.txt"]


def python(folder: Path, code: str) -> Sequence[str]:
    return [sys.executable, "-X", "utf8", "-c", code]


def node(folder: Path, code: str) -> Sequence[str]:
    (folder / "node_modules").symlink_to(node_folder() / "node_modules")
    (folder / "client.mjs").write_text(code, encoding="utf-8")
    return ["node", "client.mjs"]


def node_plainly(folder: Path, code: str) -> Sequence[str]:
    """Without the line that names the last whole event, as most who use that package do."""
    lines = code.splitlines(keepends=True)
    return node(folder, "".join(line for line in lines if not line.startswith("  fetch: ")))


FETCH_EVENT_SOURCE = "Node or browser: @microsoft/fetch-event-source"
CLIENTS = {
    "Python: the SDK": python,
    "Python: the SDK, asynchronous": python,
    "curl": curl,
    "Python: httpx-sse": python,
    "Python: sseclient-py": python,
    "Python: aiohttp, line by line": python,
    "Node: eventsource": node,
    FETCH_EVENT_SOURCE: node,
    f"{FETCH_EVENT_SOURCE}, plainly": node_plainly,
}
Reset = tuple[Run, Future[str]]
EVERY_CLIENT = pytest.mark.parametrize("client", CLIENTS)
EVERY_SNIPPET = pytest.mark.parametrize("client", [client for client in CLIENTS if not client.endswith(", plainly")])


def command(client: str, run: Run, folder: Path) -> Sequence[str]:
    return CLIENTS[client](folder, snippet(client.removesuffix(", plainly"), run.message))


def printed(command: Sequence[str], run: Run, folder: Path, url: str, *, after: int = 0) -> str:
    """What a client makes of the stream; of curl, which prints events, their text."""
    variables = {
        "URL": url,
        "TOKEN": run.caller.token,
        "SESSION": run.session,
        "STREAM": run.stream,
        "AFTER": str(after),
    }
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    ran = subprocess.run(command, cwd=folder, env=kept | variables, capture_output=True, timeout=CLIENT_SECONDS_MAX)
    assert ran.returncode == 0, ran.stdout[-500:] + ran.stderr[-2000:]
    return text_of(list(parse([ran.stdout]))) if command[0] == "bash" else ran.stdout.decode()


@INSTALLING
@EVERY_SNIPPET
def test_a_client_ends_with_the_stored_text(
    client: str, run: Run, server: Server, provider: str, tmp_path: Path
) -> None:
    came = printed(command(client, run, tmp_path), run, tmp_path, server.url)
    assert came == check_once(run, provider)


def through_resets(client: str, run: Run, server: Server, folder: Path) -> str:
    with relay(server.port, CUTS) as cutting:
        came = printed(command(client, run, folder), run, folder, cutting.url)
        assert not cutting.cuts, "every cut was met"
    return came


@pytest.fixture(scope="module")
def reset(caller: Caller, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reset]]:
    """Every client at once, since most of the time they wait before they ask again."""
    runs = {client: Run.of(caller) for client in CLIENTS}
    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        yield {
            client: (run, pool.submit(through_resets, client, run, server, tmp_path_factory.mktemp("client")))
            for client, run in runs.items()
        }


@INSTALLING
@EVERY_CLIENT
def test_a_client_whose_connections_are_reset_ends_with_the_stored_text_charged_once(
    client: str, reset: dict[str, Reset], provider: str
) -> None:
    run, came = reset[client]
    assert came.result() == check_once(run, provider)


@INSTALLING
@EVERY_SNIPPET
def test_a_client_that_resumes_from_the_middle_ends_with_the_rest(
    client: str, run: Run, server: Server, provider: str, tmp_path: Path
) -> None:
    events = run.caller.ask(run.session, run.message, headers={"X-Streaming-Session-Id": run.stream})
    came = printed(command(client, run, tmp_path), run, tmp_path, server.url, after=30)
    assert came == text_of(events[30:])
    assert check_once(run, provider).endswith(came)


@INSTALLING
def test_a_reset_may_come_at_any_byte_of_an_event(
    caller: Caller, server: Server, provider: str, tmp_path: Path
) -> None:
    """A whole answer read a few bytes a connection, a byte more each time."""
    run = Run.of(caller, "fake-hard-n150-ms3")
    caller.ask(run.session, run.message, headers={"X-Streaming-Session-Id": run.stream})
    code = snippet(FETCH_EVENT_SOURCE, run.message)
    patient = code.replace("throw error\n", "throw error\n    return 1\n")  # milliseconds until it asks again
    assert patient != code
    with relay(server.port, range(60, 130)) as cutting:
        came = printed(node(tmp_path, patient), run, tmp_path, cutting.url, after=2)
        assert not cutting.cuts, "every cut was met"
    assert came == check_once(run, provider)
