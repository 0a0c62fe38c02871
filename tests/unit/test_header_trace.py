"""Laws of header traces: nothing stands before what is not traced, and what is traced is told whole, in bounds."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
from fastapi import FastAPI, Response
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import KeySet
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from tests.apart import ISSUER, KEY, signed
from tests.har import check_har
from tests.unit.test_kernel_http import ORIGIN, Answer, ask

from parshall.auth import keys
from parshall.chat.har import har_of
from parshall.chat.timeline import timeline_of
from parshall.chat.trace_store import DOCUMENT_BYTES_MAX, fitted
from parshall.kernel import clock, exchange, headertrace
from parshall.kernel.debugtokens import DEBUG_TYPE
from parshall.kernel.exchange import Document, HeaderSet, Started, faults_of, response_fields
from parshall.kernel.fingerprints import DEBUG_HEADER, Fingerprints
from parshall.kernel.headers import STREAM_ID_HEADER, stream_headers
from parshall.kernel.headertrace import HeaderTrace, Mode, Switched, Tracing
from parshall.kernel.hops import REPORT_BYTES_MAX, REPORT_HEADER, compared, difference, read_report, report
from parshall.kernel.http import Edge
from parshall.kernel.places import noted_places
from parshall.kernel.refusals import install_errors
from parshall.kernel.telemetry import log
from parshall.kernel.tokens import ALGORITHM, TokenVerifier

ID = "stream-1620847252-a1b2c3d4"
HERE = "test_header_trace.py:"
UNICODE = "snow \N{SNOWMAN}"


async def _keys() -> KeySet:
    return KeySet([KEY])


@dataclass
class Site:
    """An application behind a trace, and what was kept of it."""

    mode: Mode = Mode.ON
    kept: list[Document] = field(default_factory=list)
    app: FastAPI = field(default_factory=FastAPI)

    def __post_init__(self) -> None:
        install_errors(self.app)
        self.tracing = Tracing(
            mode=self.mode,
            fingerprints=Fingerprints(b"of a deployment."),
            service="chat",
            clock=clock.now,
            verifier=TokenVerifier(_keys, issuer=ISSUER, clock=clock.now),
            sink=self.kept.append,
        )
        self.app.state.verifier = self.tracing.verifier
        self.layer = HeaderTrace(Edge(self.app, allowed_origins=[ORIGIN]), self.tracing)

    async def ask(self, path: str = "/", **asked: Any) -> Answer:
        return await ask(self.layer, path, **asked)

    @property
    def one(self) -> Document:
        (only,) = [each for each in self.kept if each["kind"] == "request"]
        return only


def names(fields: Sequence[Document]) -> list[str]:
    return [each["name"].lower() for each in fields]


@pytest.fixture(autouse=True)
def fresh_logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A logger whose lines can be captured, whatever tests before have configured."""
    before = structlog.get_config()
    structlog.reset_defaults()
    monkeypatch.setattr(headertrace, "_logger", log("headers"))
    yield
    structlog.configure(**before)


# ── Off ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_off_the_application_gets_what_the_server_gave_and_nothing_stands_between() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope, receive, send, structlog.contextvars.get_contextvars()))

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_message: Message) -> None:
        pass

    site = Site(mode=Mode.OFF)
    layer, scope = HeaderTrace(app, site.tracing), {"type": "http", "path": "/", "headers": [(b"host", b"x")]}
    running = layer(scope, receive, send)
    assert running.__qualname__ == app.__qualname__, "not even a coroutine of its own"  # type: ignore[attr-defined]
    await running
    assert seen[0] is scope and seen[1] is receive and seen[2] is send


async def test_off_a_list_of_headers_is_a_plain_list() -> None:
    raw = stream_headers(ID, origin=None, allowed_origins=(), http_version="1.1")
    assert type(raw) is list
    with noted_places():
        assert type(PlainTextResponse("x").raw_headers) is list


async def test_a_trace_that_cannot_be_kept_breaks_nothing() -> None:
    def broken(_document: Document) -> None:
        raise OSError("the disk is full")

    site = Site()
    site.tracing.sink = broken
    site.app.get("/")(lambda: {"fine": True})
    assert (await site.ask()).body == b'{"fine":true}'


# ── On ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_told_is_what_went_over_the_wire_in_order() -> None:
    site = Site()
    site.app.get("/a/{name}")(lambda name: Response("x", headers={"X-Own": "1", "X-Api-Key": "hidden-away"}))
    asked = {"Host": "here", "Authorization": f"Bearer {signed('ann', 'enduser')}", "Origin": ORIGIN}
    answer = await site.ask("/a/b", headers=asked)
    told = site.one
    assert names(told["request"]["headers"]) == ["host", "authorization", "origin"]
    assert names(told["response"]["headers"]) == [name.lower() for name, _ in answer.headers]
    assert [each["position"] for each in told["response"]["headers"]] == list(range(len(answer.headers)))
    assert told["response"]["status"] == 200 and told["reason"] == "configuration"
    assert asked["Authorization"].partition(" ")[2] not in json.dumps(told) and "hidden-away" not in json.dumps(told)
    assert told["faults"] == []


async def test_the_stream_is_known_by_the_answer_the_path_or_the_proposal() -> None:
    site = Site()
    site.app.get("/made")(lambda: Response("", headers={STREAM_ID_HEADER: ID}))
    site.app.get(f"/api/chat/streams/{ID}/stop")(lambda: "")
    await site.ask("/made")
    await site.ask(f"/api/chat/streams/{ID}/stop")
    await site.ask("/refused", headers={STREAM_ID_HEADER: ID})
    await site.ask("/refused", headers={STREAM_ID_HEADER: "stream-1-x"})
    assert [each["streamingSessionId"] for each in site.kept] == [ID, ID, ID, None]
    assert [each["response"]["status"] for each in site.kept] == [200, 200, 404, 404]


async def test_only_whom_a_switch_names_is_traced() -> None:
    site = Site(mode=Mode.OFF)
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(send)
        await site.app(scope, receive, send)

    from parshall.kernel.http import User

    @site.app.get("/")
    async def read(user: User) -> str:
        return user.user_id

    site.layer = HeaderTrace(Edge(app), site.tracing)
    site.tracing.switched = Switched(users=frozenset({"ann"}))
    for who in ("ann", "bob", "ann"):
        await site.ask(headers={"Authorization": f"Bearer {signed(who, 'enduser')}"})
    await site.ask(headers={"Authorization": "Bearer parshall_some-key-of-somebody"})
    forged = jwt.encode({"alg": ALGORITHM, "typ": "at+jwt", "kid": "one"}, {"sub": "ann"}, KEY, algorithms=[ALGORITHM])
    await site.ask(headers={"Authorization": f"Bearer {forged}"})
    assert [each["userId"] for each in site.kept] == ["ann", "ann"]
    assert {each["reason"] for each in site.kept} == {"user"}
    site.tracing.switched = Switched(streams=frozenset({ID}))
    await site.ask(f"/api/chat/streams/{ID}")
    await site.ask("/api/chat/streams/stream-1620847252-00000000")
    assert [each["streamingSessionId"] for each in site.kept[2:]] == [ID]


# ── The debug header ────────────────────────────────────────────────────────────────────────────────────────────────


def debug_token(**changed: object) -> str:
    claims = keys.debug_claims("root", issuer=ISSUER, at=clock.now(), seconds=600) | changed
    return jwt.encode({"alg": ALGORITHM, "typ": DEBUG_TYPE, "kid": "one"}, claims, KEY, algorithms=[ALGORITHM])


async def test_a_signed_header_has_its_request_traced_and_is_no_access_token() -> None:
    site = Site(mode=Mode.OFF)
    site.app.get("/")(lambda: "")
    token = debug_token()
    assert (await site.ask(headers={DEBUG_HEADER: token})).header(REPORT_HEADER) is None
    await site.ask()
    assert site.one["reason"] == "token" and token not in json.dumps(site.one)
    assert site.tracing.verifier is not None
    with pytest.raises(Exception, match="not an access token"):
        await site.tracing.verifier.verify(token)


@pytest.mark.parametrize(
    "token",
    [
        "nonsense",
        "a.b.c",
        debug_token(exp=clock.now() // 1_000_000 - 60),
        debug_token(iat=clock.now() // 1_000_000 + 600),
        debug_token(aud="parshall"),
        debug_token(iss="https://elsewhere.example.org"),
        debug_token()[:-6] + "AAAAAA",
        signed("root", "admin"),
        "parshall_" + "a" * 40,
        "x" * 9000,
        "eyJ0eXAiOiJoZWFkZXItdHJhY2Urand0IiwiYWxnIjoibm9uZSJ9.e30.",
    ],
)
async def test_a_bad_debug_header_is_ignored_with_a_note(token: str, capsys: pytest.CaptureFixture[str]) -> None:
    site = Site(mode=Mode.OFF)
    site.app.get("/")(lambda: "")
    with structlog.testing.capture_logs() as lines:
        answer = await site.ask(headers={DEBUG_HEADER: token})
    assert (answer.status, site.kept) == (200, [])
    assert [line["event"] for line in lines if line["area"] == "headers"] == ["debug_header_ignored"]
    assert token not in json.dumps(lines)
    site.tracing.mode = Mode.ON
    await site.ask(headers={DEBUG_HEADER: token})
    assert site.one["notes"][0].startswith("The debug header was ignored: ")


async def test_the_report_of_a_receiver_is_for_services_alone() -> None:
    site = Site(mode=Mode.OFF)
    site.app.get("/")(lambda: "")
    for token in (signed("ann", "enduser"), signed("root", "admin"), debug_token()):
        assert (await site.ask(headers={DEBUG_HEADER: token})).header(REPORT_HEADER) is None
    voucher = signed("chat", "service", "accounting:settle")
    sent = {"Host": "there", "Authorization": f"Bearer {voucher}", DEBUG_HEADER: voucher}
    answer = await site.ask(headers=sent)
    value = answer.header(REPORT_HEADER)
    assert value is not None and voucher not in value
    told = read_report(value)
    assert told is not None
    hop = compared(list(sent.items()), answer.headers, told, voucher=voucher)
    nothing = {"added": [], "lost": [], "changed": []}
    assert hop == {"request": nothing, "response": nothing, "left": 0}


# ── Development ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def developing() -> Iterator[Site]:
    with noted_places():
        yield Site(mode=Mode.DEVELOPMENT)


async def test_every_header_names_the_line_that_set_it(developing: Site) -> None:
    @developing.app.get("/")
    async def answer(response: Response) -> Response:
        response.headers["X-Dropped"] = "with the response of the framework"
        made = JSONResponse({}, headers={"X-First": "1"})
        made.headers["X-Second"] = "2"
        made.headers.append("Vary", "Accept")
        made.set_cookie("seen", "hidden-away")
        made.headers["X-First"] = "3"
        return made

    got = await developing.ask(headers={"Origin": ORIGIN})
    told = developing.one["response"]["headers"]
    places = {each["name"].lower(): each["place"] for each in told}
    lines = {name: int(places[name].split(":")[1].split()[0]) for name in ("x-second", "set-cookie", "x-first")}
    assert lines["set-cookie"] - lines["x-second"] == 2 and lines["x-first"] - lines["set-cookie"] == 1
    assert all(places[name].startswith(HERE) and places[name].endswith("answer") for name in lines)
    assert places["x-request-id"].startswith("parshall/kernel/http.py:")
    assert "x-dropped" not in places
    assert [name.lower() for name, _ in got.headers] == names(sorted(told, key=lambda each: each["position"]))
    written = [each["milliseconds"] for each in told]
    assert written == sorted(written), "in the order of being set"
    assert names(told).index("x-second") < names(told).index("x-first"), "which was set again after it"
    assert all(each["beforeBody"] >= 0 for each in told)


async def test_the_headers_of_a_stream_each_name_their_line(developing: Site) -> None:
    @developing.app.get("/")
    async def answer() -> Response:
        made = StreamingResponse(iter([b"one", b"two"]))
        made.raw_headers = stream_headers(ID, origin=ORIGIN, allowed_origins=[ORIGIN], http_version="1.1")
        return made

    await developing.ask(headers={"Origin": ORIGIN})
    told = developing.one["response"]["headers"][:9]
    assert names(told)[0] == "x-streaming-session-id" and names(told)[-1] == "connection"
    assert all("parshall/kernel/headers.py:" in each["place"] for each in told)
    assert len({each["place"] for each in told}) == 6, "CORS is one loop"


async def late(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
    response.headers["X-Late"] = "1"
    await send({"type": "http.response.body", "body": b"x"})


class Late(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await late(self, scope, receive, send)


class Twice(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"x"})


def doubled() -> Response:
    made = PlainTextResponse("x")
    made.headers.append("Content-Type", "text/html")
    return made


def unsendable() -> Response:
    made = PlainTextResponse("x")
    made.raw_headers.append((b"X-Injected", b"a\r\nSet-Cookie: b"))
    made.raw_headers.append((b"X Name", b"a"))
    return made


def unwritable() -> Response:
    made = PlainTextResponse("x")
    made.headers["X-Snow"] = UNICODE
    return made


FAULTY: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "late": (lambda: Late("x"), [("late", "x-late")]),
    "twice": (lambda: Twice("x"), [("late", "content-length")]),
    "double": (doubled, [("duplicate", "content-type")]),
    "unsendable": (unsendable, [("invalid", "X-Injected"), ("invalid", "X Name")]),
    "unwritable": (unwritable, [("invalid", "X-Snow")]),
    "unwritable at once": (lambda: PlainTextResponse("x", headers={"X-Snow": UNICODE}), [("invalid", "X-Snow")]),
}


@pytest.mark.parametrize("kind", FAULTY)
async def test_a_faulty_write_is_an_error_with_its_place_in_development(developing: Site, kind: str) -> None:
    make, expected = FAULTY[kind]
    developing.app.get("/")(make)
    with structlog.testing.capture_logs() as lines:
        await developing.ask()
    logged = [line for line in lines if line["event"] == "header_fault"]
    assert [(line["kind"], line["name"]) for line in logged][: len(expected)] == expected
    assert {line["log_level"] for line in logged} == {"error"}
    assert {line["law"] for line in logged} == {exchange.LAWS[expected[0][0]]}  # type: ignore[index]
    if kind != "twice":  # which goes out by way of the edge
        assert logged[0]["place"].startswith(HERE), logged[0]["place"]


@pytest.mark.parametrize("kind", ["late", "twice", "double", "unsendable"])
async def test_a_faulty_write_is_counted_in_the_trace_otherwise(kind: str) -> None:
    site = Site()
    make, expected = FAULTY[kind]
    site.app.get("/")(make)
    with structlog.testing.capture_logs() as lines:
        await site.ask()
    assert [(each["kind"], each["name"]) for each in site.one["faults"]][: len(expected)] == expected
    assert [line for line in lines if line["event"] == "header_fault"] == []


# ── Pure ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_field_is_told_with_its_last_write_and_when_that_was() -> None:
    sets = [
        HeaderSet(seconds=0.001, name="A", value="old", place="one", target=1),
        HeaderSet(seconds=0.002, name="B", value="b", place="two", target=1),
        HeaderSet(seconds=0.003, name="a", value="new", place="three", target=1),
        HeaderSet(seconds=0.004, name="a", value="new", place="of another response", target=2),
    ]
    started = Started(seconds=0.005, status=200, fields=[("a", "new"), ("B", "b"), ("c", "c")], place="four", target=1)
    told = response_fields(started, sets, first_body=0.007)
    assert [(each["name"], each["place"], each["position"]) for each in told] == [
        ("B", "two", 1),
        ("a", "three", 0),
        ("c", "four", 2),
    ]
    assert [each["beforeBody"] for each in told] == [5.0, 4.0, 2.0]
    assert faults_of(started, sets) == []


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.text("xy", max_size=2))),
    st.lists(st.tuples(st.sampled_from("abcd"), st.text("xy", max_size=2))),
)
def test_a_difference_says_how_to_come_from_one_end_to_the_other(
    one: list[tuple[str, str]], other: list[tuple[str, str]]
) -> None:
    there, back = difference(one, other), difference(other, one)
    assert (there["added"], there["lost"], there["changed"]) == (back["lost"], back["added"], back["changed"])
    named = {name for name, _ in one} | {name for name, _ in other}
    same = named - {*there["added"], *there["lost"], *there["changed"]}
    assert all([v for n, v in one if n == name] == [v for n, v in other if n == name] for name in same)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.text(max_size=300), st.text(max_size=600)), max_size=250))
def test_however_many_headers_there_are_reports_and_traces_are_bounded(fields: list[tuple[str, str]]) -> None:
    value = report(fields, fields, voucher="a token")
    assert len(value) <= REPORT_BYTES_MAX and value.isascii() and read_report(value.decode()) is not None
    recorded = [{"name": name, "value": value} for name, value in exchange.kept(fields, lambda _, value: value)]
    document = {"request": {"headers": recorded}, "response": {"headers": recorded}}
    assert len(fitted(document).encode()) <= DOCUMENT_BYTES_MAX


async def test_a_bomb_of_headers_is_told_within_bounds_and_says_what_is_missing() -> None:
    site = Site()
    site.app.get("/")(lambda: Response("", headers={f"x-{number}": "v" * 900 for number in range(150)}))
    await site.ask(headers={f"x-{number}": "w x" * 300 for number in range(150)})
    assert len(site.one["request"]["headers"]) == 100 and site.one["request"]["left"] == 50
    assert len(site.one["response"]["headers"]) == 100 and site.one["response"]["left"] > 50
    assert len(fitted(site.one).encode()) <= DOCUMENT_BYTES_MAX


async def test_a_trace_is_a_timeline_and_an_archive_that_tools_take() -> None:
    site = Site()
    site.app.post("/api/chat/sessions/s/stream")(lambda: Response("x", headers={STREAM_ID_HEADER: ID}))
    await site.ask("/api/chat/sessions/s/stream", method="POST", headers={"Host": "h", "Cookie": "a=b; c"})
    await site.ask(f"/api/chat/streams/{ID}", headers={"Host": "h"})
    told = timeline_of(ID, site.kept)
    assert [each["role"] for each in told["exchanges"]] == ["start", "resume"]
    kinds = [event["event"] for event in told["timeline"] if event["exchange"] == told["exchanges"][0]["id"]]
    assert (kinds[0], kinds[-1]) == ("request", "end")
    assert kinds.index("set") < kinds.index("response") <= kinds.index("first byte")
    moments = [event["at"] for event in told["timeline"]]
    assert moments == sorted(moments)
    archive = har_of(site.kept)
    check_har(archive)
    assert [entry["response"]["status"] for entry in archive["log"]["entries"]] == [200, 404]
    assert archive["log"]["entries"][0]["request"]["url"] == "http://h/api/chat/sessions/s/stream"
