"""The limits on requests and on streams at once, from a real process and over a real port."""

import itertools
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.serving import ADMIN_PASSWORD, Caller, Server, serving, upstream
from tests.valkey import Valkey

ORIGIN = "https://chat.example.org"
REQUESTS = 25
ANONYMOUS = 60
STREAMS = 3
LONG = "fake-n900-ms20"
NAMES = (f"limits{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture
def settings(scripted: str) -> dict[str, str]:
    return {
        "EMBEDDED_MODEL": "off",
        "OPENAI_BASE_URL": scripted,
        "OPENAI_MODELS": "fake,*",
        "ALLOWED_ORIGINS": ORIGIN,
    }


# ── Requests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_many_requests_at_once_a_user_gets_no_more_than_may_be(settings: dict[str, str], tmp_path: Path) -> None:
    with serving(tmp_path, **settings, REQUESTS_PER_MINUTE=str(REQUESTS)) as server:
        caller, other = server.customer(next(NAMES)), server.customer(next(NAMES))
        session = caller.session()  # the first request that counts
        with caller.streaming("POST", f"/api/chat/sessions/{session}/stream", {"message": "fake-n3"}) as (answer, _):
            names = [name for name, _ in answer.headers.multi_items()]
            assert names[0].lower() == "x-streaming-session-id"
            assert answer.headers["RateLimit-Policy"] == f'"user";q={REQUESTS};w=60'
            assert answer.headers["RateLimit"].startswith(f'"user";r={REQUESTS - 2};t=')

        def look(_: int) -> httpx2.Response:
            return caller.http.get("/api/chat/sessions", headers=caller.headers({"Origin": ORIGIN}))

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(look, range(2 * REQUESTS)))
        assert Counter(a.status_code for a in answers) == {200: REQUESTS - 2, 429: REQUESTS + 2}
        assert_refusal(next(answer for answer in answers if answer.status_code == 429))
        other.get("/api/chat/sessions")
        for path in ("/health", "/api/health"):
            healthy = caller.http.get(path, headers=caller.headers())
            assert healthy.status_code == 200 and "RateLimit" not in healthy.headers


def assert_refusal(answer: httpx2.Response) -> None:
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["error"], problem["status"]) == ("rate_limited", "RATE_LIMITED", 429)
    seconds = int(answer.headers["Retry-After"])
    assert 1 <= seconds <= 60
    assert answer.headers["RateLimit"] == f'"user";r=0;t={seconds}'
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"Retry-After", "RateLimit", "RateLimit-Policy"} <= {*exposed}
    assert problem["requestId"] == answer.headers["X-Request-Id"]


def elsewhere() -> httpx2.Client:
    """Callers of another address than the services', which ask each other for tokens."""
    return httpx2.Client(timeout=30, transport=httpx2.HTTPTransport(local_address="127.0.0.2"))


def test_callers_without_a_token_are_counted_by_address_and_watchers_never(
    settings: dict[str, str], tmp_path: Path
) -> None:
    with serving(tmp_path, **settings, ANONYMOUS_REQUESTS_PER_MINUTE="2") as server:
        url = server.services.get("auth", server.url)  # each service counts its own
        with elsewhere() as http:
            answers = [http.get(f"{url}/api/version") for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200, 200, 429]
            login = http.post(f"{url}/api/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD})
            assert login.status_code == 429
            assert http.get(f"{url}/health").status_code == 200
            asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
            assert http.options(f"{url}/api/version", headers=asked).status_code == 204


def test_replicas_count_together_and_without_their_store_they_refuse_nobody(
    settings: dict[str, str], tmp_path: Path
) -> None:
    with Valkey.start(durable=False) as store:
        shared = settings | {"ANONYMOUS_REQUESTS_PER_MINUTE": str(ANONYMOUS), "LIMITS_URL": store.url}
        with (
            serving(tmp_path / "a", **shared) as one,
            serving(tmp_path / "b", **shared) as two,
            elsewhere() as http,
        ):

            def look(number: int) -> int:
                return http.get(f"{(one, two)[number % 2].url}/api/version").status_code

            with ThreadPoolExecutor(8) as pool:
                assert Counter(pool.map(look, range(2 * ANONYMOUS))) == {200: ANONYMOUS, 429: ANONYMOUS}
                store.kill()
                assert Counter(pool.map(look, range(ANONYMOUS))) == {200: ANONYMOUS}
                store.restart()
                for server in (one, two):
                    assert_counts_again(server)
            for server in (one, two):
                assert sum("limits_store_away" in line for line in server.output) == 1
                assert "Traceback" not in "".join(server.output)


def assert_counts_again(server: Server, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while "RateLimit" not in httpx2.get(f"{server.url}/api/version").headers:
        assert time.monotonic() < deadline
        time.sleep(0.5)


# ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server(settings: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    limits = {"MAX_STREAMS_PER_USER": str(STREAMS), "MAX_STREAMS": str(STREAMS + 1)}
    with serving(tmp_path, **settings, **limits) as running:
        yield running


def begin(caller: Caller, session: str, message: str = LONG) -> tuple[int, Any]:
    """Ask, read the headers and at most the refusal, and hang up."""
    path = f"/api/chat/sessions/{session}/stream"
    with caller.http.stream("POST", path, json={"message": message}, headers=caller.headers()) as answer:
        if answer.status_code == 200:
            return 200, answer.headers["X-Streaming-Session-Id"]
        answer.read()
        return answer.status_code, answer


def test_of_ten_parallel_requests_as_many_streams_begin_as_may_and_the_rest_hold_nothing(server: Server) -> None:
    caller = server.customer(next(NAMES))
    sessions = [caller.session() for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda session: begin(caller, session), sessions))
    begun = [stream_id for status, stream_id in answers if status == 200]
    refused = [answer for status, answer in answers if status != 200]
    assert len(begun) == STREAMS
    for answer in refused:
        problem = answer.json()
        assert (problem["status"], problem["code"], problem["scope"]) == (429, "too_many_streams", "user")
        assert problem["limit"] == STREAMS and int(answer.headers["Retry-After"]) >= 1
    assert len(caller.get("/api/streaming-sessions/active")) == STREAMS
    stored = [bool(caller.get(f"/api/chat/sessions/{session}")["messages"]) for session in sessions]
    assert stored == [status == 200 for status, _ in answers]
    assert_deployment_is_full_after_one_more(server)
    for stream_id in begun:
        caller.post(f"/api/chat/streams/{stream_id}/stop")
    assert [begin(caller, session)[0] for session in sessions[:STREAMS]] == [200] * STREAMS


def assert_deployment_is_full_after_one_more(server: Server) -> None:
    other = server.customer(next(NAMES))
    assert begin(other, other.session())[0] == 200
    status, answer = begin(other, other.session())
    assert (status, answer.json()["scope"]) == (429, "deployment")


def test_one_after_another_fits_into_a_limit_of_one_however_each_ends(settings: dict[str, str], tmp_path: Path) -> None:
    with serving(tmp_path, **settings, MAX_STREAMS_PER_USER="1") as server:
        caller = server.customer(next(NAMES))
        for message in ("fake-n3", "fake-n9-die4", "fake-n0", "fake-status500", "fake-n2") * 3:
            assert caller.ask(caller.session(), message)[-1].event in ("done", "error")
        poor = server.customer(next(NAMES), credits=0)
        for _ in range(3):
            assert begin(poor, poor.session())[0] == 402
        answer = caller.post(f"/api/chat/sessions/{caller.session()}/messages", {"message": "fake-n2"})
        assert answer["finishReason"] == "stop"


def test_a_client_that_goes_before_the_first_event_leaves_no_slot_taken(server: Server) -> None:
    caller = server.customer(next(NAMES))
    for _ in range(2 * STREAMS):
        content = json.dumps({"message": "fake-ttft50-n1"}).encode()
        head = (
            f"POST /api/chat/sessions/{caller.session()}/stream HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {caller.token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(head.encode() + content)
        time.sleep(0.2)
    assert caller.ask(caller.session(), "fake-n1")[-1].event == "done"


def test_after_kill_9_no_stream_of_before_takes_a_slot(server: Server) -> None:
    caller = server.customer(next(NAMES))
    for _ in range(STREAMS):
        assert begin(caller, caller.session())[0] == 200
    assert begin(caller, caller.session())[0] == 429
    server.kill()
    server.start()
    assert begin(caller, caller.session())[0] == 200
