"""A client of the original platform, which knows three addresses, plays every row of the contract against them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from tests.hostile import operations
from tests.scripted import Script
from tests.serving import ADMIN_PASSWORD, Server, serving, upstream

pytestmark = pytest.mark.apart

PORTS = ("auth", "accounting", "chat")
PASSWORD = "original-password"
NEWER = re.compile(
    r"/api/organisations|/export$|/observations$|/oidc|/debug/|/metrics$|/removals$|/silence$"
    r"|/streaming-sessions/(reprice|void)$|DELETE /api/profile$"
)
"""What the original platform did not have."""
USER = {"id", "username", "email", "isVerified", "role"}
RECEIPT = {
    *("streamingSessionId", "outcome", "modelId", "inputTokens", "cachedInputTokens", "outputTokens"),
    *("reasoningTokens", "deliveredTokens", "usageSource", "reservedCredits", "chargedCredits", "returnedCredits"),
    *("balanceAfter", "settlement", "priceVersion", "transfers"),
}
BALANCE = {"totalCredits", "availableCredits", "reservedCredits", "activeAllocations"}
GRANT = {"id", "userId", "totalCredits", "remainingCredits", "expiresAt"}
CHANGED = {"userId", "previousCredits", "newCredits", "message"}
SLICE = {"sessionId", "allocatedCredits", "grantedOutputTokens", "expiresAt", "status"}
STATS = {"totalRecords", "totalCredits", "byService", "byDay", "byModel", "recentActivity"}


@dataclass(kw_only=True)
class Client:
    """What it knows: an address a service, who it is, and what it has asked so far."""

    at: dict[str, str]
    token: str = ""
    http: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=30))
    asked: set[str] = field(default_factory=set)

    def ask(
        self, method: str, path: str, body: Any = None, expect: int = 200, *, has: set[str] | None = None, **more: Any
    ) -> Any:
        """The answer of the service that is named before the colon; `has` are the members that the client reads."""
        service, _, path = path.partition(":")
        headers = ({"Authorization": f"Bearer {self.token}"} if self.token else {}) | more.pop("headers", {})
        answer = self.http.request(method, self.at[service] + path, json=body, headers=headers, **more)
        assert answer.status_code == expect, f"{method} {service} {path}: {answer.status_code} {answer.text}"
        self.asked.add(f"{service} {method} {path.partition('?')[0]}")
        found = answer.json() if "json" in answer.headers.get("content-type", "") else answer.text
        assert not has or has <= set(found), f"{method} {path}: {found}"
        return found

    def login(self, name: str, password: str) -> Any:
        """Log in, and be that user from now on."""
        self.token = ""
        body = {"username": name, "password": password}
        has = {"message", "accessToken", "refreshToken", "expiresIn", "tokenType", "user"}
        session = self.ask("POST", "auth:/api/auth/login", body, has=has)
        assert set(session["user"]) >= USER
        self.http.cookies.clear()
        self.token = session["accessToken"]
        return session


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*", "MAIL_URL": "mailbox:"}
    home = tmp_path_factory.mktemp("home")
    with upstream() as url, serving(home, split=True, OPENAI_BASE_URL=url, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    made = Client(at={name: server.services[name] for name in PORTS})
    yield made
    made.http.close()


@pytest.fixture(scope="module")
def user_id(client: Client) -> str:
    """A user with 100 credits, signed up as people do and granted by an administrator."""
    person = {"username": "original", "email": "original@example.org", "password": PASSWORD}
    made: str = client.ask("POST", "auth:/api/auth/signup", person, 201, has={"message"})["userId"]
    client.login("admin", ADMIN_PASSWORD)
    grant = {"email": "original@example.org", "credits": 100}
    client.ask("POST", "accounting:/api/credits/allocate-by-email", grant, 201, has=GRANT)
    return made


def test_every_row_of_auth(client: Client, user_id: str) -> None:
    session = client.login("original@example.org", PASSWORD)
    assert client.ask("GET", "auth:/api/profile")["user"]["id"] == user_id
    changed = {"username": "original", "currentPassword": PASSWORD}
    assert client.ask("PUT", "auth:/api/profile", changed)["user"]["username"] == "original"
    rotated = client.ask("POST", "auth:/api/auth/refresh", {"refreshToken": session["refreshToken"]})
    client.ask("POST", "auth:/api/auth/logout", {"refreshToken": rotated["refreshToken"]}, has={"message"})
    client.login("original", PASSWORD)
    key = client.ask("POST", "auth:/api/auth/api-keys", {"name": "ci"}, 201, has={"key"})
    assert client.ask("GET", "auth:/api/auth/api-keys")["keys"][0]["prefix"] == key["prefix"]
    client.ask("DELETE", f"auth:/api/auth/api-keys/{key['id']}")
    new = {"currentPassword": PASSWORD, "newPassword": PASSWORD + "2"}
    client.ask("POST", "auth:/api/change-password", new)
    client.login("original", PASSWORD + "2")
    client.ask("POST", "auth:/api/auth/logout-all", has={"message"})
    client.token = ""
    told = [
        client.ask("POST", "auth:/api/auth/forgot-password", {"email": f"{who}@example.org"}, has={"message"})
        for who in ("original", "nobody")
    ]
    assert told[0] == told[1]
    client.ask("POST", "auth:/api/auth/resend-verification", {"email": "original@example.org"}, has={"message"})
    client.ask("POST", "auth:/api/auth/verify-email", {"token": "x" * 43}, 400)
    client.ask("POST", "auth:/api/auth/reset-password", {"token": "x" * 43, "newPassword": PASSWORD}, 400)


def test_every_row_of_the_administrators(client: Client, user_id: str) -> None:
    me = client.login("admin", ADMIN_PASSWORD)["user"]["id"]
    users = "auth:/api/admin/users"
    body = {"username": "second", "email": "second@example.org", "password": PASSWORD}
    made = client.ask("POST", users, body, 201, has={"message", "userId"})["userId"]
    assert {each["username"] for each in client.ask("GET", users)["users"]} >= {"admin", "original", "second"}
    batch = client.ask(
        "POST", f"{users}/batch", {"users": [body, body | {"username": "third", "email": "t@x.org"}]}, 201
    )
    assert {name: batch["summary"][name] for name in ("total", "successful", "failed")} == {
        "total": 2,
        "successful": 1,
        "failed": 1,
    }
    assert len(batch["results"]) >= 1
    assert client.ask("GET", f"{users}/{made}")["user"]["username"] == "second"
    assert client.ask("GET", f"{users}/by-email/second@example.org")["user"]["id"] == made
    client.ask("PUT", f"{users}/{made}/role", {"role": "supervisor"})
    client.ask("POST", f"{users}/{made}/reset-password", {"newPassword": PASSWORD + "3"})
    client.login("second", PASSWORD + "3")
    client.ask("GET", users, expect=403)
    client.login("admin", ADMIN_PASSWORD)
    client.ask("DELETE", f"{users}/{made}")
    client.ask("DELETE", f"{users}/{me}", expect=400)


def test_every_row_of_credits(client: Client, user_id: str) -> None:
    client.login("admin", ADMIN_PASSWORD)
    credits = "accounting:/api/credits"
    for who in (user_id, "original", "original@example.org"):
        client.ask("POST", f"{credits}/allocate", {"userId": who, "credits": 10, "expiryDays": 30}, 201, has=GRANT)
    assert client.ask("GET", f"{credits}/balance/original", has=BALANCE)["totalCredits"] == 130
    for method, path, amount in (
        ("POST", "set", "credits"),
        ("PUT", "adjust", "adjustment"),
        ("DELETE", "remove", "credits"),
    ):
        client.ask(method, f"{credits}/{path}", {"userId": "original", amount: 50}, has=CHANGED)
    client.ask("DELETE", f"{credits}/remove", {"userId": "original", "credits": 1000}, 400)
    assert client.ask("GET", f"{credits}/allocations/all")["allocations"]
    client.ask("PUT", "accounting:/api/prices", {"modelId": "dear", "input": 1, "output": 2})
    assert client.ask("GET", f"{credits}/statement/original")["entries"]
    client.login("original", PASSWORD + "2")
    assert client.ask("GET", f"{credits}/balance", has=BALANCE)["availableCredits"] == 50
    assert client.ask("GET", f"{credits}/total-balance")["totalCredits"] == 50
    assert client.ask("GET", "accounting:/api/prices")["prices"]
    assert client.ask("POST", f"{credits}/calculate", {"modelId": "fake", "tokens": 1000})["credits"] == 4
    assert client.ask("POST", f"{credits}/check", {"credits": 50})["sufficient"] is True
    assert client.ask("POST", f"{credits}/check", {"requiredCredits": 51})["hasSufficientCredits"] is False
    deducted = client.ask("POST", f"{credits}/deduct", {"credits": 1}, has={"success", "message"})
    assert deducted["remainingBalance"] == 49
    assert client.ask("GET", f"{credits}/statement")["entries"][-1]["balanceAfter"] == 49
    client.ask("GET", f"{credits}/balance/admin", expect=403)


def test_every_row_of_streaming_sessions_and_usage(client: Client, server: Server, user_id: str) -> None:
    """As the original chat service calls the original accounting service, and as people look at it then."""
    secret = server.child("chat").environ()["PARSHALL_SERVICE_SECRET"]
    client.token, form = "", {"grant_type": "client_credentials"}
    made = client.ask("POST", "auth:/api/auth/token", data=form, auth=("split-chat", secret))
    service, sessions = made["access_token"], "accounting:/api/streaming-sessions"
    client.token, named = service, {"headers": {"X-User-ID": user_id}}
    first, second = (f"stream-1620847252-{number:08x}" for number in (1, 2))
    opening = {"sessionId": first, "modelId": "fake", "estimatedTokens": 100}
    assert client.ask("POST", f"{sessions}/initialize", opening, 201, has=SLICE, **named)["status"] == "active"
    assert client.ask("POST", f"{sessions}/initialize", opening, 201, **named)["sessionId"] == first, "a replay"
    sliced = {"sessionId": second, "modelId": "fake", "inputTokens": 9, "maxOutputTokens": 90, "sliceTokens": 30}
    client.ask("POST", f"{sessions}/initialize", sliced, 201, has=SLICE, **named)
    more = {"sessionId": second, "outputTokens": 60, "step": 1}
    assert client.ask("POST", f"{sessions}/extend", more, has=SLICE, **named)["final"] is True
    dear = opening | {"sessionId": f"{first}3", "estimatedTokens": 1_000_000}
    refused = client.ask("POST", f"{sessions}/initialize", dear, 402, **named)
    assert refused["code"] == "insufficient_credits" and refused["requiredCredits"] > refused["availableCredits"] > 0
    client.login("admin", ADMIN_PASSWORD)
    for path in ("active/all", "active/original"):
        assert {each["sessionId"] for each in client.ask("GET", f"{sessions}/{path}")} == {first, second}
    client.token = service
    settled = {"sessionId": first, "actualTokens": 50, "success": True}
    for _ in range(2):
        ended = client.ask(
            "POST", f"{sessions}/finalize", settled, has={"sessionId", "actualCredits", "refund", "receipt"}
        )
    client.ask(
        "POST", f"{sessions}/abort", {"sessionId": second, "tokensGenerated": 5}, has={"partialCredits", "refund"}
    )
    client.ask("POST", f"{sessions}/finalize", settled | {"sessionId": f"{first}4"}, 404)
    used = {"service": "search", "operation": "query", "credits": 0}
    client.ask("POST", "accounting:/api/usage/record", used, 201, **named)
    client.login("admin", ADMIN_PASSWORD)
    for path in ("recent", "recent/original?minutes=60"):
        assert {each["sessionId"] for each in client.ask("GET", f"{sessions}/{path}")["sessions"]} >= {first, second}
    client.ask("GET", "accounting:/api/usage/stats/original", has=STATS)
    client.ask("GET", "accounting:/api/usage/system-stats", has=STATS | {"byUser"})
    client.login("original", PASSWORD + "2")
    assert client.ask("GET", f"{sessions}/active") == []
    assert client.ask("GET", f"{sessions}/{first}/receipt", has=RECEIPT - {"deliveredTokens"}) == ended["receipt"]
    assert client.ask("GET", "accounting:/api/usage/stats", has=STATS)["totalRecords"] >= 2


def test_every_row_of_chat(client: Client, user_id: str) -> None:
    client.login("original", PASSWORD + "2")
    chats, title = "chat:/api/chat/sessions", {"title": "Original"}
    session = client.ask("POST", chats, title, 201, has={"title", "createdAt"})["sessionId"]
    page = client.ask("GET", f"{chats}?page=1&limit=5&query=orig")
    assert page["sessions"][0]["sessionId"] == session
    assert set(page["pagination"]) >= {"total", "pages", "currentPage", "perPage"}
    client.ask("PATCH", f"{chats}/{session}", {"title": "Renamed"})
    headers = {"Authorization": f"Bearer {client.token}", "X-User-ID": user_id}
    answer = client.http.post(
        f"{client.at['chat']}/api/chat/sessions/{session}/stream", json={"message": "fake-n20"}, headers=headers
    )
    client.asked.add(f"chat POST /api/chat/sessions/{session}/stream")
    stream_id = answer.headers["x-streaming-session-id"]
    assert answer.headers.raw[0][0].lower() == b"x-streaming-session-id" and '"status":"complete"' in answer.text
    told = {"completeResponse": Script(n=20).text(), "streamingSessionId": stream_id, "tokensUsed": 20}
    update = f"{chats}/{session}/update-stream"
    assert client.ask("POST", update, told, has={"message", "sessionId", "tokensUsed", "receipt"})["matches"] is True
    wrong = client.ask("POST", update, told | {"streamingSessionId": "stream-1620847252-abcdef01"}, 400)
    assert wrong["details"]["expected"] == stream_id and "Streaming session ID mismatch" in str(wrong)
    state = {"headers": {"Accept": "application/json"}}
    assert set(client.ask("GET", f"chat:/api/chat/streams/{stream_id}", **state)["receipt"]) >= RECEIPT
    assert "event: done" in client.ask("GET", f"chat:/api/chat/streams/{stream_id}?after=3")
    client.ask("POST", f"chat:/api/chat/streams/{stream_id}/stop")
    whole = {"message", "sessionId", "response", "tokensUsed", "streamingSessionId", "receipt"}
    client.ask("POST", f"{chats}/{session}/messages", {"message": "fake-n2"}, has=whole)
    assert len(client.ask("GET", f"{chats}/{session}/messages")["messages"]) == 4
    assert "streamingSessionId" in client.ask("GET", f"{chats}/{session}", has={"messages", "metadata"})["metadata"]
    models = client.ask("GET", "chat:/api/models")["models"]
    assert set(models[0]) >= {"id", "name", "description", "capabilities", "creditCost", "maxTokens", "available"}
    client.ask("POST", "chat:/api/models/recommend", {}, has={"recommendedModel", "reason", "modelDetails"})
    client.login("admin", ADMIN_PASSWORD)
    assert client.ask("GET", "chat:/api/chat/users/search?query=origin")["users"][0]["id"] == user_id
    assert client.ask("GET", f"chat:/api/chat/users/{user_id}/sessions")["sessions"][0]["sessionId"] == session
    assert client.ask("GET", f"chat:/api/chat/users/original/sessions/{session}")["messages"]
    assert "event: history-end" in client.ask("GET", f"{chats}/{session}/observe")
    client.login("original", PASSWORD + "2")
    client.ask("DELETE", f"{chats}/{session}", has={"message", "sessionId"})
    client.ask("GET", f"{chats}/{session}", expect=404)


def test_nothing_that_a_service_offers_was_left_out(client: Client, user_id: str) -> None:
    """The last of this file: a route that the script does not play is missed here, on whichever document it is."""
    for service in PORTS:
        for path in ("/health", "/api/health", "/api/version"):
            assert client.ask("GET", f"{service}:{path}")["service"] == service
    for path in ("/.well-known/jwks.json", "/.well-known/openid-configuration"):
        client.ask("GET", f"auth:{path}")
    missed = []
    for service, url in client.at.items():
        for operation in operations(url):
            asked = re.compile(f"{service} {operation.method} " + re.sub(r"\{\w+\}", "[^/]+", operation.path))
            if not (NEWER.search(operation.name) or any(asked.fullmatch(each) for each in client.asked)):
                missed.append(f"{service}: {operation.name}")
    assert missed == []
