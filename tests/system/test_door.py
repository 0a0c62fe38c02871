"""The quick way in for a stream (chat.http_door) and the framework's answer alike; a query forces the framework's."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.serving import Caller, Server, serving, stream_id_of, text_of, upstream

from parshall.kernel.sse import Event, EventParser

FRAMEWORKS = "?way=the-frameworks"
ID = "stream-1620847252-0123456789abcdef0123456789abcdef"
JSON = {"Content-Type": "application/json"}
GOOD = b'{"message": "hello"}'
VARYING = ("instance", "requestId", "streamingSessionId")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with upstream() as url:
        settings = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": url, "OPENAI_MODELS": "fake,*"}
        with serving(tmp_path_factory.mktemp("home"), **settings) as running:
            yield running


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[Caller]:
    made = server.customer("pat")
    yield made
    made.close()


@pytest.fixture(scope="module")
def limited(caller: Caller) -> str:
    """An API key that opens no chat."""
    made: str = caller.post("/api/auth/api-keys", {"name": "reads", "scopes": ["credits:read"]}, expect=201)["key"]
    return made


REFUSED: dict[str, tuple[dict[str, str], bytes]] = {
    "no body": (JSON, b""),
    "not JSON": (JSON, b"{"),
    "JSON too deep": (JSON, b"[" * 100_000),
    "not an object": (JSON, b"[1]"),
    "no message": (JSON, b"{}"),
    "an empty message": (JSON, b'{"message": ""}'),
    "half a character": (JSON, b'{"message": "\\ud800"}'),
    "broken UTF-8": (JSON, b'{"message": "\xff"}'),
    "another type": ({"Content-Type": "text/plain"}, GOOD),
    "no type": ({}, GOOD),
    "a malformed id": (JSON | {"X-Streaming-Session-Id": "stream-1"}, GOOD),
    "a malformed offset": (JSON | {"Last-Event-ID": "-1"}, GOOD),
    "a token that does not verify": (JSON | {"Authorization": "Bearer none"}, GOOD),
    "no token": (JSON | {"Authorization": ""}, GOOD),
    "a key without the scope": (JSON | {"Authorization": "limited"}, GOOD),
    "another user's name": (JSON | {"X-User-ID": "sam"}, GOOD),
    "no such model": (JSON, b'{"message": "hello", "modelId": "\\u0007"}'),
    "more tokens than there are": (JSON, b'{"message": "hello", "maxTokens": 0}'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_both_ways_refuse_alike(case: str, caller: Caller, limited: str) -> None:
    headers, content = REFUSED[case]
    if headers.get("Authorization") == "limited":
        headers = headers | {"Authorization": f"Bearer {limited}"}
    path = f"/api/chat/sessions/{caller.session()}/stream"
    quick, general = (_refusal(caller, path + way, headers, content) for way in ("", FRAMEWORKS))
    assert quick == general
    assert quick[0] >= 400


def test_both_ways_refuse_a_session_that_is_not_there(caller: Caller) -> None:
    path = f"/api/chat/sessions/{'0' * 32}/stream"
    quick, general = (_refusal(caller, path + way, JSON, GOOD) for way in ("", FRAMEWORKS))
    assert quick == general
    assert quick[0] == 404


def test_both_ways_stream_alike(caller: Caller) -> None:
    quick, general = (_answer(caller, way, {}) for way in ("", FRAMEWORKS))
    assert quick[0] == general[0], "the names of the headers, in their order"
    assert text_of(quick[1]) == text_of(general[1]) != ""
    kinds = [list(dict.fromkeys(event.event for event in events)) for _, events in (quick, general)]
    assert kinds[0] == kinds[1], "chunks may come together"


@pytest.mark.parametrize("way", ["", FRAMEWORKS])
def test_a_proposed_id_attaches_behind_the_offset(caller: Caller, way: str) -> None:
    proposed = {"X-Streaming-Session-Id": f"{ID[:-2]}{'0a' if way else '0b'}"}
    session = caller.session()
    _, whole = _answer(caller, way, proposed, session)
    _, rest = _answer(caller, way, proposed | {"Last-Event-ID": "2"}, session)
    assert stream_id_of(whole) == proposed["X-Streaming-Session-Id"]
    assert rest == whole[2:]


def test_a_token_in_a_cookie_begins_nothing(caller: Caller) -> None:
    headers = JSON | {"Cookie": f"accessToken={caller.token}", "Authorization": ""}
    assert _refusal(caller, f"/api/chat/sessions/{caller.session()}/stream", headers, GOOD)[0] == 401


def _refusal(caller: Caller, path: str, headers: dict[str, str], content: bytes) -> tuple[int, Any, list[str]]:
    answer = caller.http.post(path, content=content, headers=caller.headers(headers))
    document = json.loads(answer.content)
    return (
        answer.status_code,
        {name: value for name, value in document.items() if name not in VARYING},
        sorted(name for name in answer.headers if name != "content-length"),
    )


def _answer(
    caller: Caller, way: str, more: dict[str, str], session: str | None = None
) -> tuple[list[str], list[Event]]:
    path = f"/api/chat/sessions/{session or caller.session()}/stream{way}"
    answer = caller.http.post(path, json={"message": "say ten words"}, headers=caller.headers(more))
    assert answer.status_code == 200, answer.text
    return list(answer.headers), list(EventParser().feed(answer.content))
