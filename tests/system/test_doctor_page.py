"""The doctor's page: loads nothing from elsewhere, and says in a real browser what a script can send and read."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.badproxy import bad_proxies
from tests.browser import Page, binary, browser
from tests.front import one_address
from tests.nginx import free_ports
from tests.serving import Server, serving, upstream
from tests.system.test_doctor import BAD

USER, PASSWORD = "alice", "alice-password"
MESSAGE = "fake-n30-ms30"
if binary() is None:
    warnings.warn("there is no Chromium: the doctor's page is NOT tested in a browser", stacklevel=1)
needs_browser = pytest.mark.skipif(binary() is None, reason="there is no Chromium: the page is NOT tested in it")

OK_EVERYWHERE = {
    "Stream without credentials",
    "Events as they come",
    "Last-Event-ID",
    "Proposed id",
    "Update with the right id",
    "Update with a wrong id",
}


@pytest.fixture(scope="module")
def port() -> int:
    """Of the one address at which a browser meets the deployment."""
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    own = {"PORT": str(port), "ALLOWED_ORIGINS": f"http://127.0.0.1:{port}"}
    home = tmp_path_factory.mktemp("home")
    with upstream() as base, serving(home, OPENAI_BASE_URL=base, EMBEDDED_MODEL="off", **own) as built:
        built.customer(USER)
        yield built


@pytest.fixture(scope="module")
def url(server: Server, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with one_address(server, tmp_path_factory.mktemp("front") / "nginx", port=port) as found:
        yield found


def test_the_page_and_what_it_loads_come_from_here_and_run_nothing_inline(server: Server) -> None:
    caller = server.user()
    page = caller.http.get("/doctor")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"/doctor/doctor.js", "/doctor/doctor.css"} <= set(loaded)
    assert [address for address in loaded if not address.startswith("/")] == []
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\son\w+=|style=", page.text)
    for address in loaded:
        answer = caller.http.get(address)
        assert answer.status_code == 200 and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "://" not in answer.text or address.startswith("/documentation")
    assert 'href="/doctor"' in caller.http.get("/").text
    assert caller.http.get("/doctor/page.py").status_code == 404
    assert caller.http.get("/doctor/%2e%2e%2fpage.py").status_code == 404


async def examined(page: Page, url: str, api: str) -> dict[str, tuple[str, str]]:
    """Fill in the form, examine, and read the table: check to verdict and evidence."""
    await page.open(f"{url}/doctor")
    given = {"api": api, "username": USER, "password": PASSWORD, "message": MESSAGE}
    for name, value in given.items():
        await page.evaluate(f"document.getElementById({json.dumps(name)}).value = {json.dumps(value)}; null")
    await page.evaluate("document.querySelector('button').click(); null")
    await page.until("/No fault|found/.test(document.getElementById('verdict').textContent)")
    rows = await page.evaluate(
        "[...document.querySelectorAll('#rows tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return {check: (verdict, evidence) for verdict, check, evidence in rows}


def of(verdict: str, table: dict[str, tuple[str, str]]) -> set[str]:
    return {check for check, (found, _) in table.items() if found == verdict}


@needs_browser
async def test_a_browser_finds_what_a_script_may_send_and_read_on_each_kind_of_origin(url: str, tmp_path: Path) -> None:
    with bad_proxies(url) as proxies:
        async with browser(tmp_path) as page:
            same = await examined(page, url, url)
            assert of("fault", same) == of("warning", same) == set(), same
            assert {*OK_EVERYWHERE, "Id header readable", "EventSource", "Cookie of the login"} <= of("ok", same), same

            other_site = await examined(page, url, url.replace("127.0.0.1", "localhost"))
            assert of("fault", other_site) == set(), other_site
            assert {*OK_EVERYWHERE, "Id header readable", "Stream with credentials"} <= of("ok", other_site)
            assert 'type "cors"' in other_site["Stream without credentials"][1]
            assert of("warning", other_site) == {"Cookie of the login"}
            assert of("not checked", other_site) == {"EventSource"}

            unexposed = await examined(page, url, proxies.open(BAD["not exposed"][0]))
            assert of("fault", unexposed) == {"Id header readable"}, unexposed
            assert {*OK_EVERYWHERE, "EventSource"} <= of("ok", unexposed)

            star = await examined(page, url, proxies.open(BAD["star"][0]))
            assert {"Login with credentials", "Stream with credentials"} <= of("fault", star), star
            assert of("ok", star) >= OK_EVERYWHERE

            unreadable = await examined(page, url, proxies.open(BAD["no CORS"][0]))
            assert of("fault", unreadable) == {"Login and stream"}, unreadable
            assert page.violations == []
