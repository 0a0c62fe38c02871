"""Streams read by a browser, with the lines of docs/CLIENTS.md in a page, through connections that are reset."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright
from tests.clients.programs import chromium, node_folder
from tests.clients.proof import CUTS, Run, check_once, snippet
from tests.clients.relay import relay
from tests.front import one_address
from tests.serving import Caller, Server, serving, text_of, upstream
from tests.valkey import unused_port

pytestmark = pytest.mark.timeout(600)  # the first of these tests may have to install the browser

READ_MILLISECONDS_MAX = 60_000
COLLECT = """async ({ code, name, values }) => {
  let text = ''
  const read = new Function(`${code}; return ${name}`)()
  const last = await read(values, (piece) => { text += piece })
  return { text, last }
}"""

MODULES = "node_modules/@microsoft/fetch-event-source/lib/esm"
RUN_MODULE = """async ({ code, values }) => {
  let text = ''
  const process = { env: values, stdout: { write: (piece) => { text += piece } } }
  const { fetchEventSource } = await import('/lib/index')
  const AsyncFunction = (async () => {}).constructor
  await new AsyncFunction('fetchEventSource', 'process', code)(fetchEventSource, process)
  return text
}"""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture(scope="module")
def server(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that knows the origin of a page which is not its own: the same port under another name."""
    port = str(unused_port())
    options = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": provider, "OPENAI_MODELS": "fake,*"}
    options |= {"PORT": port, "CHAT_PORT": port}
    home = tmp_path_factory.mktemp("home")
    with serving(home, ALLOWED_ORIGINS=f"http://localhost:{port}", **options) as running:
        yield running


@pytest.fixture(scope="module")
def url(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The one address at which a page logs in and reads."""
    with one_address(server, tmp_path_factory.mktemp("front") / "nginx") as found:
        yield found


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[Caller]:
    made = server.customer("reader", credits=1000)
    yield made
    made.close()


@pytest.fixture
def run(caller: Caller) -> Run:
    return Run.of(caller)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(bypass_csp=True)  # the page stands for one of somebody else, with a policy of its own
    made = context.new_page()
    made.set_default_timeout(READ_MILLISECONDS_MAX)
    yield made
    context.close()


def fetched(page: Page, run: Run, url: str, *, after: int = 0) -> str:
    """What `fetch` reads from a page of another origin."""
    page.goto(f"http://localhost:{url_port(run.caller.url)}/health")
    return collected(page, "Browser: fetch", "read", run, url, after)


def sourced(page: Page, run: Run, url: str, *, after: int = 0) -> str:
    """What @microsoft/fetch-event-source reads, of a page whose bundler resolved the import."""
    folder = node_folder() / MODULES

    def deliver(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        route.fulfill(path=folder / f"{name}.js", content_type="text/javascript")

    page.route("**/lib/*", deliver)
    page.goto(f"http://localhost:{url_port(run.caller.url)}/health")
    code = snippet("Node or browser: @microsoft/fetch-event-source", run.message).partition("fetch-event-source'\n")[2]
    values = {
        "URL": url,
        "TOKEN": run.caller.token,
        "SESSION": run.session,
        "STREAM": run.stream,
        "AFTER": str(after),
    }
    return str(page.evaluate(RUN_MODULE, {"code": code, "values": values}))


def followed(page: Page, run: Run, url: str, *, after: int = 0) -> str:
    """What an EventSource reads, by the cookie of a login from the same page."""
    page.goto(f"{url}/health")
    page.evaluate(
        "(body) => fetch('/api/auth/login', { method: 'POST', body, headers: { 'Content-Type': 'application/json' } })",
        '{"username": "reader", "password": "reader-password"}',
    )
    with run.caller.streaming(
        "POST",
        f"/api/chat/sessions/{run.session}/stream",
        {"message": run.message},
        {"X-Streaming-Session-Id": run.stream},
    ):
        pass
    return collected(page, "Browser: EventSource", "follow", run, url, after)


def collected(page: Page, title: str, name: str, run: Run, url: str, after: int) -> str:
    values = {"url": url, "token": run.caller.token, "session": run.session, "stream": run.stream, "after": str(after)}
    given = {"code": snippet(title, run.message), "name": name, "values": values}
    result: dict[str, Any] = page.evaluate(COLLECT, given)
    assert result["last"] == run.caller.resume(run.stream)[-1].json(), "the terminal event, with its receipt"
    return str(result["text"])


def url_port(url: str) -> int:
    return int(url.rpartition(":")[2])


READERS = pytest.mark.parametrize("read", [fetched, sourced, followed])


@READERS
def test_a_browser_ends_with_the_stored_text(read: Any, page: Page, run: Run, url: str, provider: str) -> None:
    assert read(page, run, url) == check_once(run, provider)


@READERS
def test_a_browser_whose_connections_are_reset_ends_with_the_stored_text_charged_once(
    read: Any, page: Page, run: Run, url: str, provider: str
) -> None:
    with relay(url_port(url), CUTS) as cutting:
        came = read(page, run, cutting.url)
        assert not cutting.cuts, "every cut was met"
    assert came == check_once(run, provider)


@READERS
def test_a_browser_that_resumes_from_the_middle_ends_with_the_rest(
    read: Any, page: Page, run: Run, url: str, provider: str
) -> None:
    events = run.caller.ask(run.session, run.message, headers={"X-Streaming-Session-Id": run.stream})
    assert read(page, run, url, after=30) == text_of(events[30:])
    check_once(run, provider)
