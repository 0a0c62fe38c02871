"""Auth, accounting and chat as three processes: the original platform's client, and what holds when one fails."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from tests.ledgers import check_ledger
from tests.scripted import Script
from tests.serving import PARSHALL, Caller, Server, serving, stream_id_of, text_of, tokens_of, upstream

from parshall.client import Client

pytestmark = [pytest.mark.apart, pytest.mark.executed("processes are what it is about")]

SERVICES = ("auth", "accounting", "chat")
SETTLING = ("initialize", "extend", "reprice", "finalize", "abort", "void")
BODY: dict[str, Any] = {
    "sessionId": "stream-1620847252-00000001",
    "modelId": "fake",
    "estimatedTokens": 1,
    "inputTokens": 1,
    "maxOutputTokens": 1,
    "outputTokens": 1,
    "step": 1,
    "actualTokens": 0,
}
"""Right for every route of SETTLING."""
SETTINGS = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The three, whatever the tests do to them."""
    home = tmp_path_factory.mktemp("home")
    with (
        upstream() as url,
        serving(home, "--demo", split=True, OPENAI_BASE_URL=url, DRAIN_SECONDS="0.5", **SETTINGS) as running,
    ):
        yield running


@pytest.fixture
def caller(server: Server, request: pytest.FixtureRequest) -> Iterator[Caller]:
    made = server.customer(f"user{abs(hash(request.node.name)) % 10**9}")
    yield made
    made.close()


def records(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.output if line.startswith("{")]


def service_token(url: str, name: str, secret: str) -> str:
    form = {"grant_type": "client_credentials"}
    answer = httpx2.post(f"{url}/api/auth/token", data=form, auth=(name, secret))
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["access_token"]
    return token


def variable(process: psutil.Process, name: str) -> str:
    return process.environ()[f"PARSHALL_{name}"]


# ── What each service offers ────────────────────────────────────────────────────────────────────────────────────────


def test_the_python_client_and_the_chat_in_the_terminal_find_each_service(server: Server) -> None:
    places = {f"{name}_url": url for name, url in server.services.items() if name in ("auth", "accounting")}
    with Client(server.url, **places) as client:
        assert client.login("demo", "demo-password").username == "demo"
        before = client.balance().total
        stream = client.stream(client.create_session(), "fake-n3 hello")
        assert [event.event for event in stream][-1] == "done"
        assert stream.receipt is not None and client.balance().total == before - stream.receipt.charged
    options = [f"--{name.replace('_', '-')}={url}" for name, url in places.items()]
    command = [PARSHALL, "chat", "--url", server.url, *options, "-u", "demo", "--password-stdin", "fake-n3 again"]
    ran = subprocess.run(command, input="demo-password\n", capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout.strip()) == (0, Script.of("", "fake-n3").text().strip()), ran.stderr


def test_an_api_key_opens_accounting_and_chat_and_a_wrong_one_neither(server: Server, caller: Caller) -> None:
    made = caller.post("/api/auth/api-keys", {"name": "script"}, expect=201)["key"]
    caller.token = made
    assert caller.balance()["availableCredits"] == 100
    assert text_of(caller.ask(caller.session(), "fake-n5")) == Script(n=5).text()
    caller.token = made[:-4] + "0000"
    caller.get("/api/credits/balance", expect=401)
    caller.post("/api/chat/sessions", {}, expect=401)


# ── Who is believed ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_user_moves_credits_of_streams_nor_speaks_for_another(server: Server, caller: Caller) -> None:
    stream_id = stream_id_of(caller.ask(caller.session(), "fake-n5"))
    before = caller.balance()
    admin = server.user()
    for who in (caller, admin):
        for operation in SETTLING:
            who.post(f"/api/streaming-sessions/{operation}", BODY | {"sessionId": stream_id}, expect=403)
        for path in ("/api/credits/balance", "/api/chat/sessions", "/api/profile"):
            who.get(path, headers={"X-User-ID": "somebody-else"}, expect=403)
    assert caller.balance() == before


def test_services_have_secrets_of_this_run_and_no_more_rights_than_they_need(server: Server) -> None:
    auth, accounting = server.services["auth"], server.services["accounting"]
    secrets = {}
    for name in SERVICES:
        process = server.child(name)
        environment = process.environ()
        secrets[name] = environment.get("PARSHALL_SERVICE_SECRET")
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets.values() if secret)
    assert secrets["auth"] is None and secrets["accounting"] != secrets["chat"]
    assert not any(secret in line for line in server.output for secret in secrets.values() if secret)
    token = service_token(auth, "split-accounting", secrets["accounting"] or "")
    headers = {"Authorization": f"Bearer {token}", "X-User-ID": "0" * 32}
    for operation in SETTLING:
        answer = httpx2.post(f"{accounting}/api/streaming-sessions/{operation}", json=BODY, headers=headers)
        assert answer.status_code == 403
    assert httpx2.get(f"{auth}/api/admin/users", headers=headers).status_code == 200
    assert httpx2.post(f"{auth}/api/admin/users", json={}, headers=headers).status_code == 403


# ── Failure between services ────────────────────────────────────────────────────────────────────────────────────────


def test_accounting_killed_in_mid_stream_leaves_a_pending_receipt_that_is_settled_once(
    server: Server, caller: Caller
) -> None:
    session, path = caller.session(), "/api/chat/sessions/{}/stream"
    before = caller.balance()["availableCredits"]
    with caller.streaming("POST", path.format(session), {"message": "fake-n60-ms10"}) as (_, events):
        seen = [next(events) for _ in range(5)]
        accounting = server.child("accounting")
        accounting.suspend()  # first, so that it is not back before the stream has ended
        seen += list(events)
    assert (seen[-1].event, text_of(seen)) == ("done", Script(n=60).text())
    assert seen[-1].json()["receipt"]["settlement"] == "pending"
    accounting.kill()
    state = caller.ended(stream_id_of(seen))
    assert (state["receipt"]["outputTokens"], state["outcome"]) == (60, "completed")
    balance = caller.balance()
    assert before - balance["availableCredits"] == pytest.approx(state["receipt"]["chargedCredits"])
    assert balance["reservedCredits"] == 0
    entries = caller.get("/api/credits/statement?limit=500")["entries"]
    mine = [each["kind"] for each in entries if each["streamingSessionId"] == state["receipt"]["streamingSessionId"]]
    assert mine == ["reserve", "charge", "release"]
    assert any("accounting has ended (signal SIGKILL); it starts again" in line for line in server.output)


def test_a_stream_that_cannot_be_paid_for_begins_nothing_and_begins_once_it_can(server: Server, caller: Caller) -> None:
    session, stream_id = caller.session(), "stream-1620847252-00000000000000aa"
    path, headers = f"/api/chat/sessions/{session}/stream", {"X-Streaming-Session-Id": stream_id}
    server.child("accounting").kill()
    answer = caller.http.post(path, json={"message": "fake-n5"}, headers=caller.headers(headers))
    assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True), answer.text
    assert caller.get(f"/api/chat/sessions/{session}/messages")["messages"] == []
    caller.get(f"/api/chat/streams/{stream_id}", expect=404)
    assert caller.get("/health")["status"] == "ok", "chat can serve all but new streams"
    server.child("accounting")
    deadline = time.monotonic() + 30
    while answer.status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.2)
        answer = caller.http.post(path, json={"message": "fake-n5"}, headers=caller.headers(headers))
    assert answer.status_code == 200 and answer.headers["x-streaming-session-id"] == stream_id
    assert caller.balance()["reservedCredits"] == 0
    assert len(caller.get(f"/api/chat/sessions/{session}/messages")["messages"]) == 2


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_without_auth_those_who_are_logged_in_go_on(server: Server, caller: Caller, how: str) -> None:
    session = caller.session()
    caller.ask(session, "fake-n1")
    auth = server.child("auth")
    auth.suspend() if how == "hangs" else auth.kill()
    try:
        assert text_of(caller.ask(session, "fake-n5")) == Script(n=5).text()
        assert caller.balance()["reservedCredits"] == 0
    finally:
        if how == "hangs":
            auth.resume()
    deadline = time.monotonic() + 30
    while True:
        try:
            server.user().close()
            return
        except httpx2.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.soak
def test_when_everything_is_killed_at_once_the_next_start_settles_what_ran(tmp_path: Path) -> None:
    """kill -9 of the parent alone: its children end by themselves. Then of all of them, in mid-stream."""
    with upstream() as url, serving(tmp_path, split=True, OPENAI_BASE_URL=url, **SETTINGS) as server:
        server.customer("alice").close()
        for alone in (True, False):
            caller = server.user("alice", "alice-password")
            session, children = caller.session(), [server.child(name) for name in SERVICES]
            path = f"/api/chat/sessions/{session}/stream"
            with caller.streaming("POST", path, {"message": "fake-n900-ms10"}) as (_, events):
                stream_id = stream_id_of([next(events)])
                next(events)
                assert server.process is not None
                if alone:
                    server.process.kill()
                    server.process.wait()
                    assert psutil.wait_procs(children, timeout=20)[1] == []
                else:
                    server.kill()
            server.start()
            caller = server.user("alice", "alice-password")
            receipt = caller.ended(stream_id)["receipt"]
            assert (receipt["outcome"], receipt["settlement"]) == ("interrupted", "settled")
            assert receipt["outputTokens"] == tokens_of(caller.resume(stream_id))
            assert caller.balance()["reservedCredits"] == 0
        assert server.stop()[0] == 0
    check_ledger(tmp_path / "accounting.db")


@pytest.mark.soak
def test_accounting_dies_again_and_again_and_every_stream_is_charged_once(tmp_path: Path) -> None:
    with upstream() as url, serving(tmp_path, split=True, OPENAI_BASE_URL=url, **SETTINGS) as server:
        caller = server.customer("alice", credits=1000)
        sessions, over = [caller.session() for _ in range(8)], threading.Event()
        ended: list[str] = []

        def ask(session: str) -> None:
            own = Caller(server.url, services=server.services)
            own.token = caller.token
            while not over.is_set():
                path = f"/api/chat/sessions/{session}/stream"
                with own.http.stream("POST", path, json={"message": "fake-n40-ms10"}, headers=own.headers()) as answer:
                    answer.read()
                    assert answer.status_code in (200, 503), answer.text
                    if answer.status_code == 200:
                        ended.append(answer.headers["x-streaming-session-id"])
                time.sleep(0.05)
            own.close()

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask, session) for session in sessions]
            for pause in (2, 3, 5, 4):
                time.sleep(pause)
                server.child("accounting").kill()
            time.sleep(5)
            over.set()
            for each in asking:
                each.result()
        charged = sum(caller.ended(stream_id)["receipt"]["chargedCredits"] for stream_id in ended)
        balance = caller.balance()
        assert len(ended) > 16
        assert 1000 - balance["totalCredits"] == pytest.approx(charged)
        server.stop()
    check_ledger(tmp_path / "accounting.db")


# ── Start and stop ─────────────────────────────────────────────────────────────────────────────────────────────


def run(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PARSHALL_")}
    environment |= {"PARSHALL_HOME_DIR": str(tmp_path)} | {f"PARSHALL_{name}": each for name, each in variables.items()}
    return subprocess.run(
        [str(PARSHALL), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_second_deployment_of_the_same_folder_leaves_the_first_alone(server: Server, caller: Caller) -> None:
    refused = run(server.home, "up", "--split", AUTH_PORT="0", ACCOUNTING_PORT="0", CHAT_PORT="0")
    assert refused.returncode == 1 and "Another Parshall already serves the data folder" in refused.stderr
    assert text_of(caller.ask(caller.session(), "fake-n2")) == Script(n=2).text()


def test_a_stop_ends_chat_first_so_that_its_streams_are_settled(server: Server, caller: Caller) -> None:
    """The last test of all that need the server."""
    session, children = caller.session(), [server.child(name) for name in SERVICES]
    body = {"message": "fake-n900-ms10"}
    with caller.streaming("POST", f"/api/chat/sessions/{session}/stream", body) as (_, events):
        seen = [next(events) for _ in range(5)]
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        seen += list(events)
    receipt = seen[-1].json()["receipt"]
    assert (receipt["outcome"], receipt["settlement"]) == ("interrupted", "settled")
    assert receipt["outputTokens"] == tokens_of(seen)
    assert server.process.wait(30) == 0
    assert not any(child.is_running() for child in children)
    check_ledger(server.home / "accounting.db")
