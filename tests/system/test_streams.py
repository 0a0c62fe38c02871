"""Streams over a real port, from a real process, against a scripted upstream over real HTTP."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests import postgres
from tests.scripted import NASTY, Script
from tests.serving import Caller, Server, serving, stream_id_of, text_of, tokens_of, upstream

from parshall.kernel.ids import parse_stream_id

ORIGIN = "https://chat.example.org"
NAMES = (f"streams{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.soak)])
def server(request: pytest.FixtureRequest, scripted: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The whole system: on files, and on one PostgreSQL database for all services."""
    home = tmp_path_factory.mktemp("home")
    settings = {
        "EMBEDDED_MODEL": "off",
        "OPENAI_BASE_URL": scripted,
        "OPENAI_MODELS": "fake,*",
        "ALLOWED_ORIGINS": ORIGIN,
        "DISCONNECT_GRACE_SECONDS": "0.3",
    }
    if request.param == "postgres":
        database: postgres.Server = request.getfixturevalue("postgres_server")
        settings["DATABASE_URL"] = database.url(database.create())
    with serving(home, **settings) as running:
        yield running


@pytest.fixture
def caller(server: Server) -> Iterator[Caller]:
    made = server.customer(next(NAMES))
    yield made
    made.close()


@pytest.fixture
def session(caller: Caller) -> str:
    return caller.session()


def raw_request(server: Server, caller: Caller, path: str, body: object, *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {caller.token}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
    return received


# ── The id and the headers ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_id_header_is_first_on_the_wire_and_equals_the_first_event(
    server: Server, caller: Caller, session: str
) -> None:
    with connect(server) as connection:
        path = f"/api/chat/sessions/{session}/stream"
        connection.sendall(raw_request(server, caller, path, {"message": "fake-n3"}, f"Origin: {ORIGIN}"))
        head, _, body = read_until(connection, b"event: session").partition(b"\r\n\r\n")
        body += read_until(connection, b"event: done")
    names = [line.partition(b":")[0].decode().lower() for line in head.split(b"\r\n")[1:]]
    assert names[:8] == [
        "x-streaming-session-id",
        "access-control-allow-origin",
        "access-control-allow-credentials",
        "access-control-expose-headers",
        "vary",
        "content-type",
        "cache-control",
        "x-accel-buffering",
    ]
    stream_id = head.split(b"\r\n")[1].partition(b": ")[2]
    assert parse_stream_id(stream_id.decode()) and b'"streamingSessionId":"' + stream_id in body


def test_another_origin_gets_no_cors_headers(caller: Caller, session: str) -> None:
    with caller.streaming(
        "POST", f"/api/chat/sessions/{session}/stream", {"message": "fake-n1"}, {"Origin": "https://evil.example"}
    ) as (response, events):
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert list(events)[-1].event == "done"


@pytest.mark.parametrize("bad", ["stream-1", "stream-1620847252-XYZ", "x" * 500, "stream-1620847252-a1b2c3d4 "])
def test_a_malformed_id_is_refused_and_never_echoed(caller: Caller, session: str, bad: str) -> None:
    path, headers = f"/api/chat/sessions/{session}/stream", {"X-Streaming-Session-Id": bad + "\t!"}
    answer = caller.http.post(path, json={"message": "hi"}, headers=caller.headers(headers))
    assert answer.status_code == 400 and answer.json()["code"] == "malformed_stream_id"
    assert bad not in answer.text and "x-streaming-session-id" not in answer.headers


def test_a_proposed_id_is_used_and_a_repeated_request_attaches(caller: Caller, session: str) -> None:
    headers = {"X-Streaming-Session-Id": "stream-1620847252-00000000000000a1"}
    first = caller.ask(session, "fake-n5", headers=headers)
    again = caller.ask(session, "fake-n5", headers=headers)
    rest = caller.ask(session, "fake-n5", headers=headers | {"Last-Event-ID": "4"})
    assert first == again and rest == first[4:]
    assert stream_id_of(first) == headers["X-Streaming-Session-Id"]
    caller.post(f"/api/chat/sessions/{session}/stream", {"message": "other"}, headers=headers, expect=409)
    assert len(caller.get(f"/api/chat/sessions/{session}/messages")["messages"]) == 2


def test_someone_elses_id_leaks_nothing(server: Server, caller: Caller, session: str) -> None:
    stream_id = stream_id_of(caller.ask(session, "fake-n2"))
    other = server.customer(next(NAMES))
    headers = {"X-Streaming-Session-Id": stream_id}
    refused = other.post(f"/api/chat/sessions/{other.session()}/stream", {"message": "hi"}, headers=headers, expect=409)
    assert session not in json.dumps(refused)
    other.get(f"/api/chat/streams/{stream_id}", expect=404)
    other.post(f"/api/chat/streams/{stream_id}/stop", expect=404)
    other.get(f"/api/chat/sessions/{session}", expect=404)
    other.post(f"/api/chat/sessions/{session}/stream", {"message": "hi"}, expect=404)
    other.close()


# ── The stream and its receipt ──────────────────────────────────────────────────────────────────────────────────────


def test_the_receipt_is_what_left_the_balance(caller: Caller, session: str) -> None:
    before = caller.balance()
    events = caller.ask(session, "fake-n20")
    receipt = events[-1].json()["receipt"]
    after = caller.balance()
    assert after["reservedCredits"] == 0
    assert receipt["chargedCredits"] == pytest.approx(before["availableCredits"] - after["availableCredits"])
    assert receipt["reservedCredits"] == pytest.approx(receipt["chargedCredits"] + receipt["returnedCredits"])
    assert receipt["balanceAfter"] == after["availableCredits"]
    assert caller.state(stream_id_of(events))["receipt"] == receipt
    assert caller.get(f"/api/streaming-sessions/{stream_id_of(events)}/receipt")["chargedCredits"] == pytest.approx(
        receipt["chargedCredits"]
    )


def test_hard_text_arrives_unharmed(caller: Caller, session: str) -> None:
    events = caller.ask(session, "fake-nasty-split-crlf")
    assert text_of(events) == "".join(NASTY)
    messages = caller.get(f"/api/chat/sessions/{session}/messages")["messages"]
    assert messages[1]["content"] == "".join(NASTY)


def test_resuming_at_every_offset_is_byte_identical(caller: Caller, session: str) -> None:
    whole = caller.ask(session, "fake-n40-ms2")
    stream_id = stream_id_of(whole)
    for after in range(len(whole) + 1):
        assert caller.resume(stream_id, after) == whole[after:]


def test_two_readers_of_a_live_stream_see_the_same(caller: Caller, session: str) -> None:
    headers = {"X-Streaming-Session-Id": "stream-1620847252-00000000000000b2"}
    with ThreadPoolExecutor() as pool:
        first = pool.submit(caller.ask, session, "fake-n60-ms10", headers=headers)
        time.sleep(0.2)
        second = pool.submit(caller.resume, headers["X-Streaming-Session-Id"])
        assert first.result() == second.result()


def test_a_reader_may_leave_at_any_point_and_come_back_for_the_rest(
    server: Server, caller: Caller, session: str
) -> None:
    """Cut the socket after each of the first events; the stream goes on, is charged once, and can be read in full."""
    path = f"/api/chat/sessions/{session}/stream"
    for cut in range(1, 13):
        with connect(server) as connection:
            connection.sendall(raw_request(server, caller, path, {"message": "fake-n12-ms4"}))
            received = read_until(connection, f"id: {cut}\n".encode())
        stream_id = received.split(b"x-streaming-session-id: ", 1)[-1].split(b"\r\n", 1)[0].decode()
        stream_id = stream_id if stream_id.startswith("stream-") else header_of(received)
        state = caller.ended(stream_id)
        assert (state["outcome"], state["receipt"]["outputTokens"]) == ("completed", 12)
        assert text_of(caller.resume(stream_id)) == Script(n=12).text()
    assert caller.balance()["reservedCredits"] == 0


def header_of(received: bytes) -> str:
    lines = received.split(b"\r\n\r\n", 1)[0].split(b"\r\n")
    return next(
        line.partition(b":")[2].strip().decode()
        for line in lines
        if line.lower().startswith(b"x-streaming-session-id:")
    )


def test_leaving_before_the_status_line_starts_nothing_twice(server: Server, caller: Caller, session: str) -> None:
    path, stream_id = f"/api/chat/sessions/{session}/stream", "stream-1620847252-00000000000000c3"
    with connect(server) as connection:
        connection.sendall(
            raw_request(server, caller, path, {"message": "fake-n4"}, f"X-Streaming-Session-Id: {stream_id}")
        )
    events = caller.ask(session, "fake-n4", headers={"X-Streaming-Session-Id": stream_id})
    assert text_of(events) == Script(n=4).text()
    assert len(caller.get(f"/api/chat/sessions/{session}/messages")["messages"]) == 2


def test_stop_ends_the_stream_for_everybody_and_charges_what_was_logged(caller: Caller, session: str) -> None:
    headers = {"X-Streaming-Session-Id": "stream-1620847252-00000000000000d4"}
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(caller.ask, session, "fake-n900-ms5", headers=headers)
        time.sleep(0.5)
        stopped = caller.post(f"/api/chat/streams/{headers['X-Streaming-Session-Id']}/stop")
        events = reading.result(10)
    assert events[-1].json()["receipt"] == stopped["receipt"]
    assert stopped["receipt"]["outcome"] == "stopped"
    assert 0 < stopped["receipt"]["outputTokens"] == tokens_of(events) < 900


def test_an_unread_stream_is_stopped_after_the_grace_where_the_request_says_so(
    server: Server, caller: Caller, session: str
) -> None:
    body = {"message": "fake-n900-ms5", "onDisconnect": "stop"}
    with connect(server) as connection:
        connection.sendall(raw_request(server, caller, f"/api/chat/sessions/{session}/stream", body))
        stream_id = header_of(read_until(connection, b"event: chunk"))
    state = caller.ended(stream_id)
    assert state["outcome"] == "abandoned" and state["receipt"]["outputTokens"] < 900


def test_a_message_is_answered_whole_without_streaming(caller: Caller, session: str) -> None:
    answer = caller.post(f"/api/chat/sessions/{session}/messages", {"message": "fake-n6"})
    assert answer["response"] == Script(n=6).text()
    assert answer["receipt"]["outputTokens"] == 6
    assert answer["receipt"] == caller.state(answer["streamingSessionId"])["receipt"]


def test_waiting_for_a_whole_answer_counts_as_reading(caller: Caller, session: str) -> None:
    """The grace of this server is 0.3 s: an answer that takes longer must not be abandoned under its caller."""
    body = {"message": "fake-n60-ms20", "onDisconnect": "stop"}
    answer = caller.post(f"/api/chat/sessions/{session}/messages", body)
    assert (answer["receipt"]["outcome"], answer["response"]) == ("completed", Script(n=60).text())
    assert answer["receipt"]["deliveredTokens"] > 0


def test_who_waits_for_a_whole_answer_may_leave_too(server: Server, caller: Caller, session: str) -> None:
    stream_id = "stream-1620847252-0000000000000b08"
    with connect(server) as connection:
        path, body = f"/api/chat/sessions/{session}/messages", {"message": "fake-n60-ms20"}
        connection.sendall(raw_request(server, caller, path, body, f"X-Streaming-Session-Id: {stream_id}"))
        time.sleep(0.4)
    state = caller.ended(stream_id)
    assert (state["outcome"], state["receipt"]["outputTokens"]) == ("completed", 60)
    assert text_of(caller.resume(stream_id)) == Script(n=60).text()


def test_a_failing_provider_is_one_error_event_or_one_503(caller: Caller, session: str) -> None:
    events = caller.ask(session, "fake-n9-die3")
    assert [event.event for event in events].count("error") == 1 and events[-1].event == "error"
    assert text_of(events) == "".join(Script(n=9).chunks(3))
    assert tokens_of(events) == events[-1].json()["receipt"]["outputTokens"] > 0
    answer = caller.post(f"/api/chat/sessions/{session}/messages", {"message": "fake-status500"}, expect=503)
    assert answer["receipt"]["chargedCredits"] == 0


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_credits_the_answer_is_402_with_the_figures(server: Server) -> None:
    poor = server.customer(next(NAMES), credits=0)
    session = poor.session()
    refused = poor.post(f"/api/chat/sessions/{session}/stream", {"message": "fake-n5"}, expect=402)
    assert refused["code"] == "insufficient_credits"
    assert refused["availableCredits"] == 0 and refused["requiredCredits"] > 0 and "reservedCredits" in refused
    assert poor.get(f"/api/chat/sessions/{session}/messages")["messages"] == []
    poor.close()


def test_a_second_stream_of_a_session_is_409_and_names_the_first(caller: Caller, session: str) -> None:
    headers = {"X-Streaming-Session-Id": "stream-1620847252-00000000000000e5"}
    path = f"/api/chat/sessions/{session}/stream"
    with caller.streaming("POST", path, {"message": "fake-n900-ms5"}, headers):
        refused = caller.post(path, {"message": "second"}, expect=409)
        assert refused["streamingSessionId"] == headers["X-Streaming-Session-Id"]
        caller.post(f"/api/chat/streams/{headers['X-Streaming-Session-Id']}/stop")


@pytest.mark.parametrize(
    "body",
    [{}, {"message": ""}, {"message": "x" * 10_001}, {"message": 5}, {"message": "hi", "maxTokens": 0}, [], "x"],
)
def test_a_bad_body_is_400_and_loses_nothing(caller: Caller, session: str, body: object) -> None:
    refused = caller.post(f"/api/chat/sessions/{session}/stream", body, expect=400)
    assert refused["code"] == "validation_failed" and refused["errors"]
    assert caller.get(f"/api/chat/sessions/{session}/messages")["messages"] == []


def test_text_that_no_database_keeps_is_400(caller: Caller, session: str) -> None:
    path = f"/api/chat/sessions/{session}/stream"
    for text in (r"\ud800", r"nul\u0000"):
        content = '{"message": "' + text + '"}'
        headers = caller.headers({"Content-Type": "application/json"})
        assert caller.http.post(path, content=content, headers=headers).status_code == 400


def test_without_a_token_every_stream_route_is_401(server: Server, session: str) -> None:
    stranger = server.caller()
    for method, path in (
        ("POST", f"/api/chat/sessions/{session}/stream"),
        ("GET", "/api/chat/streams/stream-1620847252-a1b2c3d4"),
        ("POST", "/api/chat/streams/stream-1620847252-a1b2c3d4/stop"),
    ):
        answer = stranger.http.request(method, path, json={"message": "hi"})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    stranger.close()


def test_a_resume_position_that_is_no_offset_is_400(caller: Caller, session: str) -> None:
    stream_id = stream_id_of(caller.ask(session, "fake-n1"))
    for bad in ("-1", "x", "1.5", "9" * 30):
        caller.get(f"/api/chat/streams/{stream_id}", headers={"Last-Event-ID": bad}, expect=400)


# ── Acknowledging ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_update_with_the_right_id_agrees_and_with_a_wrong_one_says_why(caller: Caller, session: str) -> None:
    events = caller.ask(session, "fake-n4")
    stream_id, path = stream_id_of(events), f"/api/chat/sessions/{session}/update-stream"
    body = {"completeResponse": text_of(events), "streamingSessionId": stream_id, "tokensUsed": 4}
    agreed = caller.post(path, body)
    assert agreed["matches"] is True and agreed["receipt"] == events[-1].json()["receipt"]
    assert caller.post(path, body | {"completeResponse": "made up"})["matches"] is False
    elsewhere = stream_id_of(caller.ask(caller.session(), "fake-n1"))
    for wrong, reason in (
        ("stream-1620847252", "made_up"),
        (f"stream-{int(time.time())}-abcdef01", "unknown"),
        (elsewhere, "other_chat_session"),
    ):
        refused = caller.post(path, body | {"streamingSessionId": wrong}, expect=400)
        assert refused["title"] == "Streaming session ID mismatch"
        assert refused["details"]["expected"] == stream_id and refused["details"]["reason"] == reason


def test_every_refused_id_is_told_a_reason_a_way_out_and_a_page_and_is_not_echoed(caller: Caller, session: str) -> None:
    path, now = f"/api/chat/sessions/{session}/update-stream", int(time.time())
    for wrong, status, reason in (
        ("undefined", 400, "not_received"),
        ("stream-1620847252", 400, "made_up"),
        (f"stream-{now}-ABCDEF01", 400, "malformed"),
        (f"stream-{now}-abcdef01", 404, "unknown"),
        ("stream-9999999999999-abcdef01", 404, "made_up"),
        ("stream-1620847252-abcdef01", 404, "older_than_retention"),
    ):
        body = {"completeResponse": "", "streamingSessionId": wrong, "tokensUsed": 0}
        answers = [
            caller.get(f"/api/chat/streams/{wrong}", expect=status),
            caller.post(f"/api/chat/streams/{wrong}/stop", expect=status),
            caller.post(path, body, expect=400),
        ]
        for answer in answers:
            assert answer["reason"] == reason and answer["wayOut"].endswith(".")
            assert answer["type"] == answer["help"] == f"/documentation/TROUBLESHOOTING.md#{reason}"
            assert status == 404 or wrong not in json.dumps(answer | {"instance": ""})


def test_somebody_elses_id_is_refused_in_the_words_for_an_id_that_nobody_has(
    server: Server, caller: Caller, session: str
) -> None:
    theirs = stream_id_of(caller.ask(session, "fake-n1"))
    nobodys = theirs[:-4] + ("0000" if not theirs.endswith("0000") else "0001")
    stranger = server.customer("mallory")
    own = stranger.session()
    told = []
    for named in (theirs, nobodys):
        body = {"completeResponse": "", "streamingSessionId": named, "tokensUsed": 0}
        answers = [
            stranger.get(f"/api/chat/streams/{named}", expect=404),
            stranger.post(f"/api/chat/streams/{named}/stop", expect=404),
            stranger.post(f"/api/chat/sessions/{own}/update-stream", body, expect=400),
        ]
        for answer in answers:
            answer |= {"instance": "", "requestId": ""}
        told.append(json.dumps(answers).replace(named, "the id"))
    assert told[0] == told[1]


def test_an_update_for_a_running_stream_ends_it(caller: Caller, session: str) -> None:
    headers = {"X-Streaming-Session-Id": "stream-1620847252-00000000000000f6"}
    with caller.streaming("POST", f"/api/chat/sessions/{session}/stream", {"message": "fake-n900-ms5"}, headers):
        body = {
            "completeResponse": "",
            "streamingSessionId": headers["X-Streaming-Session-Id"],
            "tokensUsed": 0,
        }
        done = caller.post(f"/api/chat/sessions/{session}/update-stream", body)
    assert done["receipt"]["outcome"] == "stopped"


def test_deleting_a_session_settles_its_stream_first(caller: Caller, session: str) -> None:
    headers = {"X-Streaming-Session-Id": "stream-1620847252-0000000000000a07"}
    with caller.streaming("POST", f"/api/chat/sessions/{session}/stream", {"message": "fake-n900-ms5"}, headers):
        caller.request("DELETE", f"/api/chat/sessions/{session}")
    assert caller.state(headers["X-Streaming-Session-Id"])["receipt"]["settlement"] == "settled"
    assert caller.balance()["reservedCredits"] == 0
    caller.get(f"/api/chat/sessions/{session}", expect=404)


# ── Many at once ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hundred_streams_at_once_are_each_whole_and_charged_once(server: Server) -> None:
    caller = server.customer(next(NAMES), credits=1000)
    sessions = [caller.session() for _ in range(100)]
    before = caller.balance()["availableCredits"]
    barrier = threading.Barrier(100)

    def ask(session: str) -> float:
        barrier.wait()
        events = caller.ask(session, "fake-n30-ms10")
        assert text_of(events) == Script(n=30).text()
        assert [event.id for event in events] == [str(offset) for offset in range(1, len(events) + 1)]
        charged: float = events[-1].json()["receipt"]["chargedCredits"]
        return charged

    with ThreadPoolExecutor(100) as pool:
        charges = list(pool.map(ask, sessions))
    balance = caller.balance()
    assert balance["reservedCredits"] == 0
    assert before - balance["availableCredits"] == pytest.approx(sum(charges), abs=1e-6)


def test_ten_requests_at_once_cannot_overdraw(server: Server, caller: Caller) -> None:
    price = caller.post("/api/credits/calculate", {"modelId": "fake", "inputTokens": 13, "outputTokens": 256})
    poor = server.customer(next(NAMES), credits=round(price["credits"] * 2.5, 6))
    sessions = [poor.session() for _ in range(10)]

    def ask(session: str) -> int:
        path = f"/api/chat/sessions/{session}/stream"
        answer = poor.http.post(path, json={"message": "fake-n200"}, headers=poor.headers())
        return answer.status_code

    with ThreadPoolExecutor(10) as pool:
        statuses = list(pool.map(ask, sessions))
    assert set(statuses) <= {200, 402} and 200 in statuses
    balance = poor.balance()
    assert balance["availableCredits"] >= 0 and balance["reservedCredits"] == 0
    entries = poor.get("/api/credits/statement?limit=200")
    assert entries
    poor.close()
