"""The Python client through kills, cuts and proxies: what it shows is what is stored, and it is charged once."""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.badproxy import ID, BadProxy, Wrong
from tests.clients.relay import relay
from tests.clients.sdk import KINDS, QUICK, Kind, client_of, text_of
from tests.faultproxy import FaultProxy
from tests.ledgers import check_ledger
from tests.replicas import WHOLE, replicas
from tests.scripted import Script
from tests.serving import Server, serving, upstream
from tests.valkey import Valkey

from parshall.client import AsyncClient, Client, Receipt, Retry, StreamEvent, StreamLost, WrongStream, new_id
from parshall.client.records import Entry

STREAMS = 10
"""At once in each round; half of them are read by threads, half by tasks. One kill meets each at another point."""
ROUND_SECONDS_MAX = 1.6
"""From the first question to the kill at the latest."""
SEED = int(os.environ.get("SEED", "1620847252"))


@dataclass
class Told:
    """What one reader was shown."""

    chat: str
    message: str
    pause: float
    stream_id: str = ""
    events: list[StreamEvent] = field(default_factory=list)
    reconnects: int = 0

    def reconnected(self, _attempt: int, _reason: str) -> None:
        self.reconnects += 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with upstream() as provider:
        options = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": provider, "OPENAI_MODELS": "fake,*"}
        with serving(home, **options) as running:
            running.customer("ann", credits=1000)
            yield running
            running.kill()
    check_ledger(home / "accounting.db")


def questions(client: Client, chance: random.Random) -> list[Told]:
    """Answers of different pace, asked for at different times: some have ended when the kill comes, some not begun."""
    return [
        Told(
            chat=client.create_session(),
            message=f"fake-n{chance.randint(3, 60)}-ms{chance.randint(1, 40)}-b9-nousage {number}",
            pause=chance.uniform(0, ROUND_SECONDS_MAX),
        )
        for number in range(STREAMS)
    ]


def access_of(client: Client) -> str:
    assert client.tokens is not None
    return client.tokens.access


def read(client: Client, told: Told) -> None:
    time.sleep(told.pause)
    stream = client.stream(told.chat, told.message, on_reconnect=told.reconnected)
    for event in stream:
        told.events.append(event)
        told.stream_id = stream.id


async def read_all(server: Server, token: str, several: list[Told]) -> None:
    async def read_one(client: AsyncClient, told: Told) -> None:
        await asyncio.sleep(told.pause)
        stream = client.stream(told.chat, told.message, on_reconnect=told.reconnected)
        async for event in stream:
            told.events.append(event)
            told.stream_id = stream.id

    async with AsyncClient(server.url, **server.elsewhere, token=token, retry=QUICK) as client:
        await asyncio.gather(*(read_one(client, told) for told in several))


def killed_while_reading(server: Server, client: Client, chance: random.Random) -> list[Told]:
    """Kill and start again once while all of them are read; the threads share one client."""
    told, token, half = questions(client, chance), access_of(client), STREAMS // 2
    with ThreadPoolExecutor(STREAMS) as pool:
        reading = [pool.submit(read, client, each) for each in told[:half]]
        reading.append(pool.submit(lambda: asyncio.run(read_all(server, token, told[half:]))))
        time.sleep(chance.uniform(ROUND_SECONDS_MAX / 2, ROUND_SECONDS_MAX))
        server.kill()
        server.start()
        client.refresh()
        for each in reading:
            each.result(110)
    return told


def check_exact(client: Client, told: Told) -> None:
    """The events are whole, their text is what is stored, and what it cost was taken once."""
    events = told.events
    assert [event.offset for event in events] == list(range(1, len(events) + 1)), told
    assert [event.event for event in events if event.terminal] == [events[-1].event]
    assert list(client.resume(told.stream_id)) == events
    said = [(each.role, each.content) for each in client.messages(told.chat)]
    assert said[0] == ("user", told.message) and len(said) <= 2, said
    assert "".join(content for role, content in said if role == "assistant") == text_of(events)
    receipt = settled(client, told.stream_id)
    charges = [each.credits for each in entries_of(client, told.stream_id) if each.kind == "charge"]
    assert charges == ([receipt.charged] if receipt.charged else [])


def entries_of(client: Client, stream_id: str) -> Iterator[Entry]:
    after: int | None = 0
    while after is not None:
        page = client.statement(after=after, limit=500)
        yield from (each for each in page.items if each.streaming_session_id == stream_id)
        after = page.next


def settled(client: Client, stream_id: str) -> Receipt:
    """A receipt that was pending when the stream ended is settled soon."""
    for _ in range(200):
        receipt = client.receipt(stream_id)
        if receipt is not None and not receipt.is_pending:
            return receipt
        time.sleep(0.05)
    raise AssertionError(f"{stream_id} is not settled")


def kill_in_rounds(server: Server, rounds: int) -> None:
    chance = random.Random(SEED)
    with Client(server.url, **server.elsewhere, retry=QUICK) as client:
        client.login("ann", "ann-password")
        before = client.balance()
        told = [each for _ in range(rounds) for each in killed_while_reading(server, client, chance)]
        for each in told:
            check_exact(client, each)
        charged = sum(settled(client, each.stream_id).charged for each in told)
        assert client.balance().total == before.total - charged, f"SEED={SEED}"
        assert client.balance().reserved == 0
        assert len({each.stream_id for each in told}) == len(told)
        assert sum(each.reconnects > 0 for each in told) >= rounds * 3, "the kills were felt"


def test_a_server_killed_at_twenty_points_leaves_readers_with_the_stored_text_charged_once(server: Server) -> None:
    kill_in_rounds(server, 2)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_server_killed_again_and_again_leaves_readers_with_the_stored_text_charged_once(server: Server) -> None:
    kill_in_rounds(server, 12)


# ── What stands in between ──────────────────────────────────────────────────────────────────────────────────────────

QUESTION = "fake-hard-n64-ms2"
CUTS = (1210, 700, 90)
"""Bytes of the body after which connections are reset, each within an event."""


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    with Client(server.url, **server.elsewhere) as client:
        client.login("ann", "ann-password")
        return access_of(client)


@pytest.fixture
def proxy(server: Server) -> Iterator[BadProxy]:
    proxy = BadProxy(server.url)
    yield proxy
    proxy.close()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def check_answered(server: Server, token: str, told: Told) -> None:
    with Client(server.url, **server.elsewhere, token=token) as direct:
        check_exact(direct, told)
    assert text_of(told.events) == Script.of("", told.message).text()


def asked(client: Any, message: str = QUESTION) -> Told:
    told = Told(chat=client.create_session(), message=message, pause=0)
    stream = client.stream(told.chat, told.message, on_reconnect=told.reconnected)
    told.events = list(stream)
    told.stream_id = stream.id
    return told


def test_connections_reset_within_events_change_nothing(server: Server, token: str, kind: Kind) -> None:
    with relay(server.port, CUTS) as cutting, client_of(kind, cutting.url, **server.elsewhere, token=token) as client:
        told = asked(client)
        assert not cutting.cuts, "every cut was met"
    assert told.reconnects == len(CUTS)
    check_answered(server, token, told)


def test_a_stripped_header_leaves_the_id_in_the_first_event(
    server: Server, token: str, kind: Kind, proxy: BadProxy
) -> None:
    url = proxy.open(Wrong(response=lambda _asked, head: head.drop(ID)))
    with client_of(kind, url, **server.elsewhere, token=token) as client:
        check_answered(server, token, asked(client))


def test_a_proposal_that_is_stripped_gives_way_to_the_id_of_the_server(
    server: Server, token: str, kind: Kind, proxy: BadProxy
) -> None:
    url = proxy.open(Wrong(request=lambda head: head.drop(ID)))
    with client_of(kind, url, **server.elsewhere, token=token) as client:
        stream = client.stream(client.create_session(), QUESTION)
        proposed = stream.id
        first = next(stream)
        assert first.data["streamingSessionId"] == stream.id != proposed
        stream.close()
        assert text_of([first, *client.resume(stream.id, after=1)]) == Script.of("", QUESTION).text()


@pytest.mark.parametrize("spoilt", ["stream-1620847252-a1b2c3d4, stream-1620847252-a1b2c3d4", "undefined"])
def test_a_spoilt_header_is_not_believed(server: Server, token: str, kind: Kind, proxy: BadProxy, spoilt: str) -> None:
    url = proxy.open(Wrong(response=lambda _asked, head: head.replace(ID, spoilt)))
    with client_of(kind, url, **server.elsewhere, token=token) as client:
        check_answered(server, token, asked(client))


def test_a_header_that_names_another_stream_is_an_error(
    server: Server, token: str, kind: Kind, proxy: BadProxy
) -> None:
    url = proxy.open(Wrong(response=lambda _asked, head: head.replace(ID, new_id())))
    given = {**server.elsewhere, "token": token}
    with client_of(kind, url, **given) as client, pytest.raises(WrongStream, match="first event"):
        asked(client)


def test_another_process_goes_on_from_id_and_offset(server: Server, token: str, kind: Kind) -> None:
    told = Told(chat="", message="fake-n60-ms10", pause=0)
    with client_of(kind, server.url, **server.elsewhere, token=token) as first:
        told.chat = first.create_session()
        stream = first.stream(told.chat, told.message)
        told.events = [next(stream) for _ in range(5)]
        kept = (stream.id, stream.offset)
        stream.close()
    with client_of(kind, server.url, **server.elsewhere, token=token) as second:
        told.stream_id = kept[0]
        told.events += second.resume(kept[0], after=kept[1])
    check_answered(server, token, told)


def test_another_process_asks_again_under_the_id_that_it_kept(server: Server, token: str, kind: Kind) -> None:
    """The first died before anything of the answer came."""
    told = Told(chat="", message="fake-n20-ms10", pause=0, stream_id=new_id())
    with FaultProxy.to(server.port) as network:
        url = network.through(server.url)
        hasty = Retry(outage_seconds_max=0.05)
        with client_of(kind, url, **server.elsewhere, token=token, retry=hasty) as first:
            told.chat = first.create_session()
            network.refuse()
            with pytest.raises(StreamLost) as lost:
                next(first.stream(told.chat, told.message, stream_id=told.stream_id))
            assert (lost.value.stream_id, lost.value.offset) == (told.stream_id, 0)
    with client_of(kind, server.url, **server.elsewhere, token=token) as second:
        told.events = list(second.stream(told.chat, told.message, stream_id=told.stream_id))
    check_answered(server, token, told)


# ── Several processes ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.one_process(WHOLE)
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_replicas_that_come_and_go_behind_a_balancer_change_nothing(
    tmp_path: Path, postgres_url: str, valkey: Valkey
) -> None:
    chance = random.Random(SEED)
    with replicas(2, tmp_path, postgres_url, valkey, LEASE_SECONDS="2") as world:
        world.customer("ann")
        for turn in range(6):
            with Client(world.url, retry=QUICK) as client, ThreadPoolExecutor(STREAMS) as pool:
                client.login("ann", "ann-password")
                several = questions(client, chance)
                reading = [pool.submit(read, client, each) for each in several]
                time.sleep(chance.uniform(ROUND_SECONDS_MAX / 2, ROUND_SECONDS_MAX))
                (world.kill if turn % 2 else world.stop)(turn % 2)
                for each in reading:
                    each.result(110)
                for told in several:
                    check_exact(client, told)
            world.start(turn % 2)
        world.check()
