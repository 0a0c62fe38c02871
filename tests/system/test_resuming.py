"""Coming back to a stream: at every offset, by hundreds at once, and by repeating the request, on both stream logs."""

import asyncio
import http.client
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import accumulate

import aiohttp
import httpx2
import pytest
from tests.ledgers import check_ledger
from tests.scripted import Script
from tests.serving import Caller, Server, serving, text_of, upstream
from tests.valkey import Valkey

from parshall.kernel.ids import new_stream_id
from parshall.kernel.sse import parse

pytestmark = pytest.mark.executed("memory is measured")

READER_BYTES_MAX = 100_000
"""Of memory, for each of hundreds that come back at once: its connection, its request and what waits to be sent."""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture(scope="module", params=["local", "valkey"])
def server(request: pytest.FixtureRequest, provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = {
        "EMBEDDED_MODEL": "off",
        "OPENAI_BASE_URL": provider,
        "OPENAI_MODELS": "fake,*",
        "MAX_OUTPUT_TOKENS": "10000",
    }
    if request.param == "valkey":
        shared: Valkey = request.getfixturevalue("valkey_server")
        options["STREAM_LOG_URL"] = shared.url
    home = tmp_path_factory.mktemp("home")
    with serving(home, **options) as running:
        yield running
        running.kill()
    check_ledger(home / "accounting.db")


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[Caller]:
    made = server.customer("reader", credits=1000)
    yield made
    made.close()


class Reads:
    """Whole answers as bytes, over as many connections as it takes."""

    def __init__(self, caller: Caller, http: aiohttp.ClientSession) -> None:
        self.caller = caller
        self._http = http

    @classmethod
    @asynccontextmanager
    async def by(cls, caller: Caller) -> AsyncIterator["Reads"]:
        connections = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": f"Bearer {caller.token}"}
        async with aiohttp.ClientSession(caller.url, connector=connections, headers=headers) as http:
            yield cls(caller, http)

    async def resume(self, stream: str, after: int) -> bytes:
        """The rest of a stream."""
        async with self._http.get(f"/api/chat/streams/{stream}", headers={"Last-Event-ID": str(after)}) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()

    async def ask(self, session: str, message: str, stream: str, *, after: int | None = None) -> bytes:
        """An answer, begun or found; from that offset where one is given."""
        headers = {"X-Streaming-Session-Id": stream} | ({} if after is None else {"Last-Event-ID": str(after)})
        path = f"/api/chat/sessions/{session}/stream"
        async with self._http.post(path, json={"message": message}, headers=headers) as answer:
            assert (answer.status, answer.headers["X-Streaming-Session-Id"]) == (200, stream), await answer.text()
            return await answer.read()

    async def leave_early(self, session: str, message: str, stream: str, seconds: float) -> None:
        """Ask, and hang up after so long, wherever the answer is then."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ask(session, message, stream)
                await asyncio.Event().wait()


def fresh_id() -> str:
    return new_stream_id(at=1_620_847_252_000_000)


def starts_of(whole: bytes) -> list[int]:
    """Where in the bytes the rest after each offset begins."""
    return [0, *accumulate(len(event) + 2 for event in whole.split(b"\n\n")[:-1])]


# ── One after the other ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_rest_after_each_of_500_offsets_is_byte_for_byte_what_followed(
    server: Server, caller: Caller
) -> None:
    stream, session = fresh_id(), caller.session()
    async with Reads.by(caller) as reads:
        whole = await reads.ask(session, "fake-n498-muse-burst", stream)
    starts = starts_of(whole)
    assert len(starts) == 502 and starts[-1] == len(whole)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    headers = {"Authorization": f"Bearer {caller.token}"}
    for after, start in enumerate(starts):
        by_header = headers | {"Last-Event-ID": str(after)} if after % 2 else headers
        connection.request("GET", f"/api/chat/streams/{stream}?after={after}", headers=by_header)
        assert connection.getresponse().read() == whole[start:], after
    connection.close()


# ── Hundreds at once ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streams", [1, 8])
async def test_400_that_come_back_at_once_each_get_exactly_their_rest(
    server: Server, caller: Caller, streams: int
) -> None:
    chance = random.Random(streams)
    message = "fake-muse-n400-ms6"
    names = [fresh_id() for _ in range(streams)]
    sessions = [caller.session() for _ in names]
    memory = server.child("chat").memory_info
    async with Reads.by(caller) as reads, asyncio.TaskGroup() as group:
        firsts = [
            group.create_task(reads.ask(*each)) for each in zip(sessions, [message] * streams, names, strict=True)
        ]
        await asyncio.sleep(0.8)
        before = memory().rss
        back = [(number % streams, chance.randrange(403)) for number in range(400)]
        rests = [group.create_task(reads.resume(names[stream], after)) for stream, after in back]
        most = before
        while not all(task.done() for task in (*firsts, *rests)):
            most = max(most, memory().rss)
            await asyncio.sleep(0.05)
    wholes = [(whole := task.result(), starts_of(whole)) for task in firsts]
    for (stream, after), task in zip(back, rests, strict=True):
        whole, starts = wholes[stream]
        assert task.result() == whole[starts[after] :]
    written = "".join(Script.of("", message).chunks(1000)[::2])
    assert [text_of(list(parse([whole]))) for whole, _ in wholes] == [written] * streams
    assert most - before < 400 * READER_BYTES_MAX


# ── By repeating the request ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 60))])
async def test_a_request_that_is_repeated_at_any_moment_begins_once_is_charged_once_and_reads_the_same(
    caller: Caller, provider: str, seed: int
) -> None:
    """While the first is still opening too, with and without an offset, and by some that hang up."""
    chance = random.Random(seed)
    stream, session, message = fresh_id(), caller.session(), f"fake-muse-n40-ms6-ttft{50 * (seed % 2)} {fresh_id()}"
    before = caller.balance()["availableCredits"]
    async with Reads.by(caller) as reads, asyncio.TaskGroup() as group:

        async def ask(pause: float, after: int | None) -> bytes:
            await asyncio.sleep(pause)
            return await reads.ask(session, message, stream, after=after)

        offsets = [None if number % 3 == 0 else chance.randrange(40) for number in range(24)]
        answers = [group.create_task(ask(chance.choice((0, 0.02, 0.4)) * chance.random(), after)) for after in offsets]
        for _ in range(8):
            group.create_task(reads.leave_early(session, message, stream, 0.3 * chance.random() ** 3))
    whole = await answers[0]
    starts = starts_of(whole)
    for after, task in zip(offsets, answers, strict=True):
        assert task.result() == whole[starts[after or 0] :]
    assert httpx2.get(f"{provider}/asked").json().count(message) == 1
    receipt, balance = caller.ended(stream)["receipt"], caller.balance()
    assert (balance["reservedCredits"], balance["availableCredits"]) == (0, receipt["balanceAfter"])
    assert receipt["chargedCredits"] == pytest.approx(before - receipt["balanceAfter"])
    assert len(caller.get(f"/api/chat/sessions/{session}/messages")["messages"]) == 2
