"""Pages of other sites, and people who try names: cookies, CORS, frames, and answers that tell who there is."""

import re
import statistics
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.hostile import Deployment, deployed
from tests.serving import Server

ALLOWED = "https://chat.example.org"
EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Deployment]]:
    home = tmp_path_factory.mktemp("home")
    with deployed(home, ALLOWED_ORIGINS=ALLOWED, MAIL_URL="mailbox:", LOG_FORMAT="json") as made:
        made[0].customer("alice").close()
        yield made


@pytest.fixture
def http(site: tuple[Server, Deployment]) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=site[1].auth, timeout=30) as made:
        yield made


def log_in(http: httpx2.Client, **headers: str) -> httpx2.Response:
    body = {"username": "alice", "password": "alice-password"}
    answer = http.post("/api/auth/login", json=body, headers=headers)
    assert answer.status_code == 200
    return answer


# ── Cookies ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("origin", "secure"), [("http://127.0.0.1", False), ("https://chat.example.org", True)])
def test_cookies_are_kept_from_scripts_other_sites_and_plain_http(
    http: httpx2.Client, origin: str, secure: bool
) -> None:
    cookies = log_in(http, Origin=origin).headers.get_list("set-cookie")
    assert len(cookies) == 2
    for cookie in cookies:
        parts = {part.strip().lower() for part in cookie.split(";")}
        assert {"httponly", "samesite=strict"} <= parts
        assert ("secure" in parts) is secure


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": EVIL, "Sec-Fetch-Site": "same-origin"},
    ],
)
@pytest.mark.parametrize("path", ["/api/auth/refresh", "/api/auth/logout"])
def test_a_cookie_alone_does_nothing_for_the_page_of_another_site(
    http: httpx2.Client, path: str, headers: dict[str, str]
) -> None:
    log_in(http)
    refused = http.post(path, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "cross_site")
    assert "set-cookie" not in refused.headers
    assert http.post("/api/auth/refresh").status_code == 200, "the session is as it was"


@pytest.mark.parametrize("own", ["", "same-origin", "none", "an allowed page", "the own page"])
def test_the_own_page_and_an_allowed_one_refresh_by_cookie(http: httpx2.Client, own: str) -> None:
    origins = {"an allowed page": ALLOWED, "the own page": str(http.base_url).rstrip("/")}
    says = {"Origin": origins[own]} if own in origins else {"Sec-Fetch-Site": own} if own else {}
    log_in(http)
    assert http.post("/api/auth/refresh", headers=says).status_code == 200


def test_no_cookie_changes_anything_at_any_path(site: tuple[Server, Deployment], http: httpx2.Client) -> None:
    """Whoever asks for a change by cookie is nobody: 401, at each path that needs a caller."""
    token = log_in(http).cookies["accessToken"]
    assert http.get("/api/profile").status_code == 200, "reading by cookie is what an EventSource does"
    for operation in site[1].operations():
        if operation.method != "GET" and operation.needs_token:
            path = re.sub(r"\{\w+\}", "0" * 32, operation.path)
            answer = httpx2.request(operation.method, operation.url + path, cookies={"accessToken": token}, json={})
            assert answer.status_code in (400, 401), operation.name
            assert http.get("/api/profile").status_code == 200, operation.name


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_no_form_of_another_site_can_log_anybody_in(http: httpx2.Client, kind: str | None) -> None:
    """Fetch §2.2.2: these types need no preflight, so that JSON that comes as one of them is not read."""
    body = b'{"username":"alice","password":"alice-password"}'
    answer = http.post("/api/auth/login", content=body, headers={"Content-Type": kind} if kind else {})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert "set-cookie" not in answer.headers


# ── Other origins, frames and guesses ───────────────────────────────────────────────────────────────────────────────


def test_only_an_allowed_origin_may_read_and_nobody_may_frame(site: tuple[Server, Deployment]) -> None:
    for url in site[1].urls:
        for path in (
            "/",
            "/docs",
            "/openapi.json",
            "/health",
            "/api/profile",
            "/api/nowhere",
            "/documentation/README.md",
        ):
            for origin in (
                EVIL,
                "null",
                ALLOWED + ".evil.example",
                "https://chat.example.org.",
                "http://chat.example.org",
            ):
                answer = httpx2.get(url + path, headers={"Origin": origin})
                assert not [name for name in answer.headers if name.startswith("access-control-")], (path, origin)
            answer = httpx2.get(url + path, headers={"Origin": ALLOWED})
            assert answer.headers["access-control-allow-origin"] == ALLOWED
            assert "origin" in answer.headers["vary"].lower()
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], path
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] in ("no-store", "public, max-age=30")
            assert not {"server", "x-powered-by"} & set(answer.headers)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_runs_no_script_but_ours_and_says_nothing_that_the_request_said(http: httpx2.Client, path: str) -> None:
    answer = http.get(path, headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example"})
    assert "evil" not in answer.text
    policy = answer.headers["content-security-policy"]
    scripts = re.search(r"script-src ([^;]*)", policy)
    assert "unsafe-inline" not in (scripts[1] if scripts else re.search(r"default-src ([^;]*)", policy)[1])
    assert re.findall(r'(?:src|href)="(?:https?:)?//', answer.text) == []
    assert ("<script" in answer.text) is bool(scripts)


@pytest.mark.parametrize(
    "path", ["/api/profile/", "/docs/", "//evil.example/", "/api/auth/login/", "/%2f%2fevil.example/"]
)
def test_nothing_redirects(http: httpx2.Client, path: str) -> None:
    """A redirect would say what Host said, and lead from https to http behind a proxy."""
    for method in ("GET", "POST"):
        answer = http.request(method, str(http.base_url).rstrip("/") + path, headers={"Host": "evil.example"})
        assert answer.status_code in (401, 404, 405)
        assert "location" not in answer.headers


def test_every_answer_with_a_credential_is_kept_by_nobody(http: httpx2.Client) -> None:
    login = log_in(http)
    headers = {"Authorization": f"Bearer {login.json()['accessToken']}"}
    key = http.post("/api/auth/api-keys", json={"name": f"k{time.time_ns()}"}, headers=headers)
    for answer in (login, http.post("/api/auth/refresh"), key):
        assert answer.headers["cache-control"] == "no-store"


# ── Who there is ────────────────────────────────────────────────────────────────────────────────────────────────────


def told(answer: httpx2.Response) -> tuple[int, dict[str, Any], list[str]]:
    """An answer but for what differs each time."""
    body = {name: value for name, value in answer.json().items() if name not in ("instance", "requestId")}
    return answer.status_code, body, sorted(set(answer.headers) - {"date", "x-request-id", "content-length"})


def test_a_login_tells_not_whether_there_is_the_user_by_word_or_time(http: httpx2.Client) -> None:
    seconds: dict[str, list[float]] = {"alice": [], "nobody-here": []}
    answers = []
    for _ in range(4):
        for name, taken in seconds.items():
            began = time.perf_counter()
            answers.append(told(http.post("/api/auth/login", json={"username": name, "password": "wrong-password"})))
            taken.append(time.perf_counter() - began)
    assert all(answer == answers[0] for answer in answers)
    there, absent = (statistics.median(taken) for taken in seconds.values())
    assert 0.4 < there / absent < 2.5, "a hash is computed in either case"


def test_mail_is_promised_in_the_same_words_whoever_there_is(http: httpx2.Client) -> None:
    for path in ("/api/auth/forgot-password", "/api/auth/resend-verification"):
        there, absent = (told(http.post(path, json={"email": f"{who}@example.org"})) for who in ("alice", "nobody"))
        assert there == absent
        assert there[0] == 200


def test_a_sign_up_does_not_tell_a_name_from_an_address(http: httpx2.Client) -> None:
    """Somebody has to be told that one is taken: in one sentence for both, after a hash."""
    bodies = (
        {"username": "alice", "email": "new@example.org", "password": "long-enough"},
        {"username": "brandnew", "email": "alice@example.org", "password": "long-enough"},
    )
    answers = [http.post("/api/auth/signup", json=body) for body in bodies]
    assert told(answers[0]) == told(answers[1])
    assert answers[0].json()["code"] == "username_taken"


def test_codes_and_keys_that_are_wrong_are_refused_alike(http: httpx2.Client) -> None:
    for path, body in (
        ("/api/auth/verify-email", {}),
        ("/api/auth/reset-password", {"newPassword": "long-enough-now"}),
    ):
        answers = [told(http.post(path, json={**body, "token": token})) for token in ("", "x", "A" * 43, "0" * 5000)]
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][0] in (400, 401)
