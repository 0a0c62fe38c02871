"""The TypeScript client in pages of a real Chromium: other origins, reloads in mid-stream, cookies, full storages."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright
from tests import topology
from tests.badproxy import Wrong, bad_proxies
from tests.clients.programs import chromium, typescript_client
from tests.clients.proof import CUTS, Run, check_once, snippet
from tests.clients.relay import relay
from tests.clients.typescript import given
from tests.serving import Caller, Server, serving, text_of, upstream
from tests.valkey import unused_port

pytestmark = pytest.mark.timeout(600)  # the first of these tests may have to install the browser

READ_MILLISECONDS_MAX = 60_000
PAGE = """<!doctype html><title>A page with the client</title>
<script type="importmap">{"imports": {"parshall-client": "/client/dist/index.js"}}</script>"""
PLAY = """async ([scenario, given]) => {
  const scenarios = await import('/client/build/scenarios.js')
  return scenarios[scenario](given, (text) => { globalThis.shown = text })
}"""
BEGIN = f"(given) => {{ ({PLAY})(given) }}"
GO_ON = """async ([code, url, token]) => {
  const { Client } = await import('parshall-client')
  const client = new Client(url, { token })
  const pieces = []
  const AsyncFunction = (async () => {}).constructor
  await new AsyncFunction('client', 'show', code)(client, (text) => pieces.push(text))
  return { pieces, unfinished: client.unfinished(), kept: localStorage.length }
}"""
KEPT = "Object.values(localStorage).join()"
FILL = """() => {
  for (let size = 4 * 1024 * 1024; size >= 1; size = Math.floor(size / 2)) {
    for (let at = 0; ; at += 1) {
      try { localStorage.setItem(`full-${size}-${at}`, 'x'.repeat(size)) } catch { break }
    }
  }
}"""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture(scope="module")
def server(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that knows the origin of a page which is not its own: the same port under another name.

    Apart, pages of chat's own origin are to auth and accounting those of another one as well.
    """
    port = str(unused_port())
    options = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": provider, "OPENAI_MODELS": "fake,*"}
    options |= {"PORT": port, "CHAT_PORT": port, "ALLOWED_ORIGINS": f"http://localhost:{port}"}
    if topology.is_split:
        options["ALLOWED_ORIGINS"] += f",http://127.0.0.1:{port}"
    with serving(tmp_path_factory.mktemp("home"), **options) as running:
        yield running


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[Caller]:
    made = server.customer("reader", credits=1000)
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        # A page that a route fulfils comes from no address, which Chromium takes for one that may not ask a loopback.
        switches = ["--disable-features=LocalNetworkAccessChecks"]
        launched = playwright.chromium.launch(executable_path=path, args=switches)
        yield launched
        launched.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A profile of its own, whose pages find the compiled client beside them."""
    folder = typescript_client()

    def deliver(route: Route) -> None:
        path = route.request.url.partition("/client/")[2]
        route.fulfill(path=folder / path, content_type="text/javascript")

    made = browser.new_context()
    made.set_default_timeout(READ_MILLISECONDS_MAX)
    made.route("**/client/**", deliver)
    made.route("**/page", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def other_origin(server: Server) -> str:
    return f"http://localhost:{server.port}/page"


def check_read(read: dict[str, Any], run: Run, provider: str) -> None:
    """A whole stream: the stored text, one charge, and nothing left to go on with."""
    found = Run(caller=run.caller, session=run.session, stream=read["id"], message=run.message)
    assert read["last"]["data"] == run.caller.resume(found.stream)[-1].json()
    assert read["text"] == check_once(found, provider)
    assert read["unfinished"] == []


def begin(page: Page, scenario: str, told: dict[str, Any]) -> None:
    """Have the page read, and wait until it shows a good part."""
    page.evaluate(BEGIN, [scenario, told])
    page.wait_for_function("globalThis.shown?.length > 60")


def noted(page: Page) -> dict[str, Any]:
    """The only note that the page keeps."""
    (note,) = page.evaluate("Object.values(localStorage).map((note) => JSON.parse(note))")
    assert note["offset"] > 0 and note["text"]
    return dict(note)


def test_a_page_of_another_origin_whose_connections_are_reset_ends_with_the_stored_text(
    page: Page, caller: Caller, server: Server, provider: str
) -> None:
    run = Run.of(caller)
    page.goto(other_origin(server))
    with relay(server.port, CUTS) as cutting:
        read = page.evaluate(PLAY, ["ask", given(run, cutting.url)])
        assert not cutting.cuts, "every cut was met"
    check_read(read, run, provider)
    assert page.evaluate("localStorage.length") == 0


@pytest.mark.parametrize("header", ["x-streaming-session-id", "access-control-expose-headers"])
def test_a_page_that_is_shown_no_header_knows_the_id(
    header: str, page: Page, caller: Caller, server: Server, provider: str
) -> None:
    run = Run.of(caller, "fake-hard-n20-ms5")
    page.goto(other_origin(server))
    with bad_proxies(server.url) as proxies:
        hiding = proxies.open(Wrong(response=lambda _asked, head: head.drop(header)))
        result = page.evaluate(PLAY, ["ids", given(run, hiding)])
    assert result["header"] is None
    assert result["session"] == result["read"]["id"]
    check_read(result["read"], run, provider)


def test_a_page_that_is_loaded_anew_in_mid_stream_goes_on_without_gap_duplicate_or_second_charge(
    page: Page, caller: Caller, server: Server, provider: str
) -> None:
    run = Run.of(caller, "fake-hard-n64-ms20")
    page.goto(other_origin(server))
    begin(page, "ask", given(run, server.url))
    page.reload()
    note = noted(page)
    assert caller.token not in page.evaluate(KEPT)
    read = page.evaluate(PLAY, ["goOn", given(run, server.url)])
    check_read(read, run, provider)
    events = caller.resume(read["id"])
    assert read["offsets"] == list(range(note["offset"] + 1, len(events) + 1))
    assert note["text"] == text_of(events[: note["offset"]])


def test_the_lines_of_the_documentation_go_on_after_two_reloads_also_through_resets(
    page: Page, caller: Caller, server: Server, provider: str
) -> None:
    run = Run.of(caller, "fake-hard-n82-ms25")
    page.goto(other_origin(server))
    with relay(server.port, [10_000, 10_000, 400]) as cutting:
        begin(page, "ask", given(run, cutting.url))
        page.reload()
        begin(page, "goOn", given(run, cutting.url))
        page.reload()
        stream = noted(page)["streamId"]
        code = snippet("TypeScript and JavaScript: after a reload", "")
        result = page.evaluate(GO_ON, [code, cutting.url, caller.token])
        assert not cutting.cuts, "every cut was met"
    found = Run(caller=caller, session=run.session, stream=stream, message=run.message)
    assert "".join(result["pieces"]) == check_once(found, provider)
    assert (result["unfinished"], result["kept"]) == ([], 0)


def test_a_login_by_cookie_outlives_a_reload_and_is_shared_by_tabs_that_renew_it_at_once(
    page: Page, context: BrowserContext, caller: Caller, server: Server, provider: str
) -> None:
    """Each refresh token works once: tabs that did not take turns would end the session of all."""
    told = given(Run.of(caller, "fake-hard-n64-ms20"), username="reader", password="reader-password")
    page.goto(f"{server.url}/page")
    assert page.evaluate(PLAY, ["enter", told]) == "reader"
    begin(page, "askByCookie", told)
    page.reload()
    assert not page.evaluate("document.cookie"), "no script can read it"
    assert page.evaluate(PLAY, ["renewTogether", told]) == 6
    tabs = [context.new_page() for _ in range(2)]
    for tab in tabs:
        tab.goto(f"{server.url}/page")
        tab.evaluate(BEGIN, ["renewTogether", told])
    read = page.evaluate(PLAY, ["goOnByCookie", told])
    check_read(read, Run(caller=caller, session=told["session"], stream="", message=told["message"]), provider)
    assert page.evaluate(PLAY, ["leave", told])["status"] == 401


@pytest.mark.parametrize("storage", ["full", "switched off"])
def test_a_storage_that_takes_nothing_breaks_no_stream(
    storage: str, page: Page, caller: Caller, server: Server, provider: str
) -> None:
    run = Run.of(caller, "fake-hard-n20-ms5")
    page.goto(other_origin(server))
    if storage == "full":
        page.evaluate(FILL)
    else:
        page.evaluate("Object.defineProperty(globalThis, 'localStorage', { get() { throw new DOMException('off') } })")
    check_read(page.evaluate(PLAY, ["ask", given(run, server.url)]), run, provider)
