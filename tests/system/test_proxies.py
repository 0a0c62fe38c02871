"""Forwarding headers at a real server: limits and log see the client where the proxy is trusted, and only there."""

import json
import time
from collections.abc import Iterator

import httpx2
import pytest
from tests.serving import Server, serving

NOBODY = {"username": "nobody", "password": "no-password-at-all"}
FAILURES_MAX = 10
SETTINGS = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("trusting")
    limits = {"TRUSTED_PROXIES": "127.0.0.0/8", "ANONYMOUS_REQUESTS_PER_MINUTE": "40"}
    with serving(home, **SETTINGS, **limits) as server:
        yield server


@pytest.fixture(scope="module")
def wary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("wary"), **SETTINGS, TRUSTED_PROXIES="203.0.113.9") as server:
        yield server


def login(server: Server, name: str, client: str, **fields: str) -> httpx2.Response:
    body = NOBODY | {"username": name}
    return httpx2.post(server.at("/api/auth/login"), json=body, headers={"X-Forwarded-For": client, **fields})


def logged(server: Server, request_id: str) -> str | None:
    """The client of a request as the log has it, which may be a moment behind the answer."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for line in server.output:
            if f'"{request_id}"' in line and (record := json.loads(line[line.index("{") :]))["event"] == "request":
                found: str | None = record["client"]
                return found
        time.sleep(0.01)
    raise AssertionError(f"the request {request_id} is not in the log")


def test_failed_logins_are_counted_by_the_client_behind_a_trusted_proxy(trusting: Server) -> None:
    spoofed = (f"198.51.100.{number}, 203.0.113.1" for number in range(FAILURES_MAX))
    assert {login(trusting, "ann", client).status_code for client in spoofed} == {401}
    refused = login(trusting, "ann", "203.0.113.1", **{"X-Request-Id": "refused"})
    assert refused.status_code == 429 and logged(trusting, "refused") == "203.0.113.1"
    assert login(trusting, "ann", "203.0.113.2").status_code == 401, "another client is another client"


def test_failed_logins_are_counted_by_the_peer_whatever_it_says_where_it_is_not_trusted(wary: Server) -> None:
    spoofed = (f"203.0.113.{number}" for number in range(FAILURES_MAX))
    assert {login(wary, "ann", client).status_code for client in spoofed} == {401}
    refused = login(wary, "ann", "203.0.113.77", **{"X-Request-Id": "refused"})
    assert refused.status_code == 429 and logged(wary, "refused") == "127.0.0.1"


def test_requests_are_counted_by_the_client_behind_a_trusted_proxy(trusting: Server) -> None:
    def left(client: str) -> str:
        answer = httpx2.get(f"{trusting.url}/api/version", headers={"X-Forwarded-For": client})
        assert answer.status_code == 200
        return answer.headers["RateLimit"].partition(";t=")[0]

    assert [left("198.51.100.5"), left("198.51.100.5"), left("198.51.100.6")] == [
        '"address";r=39',
        '"address";r=38',
        '"address";r=39',
    ]
    assert left("2001:db8:0:1::5") == '"address";r=39' and left("2001:db8:0:1::6") == '"address";r=38', "one /64"


def test_a_cookie_is_secure_where_a_trusted_proxy_was_asked_by_https(trusting: Server, wary: Server) -> None:
    body = {"username": "admin", "password": "admin-password"}
    for server, secure in ((trusting, True), (wary, False)):
        answer = httpx2.post(server.at("/api/auth/login"), json=body, headers={"X-Forwarded-Proto": "https"})
        assert answer.status_code == 200
        assert all(("Secure" in cookie) is secure for cookie in answer.headers.get_list("set-cookie"))


@pytest.mark.parametrize(
    "value",
    ["", ",", "unknown", "1.2.3.4:99999999", "[::", "a" * 4000, "\xff\xfe", "1.2.3.4, <script>", ",".join("1" * 999)],
)
def test_what_makes_no_sense_is_neither_believed_nor_an_error(trusting: Server, value: str) -> None:
    name = f"nonsense-{sum(value.encode())}"
    headers = [(b"X-Forwarded-For", value.encode("latin-1")), (b"X-Forwarded-Proto", value.encode("latin-1"))]
    answer = httpx2.get(f"{trusting.url}/api/version", headers=[*headers, (b"X-Request-Id", name.encode())])
    assert answer.status_code in (200, 429)
    assert logged(trusting, name) == "127.0.0.1"
