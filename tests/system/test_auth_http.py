"""Auth over HTTP as clients meet it: statuses, documents, cookies, roles, and no 5xx for any input."""

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import KeySet
from starlette.testclient import TestClient
from tests import migrated

from parshall.auth.http import router, wellknown
from parshall.auth.passwords import FAILURES_PER_ADDRESS_MAX, PasswordHasher
from parshall.auth.service import Auth
from parshall.kernel import clock
from parshall.kernel.http import Edge
from parshall.kernel.refusals import install_errors
from parshall.kernel.tokens import Role, TokenVerifier

ISSUER = "http://testserver"
PASSWORD = "correct horse"
Json = dict[str, Any]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    database = migrated.opened(app.state.folder / "auth.db", "parshall.auth")
    hasher = PasswordHasher(passes=1, memory_kib=8, lanes=1)
    auth = Auth(database, issuer=ISSUER, clock=clock.now, hasher=hasher, signup_open=True)
    await auth.start()
    await auth.ensure_admin(PASSWORD)
    await auth.create_user("boss", "boss@example.org", PASSWORD, Role.SUPERVISOR)
    app.state.auth = auth
    app.state.verifier = TokenVerifier(auth.key_set, issuer=ISSUER, clock=clock.now)
    app.state.secret = await auth.add_service("chat")
    app.state.reader_secret = await auth.add_service("settler", ["accounting:settle"])
    yield
    await auth.close()


@cache
def routes() -> FastAPI:
    """Put together once for all tests, since it takes longer than most of them."""
    app = FastAPI(lifespan=lifespan)
    install_errors(app)
    app.include_router(router)
    app.include_router(wellknown)
    return app


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """An application that serves auth alone, with an admin and two services."""
    made = routes()
    made.state.folder = tmp_path
    return made


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(Edge(app)) as made:
        yield made


def signed_up(client: TestClient, name: str = "alice") -> str:
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    answer = client.post("/api/auth/signup", json=body)
    assert answer.status_code == 201
    return str(answer.json()["userId"])


def logged_in(client: TestClient, name: str, password: str = PASSWORD) -> Json:
    answer = client.post("/api/auth/login", json={"username": name, "password": password})
    assert answer.status_code == 200
    client.cookies.clear()
    return dict(answer.json())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def as_user(client: TestClient, name: str) -> dict[str, str]:
    return bearer(logged_in(client, name)["accessToken"])


@pytest.fixture
def admin(client: TestClient) -> dict[str, str]:
    return as_user(client, "admin")


def refused(answer: httpx2.Response, status: int, code: str) -> Json:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    document: Json = answer.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["message"] == document["detail"]
    assert document["requestId"] == answer.headers["x-request-id"]
    return document


# ── Signing up and in ───────────────────────────────────────────────────────────────────────────────────────────────


def test_who_signs_up_can_log_in_and_is_an_enduser(client: TestClient) -> None:
    user_id = signed_up(client)
    for name in ("alice", "ALICE@example.org"):
        session = logged_in(client, name)
        assert set(session) == {"message", "accessToken", "refreshToken", "expiresIn", "tokenType", "user"}
        assert (session["expiresIn"], session["tokenType"]) == (900, "Bearer")
        user = session["user"]
        assert (user["id"], user["username"], user["role"]) == (user_id, "alice", "enduser")
        assert (user["email"], user["isVerified"]) == ("alice@example.org", False)


def test_a_name_and_an_address_that_are_taken_are_400_in_the_same_words(client: TestClient) -> None:
    signed_up(client)
    body = {"username": "Alice", "email": "new@example.org", "password": PASSWORD}
    name = refused(client.post("/api/auth/signup", json=body), 400, "username_taken")
    body = {"username": "other", "email": "ALICE@example.org", "password": PASSWORD}
    address = refused(client.post("/api/auth/signup", json=body), 400, "username_taken")
    assert name["error"] == "USERNAME_TAKEN"
    assert name["message"] == address["message"]


def test_names_cannot_be_tried_without_end_by_signing_up(client: TestClient) -> None:
    body = {"username": "admin", "email": "new@example.org", "password": PASSWORD}
    for _ in range(FAILURES_PER_ADDRESS_MAX):
        refused(client.post("/api/auth/signup", json=body), 400, "username_taken")
    refused(client.post("/api/auth/signup", json=body), 429, "rate_limited")
    refused(client.post("/api/auth/signup", json=body | {"username": "nobody"}), 429, "rate_limited")


@pytest.mark.parametrize(
    ("member", "value"),
    [("username", "ab"), ("username", "a b c"), ("email", "nowhere"), ("password", "1234567"), ("password", 12345678)],
)
def test_a_signup_that_is_not_valid_is_400_and_names_the_member(client: TestClient, member: str, value: Any) -> None:
    body = {"username": "alice", "email": "a@example.org", "password": PASSWORD, member: value}
    document = refused(client.post("/api/auth/signup", json=body), 400, "validation_failed")
    assert [error["path"] for error in document["errors"]] == [f"body.{member}"]


def test_signing_up_gives_no_other_role_than_enduser(client: TestClient, admin: dict[str, str]) -> None:
    body = {"username": "mallory", "email": "m@example.org", "password": PASSWORD, "role": "admin"}
    user_id = client.post("/api/auth/signup", json=body).json()["userId"]
    assert client.get(f"/api/admin/users/{user_id}", headers=admin).json()["user"]["role"] == "enduser"


def test_an_unknown_user_and_a_wrong_password_answer_alike(client: TestClient) -> None:
    signed_up(client)
    documents = []
    for name, password in (("alice", "wrong horse"), ("nobody", PASSWORD)):
        answer = client.post("/api/auth/login", json={"username": name, "password": password})
        assert answer.headers["www-authenticate"] == "Bearer"
        document = refused(answer, 401, "wrong_credentials")
        documents.append({k: v for k, v in document.items() if k not in ("instance", "requestId")})
    assert documents[0] == documents[1]


def test_repeated_failures_are_429_and_say_when_to_come_back(client: TestClient) -> None:
    signed_up(client)
    for _ in range(10):
        answer = client.post("/api/auth/login", json={"username": "alice", "password": "wrong horse"})
        assert answer.status_code == 401
    answer = client.post("/api/auth/login", json={"username": "alice", "password": PASSWORD})
    refused(answer, 429, "rate_limited")
    assert 0 < int(answer.headers["retry-after"]) <= 900


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_the_cookies_are_out_of_reach_of_scripts_and_other_sites(app: FastAPI, scheme: str, secure: bool) -> None:
    with TestClient(Edge(app), base_url=f"{scheme}://testserver") as client:
        signed_up(client)
        answer = client.post("/api/auth/login", json={"username": "alice", "password": PASSWORD})
        cookies = {cookie.partition("=")[0]: cookie for cookie in answer.headers.get_list("set-cookie")}
        assert set(cookies) == {"accessToken", "refreshToken"}
        for cookie in cookies.values():
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
            assert ("Secure" in cookie) == secure
        assert "Path=/api/auth;" in cookies["refreshToken"]
        assert answer.headers["cache-control"] == "no-store"


def test_a_refresh_takes_the_token_from_the_body_or_the_cookie(client: TestClient) -> None:
    signed_up(client)
    session = logged_in(client, "alice")
    second = client.post("/api/auth/refresh", json={"refreshToken": session["refreshToken"]})
    assert second.status_code == 200
    assert second.json()["refreshToken"] != session["refreshToken"]
    third = client.post("/api/auth/refresh")
    assert third.status_code == 200
    assert third.json()["refreshToken"] not in (session["refreshToken"], second.json()["refreshToken"])
    assert client.get("/api/profile").json()["user"]["username"] == "alice"


def test_a_replayed_refresh_token_is_401_and_revokes_its_successor(client: TestClient) -> None:
    signed_up(client)
    first = logged_in(client, "alice")["refreshToken"]
    second = client.post("/api/auth/refresh", json={"refreshToken": first}).json()["refreshToken"]
    client.cookies.clear()
    for token in (first, second):
        refused(client.post("/api/auth/refresh", json={"refreshToken": token}), 401, "refresh_refused")


def test_a_refresh_without_a_token_is_401(client: TestClient) -> None:
    refused(client.post("/api/auth/refresh"), 401, "unauthenticated")
    refused(client.post("/api/auth/refresh", json={}), 401, "unauthenticated")


def test_a_logout_ends_the_session_and_takes_the_cookies_back(client: TestClient) -> None:
    signed_up(client)
    client.post("/api/auth/login", json={"username": "alice", "password": PASSWORD})
    token = client.cookies["refreshToken"]
    answer = client.post("/api/auth/logout")
    assert (answer.status_code, set(answer.json())) == (200, {"message"})
    assert not client.cookies
    refused(client.post("/api/auth/refresh", json={"refreshToken": token}), 401, "refresh_refused")


def test_a_logout_with_the_access_token_alone_ends_its_session(client: TestClient) -> None:
    signed_up(client)
    session = logged_in(client, "alice")
    refused(client.post("/api/auth/logout"), 401, "unauthenticated")
    assert client.post("/api/auth/logout", headers=bearer(session["accessToken"])).status_code == 200
    token = {"refreshToken": session["refreshToken"]}
    refused(client.post("/api/auth/refresh", json=token), 401, "refresh_refused")


def test_logging_out_everywhere_ends_every_session(client: TestClient) -> None:
    signed_up(client)
    here, there = logged_in(client, "alice"), logged_in(client, "alice")
    assert client.post("/api/auth/logout-all", headers=bearer(here["accessToken"])).status_code == 200
    for session in (here, there):
        token = {"refreshToken": session["refreshToken"]}
        refused(client.post("/api/auth/refresh", json=token), 401, "refresh_refused")


# ── The own profile ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_profile_is_the_callers_own(client: TestClient) -> None:
    user_id = signed_up(client)
    headers = as_user(client, "alice")
    assert client.get("/api/profile", headers=headers).json()["user"]["id"] == user_id
    changed = client.put("/api/profile", headers=headers, json={"username": "alicia"})
    assert (changed.status_code, changed.json()["user"]["username"]) == (200, "alicia")
    assert changed.json()["user"]["email"] == "alice@example.org"
    refused(client.put("/api/profile", headers=headers, json={"username": "admin"}), 400, "username_taken")
    refused(client.get("/api/profile"), 401, "unauthenticated")


def test_a_changed_password_ends_other_sessions_and_keeps_the_caller_in(client: TestClient) -> None:
    signed_up(client)
    here, there = logged_in(client, "alice"), logged_in(client, "alice")
    body = {"currentPassword": "wrong horse", "newPassword": "battery staple"}
    headers = bearer(here["accessToken"])
    refused(client.post("/api/change-password", headers=headers, json=body), 400, "wrong_password")
    answer = client.post("/api/change-password", headers=headers, json={**body, "currentPassword": PASSWORD})
    assert answer.status_code == 200
    client.cookies.clear()
    token = {"refreshToken": there["refreshToken"]}
    refused(client.post("/api/auth/refresh", json=token), 401, "refresh_refused")
    kept = client.post("/api/auth/refresh", json={"refreshToken": answer.json()["refreshToken"]})
    assert kept.status_code == 200
    assert logged_in(client, "alice", "battery staple")


def test_the_token_of_a_removed_user_opens_nothing(client: TestClient, admin: dict[str, str]) -> None:
    user_id = signed_up(client)
    headers = as_user(client, "alice")
    assert client.delete(f"/api/admin/users/{user_id}", headers=admin).status_code == 200
    body = {"currentPassword": PASSWORD, "newPassword": "battery staple"}
    refused(client.get("/api/profile", headers=headers), 401, "user_gone")
    refused(client.put("/api/profile", headers=headers, json={"username": "other"}), 401, "user_gone")
    refused(client.post("/api/change-password", headers=headers, json=body), 401, "user_gone")
    refused(client.post("/api/auth/logout-all", headers=headers), 401, "user_gone")


def test_who_leaves_is_removed_with_everything_for_the_right_password(client: TestClient) -> None:
    signed_up(client)
    session = logged_in(client, "alice")
    headers = bearer(session["accessToken"])
    key = client.post("/api/auth/api-keys", headers=headers, json={"name": "ci"}).json()["key"]
    body = {"currentPassword": "wrong horse"}
    refused(client.request("DELETE", "/api/profile", headers=headers, json=body), 400, "wrong_password")
    refused(client.request("DELETE", "/api/profile", headers=headers), 400, "validation_failed")
    answer = client.request("DELETE", "/api/profile", headers=headers, json={"currentPassword": PASSWORD})
    assert (answer.status_code, set(answer.json())) == (200, {"message"})
    refused(client.get("/api/profile", headers=headers), 401, "user_gone")
    token = {"refreshToken": session["refreshToken"]}
    refused(client.post("/api/auth/refresh", json=token), 401, "refresh_refused")
    form = {**GRANT, "client_secret": key}
    refused(client.post("/api/auth/token", data=form), 401, "invalid_client")
    assert signed_up(client)


def test_the_last_admin_cannot_leave(client: TestClient, admin: dict[str, str]) -> None:
    body = {"currentPassword": PASSWORD}
    refused(client.request("DELETE", "/api/profile", headers=admin, json=body), 400, "last_admin")
    client.put("/api/admin/users/boss/role", headers=admin, json={"role": "admin"})
    assert client.request("DELETE", "/api/profile", headers=admin, json=body).status_code == 200


def test_an_export_tells_all_that_is_kept_and_no_secret(client: TestClient, admin: dict[str, str]) -> None:
    user_id = signed_up(client)
    session = logged_in(client, "alice")
    headers = bearer(session["accessToken"])
    made = client.post("/api/auth/api-keys", headers=headers, json={"name": "ci"}).json()
    answer = client.get("/api/profile/export", headers=headers)
    export = answer.json()
    assert export["user"] == client.get("/api/profile", headers=headers).json()["user"]
    assert export["loggedInAt"] == export["sessions"][0]["createdAt"] > export["user"]["createdAt"]
    assert [key["prefix"] for key in export["apiKeys"]] == [made["prefix"]]
    for secret in (made["key"], session["refreshToken"], "argon2"):
        assert secret not in answer.text
    assert client.get(f"/api/admin/users/{user_id}/export", headers=admin).json() == export
    refused(client.get("/api/admin/users/nobody/export", headers=admin), 404, "not_found")


def change_own_password(client: TestClient, session: Json) -> None:
    body = {"currentPassword": PASSWORD, "newPassword": "battery staple"}
    assert client.post("/api/change-password", headers=bearer(session["accessToken"]), json=body).status_code == 200


def have_it_reset(client: TestClient, session: Json) -> None:
    path, body = f"/api/admin/users/{session['user']['id']}/reset-password", {"newPassword": "battery staple"}
    assert client.post(path, headers=as_user(client, "admin"), json=body).status_code == 200


def log_out(client: TestClient, session: Json) -> None:
    assert client.post("/api/auth/logout", headers=bearer(session["accessToken"])).status_code == 200


def log_out_everywhere(client: TestClient, _session: Json) -> None:
    assert client.post("/api/auth/logout-all", headers=as_user(client, "boss")).status_code == 200


def replay(client: TestClient, session: Json) -> None:
    for status in (200, 401):
        token = {"refreshToken": session["refreshToken"]}
        assert client.post("/api/auth/refresh", json=token).status_code == status


@pytest.mark.parametrize("end", [change_own_password, have_it_reset, log_out, log_out_everywhere, replay])
def test_an_access_token_ends_with_its_session_at_every_route_of_auths(
    client: TestClient, admin: dict[str, str], end: Callable[[TestClient, Json], None]
) -> None:
    client.put("/api/admin/users/boss/role", headers=admin, json={"role": "admin"})
    session = logged_in(client, "boss")
    headers = bearer(session["accessToken"])
    assert client.get("/api/admin/users", headers=headers).status_code == 200
    end(client, session)
    client.cookies.clear()
    own = [
        ("GET", "/api/profile/export"),
        ("DELETE", "/api/profile"),
        ("GET", "/api/profile"),
        ("PUT", "/api/profile"),
        ("POST", "/api/change-password"),
    ]
    for method, path in [*own, ("POST", "/api/auth/logout-all"), *ADMINISTRATION]:
        body = None if method == "GET" else BODY | {"currentPassword": PASSWORD}
        answer = client.request(method, path.replace("{id}", "admin"), json=body, headers=headers)
        refused(answer, 401, "session_over")


def test_the_tokens_that_a_change_of_password_answers_with_are_good_at_once(client: TestClient) -> None:
    session = logged_in(client, "boss")
    body = {"currentPassword": PASSWORD, "newPassword": "battery staple"}
    fresh = client.post("/api/change-password", headers=bearer(session["accessToken"]), json=body).json()
    assert client.get("/api/profile", headers=bearer(fresh["accessToken"])).status_code == 200


# ── Administration ──────────────────────────────────────────────────────────────────────────────────────────────────

ADMINISTRATION = [
    ("GET", "/api/admin/users"),
    ("POST", "/api/admin/users"),
    ("POST", "/api/admin/users/batch"),
    ("GET", "/api/admin/users/{id}"),
    ("GET", "/api/admin/users/by-email/admin@localhost"),
    ("GET", "/api/admin/users/{id}/export"),
    ("PUT", "/api/admin/users/{id}/role"),
    ("POST", "/api/admin/users/{id}/reset-password"),
    ("DELETE", "/api/admin/users/{id}"),
]
BODY: Json = {
    "username": "new",
    "email": "n@example.org",
    "password": PASSWORD,
    "newPassword": PASSWORD,
    "role": "admin",
    "users": [{"username": "new", "email": "n@example.org", "password": PASSWORD}],
}


@pytest.mark.parametrize(("method", "path"), ADMINISTRATION)
def test_administration_is_for_admins(client: TestClient, admin: dict[str, str], method: str, path: str) -> None:
    target = path.replace("{id}", signed_up(client))
    body = None if method in ("GET", "DELETE") else BODY
    refused(client.request(method, target, json=body), 401, "unauthenticated")
    for name in ("alice", "boss"):
        refused(client.request(method, target, json=body, headers=as_user(client, name)), 403, "forbidden")
    assert client.request(method, target, json=body, headers=admin).status_code in (200, 201)


@pytest.mark.parametrize(("method", "path"), ADMINISTRATION)
def test_an_admins_token_is_worth_nothing_once_they_are_demoted(
    client: TestClient, admin: dict[str, str], method: str, path: str
) -> None:
    signed_up(client)
    client.put("/api/admin/users/alice/role", headers=admin, json={"role": "admin"})
    other = as_user(client, "alice")
    assert client.put("/api/admin/users/admin/role", headers=other, json={"role": "enduser"}).status_code == 200
    body = None if method in ("GET", "DELETE") else BODY
    answer = client.request(method, path.replace("{id}", "admin"), json=body, headers=admin)
    refused(answer, 403, "forbidden")


def test_users_are_listed_made_looked_up_and_removed(client: TestClient, admin: dict[str, str]) -> None:
    body = {"username": "carol", "email": "Carol@example.org", "password": PASSWORD, "role": "supervisor"}
    made = client.post("/api/admin/users", headers=admin, json=body)
    assert made.status_code == 201
    path = f"/api/admin/users/{made.json()['userId']}"
    user = client.get(path, headers=admin).json()["user"]
    assert (user["username"], user["role"]) == ("carol", "supervisor")
    assert client.get("/api/admin/users/by-email/carol@EXAMPLE.org", headers=admin).json()["user"] == user
    listed = client.get("/api/admin/users", headers=admin).json()
    assert user in listed["users"]
    assert listed["pagination"] == {"total": 3, "pages": 1, "currentPage": 1, "perPage": 1000}
    assert client.get("/api/admin/users?query=CAR", headers=admin).json()["users"] == [user]
    assert client.delete(path, headers=admin).status_code == 200
    refused(client.get(path, headers=admin), 404, "not_found")
    refused(client.delete(path, headers=admin), 404, "not_found")


def test_an_address_is_what_by_email_takes(client: TestClient, admin: dict[str, str]) -> None:
    refused(client.get("/api/admin/users/by-email/admin", headers=admin), 404, "not_found")
    refused(client.get("/api/admin/users/by-email/nobody@example.org", headers=admin), 404, "not_found")


def test_a_batch_answers_for_each_user(client: TestClient, admin: dict[str, str]) -> None:
    users = [
        {"username": "carol", "email": "carol@example.org", "password": PASSWORD, "role": "supervisor"},
        {"username": "admin", "email": "other@example.org", "password": PASSWORD},
        {"username": "dave"},
    ]
    answer = client.post("/api/admin/users/batch", headers=admin, json={"users": users})
    assert answer.status_code == 201
    body = answer.json()
    assert body["summary"] == {"total": 3, "successful": 1, "failed": 2}
    assert [result["success"] for result in body["results"]] == [True, False, False]
    assert body["results"][1]["code"] == "username_taken"
    found = client.get(f"/api/admin/users/{body['results'][0]['userId']}", headers=admin).json()
    assert found["user"]["role"] == "supervisor"


@pytest.mark.parametrize("users", [[], [{}] * 101, "carol", [1], None])
def test_a_batch_has_one_to_a_hundred_users(client: TestClient, admin: dict[str, str], users: Any) -> None:
    answer = client.post("/api/admin/users/batch", headers=admin, json={"users": users})
    refused(answer, 400, "validation_failed")


def test_a_role_given_shows_in_the_next_login(client: TestClient, admin: dict[str, str]) -> None:
    user_id = signed_up(client)
    answer = client.put(f"/api/admin/users/{user_id}/role", headers=admin, json={"role": "supervisor"})
    assert answer.json()["user"]["role"] == "supervisor"
    assert logged_in(client, "alice")["user"]["role"] == "supervisor"
    answer = client.put(f"/api/admin/users/{user_id}/role", headers=admin, json={"role": "root"})
    refused(answer, 400, "validation_failed")


def test_the_last_admin_and_the_own_account_stay(client: TestClient, admin: dict[str, str]) -> None:
    refused(client.put("/api/admin/users/admin/role", headers=admin, json={"role": "enduser"}), 400, "last_admin")
    refused(client.delete("/api/admin/users/admin", headers=admin), 400, "own_account")


def test_a_password_that_an_admin_resets_ends_the_users_sessions(client: TestClient, admin: dict[str, str]) -> None:
    user_id = signed_up(client)
    session = logged_in(client, "alice")
    path = f"/api/admin/users/{user_id}/reset-password"
    refused(client.post(path, headers=admin, json={"newPassword": "short"}), 400, "validation_failed")
    assert client.post(path, headers=admin, json={"newPassword": "battery staple"}).status_code == 200
    token = {"refreshToken": session["refreshToken"]}
    refused(client.post("/api/auth/refresh", json=token), 401, "refresh_refused")
    assert logged_in(client, "alice", "battery staple")


# ── Services and keys ───────────────────────────────────────────────────────────────────────────────────────────────


def basic(name: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()}


GRANT = {"grant_type": "client_credentials"}


def test_a_service_gets_a_token_by_basic_or_by_form(client: TestClient, app: FastAPI) -> None:
    secret = app.state.secret
    answers = [
        client.post("/api/auth/token", data=GRANT, headers=basic("chat", secret)),
        client.post("/api/auth/token", data={**GRANT, "client_id": "chat", "client_secret": secret}),
    ]
    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        assert (body["token_type"], body["expires_in"]) == ("Bearer", 300)
        assert body["scope"] == "accounting:settle auth:read"


def test_token_errors_are_in_the_words_of_rfc_6749(client: TestClient, app: FastAPI) -> None:
    good = basic("chat", app.state.secret)

    def error(headers: dict[str, str], **form: str) -> tuple[int, str]:
        answer = client.post("/api/auth/token", data=form, headers=headers)
        return answer.status_code, answer.json()["error"]

    assert error(basic("chat", "wrong"), **GRANT) == (401, "invalid_client")
    assert error(basic("nobody", "wrong"), **GRANT) == (401, "invalid_client")
    assert error({"Authorization": "Basic !!!"}, **GRANT) == (401, "invalid_client")
    assert error({}, **GRANT) == (401, "invalid_client")
    assert error(good, grant_type="password") == (400, "unsupported_grant_type")
    assert error(good, scope="auth:read") == (400, "invalid_request")
    assert error(good, **GRANT, scope="everything") == (400, "invalid_scope")
    assert error(good, **GRANT, client_secret="twice") == (400, "invalid_request")


def test_a_client_that_does_not_verify_is_told_the_scheme(client: TestClient) -> None:
    answer = client.post("/api/auth/token", data=GRANT, headers=basic("chat", "wrong"))
    refused(answer, 401, "invalid_client")
    assert answer.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b'{"grant_type":"client_credentials"}'),
        ("application/x-www-form-urlencoded", b"grant_type=client_credentials&grant_type=client_credentials"),
        ("application/x-www-form-urlencoded", b"\xff\xfe"),
        ("application/x-www-form-urlencoded", b"a=1&" * 100),
        ("text/plain", b""),
    ],
)
def test_a_token_request_that_is_no_form_is_400(client: TestClient, kind: str, body: bytes) -> None:
    answer = client.post("/api/auth/token", content=body, headers={"Content-Type": kind})
    assert refused(answer, 400, "invalid_token_request")["error"] == "invalid_request"


def test_a_service_looks_users_up_and_administers_nothing(client: TestClient, app: FastAPI) -> None:
    user_id = signed_up(client)
    token = client.post("/api/auth/token", data=GRANT, headers=basic("chat", app.state.secret)).json()
    headers = bearer(token["access_token"])
    for who in (user_id, "alice", "alice@example.org", "by-email/alice@example.org"):
        assert client.get(f"/api/admin/users/{who}", headers=headers).json()["user"]["id"] == user_id
    for method, path in ADMINISTRATION:
        if method != "GET" or path.endswith("export"):
            target = path.replace("{id}", user_id)
            refused(client.request(method, target, json=BODY, headers=headers), 403, "forbidden")
    refused(client.get("/api/profile", headers=headers), 403, "forbidden")


def test_a_service_without_the_scope_looks_nobody_up(client: TestClient, app: FastAPI) -> None:
    headers = basic("settler", app.state.reader_secret)
    token = client.post("/api/auth/token", data=GRANT, headers=headers).json()
    assert token["scope"] == "accounting:settle"
    refused(client.get("/api/admin/users/admin", headers=bearer(token["access_token"])), 403, "forbidden")


def test_a_stranger_can_verify_a_token_from_what_is_published(client: TestClient) -> None:
    token = logged_in(client, "admin")["accessToken"]
    metadata = client.get("/.well-known/openid-configuration").json()
    assert metadata["issuer"] == ISSUER
    published = client.get(metadata["jwks_uri"])
    assert published.headers["cache-control"] == "public, max-age=30"
    keys = KeySet.import_key_set(published.json())
    claims = jwt.decode(token, keys, algorithms=[keys.keys[0].alg or ""]).claims
    assert (claims["iss"], claims["aud"], claims["username"]) == (ISSUER, "parshall", "admin")
    assert metadata["token_endpoint"] == f"{ISSUER}/api/auth/token"
    assert all("d" not in key for key in published.json()["keys"])


# ── Any input ───────────────────────────────────────────────────────────────────────────────────────────────────────

STRANGE = [
    "\x00",
    "a\x00b",
    "\ud800",
    "x" * 200_000,
    "'; DROP TABLE users; --",
    "%",
    "\u202e",
    "",
    " ",
    10**400,
    -1,
    1.5,
    True,
    None,
    [],
    {},
    [[[[]]]],
]
PUBLIC = ["/api/auth/signup", "/api/auth/login", "/api/auth/refresh", "/api/auth/logout"]
PUBLIC += [f"/api/auth/{path}" for path in ("forgot-password", "resend-verification", "verify-email", "reset-password")]
OWN = [
    ("PUT", "/api/profile"),
    ("POST", "/api/change-password"),
    ("POST", "/api/admin/users"),
    ("POST", "/api/admin/users/batch"),
    ("PUT", "/api/admin/users/boss/role"),
    ("POST", "/api/admin/users/boss/reset-password"),
    ("POST", "/api/auth/api-keys"),
    ("DELETE", "/api/auth/api-keys/%00"),
]
MEMBERS = ["username", "email", "password", "refreshToken", "currentPassword", "newPassword", "role", "users"]
MEMBERS += ["name", "scopes", "expiresAt", "token"]


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:24])
def test_no_value_of_any_member_is_a_fault_of_ours(client: TestClient, admin: dict[str, str], value: Any) -> None:
    calls = [("POST", path) for path in PUBLIC] + OWN
    shapes = [value, dict.fromkeys(MEMBERS, value), {"users": [dict.fromkeys(MEMBERS, value)]}]
    for method, path in calls:
        for body in shapes:
            kept = {**admin, "Content-Type": "application/json"}
            answer = client.request(method, path, content=json.dumps(body), headers=kept)
            assert answer.status_code < 500, (path, answer.text)
            client.cookies.clear()


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b"[" * 50_000, b'{"username": NaN}', b'{"username": "\xed\xa0\x80"}', b"1" * 9000]
)
def test_no_body_is_a_fault_of_ours(client: TestClient, admin: dict[str, str], body: bytes) -> None:
    headers = {**admin, "Content-Type": "application/json"}
    for method, path in [("POST", path) for path in PUBLIC] + OWN:
        assert client.request(method, path, content=body, headers=headers).status_code < 500


@pytest.mark.parametrize("who", ["%00", "%ed%a0%80", "%ff", "a" * 5000, "a%20b", "%E2%80%AE"])
def test_no_path_is_a_fault_of_ours(client: TestClient, admin: dict[str, str], who: str) -> None:
    for method, path in ADMINISTRATION[3:]:
        target = path.replace("{id}", who).replace("admin@localhost", who)
        body = None if method in ("GET", "DELETE") else BODY
        assert client.request(method, target, json=body, headers=admin).status_code in (404, 405)


@pytest.mark.parametrize(
    "query", ["page=0", "page=-1", "page=1e3", f"page={10**30}", "limit=0", "limit=1001", "query=%00"]
)
def test_a_page_that_cannot_be_is_400(client: TestClient, admin: dict[str, str], query: str) -> None:
    refused(client.get(f"/api/admin/users?{query}", headers=admin), 400, "validation_failed")


def test_a_page_after_the_last_is_empty(client: TestClient, admin: dict[str, str]) -> None:
    assert client.get("/api/admin/users?page=1000000&limit=1000", headers=admin).json()["users"] == []
    assert client.get("/api/admin/users?query=%ff%25_", headers=admin).json()["users"] == []


def test_every_route_says_what_it_is_for(app: FastAPI) -> None:
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), (method, path)
