"""What a page may send and read in a real browser: each kind of origin, with and without credentials, by each API."""

import http.server
import itertools
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from tests.badproxy import bad_proxies
from tests.clients.programs import chromium
from tests.front import one_address
from tests.serving import Caller, Server, serving, upstream
from tests.system.test_doctor import BAD

from parshall.kernel import headers as names

pytestmark = pytest.mark.timeout(600)  # the first of these tests may have to install the browser

ORIGINS = ("same origin", "same site, allowed", "other site, allowed", "same site", "other site")
CREDENTIALS = ("omit", "include")
SAFELISTED = {"cache-control", "content-type", "content-length"}
"""Of the response headers that Fetch §2.2.2 lets every script read, those that we send."""
STREAM_HEADERS = {"cache-control", "content-type", "x-streaming-session-id", "x-request-id", "ratelimit"} | {
    "ratelimit-policy"
}

FETCH = """async ({ url, credentials, headers, body }) => {
  try {
    const method = body === null ? 'GET' : 'POST'
    const answer = await fetch(url, { method, credentials, headers, body: body === null ? undefined : body })
    return { status: answer.status, headers: Object.fromEntries(answer.headers), text: await answer.text() }
  } catch (error) {
    return { error: error.name }
  }
}"""
FOLLOW = """({ url, withCredentials }) => new Promise((resolve) => {
  const source = new EventSource(url, { withCredentials })
  const ids = []
  const end = (event) => { source.close(); resolve({ ids, ended: Boolean(event.data) }) }
  source.addEventListener('session', (event) => ids.push(JSON.parse(event.data).streamingSessionId))
  source.addEventListener('chunk', (event) => ids.push(event.lastEventId))
  source.addEventListener('done', end)
  source.addEventListener('error', end)
})"""


class _Blank(http.server.BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A deployment, pages elsewhere, and a user who is logged in by cookie in the browser."""

    server: Server
    url: str
    """Of the one origin at which pages find all services."""
    caller: Caller
    busy: Caller
    page: Page
    origins: dict[str, str]

    def visit(self, origin: str) -> None:
        """Be a page of that origin."""
        path = "/health" if origin == "same origin" else "/"
        self.page.goto(self.origins[origin] + path)

    def fetch(self, path: str, *, credentials: str, token: str = "", body: str | None = None, **more: str) -> Any:
        """What a script is given of an answer."""
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **more}
        if body is not None:
            headers["Content-Type"] = "application/json"
        url = path if path.startswith("http") else self.url + path
        return self.page.evaluate(FETCH, {"url": url, "credentials": credentials, "headers": headers, "body": body})

    def follow(self, stream: str, *, credentials: bool) -> Any:
        """What an EventSource is given."""
        url = f"{self.url}/api/chat/streams/{stream}"
        return self.page.evaluate(FOLLOW, {"url": url, "withCredentials": credentials})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def world(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The API on one port, blank pages on two others, of which one is allowed, each under two names.

    Services apart have nginx on the one port.
    """
    pages = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Blank) for _ in range(2)]
    for each in pages:
        threading.Thread(target=each.serve_forever, daemon=True).start()
    allowed, other = (each.server_port for each in pages)
    own = {
        "ALLOWED_ORIGINS": f"http://127.0.0.1:{allowed},http://localhost:{allowed}",
        "MAX_STREAMS_PER_USER": "1",
        "REQUESTS_PER_MINUTE": "10000",
    }
    home = tmp_path_factory.mktemp("home")
    with (
        upstream() as model,
        serving(home, EMBEDDED_MODEL="off", OPENAI_BASE_URL=model, **own) as server,
        one_address(server, home / "front") as url,
    ):
        page = browser.new_context(bypass_csp=True).new_page()
        port = int(url.rpartition(":")[2])
        origins = ("127.0.0.1", port), ("127.0.0.1", allowed), ("localhost", allowed), ("127.0.0.1", other)
        made = World(
            server=server,
            url=url,
            caller=server.customer("reader"),
            busy=server.customer("busy"),
            page=page,
            origins={
                name: f"http://{host}:{port}"
                for name, (host, port) in zip(ORIGINS, (*origins, ("localhost", other)), strict=True)
            },
        )
        made.visit("same origin")
        body = '{"username": "reader", "password": "reader-password"}'
        assert made.fetch("/api/auth/login", credentials="same-origin", body=body)["status"] == 200
        yield made
    for each in pages:
        each.shutdown()
        each.server_close()


def is_allowed(origin: str) -> bool:
    return origin == "same origin" or "allowed" in origin


def has_cookie(origin: str, credentials: str) -> bool:
    """Whether the browser sends the login's cookie: never from another site, for it is SameSite=Strict."""
    return credentials == "include" and not origin.startswith("other site")


def check_headers(answer: Any, origin: str, status: int, more: set[str]) -> None:
    """A script sees these headers of an answer from another origin, and more of one from its own."""
    assert answer["status"] == status, answer
    seen = set(answer["headers"])
    if origin == "same origin":
        assert seen >= more | {"x-content-type-options", "date"} and "set-cookie" not in seen
    else:
        assert seen == more
        assert seen <= SAFELISTED | {name.lower() for name in names.EXPOSED}


CELLS = pytest.mark.parametrize(("origin", "credentials"), list(itertools.product(ORIGINS, CREDENTIALS)))


@CELLS
def test_fetch_with_a_token_reads_id_and_events_of_an_allowed_origin_and_asks_nothing_of_another(
    origin: str, credentials: str, world: World
) -> None:
    session = world.caller.session()
    world.visit(origin)
    body = f'{{"message": "fake-n3 {uuid.uuid4().hex}"}}'
    path = f"/api/chat/sessions/{session}/stream"
    answer = world.fetch(path, credentials=credentials, token=world.caller.token, body=body)
    if is_allowed(origin):
        check_headers(answer, origin, 200, STREAM_HEADERS)
        stream = answer["headers"]["x-streaming-session-id"]
        assert f'"streamingSessionId":"{stream}"' in answer["text"].partition("\n\n")[0]
        assert "event: done" in answer["text"]
        world.caller.ended(stream)
    else:
        assert answer == {"error": "TypeError"}
        assert world.caller.get(f"/api/chat/sessions/{session}/messages")["messages"] == [], "the preflight stopped it"


@CELLS
def test_a_refusal_is_read_with_body_and_retry_after_by_an_allowed_origin_alone(
    origin: str, credentials: str, world: World
) -> None:
    """429 for one who has a stream running; 401 for a token that does not hold."""
    world.visit(origin)
    path = f"/api/chat/sessions/{world.busy.session()}/stream"
    running = world.busy.streaming("POST", path, {"message": "fake-n400-ms20"})
    with running as (_, events):
        stream = next(events).json()["streamingSessionId"]
        other = f"/api/chat/sessions/{world.busy.session()}/stream"
        busy = world.fetch(other, credentials=credentials, token=world.busy.token, body='{"message": "fake-n1"}')
        world.busy.post(f"/api/chat/streams/{stream}/stop")
    wrong = world.fetch("/api/profile", credentials=credentials, token="wrong")
    if is_allowed(origin):
        plain = {"content-type", "content-length", "cache-control", "x-request-id"}
        check_headers(busy, origin, 429, plain | {"retry-after", "ratelimit", "ratelimit-policy"})
        assert '"code":"too_many_streams"' in busy["text"] and int(busy["headers"]["retry-after"]) >= 1
        assert wrong["status"] == 401 and '"code":"unauthenticated"' in wrong["text"]
    else:
        assert busy == wrong == {"error": "TypeError"}


@pytest.fixture(scope="module")
def ended(world: World) -> str:
    """The id of a stream that has ended."""
    stream: str = world.caller.ask(world.caller.session(), "fake-n3")[0].json()["streamingSessionId"]
    world.caller.ended(stream)
    return stream


@CELLS
def test_the_cookie_of_the_login_goes_along_from_the_same_site_alone_and_reads_alone(
    origin: str, credentials: str, world: World, ended: str
) -> None:
    world.visit(origin)
    read = world.fetch(f"/api/chat/streams/{ended}", credentials=credentials)
    written = world.fetch("/api/chat/sessions", credentials=credentials, body="{}")
    if not is_allowed(origin):
        assert read == written == {"error": "TypeError"}
        return
    assert read["status"] == (200 if has_cookie(origin, credentials) else 401)
    assert ("event: done" in read["text"]) is has_cookie(origin, credentials)
    assert written["status"] == 401, "a cookie alone changes nothing"


@CELLS
def test_an_event_source_reads_by_the_cookie_of_the_same_site(
    origin: str, credentials: str, world: World, ended: str
) -> None:
    world.visit(origin)
    seen = world.follow(ended, credentials=credentials == "include")
    if origin == "same origin" or (is_allowed(origin) and has_cookie(origin, credentials)):
        chunks = [event.id for event in world.caller.resume(ended) if event.event == "chunk"]
        assert seen == {"ids": [ended, *chunks], "ended": True}
    else:
        assert seen == {"ids": [], "ended": False}


def test_an_allowed_page_may_send_the_headers_of_the_preflight_and_no_others(world: World) -> None:
    user = world.caller.get("/api/profile")["user"]["id"]
    values = {
        "Last-Event-ID": "0",
        names.STREAM_ID_HEADER: "stream-1620847252-a1b2c3d4",
        names.USER_ID_HEADER: user,
        "Idempotency-Key": "one",
        "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
    }
    assert {*values, "Authorization", "Content-Type"} == set(names.ALLOWED)
    world.visit("other site, allowed")
    path = f"/api/chat/sessions/{world.caller.session()}/stream"
    asked = {"credentials": "omit", "token": world.caller.token, "body": '{"message": "fake-n1"}'}
    answer = world.fetch(path, **asked, **values)
    assert answer["headers"]["x-streaming-session-id"] == values[names.STREAM_ID_HEADER]
    world.caller.ended(values[names.STREAM_ID_HEADER])
    assert world.fetch(path, **asked, **{"X-Another": "1"}) == {"error": "TypeError"}


def test_the_id_arrives_when_cors_hides_the_header(world: World) -> None:
    """Through a proxy that drops the expose list: the script gets no header, and the id by the first event."""
    world.visit("other site, allowed")
    with bad_proxies(world.url) as proxies:
        url = f"{proxies.open(BAD['not exposed'][0])}/api/chat/sessions/{world.caller.session()}/stream"
        answer = world.fetch(url, credentials="omit", token=world.caller.token, body='{"message": "fake-n2"}')
    assert answer["status"] == 200 and "x-streaming-session-id" not in answer["headers"]
    (line,) = [each for each in answer["text"].partition("\n\n")[0].splitlines() if each.startswith("data: ")]
    stream = line.partition('"streamingSessionId":"')[2].partition('"')[0]
    assert world.caller.ended(stream)["outcome"] == "completed"
    resumed = world.fetch(f"/api/chat/streams/{stream}?after=2", credentials="omit", token=world.caller.token)
    assert answer["text"].endswith(resumed["text"]) and resumed["text"]


def test_an_opaque_origin_reads_nothing(world: World) -> None:
    """A sandboxed frame or a data: page says `Origin: null`, as anybody's may."""
    with closing(world.page.context.new_page()) as page:
        page.goto("data:text/html,<p>")
        asked = {"url": f"{world.url}/health", "credentials": "omit", "headers": {}, "body": None}
        assert page.evaluate("origin") == "null"
        assert page.evaluate(FETCH, asked) == {"error": "TypeError"}
