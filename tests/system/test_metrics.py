"""`GET /metrics` of a running server: what happened is what is told, to those who may know, in bounded series."""

import http.client
import random
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from tests.nginx import binary, nginx
from tests.scraping import TOKEN, Scraped, scrape
from tests.serving import Caller, Server, serving, stream_id_of, upstream

from parshall.chat.mismatch import Reason
from parshall.kernel.ids import new_stream_id

SETTINGS = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*", "METRICS_TOKEN": TOKEN, "PROVIDER_RETRIES": "1"}
STREAM_ROUTE = "/api/chat/sessions/{session_id}/stream"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with upstream() as url, serving(tmp_path_factory.mktemp("home"), OPENAI_BASE_URL=url, **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def alice(server: Server) -> Caller:
    return server.customer("alice", credits=1000)


def until(what: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rise(before: Scraped, after: Scraped, name: str, **labels: str) -> float:
    return after.sum(name, **labels) - before.sum(name, **labels)


# ── Who may ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_token_and_administrators_scrape_and_nobody_else(server: Server, alice: Caller) -> None:
    def status(token: str, **headers: str) -> int:
        given = {"Authorization": f"Bearer {token}".encode("latin-1")} if token else {}
        more = {name: value.encode() for name, value in headers.items()}
        return httpx2.get(f"{server.url}/metrics", headers=given | more).status_code

    assert [status(""), status(TOKEN[:-1]), status(TOKEN + "0"), status("ä")] == [401] * 4
    assert status("", **{"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"}) == 401
    assert status(alice.token) == 403
    assert [status(TOKEN), status(server.user().token)] == [200, 200]
    key = alice.post("/api/auth/api-keys", {"name": "key"}, expect=201)["key"]
    assert status(key) == 403
    assert not [line for line in server.output if TOKEN in line]


def test_a_scraper_chooses_the_format_and_is_not_counted_among_callers(server: Server) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    plain = httpx2.get(f"{server.url}/metrics", headers=headers)
    open_metrics = httpx2.get(
        f"{server.url}/metrics", headers=headers | {"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=")
    assert open_metrics.text.endswith("# EOF\n")
    assert "ratelimit" not in plain.headers
    assert httpx2.post(f"{server.url}/metrics", headers=headers).status_code == 405


@pytest.mark.skipif(binary() is None, reason="nginx is not there: the committed configuration is NOT tested")
def test_outside_of_the_committed_nginx_there_are_no_metrics_however_they_are_called(
    server: Server, tmp_path: Path
) -> None:
    with nginx(tmp_path, server.url, {}) as front:
        address = front.urls["right"].removeprefix("https://")
        host, _, port = address.partition(":")
        trusted = ssl.create_default_context(cafile=front.ca_file)
        answers = {}
        for path in ("/metrics", "//metrics", "/%6Detrics", "/x/../metrics", "/metrics?a=b", "/metrics/", "/health"):
            connection = http.client.HTTPSConnection(host, int(port), context=trusted, timeout=10)
            connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
            answer = connection.getresponse()
            answers[path] = (answer.status, b"parshall_" in answer.read())
            connection.close()
    assert answers.pop("/health") == (200, False)
    assert set(answers.values()) == {(404, False)}, answers


# ── What happened ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_metrics_state_what_a_stream_did_as_its_receipt_does(server: Server, alice: Caller) -> None:
    session, before, held = alice.session(), scrape(*server.urls), alice.balance()
    events = alice.ask(session, "fake-n40-muse", modelId="fake")
    receipt, after = alice.ended(stream_id_of(events))["receipt"], scrape(*server.urls)
    told = {"input": "inputTokens", "cached_input": "cachedInputTokens", "output": "outputTokens"}
    for direction, name in (told | {"reasoning": "reasoningTokens"}).items():
        risen = rise(before, after, "parshall_tokens_total", model="fake", direction=direction)
        assert risen == receipt[name] > 0, direction
    assert rise(before, after, "parshall_streams_ended_total") == 1
    assert rise(before, after, "parshall_streams_ended_total", outcome="completed") == 1
    assert rise(before, after, "parshall_first_token_seconds_count", model="fake") == 1
    assert rise(before, after, "parshall_stream_seconds_count") == 1
    assert rise(before, after, "parshall_log_append_seconds_count") >= 1, "the opening, and one append in eight"
    credits = {
        name: rise(before, after, f"parshall_credits_{name}_total")
        for name in ("reserved", "settled", "returned", "voided")
    }
    assert credits["settled"] == pytest.approx(receipt["chargedCredits"])
    assert credits["settled"] == pytest.approx(held["availableCredits"] - alice.balance()["availableCredits"])
    assert credits["reserved"] == pytest.approx(receipt["reservedCredits"])
    assert credits["reserved"] == pytest.approx(credits["settled"] + credits["returned"] + credits["voided"])
    service = "chat" if server.split else "parshall"
    route = {"service": service, "route": STREAM_ROUTE, "method": "POST", "status": "200"}
    assert rise(before, after, "parshall_http_requests_total", **route) == 1
    assert rise(before, after, "parshall_http_request_seconds_count", route=STREAM_ROUTE) == 1


def test_streams_and_readers_are_open_while_they_run(server: Server, alice: Caller) -> None:
    path = f"/api/chat/sessions/{alice.session()}/stream"
    with alice.streaming("POST", path, {"message": "fake-n900-ms10"}) as (_, events):
        stream_id = stream_id_of([next(events)])
        now = scrape(server.url)
        assert now.sum("parshall_open_streams") == now.sum("parshall_open_readers") == 1
        server.user("alice", "alice-password").post(f"/api/chat/streams/{stream_id}/stop")
        assert [event.event for event in events][-1] == "done"
    until(lambda: scrape(server.url).sum("parshall_open_readers") == 0)
    assert scrape(server.url).sum("parshall_open_streams") == 0


def test_a_provider_that_fails_is_counted_at_each_try_by_its_kind(server: Server, alice: Caller) -> None:
    before = scrape(server.url)
    alice.ask(alice.session(), "fake-n20-die5")
    alice.ask(alice.session(), "fake-status503")
    after = scrape(server.url)
    name = "parshall_provider_errors_total"
    assert rise(before, after, name, provider="openai", kind="provider_cut") == 1
    assert rise(before, after, name, provider="openai", kind="provider_busy") == 2, "it was asked again once"
    assert rise(before, after, "parshall_streams_ended_total", outcome="provider_error") == 2


def test_every_refused_id_is_counted_once_under_its_reason(server: Server, alice: Caller) -> None:
    session, other = alice.session(), alice.session()
    stream_id = stream_id_of(alice.ask(other, "fake-n1"))
    now = int(time.time())
    named = {
        Reason.MALFORMED: stream_id.upper(),
        Reason.NOT_RECEIVED: "undefined",
        Reason.MADE_UP: "stream_1700000000",
        Reason.UNKNOWN: new_stream_id(at=now * 1_000_000),
        Reason.OTHER_CHAT_SESSION: stream_id,
        Reason.OLDER_THAN_RETENTION: "stream-1620847252-00000000000000b7",
    }
    for reason, sent in named.items():
        before = scrape(server.url)
        body = {"completeResponse": "", "streamingSessionId": sent, "tokensUsed": 1}
        refused = alice.post(f"/api/chat/sessions/{session}/update-stream", body, expect=400)
        assert refused["reason"] == reason
        after = scrape(server.url)
        assert rise(before, after, "parshall_stream_id_refusals_total", reason=reason.value) == 1
        assert rise(before, after, "parshall_stream_id_refusals_total") == 1, reason
    before = scrape(server.url)
    alice.get(f"/api/chat/streams/{named[Reason.UNKNOWN]}", expect=404)
    alice.get(f"/api/chat/streams/{named[Reason.MADE_UP]}", expect=400)
    path, headers = f"/api/chat/sessions/{session}/stream", {"X-Streaming-Session-Id": "null"}
    alice.post(path, {"message": "fake-n1"}, headers=headers, expect=400)
    after = scrape(server.url)
    assert rise(before, after, "parshall_stream_id_refusals_total") == 3
    assert after.labels("parshall_stream_id_refusals_total", "reason") == set(Reason)


# ── Bounds ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_hostile_clients_send_makes_no_series(server: Server, alice: Caller) -> None:
    chance = random.Random(7)
    names = [f"{chance.getrandbits(64):x}" for _ in range(25)]

    def attack(name: str) -> None:
        alice.http.get(f"/{name}")
        alice.http.get(f"/api/chat/sessions/{name}", headers=alice.headers())
        alice.http.get(f"/api/chat/streams/{name}", headers=alice.headers())
        alice.http.get(f"/documentation/{name}")
        alice.http.request(name.upper(), "/health")
        alice.http.options("/api/models", headers={"Origin": name, "Access-Control-Request-Method": name})
        alice.http.post(alice.at("/api/auth/refresh"), json={"refreshToken": name})

    attack(names[0])
    alice.ask(alice.session(), "fake-n1", modelId=names[0])
    known = set(scrape(server.url).samples)
    for name in names:
        attack(name)
    for name in names[:3]:
        alice.ask(alice.session(), "fake-n1", modelId=name)
    after = scrape(server.url)
    assert set(after.samples) - known == set()
    assert {"fake", "other"} >= after.labels("parshall_tokens_total", "model")
    assert after.labels("parshall_http_requests_total", "method") <= {
        "GET",
        "POST",
        "OPTIONS",
        "PUT",
        "DELETE",
        "other",
    }
