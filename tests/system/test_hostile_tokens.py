"""Tokens that must not be taken, at every service: 401 and the challenge of RFC 6750, and never an error of ours."""

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.forgery import Forger, bad_tokens
from tests.hostile import Deployment, Line, deployed
from tests.serving import Server, stream_id_of

pytestmark = pytest.mark.apart

CHALLENGE = 'Bearer error="invalid_token"'
CLAUSE = re.compile(r"RFC (4648|6750|7515|7516|7519|7797|8032|8259|8725|9068) §[0-9.]+")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Deployment]]:
    """Always apart: one process would be asked the same three times."""
    with deployed(tmp_path_factory.mktemp("home"), split=True) as made:
        yield made


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=30) as made:
        yield made


def claims_of(token: str) -> dict[str, Any]:
    return dict(json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==")))


@pytest.fixture(scope="module")
def forger(site: tuple[Server, Deployment]) -> Forger:
    server, at = site
    user = claims_of(server.customer("mallory").token)
    service = {key: user[key] for key in ("iss", "aud", "iat", "exp", "jti", "type")}
    service |= {"sub": "chat", "client_id": "chat", "username": "chat", "email": "", "role": "service"}
    return Forger.of(*at.signing_key(), user, service | {"scope": "accounting:settle"})


@pytest.fixture(scope="module")
def routes(site: tuple[Server, Deployment]) -> list[tuple[str, str]]:
    """Two of each service, one that reads and one that changes."""
    server, at = site
    victim = server.customer("victim")
    stream = stream_id_of(victim.ask(victim.session(), "fake-n1"))
    return [
        ("GET", f"{at.auth}/api/profile"),
        ("POST", f"{at.auth}/api/auth/logout-all"),
        ("GET", f"{at.accounting}/api/credits/balance"),
        ("POST", f"{at.accounting}/api/credits/deduct"),
        ("POST", f"{at.accounting}/api/streaming-sessions/finalize"),
        ("GET", f"{at.chat}/api/chat/streams/{stream}"),
        ("POST", f"{at.chat}/api/chat/sessions"),
    ]


def test_what_the_forger_makes_is_taken_where_nothing_is_wrong_with_it(
    site: tuple[Server, Deployment], forger: Forger
) -> None:
    at = site[1]
    for url in (f"{at.auth}/api/profile", f"{at.accounting}/api/credits/balance", f"{at.chat}/api/chat/sessions"):
        assert httpx2.get(url, headers={"Authorization": f"Bearer {forger.made()}"}).status_code == 200
        for aud in (["parshall"], ["elsewhere", "parshall"]):
            assert httpx2.get(url, headers={"Authorization": f"Bearer {forger.made(aud=aud)}"}).status_code == 200
    service = forger.text(json.dumps(forger.header), json.dumps(forger.service))
    answer = httpx2.post(
        f"{at.accounting}/api/streaming-sessions/finalize", headers={"Authorization": f"Bearer {service}"}, json={}
    )
    assert answer.status_code == 400


def test_every_bad_token_is_401_at_every_service_and_says_why(
    http: httpx2.Client, forger: Forger, routes: list[tuple[str, str]], site: tuple[Server, Deployment]
) -> None:
    """No 5xx, no other words for one than for another service, and never the token in the answer."""
    table = bad_tokens(forger, id_of_another="0" * 32)
    assert len(table) >= 75
    assert [name for name, (clause, _) in table.items() if not CLAUSE.fullmatch(clause)] == []
    wrong = []
    for name, (clause, token) in table.items():
        for method, url in routes:
            answer = http.request(method, url, headers={"Authorization": f"Bearer {token}"})
            challenge = answer.headers.get("www-authenticate")
            if (answer.status_code, challenge) != (401, CHALLENGE) or (len(token) > 30 and token in answer.text):
                wrong.append(f"{name} ({clause}): {method} {url}: {answer.status_code} {challenge}")
    assert wrong == []
    assert [line for line in site[0].output if "request_failed" in line or "Traceback" in line] == []


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer:", "Basic YTpi", "Digest x", "Token x", "DPoP x", "bearer"])
def test_no_token_is_401_and_the_challenge_does_not_speak_of_one(
    http: httpx2.Client, routes: list[tuple[str, str]], given: str
) -> None:
    for method, url in routes:
        answer = http.request(method, url, headers={"Authorization": given})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (method, url)


def test_two_headers_hold_no_token_whichever_of_them_is_right(
    http: httpx2.Client, forger: Forger, routes: list[tuple[str, str]]
) -> None:
    """RFC 9110 §5.3: who reads the first and who reads the last must not disagree about the caller."""
    good, bad = f"Bearer {forger.made()}", "Bearer nothing"
    for pair in ((good, bad), (bad, good), (good, good), (good, "Basic YTpi"), ("Basic YTpi", good)):
        for method, url in routes:
            answer = http.request(method, url, headers=[("Authorization", each) for each in pair])
            assert answer.status_code == 401, (method, url, pair)


def test_a_token_of_a_megabyte_is_not_even_read(site: tuple[Server, Deployment]) -> None:
    for url in site[1].urls:
        line = Line(url)
        line.say(b"GET /api/profile HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + b"e" * 1_000_000 + b"\r\n\r\n")
        assert line.to_end()[:12] in (b"", b"HTTP/1.1 431"), "closed; the end may overtake the answer"
        line.close()


def test_a_token_in_the_url_or_the_body_is_none(forger: Forger, site: tuple[Server, Deployment]) -> None:
    """RFC 9700 §4.3.2: URLs are logged and shared."""
    token = forger.made()
    assert httpx2.get(f"{site[1].auth}/api/profile", params={"access_token": token}).status_code == 401
    answer = httpx2.post(f"{site[1].accounting}/api/credits/deduct", data={"access_token": token, "credits": "1"})
    assert answer.status_code in (401, 415)


def test_a_refresh_token_and_an_identifier_are_no_access_tokens(
    http: httpx2.Client, site: tuple[Server, Deployment], routes: list[tuple[str, str]]
) -> None:
    caller = site[0].user("victim", "victim-password")
    session = caller.post("/api/auth/login", {"username": "victim", "password": "victim-password"})
    for token in (session["refreshToken"], session["user"]["id"], "victim-password"):
        for method, url in routes:
            answer = http.request(method, url, headers={"Authorization": f"Bearer {token}"})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, CHALLENGE), (method, url)
    for token in (session["accessToken"], session["user"]["id"], "", "x" * 10_000, "\u0000", "🗝"):
        answer = http.post(f"{site[1].auth}/api/auth/refresh", json={"refreshToken": token})
        assert answer.status_code == 401, token[:20]


def test_a_replayed_refresh_token_ends_the_whole_family(site: tuple[Server, Deployment]) -> None:
    """RFC 9700 §4.14.2: one of the two who hold it is a thief, and nobody knows which."""
    server, at = site
    caller = server.user("victim", "victim-password")
    first = caller.post("/api/auth/login", {"username": "victim", "password": "victim-password"})
    second = caller.post("/api/auth/refresh", {"refreshToken": first["refreshToken"]})
    third = caller.post("/api/auth/refresh", {"refreshToken": second["refreshToken"]})
    caller.post("/api/auth/refresh", {"refreshToken": first["refreshToken"]}, expect=401)
    caller.post("/api/auth/refresh", {"refreshToken": third["refreshToken"]}, expect=401)
    for session in (first, second, third):
        answer = httpx2.get(f"{at.auth}/api/profile", headers={"Authorization": f"Bearer {session['accessToken']}"})
        assert (answer.status_code, answer.json()["code"]) == (401, "session_over")
        assert answer.headers["www-authenticate"] == CHALLENGE
        for url in (f"{at.accounting}/api/credits/balance", f"{at.chat}/api/chat/sessions"):
            answer = httpx2.get(url, headers={"Authorization": f"Bearer {session['accessToken']}"})
            assert answer.status_code == 200, "verified by signature alone, until it expires"
            answer = httpx2.get(url, headers={"Authorization": f"Bearer {session['refreshToken']}"})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, CHALLENGE)
