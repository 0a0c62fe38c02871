"""docs/SESSIONS.md held against a running server: every header of its tables, in both directions, and its examples."""

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, sync_playwright
from tests.clients.programs import chromium, node_folder
from tests.clients.proof import QUESTION, Run, check_once
from tests.front import one_address
from tests.hostile import Line
from tests.serving import ROOT, Caller, Server, serving, upstream
from tests.valkey import unused_port

from parshall.kernel import headers as names
from parshall.kernel.ids import STREAM_ID_PATTERN, new_stream_id
from parshall.kernel.sse import parse

PAGE = (ROOT / "docs" / "SESSIONS.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "parshall"
CALLS_OTHERS = ("client", "doctor", "cli", "providers", "webhook.py")
"""Where headers are read of answers, not of requests."""
READ = re.compile(
    r'headers\.get(?:list)?\("([A-Za-z-]+)"|_HEADER = "([A-Za-z-]+)"|Header\(alias="([A-Za-z-]+)"|name == b"([a-z-]+)"'
)
WALK_SECONDS_MAX = 60
PER_MINUTE = 300
INSTALLING = pytest.mark.timeout(600)

Answer = httpx2.Response


def table(title: str) -> list[dict[str, str]]:
    """The first table of that section, a row a dictionary."""
    part = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def fenced(title: str) -> str:
    """The one block of code under that heading."""
    part = re.split(r"\n##+ ", PAGE.partition(f"# {title}\n")[2])[0]
    (block,) = re.findall(r"^```\w*\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    return str(block)


SENT = {row["header"].strip("`"): row for row in table("What a client sends")}
ANSWERED = {row["header"].strip("`"): row for row in table("What a server sends")}


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture(scope="module")
def server(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that counts requests, and knows a page of its own port under another name."""
    port = str(unused_port())
    options = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": provider, "OPENAI_MODELS": "fake,*"}
    options |= {
        "PORT": port,
        "CHAT_PORT": port,
        "REQUESTS_PER_MINUTE": str(PER_MINUTE),
        "ANONYMOUS_REQUESTS_PER_MINUTE": "1000",
    }
    home = tmp_path_factory.mktemp("home")
    with serving(home, ALLOWED_ORIGINS=f"http://localhost:{port}", **options) as running:
        yield running


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[Caller]:
    made = server.customer("reader", credits=1000)
    yield made
    made.close()


@pytest.fixture
def run(caller: Caller) -> Run:
    return Run.of(caller)


def origin(server: Server) -> str:
    return server.url.replace("127.0.0.1", "localhost")


def asked(caller: Caller, **headers: str) -> Answer:
    """An answer to a new question, as a stream."""
    path = f"/api/chat/sessions/{caller.session()}/stream"
    return caller.http.post(path, json={"message": f"fake-n3 {uuid.uuid4().hex}"}, headers=caller.headers(headers))


# ── What a server sends ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A real answer, and which words of the column "on" are true of it."""

    answer: Answer
    words: frozenset[str]


def sample(answer: Answer, status: int, words: str) -> Sample:
    assert answer.status_code == status, answer.text
    return Sample(answer=answer, words=frozenset(words.split(", ")))


def crossing(caller: Caller, page: str) -> Iterator[Sample]:
    """Answers to a page of an allowed origin, and of one that is not."""
    there = caller.headers({"Origin": page})
    preflight = {"Origin": page, "Access-Control-Request-Method": "POST"}
    foreign = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    stream = asked(caller, Origin=page)
    yield sample(stream, 200, "all, bodies, streams, counted, allowed")
    path = f"/api/chat/streams/{stream.headers['X-Streaming-Session-Id']}"
    yield sample(caller.http.get(path, headers=there), 200, "all, bodies, streams, counted, allowed")
    yield sample(
        caller.http.get(caller.at("/api/profile"), headers=there), 200, "all, bodies, whole bodies, counted, allowed"
    )
    yield sample(caller.http.options(path, headers=preflight), 204, "all, preflights, allowed preflights, allowed")
    yield sample(caller.http.options(path, headers=foreign), 204, "all, preflights")
    refused = httpx2.get(caller.at("/api/profile"), headers={"Origin": page})
    yield sample(refused, 401, "all, bodies, whole bodies, counted, allowed, unauthenticated")


def plain(caller: Caller) -> Iterator[Sample]:
    """Answers to whoever is no page of another origin."""
    own, whole = caller.headers(), "all, bodies, whole bodies"
    stream = asked(caller)
    yield sample(stream, 200, "all, bodies, streams, counted")
    path = f"/api/chat/streams/{stream.headers['X-Streaming-Session-Id']}"
    state = caller.http.get(path, headers=own | {"Accept": "application/json"})
    yield sample(state, 200, f"{whole}, states, counted")
    yield sample(caller.http.post(f"{path}/stop", headers=own), 200, f"{whole}, states, counted")
    messages = f"/api/chat/sessions/{caller.session()}/messages"
    yield sample(caller.http.post(messages, json={"message": "fake-n1"}, headers=own), 200, f"{whole}, states, counted")
    yield sample(caller.http.get("/health"), 200, whole)
    yield sample(caller.http.get("/docs", headers=own), 200, f"{whole}, counted")
    yield sample(caller.http.delete("/api/models", headers=own), 405, f"{whole}, counted, wrong method")
    body = {"username": "reader", "password": "reader-password"}
    yield sample(httpx2.post(caller.at("/api/auth/login"), json=body), 200, f"{whole}, counted, logins")


def test_every_response_has_the_headers_of_the_table_and_no_others(server: Server, caller: Caller) -> None:
    samples = [*crossing(caller, origin(server)), *plain(caller)]
    busy = server.customer("busy", credits=0)
    for _ in range(PER_MINUTE + 1):
        last = busy.http.get("/api/version", headers=busy.headers())
    samples.append(sample(last, 429, "all, bodies, whole bodies, counted, busy"))
    words = {name: set(row["on"].split(", ")) for name, row in ANSWERED.items()}
    for each in samples:
        promised = {name.lower() for name, on in words.items() if on & each.words}
        came = [name.decode().lower() for name, _ in each.answer.headers.raw]
        assert set(came) == promised, (each.answer.request.url, each.answer.status_code)
        assert {name for name in came if came.count(name) > 1} <= {"set-cookie"}
    assert set().union(*words.values()) == set().union(*(each.words for each in samples)), "every word was met"


def test_what_is_no_request_is_answered_with_these_headers_alone(server: Server) -> None:
    line = Line(server.url)
    line.say(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
    (heard,) = line.answers(1)
    part = PAGE.partition("What cannot be read as a request")[2].partition("\n\n")[0]
    told = {name.partition(":")[0].lower() for name in re.findall(r"`([A-Z][\w-]+(?:: close)?)`", part)}
    assert (heard.status, set(heard.headers)) == (400, told)
    line.close()


def test_a_stream_sends_its_headers_in_the_order_of_the_page(server: Server, caller: Caller) -> None:
    order = fenced("The headers of a stream").split()
    for headers in ({"Origin": origin(server)}, {}):
        answer = asked(caller, **headers)
        came = [name.decode().lower() for name, _ in answer.headers.raw]
        only_crossing = [name for name in order if name.startswith("access-control") or name == "vary"]
        assert came == [name for name in order if headers or name not in only_crossing]


def test_the_page_says_of_every_header_whether_another_origin_may_read_it() -> None:
    readable = {name for name, row in ANSWERED.items() if row["other origin"] == "yes"}
    safelisted = {"Cache-Control", "Content-Type", "Content-Length"}  # Fetch §2.2.2, of those that we send
    assert readable == {*names.EXPOSED, *safelisted}


# ── What a client sends ─────────────────────────────────────────────────────────────────────────────────────────────


def raw(caller: Caller, head: str, body: bytes = b"") -> Answer:
    """What a request answers that no HTTP library would send."""
    line = Line(caller.url)
    line.say(head.encode() + b"\r\n\r\n" + body)
    (heard,) = line.answers(1)
    line.close()
    return httpx2.Response(heard.status, content=heard.body)


def post(caller: Caller, path: str, **headers: str) -> Answer:
    return caller.http.post(path, json={}, headers=caller.headers(headers))


def refresh(caller: Caller, **headers: str) -> Answer:
    return caller.http.post(caller.at("/api/auth/refresh"), headers={"Cookie": "refreshToken=x", **headers})


REFUSED: dict[str, Callable[[Caller], Answer]] = {
    "Authorization": lambda c: c.http.get("/api/models", headers=[("Authorization", f"Bearer {c.token}")] * 2),
    "Cookie": lambda c: c.http.post("/api/chat/sessions", json={}, headers={"Cookie": f"accessToken={c.token}"}),
    "Content-Type": lambda c: post(c, "/api/chat/sessions", **{"Content-Type": "text/plain"}),
    "Content-Length": lambda c: raw(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000"),
    "Transfer-Encoding": lambda c: raw(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked"),
    "Host": lambda c: raw(c, "GET / HTTP/1.1\r\nHost: a\r\nHost: b"),
    "X-Streaming-Session-Id": lambda c: asked(c, **{"X-Streaming-Session-Id": "stream-1"}),
    "Last-Event-ID": lambda c: asked(c, **{"Last-Event-ID": "-1"}),
    "X-User-ID": lambda c: post(c, "/api/chat/sessions", **{"X-User-ID": "admin"}),
    "Idempotency-Key": lambda c: c.http.post(
        c.at("/api/credits/deduct"), json={"credits": 1}, headers=c.headers({"Idempotency-Key": "a" * 256})
    ),
    "Sec-Fetch-Site": lambda c: refresh(c, **{"Sec-Fetch-Site": "cross-site"}),
}
"""For each header that can be refused, a request that is."""


def test_what_the_page_says_is_refused_is_refused_so(caller: Caller) -> None:
    told = {name: row["else"].strip("`") for name, row in SENT.items() if row["else"].startswith("`")}
    answers = {name: request(caller) for name, request in REFUSED.items()}
    assert {name: f"{each.status_code} {each.json()['code']}" for name, each in answers.items()} == told


def test_what_the_page_says_is_taken_is_taken(caller: Caller) -> None:
    stream = new_stream_id(at=1_620_847_252_000_000)
    own = caller.get("/api/profile")["user"]
    first = asked(caller, **{"X-Streaming-Session-Id": stream, "X-User-ID": own["id"], "Last-Event-ID": "2"})
    assert first.headers["X-Streaming-Session-Id"] == stream and "\nid: 3\n" in first.text.partition("\n\n")[0] + "\n"
    cookie = {"Cookie": f"accessToken={caller.token}", "X-Request-Id": "of-a_client.1"}
    answer = caller.http.get(f"/api/chat/streams/{stream}", headers=cookie | {"Accept": "application/json"})
    assert answer.json()["streamingSessionId"] == stream
    assert answer.headers["X-Request-Id"] == "of-a_client.1"
    assert caller.http.get("/health", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"] != "a b"
    assert STREAM_ID_PATTERN in PAGE


OF_ANSWERS = {"retry-after", "set-cookie", "x-debug-headers-report"}
"""What calls of other services read."""


def test_every_header_that_the_server_reads_is_in_the_table_and_every_preflight_permits_what_pages_set() -> None:
    read: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if not set(path.relative_to(SOURCE).parts) & set(CALLS_OTHERS):
            found = READ.findall(path.read_text(encoding="utf-8"))
            read |= {next(filter(None, groups)).lower() for groups in found}
    known = {name.lower() for name in SENT}
    assert {"x-answer-within", "origin", "content-length", "transfer-encoding"} <= read, "they are found"
    assert read - known - OF_ANSWERS == set(), "say in docs/SESSIONS.md what these are for"
    part = PAGE.partition("\n## Pages of another origin\n")[2].partition("\n## ")[0]
    assert [name for name in names.ALLOWED if f"`{name}`" not in part] == []
    assert {name.lower() for name in names.ALLOWED} <= known


def test_one_search_for_the_id_finds_everything(server: Server, caller: Caller) -> None:
    """The places of the table "One id through everything", where no other service is asked."""
    proposed = new_stream_id(at=1_620_847_252_000_000)
    answer = asked(caller, **{names.STREAM_ID_HEADER: proposed})
    session = caller.ended(proposed)["sessionId"]
    first, *_, last = parse([answer.content])
    conversation = caller.get(f"/api/chat/sessions/{session}")
    entries = caller.get("/api/credits/statement?limit=500")["entries"]
    found = [
        answer.headers[names.STREAM_ID_HEADER],
        first.json()["streamingSessionId"],
        last.json()["receipt"]["streamingSessionId"],
        *(message["streamingSessionId"] for message in conversation["messages"]),
        conversation["metadata"]["streamingSessionId"],
        caller.get(f"/api/streaming-sessions/{proposed}/receipt")["streamingSessionId"],
    ]
    assert found == [proposed] * 7
    kinds = {each["kind"] for each in entries if each["streamingSessionId"] == proposed}
    assert kinds == {"reserve", "charge", "release"}
    logged = [json.loads(line[line.index("{") :]) for line in server.output if proposed in line]
    assert {line["event"] for line in logged if line.get("stream") == proposed} >= {"request", "stream_settled"}


# ── Examples ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The one address that an example asks, and a page of another origin that may."""

    url: str
    page: str
    folder: Path

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return kept | {"URL": self.url, "USERNAME": "reader", "PASSWORD": "reader-password"}


@pytest.fixture
def place(server: Server, tmp_path: Path) -> Iterator[Place]:
    with one_address(server, tmp_path / "front") as url:
        yield Place(url=url, page=f"{origin(server)}/health", folder=tmp_path)


def printed(command: list[str], place: Place) -> dict[str, str]:
    """What a walk prints: a word, or two, and a value a line."""
    ran = subprocess.run(
        command, cwd=place.folder, env=place.environment(), capture_output=True, text=True, timeout=WALK_SECONDS_MAX
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return told(ran.stdout.splitlines())


def told(lines: list[str]) -> dict[str, str]:
    return {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines}


def by_curl(code: str, place: Place) -> dict[str, str]:
    return printed(["bash", "-c", f"set -eu -o pipefail\n{code}"], place)


def by_python(code: str, place: Place) -> dict[str, str]:
    return printed([sys.executable, "-c", code], place)


def by_node(code: str, place: Place) -> dict[str, str]:
    node_folder()
    return printed(["node", "-e", f"{code}\nwalk(process.env, console.log)"], place)


def by_a_page(code: str, place: Place) -> dict[str, str]:
    """From a page of another origin."""
    with sync_playwright() as playwright:
        browser: Browser = playwright.chromium.launch(executable_path=chromium())
        page = browser.new_context(bypass_csp=True).new_page()
        page.goto(place.page)
        script = f"async (values) => {{ const said = []; {code}; await walk(values, (...words) => said.push(words)); "
        said: list[list[str]] = page.evaluate(script + "return said }", place.environment())
        browser.close()
    return told([f"{word} {value}".replace("True", "true") for word, value in said])


WALKS: dict[str, tuple[str, Callable[[str, Place], dict[str, str]]]] = {
    "curl": ("curl", by_curl),
    "Python": ("Python", by_python),
    "Node": ("JavaScript", by_node),
    "browser": ("JavaScript", by_a_page),
}


@INSTALLING
@pytest.mark.parametrize("walk", WALKS)
def test_an_example_reads_the_id_from_header_and_event_resumes_acknowledges_and_reads_the_receipt(
    walk: str, place: Place, caller: Caller, provider: str
) -> None:
    title, how = WALKS[walk]
    message = f"fake-hard-n24 {uuid.uuid4().hex}"
    said = how(fenced(title).replace(QUESTION, message), place)
    stream = said["header"]
    run = Run(caller=caller, session=caller.state(stream)["sessionId"], stream=stream, message=message)
    check_once(run, provider)
    charged: Any = caller.ended(stream)["receipt"]["chargedCredits"]
    assert said == {
        "header": stream,
        "event": stream,
        "resumed at": "3",
        "matches": "true",
        "charged": f"{charged:g}",
    }
