"""A company's own login, on one process and on three: its tokens, its browsers, its roles, and its outages."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from tests.oidc import AUDIENCE, CLIENT, LEFT_OUT, SECRET, OpenIdProvider, provider
from tests.serving import Caller, Server, serving, text_of, upstream

EVERYWHERE = ("/api/profile", "/api/credits/balance", "/api/chat/sessions")
"""A path of each service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A deployment that trusts two issuers; nothing has ever been heard of the second one."""

    server: Server
    corp: OpenIdProvider
    silent: OpenIdProvider
    url: str
    """Where browsers reach auth."""

    def caller(self, token: str) -> Caller:
        made = Caller(self.server.url, services=self.server.services)
        made.token = token
        self.server.callers.append(made)
        return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def described(name: str, by: OpenIdProvider) -> dict[str, Any]:
    return {
        "name": name,
        "issuer": by.url,
        "audience": AUDIENCE,
        "clientId": CLIENT,
        "clientSecret": SECRET,
        "rolesClaim": "realm_access.roles",
        "roles": {"bosses": "admin", "leads": "supervisor"},
    }


@pytest.fixture(scope="module", params=["together", "apart"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    split, port = request.param == "apart", free_port()
    with provider() as corp, provider() as silent, upstream() as model:
        silent.down.set()
        settings = {
            "OIDC_ISSUERS": json.dumps([described("corp", corp), described("silent", silent)]),
            "PUBLIC_URL": f"http://127.0.0.1:{port}/",
            "AUTH_PORT" if split else "PORT": str(port),
            "EMBEDDED_MODEL": "off",
            "OPENAI_BASE_URL": model,
            "OPENAI_MODELS": "fake",
        }
        with serving(tmp_path_factory.mktemp("home"), split=split, **settings) as server:
            yield Site(server=server, corp=corp, silent=silent, url=f"http://127.0.0.1:{port}")


@pytest.fixture
def browser(site: Site) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=site.url, timeout=30) as client:
        yield client


# ── Tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_of_the_issuer_is_a_user_on_every_service(site: Site) -> None:
    anna = site.caller(
        site.corp.token("anna", preferred_username="anna", email="anna@corp.example", email_verified=True)
    )
    user = anna.get("/api/profile")["user"]
    assert (user["username"], user["email"], user["isVerified"]) == ("anna", "anna@corp.example", True)
    site.server.user().post("/api/credits/allocate-by-email", {"userId": user["email"], "credits": 5}, expect=201)
    events = anna.ask(anna.session(), "hello")
    assert text_of(events)
    assert anna.balance()["availableCredits"] == events[-1].json()["receipt"]["balanceAfter"] < 5
    assert anna.get("/api/profile/export")["externalIdentity"]["subject"] == "anna"
    assert anna.get("/api/chat/sessions", headers={"X-User-ID": "anna"})["sessions"]


def test_roles_come_from_the_claim_and_stay_the_issuers(site: Site) -> None:
    boss = site.caller(site.corp.token("boss", realm_access={"roles": ["x", "bosses"]}, preferred_username="boss"))
    boss.get("/api/admin/users")
    boss.get("/api/credits/allocations/all")
    plain = site.caller(site.corp.token("plain", preferred_username="plain"))
    for path in ("/api/admin/users", "/api/credits/allocations/all", "/api/chat/users/search?query=x"):
        plain.get(path, expect=403)
    refused = boss.request("PUT", "/api/admin/users/plain/role", {"role": "admin"}, expect=400)
    assert refused["code"] == "external_user"
    refused = boss.post("/api/admin/users/plain/reset-password", {"newPassword": "long-enough"}, expect=400)
    assert refused["code"] == "external_user"


def test_a_wrong_token_is_refused_on_every_service(site: Site) -> None:
    corp = site.corp
    head, body, signature = corp.token("anna").split(".")
    wrong = {
        "expired": corp.token("anna", exp=1_700_000_000),
        "for another": corp.token("anna", aud="https://elsewhere.example"),
        "an ID token": corp.id_token("n"),
        "of nobody we know": corp.token("anna", iss="https://evil.example"),
        "signed by another": f"{head}.{body}.{signature[:-6]}AAAAAA",
        "of another issuer": site.silent.sign({"iss": corp.url, "sub": "anna"}, {"typ": "at+jwt"}),
    }
    for name, token in wrong.items():
        caller = site.caller(token)
        for path in EVERYWHERE:
            assert caller.get(path, expect=401)["code"], f"{name} on {path}"
        answer = caller.http.get(caller.at("/api/profile"), headers=caller.headers())
        assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_a_new_key_fails_no_request(site: Site) -> None:
    for path in EVERYWHERE:
        site.caller(site.corp.token("rota")).get(path)
    site.corp.rotate()
    for path in EVERYWHERE:
        site.caller(site.corp.token("rota")).get(path)


def test_an_issuer_that_is_away_is_nobody_elses_trouble(site: Site) -> None:
    known = site.caller(site.corp.token("steady"))
    for path in EVERYWHERE:
        known.get(path)
    site.corp.down.set()
    try:
        for _ in range(4):
            for path in EVERYWHERE:
                stranger = site.caller(site.silent.token("stranger"))
                refused = stranger.http.get(stranger.at(path), headers=stranger.headers())
                assert (refused.status_code, refused.json()["code"]) == (503, "issuer_unavailable")
                assert refused.headers["Retry-After"]
                known.get(path)
                site.caller(site.corp.token("steady")).get(path)
        site.server.user().get("/api/credits/balance")
    finally:
        site.corp.down.clear()


def test_who_was_removed_is_out_though_the_issuer_signs(site: Site) -> None:
    gone = site.caller(site.corp.token("gone", preferred_username="gone"))
    gone.get("/api/profile")
    site.server.user().request("DELETE", "/api/admin/users/gone")
    assert gone.get("/api/profile", expect=401)["code"] == "user_gone"
    for path in EVERYWHERE:
        again = site.caller(site.corp.token("gone", preferred_username="gone"))
        assert again.get(path, expect=401)["code"] == "external_token_refused"


def test_a_token_is_exchanged_by_the_standard(site: Site) -> None:
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
    }
    answer = httpx2.post(f"{site.url}/api/auth/token", data=form | {"subject_token": site.corp.token("standard")})
    made = answer.json()
    assert (answer.status_code, made["token_type"], made["issued_token_type"]) == (
        200,
        "Bearer",
        form["subject_token_type"],
    )
    assert made["expires_in"] <= 300
    for path in EVERYWHERE:
        site.caller(made["access_token"]).get(path)
    for wrong in ("x", made["access_token"], site.corp.token("standard", aud="x"), site.silent.token("x"), ""):
        refused = httpx2.post(f"{site.url}/api/auth/token", data=form | {"subject_token": wrong})
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_request")


# ── Browsers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def begun(browser: httpx2.Client, **query: str) -> httpx2.URL:
    """Where the issuer is asked."""
    answer = browser.get("/api/auth/oidc/corp/login", params=query)
    assert answer.status_code == 303, answer.text
    return httpx2.URL(answer.headers["location"])


def returned(browser: httpx2.Client, **query: str) -> str:
    """Where the issuer sends the browser, once somebody has logged in there."""
    return str(httpx2.get(begun(browser, **query)).headers["location"])


def changed(url: str, **members: str | None) -> str:
    """The URL with other members of its query."""
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()} | members
    return f"{url.partition('?')[0]}?{urlencode({name: value for name, value in query.items() if value is not None})}"


def test_a_browser_logs_in_at_the_issuer(site: Site, browser: httpx2.Client) -> None:
    listed = browser.get("/api/auth/oidc").json()["issuers"]
    assert [each["login"] for each in listed] == ["/api/auth/oidc/corp/login", "/api/auth/oidc/silent/login"]
    site.corp.claims = {"preferred_username": "web", "sub": "web", "realm_access": {"roles": ["leads"]}}
    answer = browser.get(returned(browser, returnTo="/chat?new=1"))
    assert (answer.status_code, answer.headers["location"]) == (303, f"{site.url}/chat?new=1")
    cookies = answer.headers.get_list("set-cookie")
    for name in ("accessToken", "refreshToken"):
        assert any(
            re.match(rf"{name}=ey.*HttpOnly.*SameSite=strict|{name}=.*HttpOnly.*SameSite=strict", c) for c in cookies
        )
    assert browser.get("/api/profile").json()["user"]["username"] == "web"
    session = browser.post("/api/auth/refresh").json()
    assert session["user"]["role"] == "supervisor"
    caller = site.caller(session["accessToken"])
    caller.session()
    direct = site.caller(site.corp.token("web"))
    assert direct.get("/api/profile")["user"]["id"] == session["user"]["id"]


def test_what_the_browser_keeps_is_hidden_short_lived_and_its_own(site: Site, browser: httpx2.Client) -> None:
    answer = browser.get("/api/auth/oidc/corp/login")
    kept = answer.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=lax", "Max-Age=600", "Path=/api/auth/oidc"):
        assert part in kept
    ticket = kept.partition("=")[2].partition(";")[0]
    for path in EVERYWHERE:
        assert site.caller(ticket).get(path, expect=401)


def test_a_program_gets_the_tokens_as_json(site: Site, browser: httpx2.Client) -> None:
    site.corp.claims = {"sub": "program"}
    made = browser.get(returned(browser), headers={"Accept": "application/json"}).json()
    assert site.caller(made["accessToken"]).get("/api/profile")["user"] == made["user"]


def test_the_way_back_is_the_configured_one_whatever_host_is_named(site: Site, browser: httpx2.Client) -> None:
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Origin": "https://evil.example"}
    asked = browser.get("/api/auth/oidc/corp/login", headers=headers).headers["location"]
    assert httpx2.URL(asked).params["redirect_uri"] == f"{site.url}/api/auth/oidc/corp/callback"


@pytest.mark.parametrize("path", ["//evil.example", "https://evil.example", "/\\evil.example", "", "/\t/evil.example"])
def test_no_login_ends_elsewhere(browser: httpx2.Client, path: str) -> None:
    answer = browser.get("/api/auth/oidc/corp/login", params={"returnTo": path})
    assert (answer.status_code, answer.json()["code"]) == (400, "unfit_return_to")


def refused(browser: httpx2.Client, url: str) -> str:
    answer = browser.get(url)
    assert answer.status_code == 401, answer.text
    assert "accessToken" not in answer.headers.get("set-cookie", "")
    code: str = answer.json()["code"]
    return code


def test_an_answer_counts_once(site: Site, browser: httpx2.Client) -> None:
    site.corp.claims = {}
    url = returned(browser)
    ticket = browser.cookies["oidcLogin"]
    assert browser.get(url).status_code == 303
    browser.cookies.clear()
    browser.cookies.set("oidcLogin", ticket)
    assert refused(browser, url) == "external_login_refused"


def test_an_answer_counts_in_the_browser_that_asked(site: Site, browser: httpx2.Client) -> None:
    url = returned(browser)
    with httpx2.Client(base_url=site.url) as lured:
        assert refused(lured, url) == "external_login_refused"
        returned(lured)
        assert refused(lured, url) == "external_login_refused"


def test_a_code_of_another_login_is_of_no_use(site: Site, browser: httpx2.Client) -> None:
    """What PKCE is for: whoever has got hold of a code cannot bring it into a login of their own."""
    stolen = httpx2.URL(returned(browser)).params["code"]
    with httpx2.Client(base_url=site.url) as thief:
        assert refused(thief, changed(returned(thief), code=stolen)) == "external_login_refused"


def test_an_answer_that_is_wrong_in_any_way_logs_nobody_in(site: Site, browser: httpx2.Client) -> None:
    site.corp.claims = {}
    for members in (
        {"state": "x"},
        {"state": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"code": "x"},
        {"code": None},
        {"error": "access_denied"},
    ):
        browser.cookies.clear()
        assert refused(browser, changed(returned(browser), **members)) == "external_login_refused", members
    browser.cookies.clear()
    crossed = returned(browser).replace("/corp/callback", "/silent/callback")
    assert refused(browser, crossed) == "external_login_refused"


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": LEFT_OUT},
        {"aud": "another-client"},
        {"aud": [CLIENT, "another-client"]},
        {"azp": "another-client"},
        {"iss": "https://evil.example"},
        {"exp": 1_700_000_000},
        {"iat": LEFT_OUT},
        {"sub": LEFT_OUT},
    ],
    ids=str,
)
def test_an_id_token_that_is_wrong_logs_nobody_in(site: Site, browser: httpx2.Client, claims: dict[str, Any]) -> None:
    site.corp.claims = claims
    try:
        assert refused(browser, returned(browser)) == "external_token_refused"
    finally:
        site.corp.claims = {}


def test_an_access_token_is_no_id_token(site: Site, browser: httpx2.Client) -> None:
    site.corp.typ = "at+jwt"
    try:
        assert refused(browser, returned(browser)) == "external_login_refused"
    finally:
        site.corp.typ = "JWT"


def test_there_is_no_login_at_an_issuer_that_is_away_or_unknown(browser: httpx2.Client) -> None:
    assert browser.get("/api/auth/oidc/silent/login").json()["code"] == "issuer_unavailable"
    for name in ("nobody", "corp%2f", "Corp"):
        assert browser.get(f"/api/auth/oidc/{name}/login").status_code == 404
    assert browser.get("/api/auth/oidc/nobody/callback").status_code == 404


def test_no_secret_of_a_login_is_logged(site: Site) -> None:
    said = "".join(site.server.output)
    assert "s3cret" not in said
    assert not [code for code in site.corp.codes if code in said]
    assert "code=" not in said
