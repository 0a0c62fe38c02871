"""What lies between auth, accounting and chat: a network that breaks, services that freeze, deadlines and traces."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from tests.ledgers import check_ledger
from tests.scripted import Script
from tests.services import Services, services
from tests.serving import Caller, stream_id_of, text_of

from parshall.kernel.deadlines import WITHIN_HEADER

pytestmark = pytest.mark.apart
AWAY_SECONDS_MAX = 10.0
"""Within which a stream is refused where accounting is silent."""
GIVEN_BACK_SECONDS_MAX = 30.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    home = tmp_path_factory.mktemp("home")
    with services(home, DRAIN_SECONDS="0.5") as made:
        yield made
        for server in reversed(made.all):
            assert server.stop()[0] == 0
            assert not [line for line in server.output if "request_failed" in line or "Traceback" in line]
    check_ledger(home / "accounting.db")


@pytest.fixture
def caller(world: Services, request: pytest.FixtureRequest) -> Iterator[Caller]:
    made = world.chat.customer(f"user{abs(hash(request.node.name)) % 10**9}", credits=1000)
    yield made
    made.close()


@contextlib.contextmanager
def accounting(world: Services, how: str) -> Iterator[None]:
    """Accounting is silent for chat, and then goes on with all that it was sent."""
    process = world.accounting.child("accounting")
    process.suspend() if how == "frozen" else world.to_accounting.blackhole()
    try:
        yield
    finally:
        process.resume()
        world.to_accounting.heal()


def kinds(caller: Caller, stream_id: str) -> list[str]:
    """The movements of a stream, in order."""
    entries = caller.get("/api/credits/statement?limit=500")["entries"]
    return [each["kind"] for each in entries if each["streamingSessionId"] == stream_id]


# ── Accounting ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["frozen", "blackholed"])
def test_a_stream_under_which_accounting_falls_silent_ends_as_ever_and_is_settled_once(
    world: Services, caller: Caller, how: str
) -> None:
    before, session = caller.balance()["availableCredits"], caller.session()
    with caller.streaming("POST", f"/api/chat/sessions/{session}/stream", {"message": "fake-n40-ms10"}) as (_, events):
        seen = [next(events) for _ in range(5)]
        with accounting(world, how):
            seen += list(events)
    assert (seen[-1].event, text_of(seen)) == ("done", Script(n=40).text())
    assert seen[-1].json()["receipt"]["settlement"] == "pending"
    receipt = caller.ended(stream_id_of(seen))["receipt"]
    balance = caller.balance()
    assert before - balance["availableCredits"] == pytest.approx(receipt["chargedCredits"]) != 0
    assert balance["reservedCredits"] == 0
    assert kinds(caller, stream_id_of(seen)) == ["reserve", "charge", "release"]


def test_what_accounting_reserves_once_it_thaws_is_given_back_and_nothing_was_begun(
    world: Services, caller: Caller
) -> None:
    """What it had been sent is done then, for a caller who was told long ago that nothing came of it."""
    session = caller.session()
    path = f"/api/chat/sessions/{session}/stream"
    with accounting(world, "frozen"):
        began = time.monotonic()
        answer = caller.http.post(path, json={"message": "fake-n5"}, headers=caller.headers())
        assert time.monotonic() - began < AWAY_SECONDS_MAX
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
        assert "x-streaming-session-id" not in answer.headers
        assert caller.get(f"/api/chat/sessions/{session}/messages")["messages"] == []
    deadline = time.monotonic() + GIVEN_BACK_SECONDS_MAX
    while not (entries := caller.get("/api/credits/statement?limit=500")["entries"][1:]) or len(entries) % 2:
        assert time.monotonic() < deadline, entries
        time.sleep(0.1)
    assert [each["kind"] for each in entries] == ["reserve", "release"]
    assert caller.balance()["availableCredits"] == 1000
    assert text_of(caller.ask(session, "fake-n5")) == Script(n=5).text(), "the chat session is free"


def test_whatever_answers_are_lost_a_repetition_reserves_and_charges_nothing_more(
    world: Services, caller: Caller
) -> None:
    """Connections between the two are reset all the time, in the middle of what they carry."""
    over, sessions = threading.Event(), [caller.session() for _ in range(4)]

    def break_it() -> None:
        while not over.wait(0.15):
            world.to_accounting.reset()

    def ask(number: int) -> str:
        stream_id = f"stream-1620847252-{number:016x}"
        headers = caller.headers({"X-Streaming-Session-Id": stream_id})
        path, body = f"/api/chat/sessions/{sessions[number]}/stream", {"message": "fake-n300-ms4"}
        while (answer := caller.http.post(path, json=body, headers=headers)).status_code == 503:
            time.sleep(0.1)
        assert answer.status_code == 200 and "event: done" in answer.text, answer.text[-500:]
        return stream_id

    world.to_accounting.slow(0.02, jitter=0.02)
    with ThreadPoolExecutor() as pool:
        breaking = pool.submit(break_it)
        try:
            asked = list(pool.map(ask, range(4)))
        finally:
            over.set()
            breaking.result()
            world.to_accounting.heal()
    assert any("peer_lost" in line for line in world.chat.output)
    charged = 0.0
    for stream_id in asked:
        receipt = caller.ended(stream_id)["receipt"]
        charged += receipt["chargedCredits"]
        assert receipt["uncollectedCredits"] == 0
        moved = kinds(caller, stream_id)
        assert moved == ["reserve"] * 4 + ["charge", "release"], "one a slice, and one end"
    assert caller.balance()["availableCredits"] == pytest.approx(1000 - charged)
    assert caller.balance()["reservedCredits"] == 0


# ── Auth ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.soak
def test_without_auth_tokens_of_a_key_that_has_just_begun_to_sign_go_on_too(world: Services, caller: Caller) -> None:
    """A key is known everywhere before it signs, for it is published a minute before."""

    def signer() -> str:
        caller.login(name, f"{name}-password")
        return caller.token.partition(".")[0]

    name = caller.get("/api/profile")["user"]["username"]
    first, old, session = signer(), caller.token, caller.session()
    world.auth.run("signing-keys", "rotate")
    deadline = time.monotonic() + 90
    while signer() == first:
        assert time.monotonic() < deadline
        caller.token = old
        assert caller.balance() and caller.session()
        time.sleep(1)
    world.to_auth.refuse()
    try:
        for token in (caller.token, old):
            caller.token = token
            assert text_of(caller.ask(session, "fake-n5")) == Script(n=5).text()
            assert caller.balance()["reservedCredits"] == 0
    finally:
        world.to_auth.heal()


def test_nobody_works_on_for_a_caller_that_waits_no_more(world: Services) -> None:
    """Accounting asks auth who somebody is, and auth is silent: it gives up when its own caller does."""
    token = service_token(world)
    headers = {"Authorization": f"Bearer {token}", "X-User-ID": "somebody", WITHIN_HEADER: "0.5"}
    body = {"sessionId": "stream-1620847252-00000001", "modelId": "fake", "estimatedTokens": 1}
    url = f"{world.accounting.url}/api/streaming-sessions/initialize"
    assert httpx2.post(url, json=body, headers=headers).status_code == 404, "auth knows nobody of that name"
    headers["X-User-ID"] = "somebody-else"  # whom accounting has not asked for yet
    world.to_auth.blackhole()
    try:
        began = time.monotonic()
        answer = httpx2.post(url, json=body, headers=headers)
        took = time.monotonic() - began
    finally:
        world.to_auth.heal()
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert 0.4 < took < 1.5


def service_token(world: Services) -> str:
    answer = httpx2.post(
        world.auth.at("/api/auth/token"),
        data={"grant_type": "client_credentials"},
        auth=("chat", world.chat.settings["SERVICE_SECRET"]),
    )
    token: str = answer.json()["access_token"]
    return token


# ── One story ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_trace_leads_from_the_client_through_every_service_to_the_provider(world: Services, caller: Caller) -> None:
    """The client has an API key, so that auth is asked as well."""
    trace_id, session = "0af7651916cd43dd8448eb211c80319c", caller.session()
    key = caller.post("/api/auth/api-keys", {"name": "traced"}, expect=201)["key"]
    with_key = world.chat.caller(key)
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "X-Request-Id": "asked-by-a-test"}
    stream_id = stream_id_of(with_key.ask(session, "fake-n5", headers=headers))
    with_key.close()
    caller.ended(stream_id)
    wanted = {
        *(("auth", "token"), ("accounting", "initialize"), ("accounting", "finalize")),
        ("chat", "stream"),
    }
    deadline = time.monotonic() + 10
    while not wanted <= {(each["service"], each["path"].rpartition("/")[2]) for each in traced(world, trace_id)}:
        assert time.monotonic() < deadline, traced(world, trace_id)
        time.sleep(0.05)
    assert {each["request_id"] for each in traced(world, trace_id)} == {"asked-by-a-test"}
    assert {each.get("stream") for each in traced(world, trace_id) if each["service"] == "accounting"} == {stream_id}
    traces = [each.split("-") for each in httpx2.get(f"{world.model}/traces").json()]
    assert [each[3] for each in traces if each[1] == trace_id] == ["01"]
    assert all(len(each) == 4 for each in traces)


def traced(world: Services, trace_id: str) -> list[dict[str, Any]]:
    """The requests of a trace, as all services logged them."""
    lines = [json.loads(line) for server in world.all for line in server.output if line.startswith("{")]
    return [line for line in lines if line.get("trace") == trace_id and line["event"] == "request"]
