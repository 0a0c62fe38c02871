"""Laws of every HTTP surface: header order, CORS, request ids, body limits, and refusals that leak nothing."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
from fastapi import FastAPI, HTTPException, Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from parshall.kernel import headers as names
from parshall.kernel import metrics
from parshall.kernel.bodies import BODY_BYTES_MAX
from parshall.kernel.errors import InsufficientCredits, TooManyRequests, Unauthenticated
from parshall.kernel.headers import cors_headers, stream_headers
from parshall.kernel.http import Edge, User, WireModel
from parshall.kernel.problems import PROBLEM_JSON
from parshall.kernel.ratelimit import RateLimit
from parshall.kernel.refusals import install_errors
from parshall.kernel.tokens import Principal
from parshall.kernel.windows import LocalWindows

ORIGIN = "https://chat.example.org"
STREAM_ID = "stream-1620847252-a1b2c3d4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header that is there once, None where it is absent."""
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) <= 1, found
        return found[0] if found else None

    def problem(self) -> dict[str, Any]:
        assert self.header("Content-Type") == PROBLEM_JSON
        document = json.loads(self.body)
        assert document["status"] == self.status
        assert document["message"] == document["detail"]
        assert document["error"] == document["code"].upper()
        assert document["requestId"] == self.header(names.REQUEST_ID_HEADER)
        assert {"type", "title", "instance"} <= document.keys()
        return document


class Refusing:
    """Verifies nothing, and counts how often it is asked; a wrong API key is counted each time."""

    asked = 0

    async def verify(self, _token: str, _address: str) -> Principal:
        self.asked += 1
        raise Unauthenticated("This key is not right.")


async def ask(
    app: Callable[[Scope, Receive, Send], Awaitable[None]],
    path: str = "/",
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    chunks: list[bytes] | None = None,
) -> Answer:
    """One request as a server would hand it over, without a server's own checks before it."""
    parts = list(chunks or [b""])
    sent: list[Message] = []

    async def receive() -> Message:
        if not parts:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": ("test", 80)}
    scope["headers"] = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in (headers or {}).items()]
    await asyncio.wait_for(app(scope, receive, send), 10)
    start = sent[0]
    return Answer(
        status=start["status"],
        headers=[(k.decode("latin-1"), v.decode("latin-1")) for k, v in start["headers"]],
        body=b"".join(message.get("body", b"") for message in sent[1:]),
    )


class Greeting(WireModel):
    display_name: str
    times: int = 1


@pytest.fixture
def app() -> Edge:
    inner = FastAPI()
    install_errors(inner)

    @inner.post("/greet")
    async def greet(greeting: Greeting) -> dict[str, Any]:
        return {"greeting": greeting.display_name, "times": greeting.times}

    @inner.post("/read")
    async def read(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @inner.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the password is hunter2 in /etc/secret.py")

    @inner.get("/refuse/{kind}")
    async def refuse(kind: str) -> None:
        raise {
            "credits": InsufficientCredits(requiredCredits=3, availableCredits=1.5, reservedCredits=0),
            "slow": TooManyRequests(retry_after=7),
            "login": Unauthenticated(),
            "teapot": HTTPException(418, "short and stout"),
            "surrogate": InsufficientCredits("named \ud800 by a client"),
        }[kind]

    return Edge(inner, allowed_origins=[ORIGIN])


# ── The headers of a stream ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_streams_headers_go_out_in_the_order_of_the_contract() -> None:
    sent = stream_headers(STREAM_ID, origin=ORIGIN, allowed_origins=[ORIGIN], http_version="1.1")
    assert sent == [
        (b"X-Streaming-Session-Id", STREAM_ID.encode()),
        (b"Access-Control-Allow-Origin", ORIGIN.encode()),
        (b"Access-Control-Allow-Credentials", b"true"),
        (
            b"Access-Control-Expose-Headers",
            b"X-Streaming-Session-Id, X-Request-Id, Retry-After, RateLimit, RateLimit-Policy",
        ),
        (b"Vary", b"Origin"),
        (b"Content-Type", b"text/event-stream"),
        (b"Cache-Control", b"no-cache, no-transform"),
        (b"X-Accel-Buffering", b"no"),
        (b"Connection", b"keep-alive"),
    ]


@pytest.mark.parametrize("version", ["2", "3", "1.0"])
def test_keep_alive_is_said_on_http_1_1_only(version: str) -> None:
    sent = stream_headers(STREAM_ID, origin=None, allowed_origins=[], http_version=version)
    assert b"Connection" not in dict(sent)
    assert sent[0][0] == b"X-Streaming-Session-Id"


@pytest.mark.parametrize(
    "origin", [None, "null", "https://evil.example", ORIGIN + ".evil.example", ORIGIN + "/", ORIGIN.upper(), "*"]
)
def test_only_an_origin_that_is_allowed_letter_by_letter_is_answered(origin: str | None) -> None:
    assert cors_headers(origin, [ORIGIN]) == []


def test_nothing_with_credentials_is_ever_a_wildcard() -> None:
    assert all("*" not in value for _, value in cors_headers(ORIGIN, [ORIGIN]))


async def test_the_edge_keeps_the_id_first_and_says_nothing_twice() -> None:
    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        raw = stream_headers(STREAM_ID, origin=ORIGIN, allowed_origins=[ORIGIN], http_version="1.1")
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send({"type": "http.response.body", "body": b": ping\n\n"})

    answer = await ask(Edge(streams, allowed_origins=[ORIGIN]), headers={"Origin": ORIGIN})
    assert answer.headers[0] == ("X-Streaming-Session-Id", STREAM_ID)
    keys = [key.lower() for key, _ in answer.headers]
    assert len(keys) == len(set(keys))
    assert answer.header("Cache-Control") == "no-cache, no-transform"
    assert answer.header("Vary") == "Origin"
    assert answer.header("X-Request-Id")


# ── CORS ────────────────────────────────────────────────────────────────────────────────────────────────────────────

PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


async def test_a_preflight_of_an_allowed_origin_names_all_that_clients_send(app: Edge) -> None:
    answer = await ask(app, "/greet", method="OPTIONS", headers={"Origin": ORIGIN, **PREFLIGHT})
    assert (answer.status, answer.body) == (204, b"")
    assert answer.header("Access-Control-Allow-Origin") == ORIGIN
    assert answer.header("Access-Control-Allow-Credentials") == "true"
    assert answer.header("Vary") == "Origin"
    permitted = {name.strip() for name in (answer.header("Access-Control-Allow-Headers") or "").split(",")}
    assert permitted == {
        "Authorization",
        "Content-Type",
        "Last-Event-ID",
        "X-Streaming-Session-Id",
        "X-User-ID",
        "Idempotency-Key",
        "traceparent",
    }
    methods = (answer.header("Access-Control-Allow-Methods") or "").split(", ")
    assert {"GET", "POST", "PUT", "PATCH", "DELETE"} <= set(methods)


async def test_a_preflight_of_another_origin_is_granted_nothing(app: Edge) -> None:
    answer = await ask(app, "/greet", method="OPTIONS", headers={"Origin": "https://evil.example", **PREFLIGHT})
    assert answer.status == 204
    assert not [key for key, _ in answer.headers if key.lower().startswith("access-control-")]
    assert answer.header("Vary") == "Origin"


async def test_a_refusal_is_as_readable_across_origins_as_an_answer(app: Edge) -> None:
    for path in ("/refuse/credits", "/nowhere", "/broken"):
        answer = await ask(app, path, headers={"Origin": ORIGIN})
        assert answer.header("Access-Control-Allow-Origin") == ORIGIN
        assert "X-Request-Id" in (answer.header("Access-Control-Expose-Headers") or "")


# ── Request ids ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_valid_request_id_is_echoed(app: Edge) -> None:
    answer = await ask(app, "/refuse/credits", headers={"X-Request-Id": "abc-1.2_3"})
    assert answer.header("X-Request-Id") == answer.problem()["requestId"] == "abc-1.2_3"


@pytest.mark.parametrize("given", ["", "two words", "a" * 41, "caf\xe9", "a\tb", '<script>"', "a\n"])
async def test_any_other_request_id_is_replaced_and_never_echoed(app: Edge, given: str) -> None:
    answers = [await ask(app, "/refuse/credits", headers={"X-Request-Id": given}) for _ in range(2)]
    ids = {answer.header("X-Request-Id") or "" for answer in answers}
    assert len(ids) == 2
    assert all(len(made) == 32 and made.isalnum() for made in ids)


# ── Bodies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/read", "/greet", "/nowhere"])
async def test_a_body_announced_as_too_long_is_refused_before_it_is_read(app: Edge, path: str) -> None:
    answer = await ask(app, path, method="POST", headers={"Content-Length": str(BODY_BYTES_MAX + 1)})
    assert answer.status == 413
    assert answer.problem()["code"] == "body_too_large"


@pytest.mark.parametrize("path", ["/read", "/greet"])
async def test_a_chunked_body_is_refused_when_it_has_become_too_long(app: Edge, path: str) -> None:
    chunks = [b'"' + b"x" * 65535] * (BODY_BYTES_MAX // 65536 + 1)
    answer = await ask(app, path, method="POST", headers={"Content-Type": "application/json"}, chunks=chunks)
    assert answer.status == 413
    problem = answer.problem()
    assert problem["code"] == "body_too_large"
    assert str(BODY_BYTES_MAX) in problem["detail"]


async def test_an_application_of_another_kind_is_limited_too() -> None:
    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        await PlainTextResponse(str(len(body)))(scope, receive, send)

    limit = [b"x" * BODY_BYTES_MAX]
    assert (await ask(Edge(reads), method="POST", chunks=limit)).body == str(BODY_BYTES_MAX).encode()
    assert (await ask(Edge(reads), method="POST", chunks=[*limit, b"x"])).problem()["code"] == "body_too_large"


@pytest.mark.parametrize("length", ["-1", "1e3", "\xb2", "9" * 5000, "", "0x10"])
async def test_a_content_length_that_is_none_is_refused(app: Edge, length: str) -> None:
    answer = await ask(app, "/read", method="POST", headers={"Content-Length": length})
    assert answer.problem()["status"] == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"displayName": 5}',
        b'{"displayName": "\\ud800"}',
        b'{"displayName": "x", "times": 1e999}',
        b'{"displayName": "x", "times": NaN}',
        b'{"displayName": "x", "times": ' + b"9" * 5000 + b"}",
        b'{"displayName": "x", "times": {"\\ud800": 1}}',
        b"[" * 200_000,
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
async def test_a_body_that_does_not_fit_is_a_400_that_says_so(app: Edge, body: bytes) -> None:
    answer = await ask(app, "/greet", method="POST", headers={"Content-Type": "application/json"}, chunks=[body])
    assert answer.status == 400
    assert answer.problem()["detail"]


async def test_a_validation_failure_names_each_wrong_member(app: Edge) -> None:
    body = b'{"times": "often"}'
    answer = await ask(app, "/greet", method="POST", headers={"Content-Type": "application/json"}, chunks=[body])
    problem = answer.problem()
    assert problem["code"] == "validation_failed"
    assert [error["path"] for error in problem["errors"]] == ["body.displayName", "body.times"]
    assert all(error["message"] for error in problem["errors"])


async def test_members_are_camel_case_on_the_wire_and_unknown_ones_are_ignored(app: Edge) -> None:
    body = json.dumps({"displayName": "Ada", "times": 2, "later": True}).encode()
    answer = await ask(app, "/greet", method="POST", headers={"Content-Type": "application/json"}, chunks=[body])
    assert json.loads(answer.body) == {"greeting": "Ada", "times": 2}


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_refusal_carries_its_own_members_and_headers(app: Edge) -> None:
    refused = (await ask(app, "/refuse/credits")).problem()
    assert (refused["status"], refused["code"], refused["availableCredits"]) == (402, "insufficient_credits", 1.5)
    slow = await ask(app, "/refuse/slow")
    assert (slow.problem()["status"], slow.header("Retry-After")) == (429, "7")
    login = await ask(app, "/refuse/login")
    assert (login.problem()["status"], login.header("WWW-Authenticate")) == (401, "Bearer")


async def test_frameworks_refusals_are_problem_documents_too(app: Edge) -> None:
    assert (await ask(app, "/nowhere")).problem()["code"] == "not_found"
    wrong = await ask(app, "/greet")
    assert (wrong.problem()["code"], wrong.header("Allow")) == ("method_not_allowed", "POST")
    assert (await ask(app, "/refuse/teapot")).problem()["code"] == "http_418"


async def test_each_refusal_is_an_instance_of_its_own(app: Edge) -> None:
    instances = {(await ask(app, "/refuse/credits")).problem()["instance"] for _ in range(3)}
    assert len(instances) == 3


async def test_a_text_that_utf_8_cannot_carry_does_not_break_the_refusal(app: Edge) -> None:
    answer = await ask(app, "/refuse/surrogate")
    assert answer.status == 402
    assert answer.body.isascii()


async def test_a_failure_of_ours_is_a_problem_document_that_leaks_nothing(app: Edge) -> None:
    answer = await ask(app, "/broken")
    problem = answer.problem()
    assert (answer.status, problem["code"]) == (500, "internal_error")
    for leak in (b"hunter2", b"secret", b"RuntimeError", b"Traceback", b".py"):
        assert leak not in answer.body


async def test_a_failure_outside_the_framework_leaks_nothing_either() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("hunter2")

    answer = await ask(Edge(breaks))
    assert answer.problem()["code"] == "internal_error"
    assert b"hunter2" not in answer.body


async def test_a_failure_behind_the_status_line_ends_the_answer_without_a_second_one() -> None:
    async def breaks_late(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise RuntimeError("hunter2")

    answer = await ask(Edge(breaks_late))
    assert (answer.status, answer.body) == (200, b"begun")


async def test_a_cancelled_request_stays_cancelled() -> None:
    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(ask(Edge(waits)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_token_that_does_not_verify_is_looked_at_once_a_request() -> None:
    app, verifier = FastAPI(), Refusing()
    install_errors(app)
    app.state.verifier = verifier

    @app.get("/me")
    async def me(caller: User) -> str:
        return caller.user_id

    limit = RateLimit(LocalWindows(), verifier=cast(Any, verifier), per_user=9, per_address=9, exempt=())
    answer = await ask(Edge(app, limit=limit), "/me", headers={"Authorization": "Bearer parshall_wrong"})
    assert (answer.status, answer.problem()["detail"]) == (401, "This key is not right.")
    assert verifier.asked == 1


def refused_so_far() -> float:
    return next(iter(metrics.rate_limited.collect())).samples[0].value


async def test_requests_are_counted_by_their_route_and_those_refused_as_too_many_besides() -> None:
    app = FastAPI()
    install_errors(app)

    @app.get("/things/{name}")
    async def thing(name: str) -> str:
        return name

    windows = LocalWindows()
    limit = RateLimit(windows, verifier=cast(Any, Refusing()), per_user=2, per_address=2, exempt=())
    edge = Edge(app, limit=limit, service="tested")
    before = refused_so_far()
    statuses = [(await ask(edge, f"/things/{number}")).status for number in range(4)]
    assert statuses == [200, 200, 429, 429]
    assert refused_so_far() - before == 2
    told = {
        tuple(sample.labels.values()): sample.value
        for family in metrics.http_requests.collect()
        for sample in family.samples
        if sample.labels["service"] == "tested"
    }
    assert told == {("tested", "/things/{name}", "GET", "200"): 2, ("tested", "none", "GET", "429"): 2}
    await windows.close()
