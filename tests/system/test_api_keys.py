"""API keys against a running server: what each scope opens, that all else is shut, and standard OAuth2 in between."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.serving import Caller, Server, serving, text_of, upstream

from parshall.client.api import Client
from parshall.kernel.tokens import KEY_SCOPES

NAMES = (f"keys{number}" for number in itertools.count())
OPEN = {
    "credits:read": {
        *("GET /api/credits/balance", "GET /api/credits/total-balance", "GET /api/credits/statement"),
        *("POST /api/credits/check", "POST /api/credits/calculate", "GET /api/prices", "GET /api/usage/stats"),
        *("GET /api/streaming-sessions/active", "GET /api/streaming-sessions/{session_id}/receipt"),
        "GET /api/organisations/mine",
    },
    "profile:read": {"GET /api/profile"},
}
"""What a key opens by its scopes, chat's own routes aside."""
CHATS = re.compile(r"\w+ /api/(chat/(sessions(?!.*/observe)|streams)|models)")
PUBLIC = re.compile(
    r"\w+ /(api/)?(health|version|\.well-known/|auth/(signup|login|refresh|logout|token|"
    r"forgot-password|resend-verification|verify-email|reset-password|oidc|oidc/\{name\}/(login|callback))$)"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with (
        upstream() as url,
        serving(tmp_path_factory.mktemp("home"), EMBEDDED_MODEL="off", OPENAI_BASE_URL=url, OPENAI_MODELS="fake") as up,
    ):
        yield up


@pytest.fixture
def owner(server: Server) -> Caller:
    return server.customer(next(NAMES))


def made(owner: Caller, **body: Any) -> dict[str, Any]:
    return dict(owner.post("/api/auth/api-keys", {"name": "ci", **body}, expect=201))


@pytest.fixture
def holder(server: Server, owner: Caller) -> Iterator[Caller]:
    """A program with a key that has every scope."""
    caller = server.caller()
    caller.token = made(owner)["key"]
    yield caller
    caller.close()


def routes(server: Server) -> Iterator[tuple[str, str]]:
    """Every route of every service, and its URL with something in place of each parameter."""
    for url in server.urls:
        for path, methods in httpx2.get(f"{url}/openapi.json").json()["paths"].items():
            for method in methods:
                yield f"{method.upper()} {path}", url + re.sub(r"\{\w+\}", "0" * 32, path)


@pytest.mark.parametrize("scope", sorted(KEY_SCOPES))
def test_a_key_opens_the_routes_of_its_scope_and_no_other(server: Server, owner: Caller, scope: str) -> None:
    caller = server.caller()
    caller.token = made(owner, scopes=[scope])["key"]
    tried = 0
    for route, url in routes(server):
        if PUBLIC.match(route):
            continue
        with caller.http.stream(route.split()[0], url, headers=caller.headers(), json={}) as answer:
            said = "" if answer.is_success else answer.read().decode()  # some streams last
        opened = bool(CHATS.match(route)) if scope == "chat" else route in OPEN[scope]
        shut = answer.status_code == 403 and ("needs the scope" in said or "is not for API keys" in said)
        assert shut != opened, f"{route}: {answer.status_code} {said}"
        tried += 1
    assert tried > 60
    caller.close()


def test_a_program_with_a_key_chats_and_sees_what_it_cost(holder: Caller) -> None:
    events = holder.ask(holder.session(), "hello")
    assert text_of(events)
    receipt = events[-1].json()["receipt"]
    assert receipt["balanceAfter"] == holder.balance()["availableCredits"] < 100
    assert holder.get(f"/api/streaming-sessions/{receipt['streamingSessionId']}/receipt")
    assert holder.get("/api/profile")["user"]["username"]


def test_the_client_takes_a_key_for_a_token(server: Server, holder: Caller) -> None:
    with Client(server.url, token=holder.token, **server.elsewhere) as client:
        assert client.balance().available == 100


def test_an_admins_key_has_the_rights_of_an_enduser(server: Server, owner: Caller) -> None:
    events = owner.ask(owner.session(), "hello")
    stream = events[0].json()["streamingSessionId"]
    admin = server.user()
    assert admin.state(stream)
    program = server.caller()
    program.token = admin.post("/api/auth/api-keys", {"name": f"of {stream}"}, expect=201)["key"]
    program.get(f"/api/chat/streams/{stream}", expect=404, headers={"Accept": "application/json"})
    for caller in (admin, program):
        caller.close()


def granted(server: Server, key: str, **form: str) -> httpx2.Response:
    body = {"grant_type": "client_credentials", "client_secret": key, **form}
    return httpx2.post(server.at("/api/auth/token"), data=body)


def test_a_key_is_exchanged_for_a_token_by_standard_means(server: Server, owner: Caller) -> None:
    made_key = made(owner)
    key, prefix = made_key["key"], made_key["prefix"]
    for form in ({}, {"client_id": prefix}, {"client_id": made_key["id"]}):
        answer = granted(server, key, **form, scope="credits:read")
        assert answer.status_code == 200
        body = answer.json()
        assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 300, "credits:read")
    basic = httpx2.post(server.at("/api/auth/token"), data={"grant_type": "client_credentials"}, auth=(prefix, key))
    assert basic.json()["scope"] == "chat credits:read profile:read"
    caller = server.caller()
    caller.token = body["access_token"]
    assert caller.balance()["availableCredits"] == 100
    caller.get("/api/profile", expect=403)
    caller.close()
    assert (granted(server, key, scope="admin").json()["error"]) == "invalid_scope"
    for wrong in (granted(server, key[:-1]), granted(server, key, client_id="parshall_0123456789abcdef")):
        assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid_client")


def test_keys_are_listed_without_their_text_and_end_when_revoked(server: Server, owner: Caller) -> None:
    made_key = made(owner, scopes=["profile:read"], expiresAt="2027-12-31T00:00:00+01:00")
    program = server.caller()
    program.token = made_key.pop("key")
    assert program.get("/api/profile")
    (listed,) = owner.get("/api/auth/api-keys")["keys"]
    assert {"message": made_key["message"], **listed, "lastUsedOn": None} == made_key
    assert (listed["expiresAt"], listed["scopes"]) == ("2027-12-30T23:00:00.000000Z", ["profile:read"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", listed["lastUsedOn"])
    owner.request("DELETE", f"/api/auth/api-keys/{listed['prefix']}")
    assert program.get("/api/profile", expect=401)["code"] == "session_over"
    assert owner.get("/api/auth/api-keys")["keys"] == []
    owner.request("DELETE", f"/api/auth/api-keys/{listed['id']}", expect=404)
    program.close()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": ""}, "malformed_key_name"),
        ({"name": "a\nb"}, "malformed_key_name"),
        ({"scopes": []}, "unknown_scope"),
        ({"scopes": ["accounting:settle"]}, "unknown_scope"),
        ({"expiresAt": "2020-01-01T00:00:00Z"}, "unfit_expiry"),
        ({"expiresAt": "9999-12-31T23:59:59-14:00"}, "unfit_expiry"),
        ({"expiresAt": "soon"}, "validation_failed"),
        ({"name": 7}, "validation_failed"),
    ],
)
def test_a_key_that_cannot_be_is_400_and_says_why(owner: Caller, body: dict[str, Any], code: str) -> None:
    assert owner.post("/api/auth/api-keys", {"name": "ci", **body}, expect=400)["code"] == code


def test_a_key_that_is_wrong_is_401_in_the_words_of_any_other_token(server: Server, owner: Caller) -> None:
    program = server.caller()
    program.token = made(owner)["key"][:-1] + "!"
    answer = program.http.get(server.at("/api/credits/balance"), headers=program.headers())
    assert (answer.status_code, answer.json()["code"]) == (401, "api_key_refused")
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    program.close()


def test_no_key_shows_in_the_log(server: Server, holder: Caller, tmp_path: Path) -> None:
    holder.balance()
    assert holder.token[-20:] not in "".join(server.output)  # of its 43 random characters
