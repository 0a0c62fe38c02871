"""Laws of the client's stream: whatever the network does, each event arrives exactly once and nothing starts twice."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from http.server import ThreadingHTTPServer

import pytest
from scripted_deployment import (
    DATA,
    FRAMES,
    RECEIPT,
    Deployment,
    Exchange,
    listening,
    problem,
    reply,
    send_stream,
    serve,
    vanish,
    vanish_after_starting,
)

from parshall.client import ApiError, Client, ClientError, Retry, StreamEvent, StreamLost, Unreachable
from parshall.kernel.ids import parse_stream_id
from parshall.kernel.sse import GOODBYE, PING, frame

QUICK = Retry(pause_seconds_min=0.001, pause_seconds_max=0.01, outage_seconds_max=5)


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with listening() as shared:
        yield shared


def read(deployment: Deployment, *, retry: Retry = QUICK) -> list[StreamEvent]:
    with Client(deployment.url, token="t", retry=retry) as client:
        return list(client.stream("s", "hello"))


def assert_complete(events: list[StreamEvent]) -> None:
    named = {"streamingSessionId": events[0].data["streamingSessionId"]}
    assert [(event.event, dict(event.data)) for event in events] == [("session", named), *DATA[1:]]
    assert [event.offset for event in events] == list(range(1, len(DATA) + 1))


def test_an_undisturbed_stream_is_one_request(deployment: Deployment) -> None:
    assert_complete(read(deployment))
    ((method, path, headers),) = deployment.requests
    assert (method, path) == ("POST", "/api/chat/sessions/s/stream")
    assert headers["authorization"] == "Bearer t"
    assert [parse_stream_id(headers["x-streaming-session-id"])] == deployment.started


@pytest.mark.parametrize("chunked", [True, False], ids=["visibly", "silently"])
def test_a_cut_after_any_number_of_events_loses_and_repeats_nothing(deployment: Deployment, chunked: bool) -> None:
    for events in range(len(FRAMES)):
        deployment.requests.clear()
        deployment.script[:] = [serve(cut_bytes=sum(map(len, FRAMES[:events])), chunked=chunked)]
        assert_complete(read(deployment))
        (_, (method, _, headers)) = deployment.requests
        assert (method, headers.get("last-event-id", "0")) == ("GET", str(events))


def test_a_cut_inside_an_event_loses_and_repeats_nothing(deployment: Deployment) -> None:
    for count in range(1, len(b"".join(FRAMES)), 11):
        deployment.script[:] = [serve(cut_bytes=count)]
        assert_complete(read(deployment))


def test_a_cut_at_every_event_in_a_row_loses_and_repeats_nothing(deployment: Deployment) -> None:
    deployment.script[:] = [serve(cut_bytes=len(one)) for one in FRAMES[:-1]]
    assert_complete(read(deployment))
    assert len(deployment.started) == 1


def test_progress_renews_the_patience(deployment: Deployment) -> None:
    deployment.script[:] = [serve(cut_bytes=len(one)) for one in FRAMES[:-1]]
    attempts: list[int] = []
    with Client(deployment.url, token="t", retry=QUICK) as client:
        list(client.stream("s", "hello", on_reconnect=lambda attempt, _reason: attempts.append(attempt)))
    assert attempts == [1] * (len(FRAMES) - 1)


def test_events_that_the_server_repeats_are_delivered_once(deployment: Deployment) -> None:
    deployment.script[:] = [serve(cut_bytes=sum(map(len, FRAMES[:4]))), serve(again=3)]
    assert_complete(read(deployment))
    assert len(deployment.requests) == 2


def test_a_gap_is_never_delivered_but_asked_for_again(deployment: Deployment) -> None:
    deployment.script[:] = [serve(cut_bytes=sum(map(len, FRAMES[:2]))), serve(again=-2)]
    assert_complete(read(deployment))
    assert [headers.get("last-event-id") for _, _, headers in deployment.requests] == [None, "2", "2"]


def test_an_event_without_an_id_is_not_of_the_log(deployment: Deployment) -> None:
    deployment.script[:] = [serve(before=PING + b'event: error\ndata: {"code": "log_unavailable"}\n\n' + GOODBYE)]
    assert_complete(read(deployment))


def test_a_request_lost_before_any_byte_is_repeated_with_the_same_id(deployment: Deployment) -> None:
    deployment.script[:] = [vanish]
    assert_complete(read(deployment))
    assert [method for method, _, _ in deployment.requests] == ["POST", "GET", "POST"]
    proposed = {headers["x-streaming-session-id"] for method, _, headers in deployment.requests if method == "POST"}
    assert proposed == set(deployment.started)


def test_an_answer_lost_after_the_start_never_starts_a_second_stream(deployment: Deployment) -> None:
    deployment.script[:] = [vanish_after_starting]
    assert_complete(read(deployment))
    assert [method for method, _, _ in deployment.requests] == ["POST", "GET"]
    assert len(deployment.started) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_deployment_that_is_briefly_away_is_waited_for(deployment: Deployment, status: int) -> None:
    deployment.script[:] = [problem(status, "unavailable"), reply(status, b"<html>", "text/html"), serve()]
    reconnects: list[tuple[int, str]] = []
    with Client(deployment.url, token="t", retry=QUICK) as client:
        stream = client.stream("s", "hello", on_reconnect=lambda attempt, why: reconnects.append((attempt, why)))
        assert_complete(list(stream))
    assert [attempt for attempt, _ in reconnects] == [1, 2]
    assert reconnects[0][1] == "unavailable, really."
    assert len(set(deployment.started)) == 1


def test_a_page_of_something_else_is_not_taken_for_the_stream(deployment: Deployment) -> None:
    deployment.script[:] = [serve(cut_bytes=len(FRAMES[0])), reply(200, frame(2, "done", {}), "text/html")]
    assert_complete(read(deployment))


def test_a_refused_connection_is_tried_until_somebody_listens(deployment: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    handler = type("Handler", (Exchange,), {"deployment": deployment})
    servers: list[ThreadingHTTPServer] = []

    def listen_at_the_third(attempt: int, _reason: str) -> None:
        if attempt == 3:
            servers.append(ThreadingHTTPServer(("127.0.0.1", port), handler))
            threading.Thread(target=servers[0].serve_forever, kwargs={"poll_interval": 0.01}).start()

    with Client(f"http://127.0.0.1:{port}", token="t", retry=QUICK) as client:
        events = list(client.stream("s", "hello", on_reconnect=listen_at_the_third))
    servers[0].shutdown()
    servers[0].server_close()
    assert_complete(events)
    assert len(deployment.started) == 1


def test_retry_after_is_waited_for(deployment: Deployment) -> None:
    deployment.script[:] = [problem(503, "unavailable", Retry_After="1")]
    begun = time.monotonic()
    assert_complete(read(deployment))
    assert time.monotonic() - begun >= 1


def test_the_pause_that_the_stream_asks_for_is_kept(deployment: Deployment) -> None:
    deployment.frames[0] = deployment.frames[0].replace(b"retry: 1\n", b"retry: 300\n")
    deployment.script[:] = [serve(cut_bytes=len(deployment.frames[0]))]
    begun = time.monotonic()
    assert_complete(read(deployment))
    assert time.monotonic() - begun >= 0.3


def test_an_outage_without_progress_is_given_up_with_the_id(deployment: Deployment) -> None:
    deployment.script[:] = [serve(cut_bytes=sum(map(len, FRAMES[:3]))), *[problem(503, "unavailable")] * 1000]
    patience = Retry(pause_seconds_min=0.01, pause_seconds_max=0.02, outage_seconds_max=0.3)
    with Client(deployment.url, token="t", retry=patience) as client:
        stream = client.stream("s", "hello")
        begun = time.monotonic()
        with pytest.raises(StreamLost, match="unavailable, really") as lost:
            list(stream)
    assert lost.value.stream_id == stream.id == deployment.started[0]
    assert 0.3 <= time.monotonic() - begun < 2


def test_a_server_that_only_says_goodbye_is_given_up(deployment: Deployment) -> None:
    deployment.script[:] = [lambda exchange: exchange.begin() and send_stream(exchange, GOODBYE, True, True)] * 1000
    with pytest.raises(StreamLost):
        read(deployment, retry=Retry(pause_seconds_min=0.01, pause_seconds_max=0.02, outage_seconds_max=0.2))


@pytest.mark.parametrize("status", [400, 402, 403, 404, 409, 429])
def test_a_refusal_is_raised_at_once_as_it_was_stated(deployment: Deployment, status: int) -> None:
    deployment.script[:] = [problem(status, "some_code")]
    with pytest.raises(ApiError) as refused:
        read(deployment)
    error = refused.value
    assert (error.status, error.code, str(error), error.request_id) == (status, "some_code", "some_code, really.", "r1")
    assert len(deployment.requests) == 1


def test_being_slowed_down_while_resuming_does_not_end_the_stream(deployment: Deployment) -> None:
    deployment.script[:] = [serve(cut_bytes=len(FRAMES[0])), problem(429, "rate_limited")]
    assert_complete(read(deployment))


def test_a_stream_that_is_gone_after_it_began_is_not_started_again(deployment: Deployment) -> None:
    deployment.script[:] = [serve(cut_bytes=len(FRAMES[0])), problem(404, "not_found")]
    with pytest.raises(ApiError, match="not_found"):
        read(deployment)
    assert len(deployment.started) == 1


def test_closing_early_ends_the_iteration(deployment: Deployment) -> None:
    with Client(deployment.url, token="t", retry=QUICK) as client:
        stream = client.stream("s", "hello")
        first = next(stream)
        stream.close()
        assert (first.event, list(stream)) == ("session", [])


def logged_in(number: int, life: float) -> bytes:
    pair = {"accessToken": f"a{number}", "refreshToken": f"r{number}", "expiresIn": life}
    return json.dumps({**pair, "user": {"id": "u", "username": "ann", "role": "enduser"}}).encode()


def test_a_token_is_renewed_before_it_expires(deployment: Deployment) -> None:
    deployment.others["/auth/login"] = reply(200, logged_in(1, 0.001))
    deployment.others["/auth/refresh"] = reply(200, logged_in(2, 900))
    with Client(deployment.url, retry=QUICK) as client:
        assert client.login("ann", "secret").username == "ann"
        time.sleep(0.002)
        assert_complete(list(client.stream("s", "hello")))
    assert deployment.seen() == ["POST login", "POST refresh", "POST stream"]
    assert deployment.requests[-1][2]["authorization"] == "Bearer a2"


def test_a_token_refused_while_resuming_is_renewed_once(deployment: Deployment) -> None:
    deployment.others["/auth/login"] = reply(200, logged_in(1, 900))
    deployment.others["/auth/refresh"] = reply(200, logged_in(2, 900))
    deployment.script[:] = [serve(cut_bytes=len(FRAMES[0])), problem(401, "unauthenticated")]
    with Client(deployment.url, retry=QUICK) as client:
        client.login("ann", "secret")
        assert_complete(list(client.stream("s", "hello")))
        assert [headers.get("authorization") for _, path, headers in deployment.requests if "/chat/" in path] == [
            "Bearer a1",
            "Bearer a1",
            "Bearer a2",
        ]


def test_an_outage_of_auth_while_a_stream_resumes_is_waited_for(deployment: Deployment) -> None:
    answers = itertools.chain([problem(503, "unavailable"), vanish], itertools.repeat(reply(200, logged_in(2, 900))))
    deployment.others["/auth/login"] = reply(200, logged_in(1, 0.001))
    deployment.others["/auth/refresh"] = lambda exchange: next(answers)(exchange)
    with Client(deployment.url, retry=QUICK) as client:
        client.login("ann", "secret")
        time.sleep(0.002)
        assert_complete(list(client.stream("s", "hello")))


def test_receipts_and_balances_are_exact_decimals(deployment: Deployment) -> None:
    body = json.dumps({"streamId": "x", "state": "ended", "receipt": {**RECEIPT, "outputTokens": 7}})
    deployment.others["a1b2c3d4"] = reply(200, body.encode())
    deployment.others["/balance"] = reply(200, b'{"totalCredits": 99999999999.123456, "availableCredits": 0.1}')
    with Client(deployment.url, token="t") as client:
        receipt = client.receipt("stream-1620847252-a1b2c3d4")
        assert receipt is not None
        assert (receipt.charged, receipt.output_tokens, receipt.outcome) == (Decimal("0.000123"), 7, "completed")
        assert client.balance().total == Decimal("99999999999.123456")


def test_ids_in_paths_cannot_reach_elsewhere(deployment: Deployment) -> None:
    deployment.others["stream"] = problem(404, "not_found")
    with Client(deployment.url, token="t") as client, pytest.raises(ApiError):
        list(client.stream("../../auth/logout?x=", "hello"))
    assert deployment.requests[0][1] == "/api/chat/sessions/..%2F..%2Fauth%2Flogout%3Fx%3D/stream"


def test_nobody_listening_is_one_sentence() -> None:
    with Client("http://127.0.0.1:1", token="t") as client, pytest.raises(Unreachable, match="cannot be reached"):
        client.balance()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://[::", "ws://x"])
def test_an_address_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(ClientError, match="no address"):
        Client(url)


@pytest.mark.parametrize("token", ["", "a\nb", "ü"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(ClientError, match="token"):
        Client("http://127.0.0.1:1", token=token)


def test_pauses_double_between_their_bounds_and_never_undercut_the_server() -> None:
    retry = Retry()
    longest = [retry.pause(attempt, at_least=0, chance=1) for attempt in range(1, 9)]
    assert longest == [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    assert retry.pause(1, at_least=0, chance=0) == 0.1
    assert retry.pause(500, at_least=7, chance=0) == 7
