"""The fake deployment that the client brings for tests: it says what the real server says, and fails as told."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.clients.proof import snippet
from tests.clients.sdk import KINDS, QUICK, Kind, client_of, text_of
from tests.scripted import Script
from tests.serving import serving, upstream

from parshall.client import (
    ApiError,
    AsyncClient,
    Client,
    InsufficientCredits,
    StreamEvent,
    Tokens,
    Unreachable,
    new_id,
)
from parshall.client.testing import FakeParshall

QUESTION = "fake-n5 hello there"
ANSWER = Script.of("", QUESTION).chunks(1024)
SLOW = "fake-n400-ms20 again"
STREAM_HEADERS = ("content-type", "cache-control", "x-accel-buffering", "connection", "transfer-encoding")
Transcript = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A deployment with the user `ann`, and a way to take all credits from her."""

    url: str
    impoverish: Callable[[], None]
    elsewhere: dict[str, str] = field(default_factory=dict)
    """What the client is told beside `url`, where services are apart."""


@contextmanager
def fake_place() -> Iterator[Place]:
    slow = Script.of("", SLOW).chunks(1024)
    with FakeParshall(answers={QUESTION: ANSWER, SLOW: slow}, delay_seconds=0.02) as fake:
        yield Place(url=fake.url, impoverish=lambda: fake.set_credits(0))


@contextmanager
def real_place(home: Path) -> Iterator[Place]:
    options = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*"}
    with upstream() as url, serving(home, OPENAI_BASE_URL=url, **options) as server:
        server.customer("ann", credits=100)
        admin = server.user()
        body = {"userId": "ann", "credits": 0}
        yield Place(url=server.url, impoverish=lambda: admin.post("/api/credits/set", body), elsewhere=server.elsewhere)


def shape(document: Any) -> Any:
    """The names of members, whatever they hold."""
    return sorted(document) if isinstance(document, dict) else type(document).__name__


def shown(events: list[StreamEvent]) -> list[Any]:
    """Events as far as they are the same everywhere: chunks may come joined, and a stopped text is of any length."""
    names = [event.event for event in events]
    kinds = [name for place, name in enumerate(names) if name != "chunk" or names[place - 1] != "chunk"]
    last = events[-1].data
    return [
        kinds,
        sorted({(event.event, tuple(shape(dict(event.data)))) for event in events}),
        [event.offset for event in events] == list(range(1, len(events) + 1)),
        (last["status"], last["finishReason"], shape(last["usage"]), shape(last["receipt"])),
        (last["receipt"]["outcome"], last["receipt"]["settlement"]),
    ]


def refused(act: Callable[[], Any]) -> Any:
    with pytest.raises(ApiError) as error:
        act()
    known = error.value
    return known.status, known.code, known.reason, shape(known.problem), known.message != "", known.request_id != ""


def scenario(place: Place) -> Transcript:
    """All that a chat application does, as the client tells it."""
    seen: Transcript = {}
    with Client(place.url, retry=QUICK, **place.elsewhere) as client:
        seen["nobody"] = refused(client.balance)
        seen["wrong password"] = refused(lambda: client.login("ann", "wrong-password"))
        account = client.login("ann", "ann-password")
        seen["account"] = (account.username, account.role, len(account.id))
        seen["balance"] = client.balance()
        chat = client.create_session(title="Flumes")
        seen["chat"] = shape(client.session(chat))
        seen["nobody's chat"] = refused(lambda: client.session(32 * "0"))
        stream = client.stream(chat, QUESTION)
        seen["answer"] = (text_of(events := list(stream)), shown(events))
        receipt = stream.receipt
        assert receipt is not None
        seen["charged once"] = client.balance().total == 100 - receipt.charged == receipt.balance_after
        moved = [each for each in client.statement().items if each.streaming_session_id == stream.id]
        seen["statement"] = [(each.kind, each.debit, each.credit) for each in moved]
        seen["state"] = shape(stated(client, place, stream.id))
        seen["messages"] = [(each.role, each.content) for each in client.messages(chat)]
        seen["again"] = [event.data for event in client.resume(stream.id)] == [event.data for event in events]
        seen["rest"] = len(list(client.resume(stream.id, after=len(events))))
        seen["same id"] = text_of(list(client.stream(chat, QUESTION, stream_id=stream.id)))
        seen["other question"] = refused(lambda: list(client.stream(chat, "fake-n2", stream_id=stream.id)))
        seen["no stream"] = refused(lambda: list(client.resume(new_id())))[:2]
        seen["acknowledged"] = [
            client.acknowledge(chat, stream.id, text).comparison for text in (text_of(events), ANSWER[0], "no")
        ]
        seen["mismatch"] = refused(lambda: client.acknowledge(chat, new_id(), "text"))[:2]
        seen["cut short"] = shown(list(client.stream(chat, QUESTION, max_tokens=2)))
        running = client.stream(chat, SLOW)
        before = [next(running) for _ in range(4)]
        seen["busy"] = refused(lambda: list(client.stream(chat, QUESTION)))
        stopped = client.stop(running.id)
        seen["stopped"] = (stopped is not None and stopped.outcome, shown([*before, *running]))
        seen["sessions"] = [(each.title, each.id == chat) for each in client.sessions("flumes").items]
        seen["renamed"] = client.change_session(chat, title="Weirs").title
        seen["models"] = "fake" in [each["id"] for each in client.models()]
        seen["headers"] = headers_of(client, place, stream.id)
        place.impoverish()
        seen["no credits"] = refused(lambda: list(client.stream(chat, QUESTION)))
        client.delete_session(chat)
        seen["deleted"] = refused(lambda: client.session(chat))
        client.refresh()
        seen["renewed"] = client.profile().username
        client.logout()
        seen["logged out"] = refused(client.profile)[:2]
    return seen


def stated(client: Client, place: Place, stream_id: str) -> Any:
    assert client.tokens is not None
    headers = {"Authorization": f"Bearer {client.tokens.access}", "Accept": "application/json"}
    return httpx2.get(f"{place.url}/api/chat/streams/{stream_id}", headers=headers).json()


def headers_of(client: Client, place: Place, stream_id: str) -> Any:
    """The headers of a stream that its readers rely on, and which comes first."""
    assert client.tokens is not None
    headers = {"Authorization": f"Bearer {client.tokens.access}"}
    answer = httpx2.get(f"{place.url}/api/chat/streams/{stream_id}", headers=headers)
    first, _ = answer.headers.raw[0]
    return first.lower(), {name: answer.headers.get(name) for name in STREAM_HEADERS}


def test_the_fake_says_what_the_real_server_says(tmp_path: Path) -> None:
    with fake_place() as place:
        faked = scenario(place)
    with real_place(tmp_path) as place:
        real = scenario(place)
    assert faked.keys() == real.keys()
    for step, answer in real.items():
        assert faked[step] == answer, step
    assert real["answer"][0] == "".join(ANSWER)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.mark.parametrize("cut_after", range(8))
def test_a_cut_after_any_event_is_taken_up_by_either_client(cut_after: int) -> None:
    with FakeParshall(answers={"hi": "one two three four"}, cut_after=cut_after) as fake:
        for kind in KINDS:
            with client_of(kind, fake.url, token=fake.token) as client:
                reconnects: list[str] = []
                chat = client.create_session()
                stream = client.stream(chat, "hi", on_reconnect=lambda _, why, told=reconnects: told.append(why))
                assert text_of(list(stream)) == "one two three four"
                assert len(reconnects) == (cut_after < 7)  # seven events in all
        assert len(fake.streams) == 2


def test_an_answer_that_is_lost_whole_is_found_by_the_id(kind: Kind) -> None:
    with FakeParshall(lose_answers=1, unavailable=1) as fake, client_of(kind, fake.url, token=fake.token) as client:
        stream = client.stream(client.create_session(), "hello")
        assert text_of(list(stream)) == "This is a scripted answer."
        assert list(fake.streams) == [stream.id]


def test_a_stripped_header_leaves_the_id_in_the_first_event(kind: Kind) -> None:
    with FakeParshall(strip_header=True, cut_after=3) as fake, client_of(kind, fake.url, token=fake.token) as client:
        stream = client.stream(client.create_session(), "hello")
        assert text_of(list(stream)) == "This is a scripted answer."
        assert list(fake.streams) == [stream.id]


def test_credits_that_run_out_end_the_answer_at_the_last_paid_token(kind: Kind) -> None:
    with FakeParshall(credits=0.004) as fake, client_of(kind, fake.url, token=fake.token) as client:
        chat = client.create_session()
        last = list(client.stream(chat, "hello"))[-1]
        assert (last.data["finishReason"], last.receipt.output_tokens) == ("credit_limit", 3)
        with pytest.raises(InsufficientCredits) as short:
            list(client.stream(chat, "more"))
        assert short.value.available == client.balance().available == 0


def test_expired_tokens_are_renewed_once_for_all_who_share_the_client(kind: Kind) -> None:
    with FakeParshall() as fake, client_of(kind, fake.url) as client:
        client.login("ann", "ann-password")
        fake.expire_tokens()
        stream = client.stream(client.create_session(), "hello")
        fake.expire_tokens()
        assert list(stream)[-1].event == "done"
        assert fake.refreshes == 2


SHARERS = 12


def test_threads_renew_their_tokens_with_one_request() -> None:
    with FakeParshall() as fake, Client(fake.url, retry=QUICK) as client, ThreadPoolExecutor(SHARERS) as pool:
        client.login("ann", "ann-password")
        fake.expire_tokens()
        balances = [each.result() for each in [pool.submit(client.balance) for _ in range(SHARERS)]]
        assert (len(balances), fake.refreshes) == (SHARERS, 1)


async def test_tasks_renew_their_tokens_with_one_request_even_if_one_is_cancelled() -> None:
    with FakeParshall() as fake:
        async with AsyncClient(fake.url, retry=QUICK) as client:
            await client.login("ann", "ann-password")
            fake.expire_tokens()
            tasks = [asyncio.create_task(client.balance()) for _ in range(SHARERS)]
            while not client._going:
                await asyncio.sleep(0)
            next(iter(tasks)).cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(each).__name__ for each in done].count("CancelledError") == 1
            assert (await client.balance()).available == 100
            assert fake.refreshes == 1


async def test_a_wait_for_the_next_event_may_be_cancelled_again_and_again() -> None:
    with FakeParshall(answers={"hi": "one two three four five six"}, delay_seconds=0.05) as fake:
        async with AsyncClient(fake.url, token=fake.token, retry=QUICK) as client:
            stream = client.stream(await client.create_session(), "hi")
            events, cancelled = [], 0
            while not events or not events[-1].terminal:
                try:
                    events.append(await asyncio.wait_for(anext(stream), 0.03))
                except TimeoutError:
                    cancelled += 1
            assert text_of(events) == "one two three four five six"
            assert [event.offset for event in events] == list(range(1, len(events) + 1))
            assert cancelled > 2 and len(fake.streams) == 1
            assert [event async for event in stream] == []


def test_a_stream_that_was_closed_or_has_failed_gives_nothing_more(kind: Kind) -> None:
    with FakeParshall(credits=0.01) as fake, client_of(kind, fake.url, token=fake.token) as client:
        stream = client.stream(client.create_session(), "hi")
        assert next(stream).event == "session"
        stream.close()
        assert list(stream) == []
        fake.set_credits(0)
        refused_stream = client.stream(client.create_session(), "hi")
        with pytest.raises(InsufficientCredits):
            next(refused_stream)
        assert list(refused_stream) == []


def test_a_login_goes_on_in_another_client(kind: Kind) -> None:
    kept: list[Tokens] = []
    with FakeParshall() as fake:
        with client_of(kind, fake.url, on_refresh=kept.append) as first:
            first.login("ann", "ann-password")
            first.refresh()
        fake.expire_tokens()
        for options in ({"token": kept[-1].access}, {}):
            again = {**options, "refresh_token": kept[-1].refresh, "on_refresh": kept.append}
            with client_of(kind, fake.url, **again) as second:
                assert second.profile().username == "ann"
        assert fake.refreshes == 3 and len(kept) == 4


def test_options_of_the_connection_are_the_callers(kind: Kind) -> None:
    with FakeParshall() as fake:
        wrong_way = {"proxy": "http://127.0.0.1:1"}
        with client_of(kind, fake.url, http=wrong_way) as client, pytest.raises(Unreachable, match="no connection"):
            client.balance()
        headers = {"Authorization": f"Bearer {fake.token}"}
        with client_of(kind, fake.url, http={"headers": headers}) as client:
            assert client.balance().available == 100


def test_the_tests_that_the_page_shows_pass(tmp_path: Path) -> None:
    (tmp_path / "test_shown.py").write_text(snippet("Testing against a fake server", ""), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shown.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and "2 passed" in ran.stdout, ran.stdout + ran.stderr
