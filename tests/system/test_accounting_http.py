"""Accounting over HTTP as clients and services meet it: roles, amounts, replays, and input that means harm."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import KeySet, OKPKey
from starlette.testclient import TestClient
from tests import migrated

from parshall.accounting.http import router
from parshall.accounting.service import Accounting
from parshall.kernel import clock
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.errors import NotFound
from parshall.kernel.http import Edge
from parshall.kernel.ids import UserId
from parshall.kernel.refusals import install_errors
from parshall.kernel.tokens import ALGORITHM, TOKEN_TYPE, TokenVerifier

ISSUER = "http://auth.test"
KEY = OKPKey.generate_key("Ed25519", parameters={"kid": "one"})
PEOPLE = {"ann": "u-ann", "bob": "u-bob", "sue": "u-sue", "root": "u-root"}
ONE = "stream-1800000000-00000001"
TWO = "stream-1800000000-00000002"


class People:
    """Knows PEOPLE by id, username and e-mail address."""

    async def resolve(self, who: str) -> UserId:
        name = who.removesuffix("@example.org")
        if name in PEOPLE:
            return UserId(PEOPLE[name])
        if who in PEOPLE.values():
            return UserId(who)
        raise NotFound("There is no such user.")


def bearer(name: str, role: str, scope: str = "") -> dict[str, str]:
    seconds = clock.now() // SECOND
    claims = {
        "iss": ISSUER,
        "sub": PEOPLE.get(name, name),
        "aud": "parshall",
        "iat": seconds,
        "exp": seconds + 900,
        "type": "access",
        "jti": f"{name} {seconds}",
        "client_id": name if role == "service" else "parshall",
        "sid": "" if role == "service" else f"session of {name}",
        "username": name,
        "email": f"{name}@example.org",
        "role": role,
        "scope": scope,
    }
    token = jwt.encode({"alg": ALGORITHM, "typ": TOKEN_TYPE, "kid": "one"}, claims, KEY, algorithms=[ALGORITHM])
    return {"Authorization": f"Bearer {token}"}


@dataclass
class Site:
    """The service over HTTP, and a token for everybody."""

    client: TestClient
    ahead: list[int]
    ann: dict[str, str] = field(default_factory=lambda: bearer("ann", "enduser"))
    bob: dict[str, str] = field(default_factory=lambda: bearer("bob", "enduser"))
    sue: dict[str, str] = field(default_factory=lambda: bearer("sue", "supervisor"))
    root: dict[str, str] = field(default_factory=lambda: bearer("root", "admin"))
    chat: dict[str, str] = field(default_factory=lambda: bearer("chat", "service", "accounting:settle"))

    def ask(self, method: str, path: str, who: dict[str, str], body: Any = None, **headers: str) -> Any:
        given = who | {name.replace("_", "-"): value for name, value in headers.items()}
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if content is not None:
            given["Content-Type"] = "application/json"
        return self.client.request(method, f"/api{path}", content=content, headers=given)

    def grant(self, credits: float = 1000, **more: Any) -> dict[str, Any]:
        answer = self.ask("POST", "/credits/allocate", self.sue, {"userId": "ann", "credits": credits} | more)
        assert answer.status_code == 201, answer.text
        granted: dict[str, Any] = answer.json()
        return granted

    def stream(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        named = {"X_User_ID": "u-ann"} | headers
        return self.ask("POST", f"/streaming-sessions/{path}", self.chat, {"sessionId": ONE} | body, **named)

    def open(self, **more: Any) -> Any:
        body = {"modelId": "any", "inputTokens": 1000, "maxOutputTokens": 1000, "sliceTokens": 500} | more
        return self.stream("initialize", body)

    def balance(self) -> dict[str, Any]:
        held: dict[str, Any] = self.ask("GET", "/credits/balance", self.ann).json()
        return held

    def stats(self, query: str = "") -> dict[str, Any]:
        used: dict[str, Any] = self.ask("GET", f"/usage/stats{query}", self.ann).json()
        return used


@cache
def routes() -> FastAPI:
    """Put together once for all tests, since it takes longer than most of them."""

    async def keys() -> KeySet:
        return KeySet([KEY])

    app = FastAPI()
    install_errors(app)
    app.include_router(router)
    app.state.verifier = TokenVerifier(keys, issuer=ISSUER, clock=clock.now)
    return app


@contextmanager
def served(accounting: Accounting) -> Iterator[TestClient]:
    """A client of the service, which is closed in the end."""
    app = routes()
    app.state.accounting = accounting
    asyncio.run(accounting.start())
    with TestClient(Edge(app)) as client:
        yield client
    asyncio.run(accounting.close())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    database = migrated.opened(tmp_path / "accounting.db", "parshall.accounting", synchronous="NORMAL")
    ahead = [0]

    accounting = Accounting(database, directory=People(), clock=lambda: clock.now() + ahead[0], reservation_seconds=30)
    with served(accounting) as client:
        yield Site(client=client, ahead=ahead)


# ── Balances ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_balance_names_the_grants_it_comes_from(site: Site) -> None:
    granted = site.grant(12.5, notes="welcome")
    assert granted["totalCredits"] == granted["remainingCredits"] == 12.5
    balance = site.balance()
    assert (balance["totalCredits"], balance["availableCredits"], balance["reservedCredits"]) == (12.5, 12.5, 0)
    (allocation,) = balance["activeAllocations"]
    assert allocation["id"] == granted["id"]
    assert set(allocation) >= {"id", "credits", "remaining", "expiresAt", "allocatedAt"}
    assert site.ask("GET", "/credits/total-balance", site.ann).json() == {"totalCredits": 12.5}


@pytest.mark.parametrize("who", ["ann", "u-ann", "ann@example.org"])
def test_a_user_is_named_by_id_username_or_email(site: Site, who: str) -> None:
    site.grant(5)
    answer = site.ask("GET", f"/credits/balance/{who}", site.sue)
    assert (answer.status_code, answer.json()["availableCredits"]) == (200, 5)


def test_an_unknown_user_is_404(site: Site) -> None:
    for path in ("/credits/balance/nobody", "/credits/statement/nobody", "/streaming-sessions/active/nobody"):
        assert site.ask("GET", path, site.sue).status_code == 404
    assert site.ask("POST", "/credits/set", site.sue, {"userId": "nobody", "credits": 1}).status_code == 404


def test_checking_tells_whether_there_is_enough(site: Site) -> None:
    site.grant(10)
    enough = site.ask("POST", "/credits/check", site.ann, {"requiredCredits": 10}).json()
    assert enough == {"sufficient": True, "hasSufficientCredits": True, "credits": 10, "requiredCredits": 10}
    short = site.ask("POST", "/credits/check", site.ann, {"credits": 10.000001}).json()
    assert (short["sufficient"], short["requiredCredits"], "message" in short) == (False, 10.000001, True)


def test_calculating_prices_each_sort_of_token(site: Site) -> None:
    def ask(**body: int) -> Any:
        return site.ask("POST", "/credits/calculate", site.ann, {"modelId": "any"} | body).json()["credits"]

    assert ask(tokens=1000) == 4
    assert ask(inputTokens=1000, outputTokens=1000) == 5
    assert ask(inputTokens=1000, cachedTokens=1000, outputTokens=1) == 0.504


def test_deducting_answers_with_what_remains_and_refuses_more(site: Site) -> None:
    site.grant(10)
    assert site.ask("POST", "/credits/deduct", site.ann, {"credits": 2.5}).json() == {
        "success": True,
        "message": "2.5 credits were deducted.",
        "remainingBalance": 7.5,
    }
    refused = site.ask("POST", "/credits/deduct", site.ann, {"credits": 8})
    assert (refused.status_code, refused.json()["availableCredits"]) == (402, 7.5)


def test_a_statement_tells_every_movement_with_its_stream_and_the_balance_behind_it(site: Site) -> None:
    site.grant(12)
    site.open()
    site.stream("finalize", {"usage": {"inputTokens": 1000, "outputTokens": 250}})
    page = site.ask("GET", "/credits/statement?limit=2", site.ann).json()
    rest = site.ask("GET", f"/credits/statement?after={page['next']}", site.ann).json()
    entries = page["entries"] + rest["entries"]
    assert [(e["kind"], e["credits"], e["balanceAfter"]) for e in entries] == [
        ("grant", 12, 12),
        ("reserve", 3, 9),
        ("charge", 2, 9),
        ("release", 1, 10),
    ]
    assert [e["streamingSessionId"] for e in entries] == [None, ONE, ONE, ONE]
    assert rest["next"] is None
    assert site.ask("GET", "/credits/statement/ann", site.sue).json()["entries"] == entries


# ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_allocating_by_email_serves_older_clients(site: Site) -> None:
    body = {"email": "ann@example.org", "credits": 7, "expiryDays": 365, "notes": "course"}
    answer = site.ask("POST", "/credits/allocate-by-email", site.sue, body)
    assert (answer.status_code, answer.json()["userId"]) == (201, "u-ann")


def test_set_adjust_and_remove_tell_what_was_and_what_is(site: Site) -> None:
    def change(method: str, path: str, **body: Any) -> tuple[Any, ...]:
        answer = site.ask(method, path, site.sue, {"userId": "ann"} | body)
        return answer.status_code, answer.json().get("previousCredits"), answer.json().get("newCredits")

    assert change("POST", "/credits/set", credits=50) == (200, 0, 50)
    assert change("PUT", "/credits/adjust", adjustment=-20.5) == (200, 50, 29.5)
    assert change("PUT", "/credits/adjust", adjustment=0.5) == (200, 29.5, 30)
    assert change("DELETE", "/credits/remove", credits=30) == (200, 30, 0)
    for refused in (
        change("PUT", "/credits/adjust", adjustment=-1),
        change("DELETE", "/credits/remove", credits=1),
        change("POST", "/credits/set", credits=-1),
    ):
        assert refused == (400, None, None)


def test_every_allocation_is_listed_for_supervisors(site: Site) -> None:
    ids = [site.grant(1)["id"] for _ in range(3)]
    page = site.ask("GET", "/credits/allocations/all?limit=2", site.sue).json()
    rest = site.ask("GET", f"/credits/allocations/all?after={page['next']}", site.sue).json()
    assert sorted(each["id"] for each in page["allocations"] + rest["allocations"]) == sorted(ids)
    unknown = site.ask("GET", f"/credits/allocations/all?after={'0' * 32}", site.sue)
    assert unknown.status_code == 404


def test_a_repeated_key_repeats_the_answer_byte_for_byte_and_changes_nothing(site: Site) -> None:
    site.grant(100)
    for method, path, who, body in (
        ("POST", "/credits/allocate", site.sue, {"userId": "ann", "credits": 1}),
        ("POST", "/credits/set", site.sue, {"userId": "ann", "credits": 60}),
        ("PUT", "/credits/adjust", site.sue, {"userId": "ann", "adjustment": 1}),
        ("DELETE", "/credits/remove", site.sue, {"userId": "ann", "credits": 1}),
        ("POST", "/credits/deduct", site.ann, {"credits": 1}),
    ):
        first = site.ask(method, path, who, body, Idempotency_Key="k-1")
        after = site.balance()
        again = site.ask(method, path, who, body, Idempotency_Key="k-1")
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert first.status_code < 300
        assert site.balance() == after
        other = site.ask(method, path, who, body | {"notes": "else"}, Idempotency_Key="k-1")
        assert (other.status_code, other.json()["code"]) == (409, "id_reused")
    assert site.ask("POST", "/credits/deduct", site.ann, {"credits": 1}, Idempotency_Key="a b").status_code == 400


# ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_is_reserved_extended_and_finalized(site: Site) -> None:
    site.grant(100)
    opened = site.open()
    assert opened.status_code == 201
    assert (opened.json()["allocatedCredits"], opened.json()["grantedOutputTokens"]) == (3, 500)
    assert (opened.json()["sessionId"], opened.json()["status"], opened.json()["final"]) == (ONE, "active", False)
    assert site.open().content == opened.content
    extended = site.stream("extend", {"outputTokens": 900, "step": 1})
    assert (extended.status_code, extended.json()["allocatedCredits"], extended.json()["final"]) == (200, 5, True)
    assert site.balance()["reservedCredits"] == 5
    usage = {"inputTokens": 1000, "cachedInputTokens": 1000, "outputTokens": 500, "reasoningTokens": 100}
    ended = site.stream("finalize", {"usage": usage, "usageSource": "provider"})
    assert ended.status_code == 200
    assert (ended.json()["actualCredits"], ended.json()["refund"]) == (2.5, 2.5)
    receipt = ended.json()["receipt"]
    assert receipt.items() >= (usage | {"settlement": "settled", "usageSource": "provider"}).items()
    assert (receipt["reservedCredits"], receipt["chargedCredits"], receipt["returnedCredits"]) == (5, 2.5, 2.5)
    assert (receipt["outcome"], receipt["balanceAfter"], receipt["uncollectedCredits"]) == ("completed", 97.5, 0)
    assert receipt["transfers"]
    assert site.stream("finalize", {"usage": usage, "usageSource": "provider"}).content == ended.content
    assert site.stream("finalize", {"actualTokens": 3}).status_code == 409
    assert site.ask("GET", f"/streaming-sessions/{ONE}/receipt", site.ann).json() == receipt


def test_a_stream_that_goes_on_with_another_model_is_charged_at_its_price(site: Site) -> None:
    site.grant(100)
    site.open()
    price = {"modelId": "dear", "input": 2000, "output": 8000}
    assert site.ask("PUT", "/prices", site.root, price).status_code == 200
    body = {"modelId": "dear", "inputTokens": 1000, "maxOutputTokens": 1000, "sliceTokens": 500}
    moved = site.stream("reprice", body)
    assert (moved.status_code, moved.json()["allocatedCredits"], moved.json()["grantedOutputTokens"]) == (200, 6, 500)
    assert site.stream("reprice", body).content == moved.content
    receipt = site.stream("finalize", {"actualTokens": 1250}).json()["receipt"]
    assert (receipt["modelId"], receipt["chargedCredits"], receipt["returnedCredits"]) == ("dear", 4, 2)


def test_older_clients_estimate_and_finalize_with_a_total(site: Site) -> None:
    site.grant(10)
    opened = site.stream("initialize", {"modelId": "any", "estimatedTokens": 1000})
    assert (opened.status_code, opened.json()["allocatedCredits"]) == (201, 4)
    ended = site.stream("finalize", {"actualTokens": 500, "success": False}).json()
    assert (ended["actualCredits"], ended["refund"], ended["receipt"]["outcome"]) == (2, 2, "provider_error")


def test_a_total_counts_the_prompt_first(site: Site) -> None:
    site.grant(10)
    site.open()
    receipt = site.stream("finalize", {"actualTokens": 1250}).json()["receipt"]
    assert (receipt["inputTokens"], receipt["outputTokens"], receipt["chargedCredits"]) == (1000, 250, 2)


def test_an_estimate_must_be_covered_whole(site: Site) -> None:
    site.grant(3)
    refused = site.stream("initialize", {"modelId": "any", "estimatedTokens": 1000})
    assert refused.status_code == 402
    named = {key: refused.json()[key] for key in ("code", "requiredCredits", "availableCredits", "reservedCredits")}
    assert named == {
        "code": "insufficient_credits",
        "requiredCredits": 4,
        "availableCredits": 3,
        "reservedCredits": 0,
    }
    assert site.balance()["reservedCredits"] == 0


def test_aborting_charges_what_was_generated_and_nothing_where_nothing_was(site: Site) -> None:
    site.grant(10)
    site.stream("initialize", {"modelId": "any", "estimatedTokens": 1000})
    partial = site.stream("abort", {"tokensGenerated": 250})
    assert (partial.json()["partialCredits"], partial.json()["refund"]) == (1, 3)
    assert site.stream("abort", {"tokensGenerated": 250}).content == partial.content
    site.stream("initialize", {"sessionId": TWO, "modelId": "any", "estimatedTokens": 1000})
    nothing = site.stream("abort", {"sessionId": TWO}).json()
    assert (nothing["partialCredits"], nothing["refund"], nothing["receipt"]["outcome"]) == (0, 4, "voided")
    assert site.balance()["availableCredits"] == 9


def test_an_unknown_stream_is_404_and_a_malformed_one_400(site: Site) -> None:
    for path, body in (
        ("extend", {"outputTokens": 1, "step": 1}),
        ("reprice", {"modelId": "any", "inputTokens": 1, "maxOutputTokens": 1}),
        ("finalize", {"actualTokens": 1}),
        ("abort", {}),
    ):
        assert site.stream(path, body).status_code == 404
        assert site.stream(path, body | {"sessionId": "stream-1-zz"}).status_code == 400
    assert site.ask("GET", f"/streaming-sessions/{ONE}/receipt", site.ann).status_code == 404


def test_a_service_that_names_another_user_finds_no_stream(site: Site) -> None:
    site.grant(10)
    site.open()
    body = {"actualTokens": 1}
    assert site.stream("finalize", body, X_User_ID="u-bob").status_code == 404
    assert site.stream("finalize", body, X_User_ID="ann@example.org").status_code == 200


def test_initializing_needs_a_known_user(site: Site) -> None:
    body = {"sessionId": ONE, "modelId": "any", "estimatedTokens": 1}
    assert site.ask("POST", "/streaming-sessions/initialize", site.chat, body).status_code == 400
    assert site.stream("initialize", body, X_User_ID="nobody").status_code == 404


def test_running_and_recent_streams_are_listed_for_those_who_may_see_them(site: Site) -> None:
    site.grant(12)
    site.open()
    for path, who in (("active", site.ann), ("active/all", site.root), ("active/ann", site.sue)):
        (session,) = site.ask("GET", f"/streaming-sessions/{path}", who).json()
        assert (session["sessionId"], session["status"], session["allocatedCredits"]) == (ONE, "active", 3)
    assert site.ask("GET", "/streaming-sessions/active", site.bob).json() == []
    pending = site.ask("GET", f"/streaming-sessions/{ONE}/receipt", site.ann).json()
    assert (pending["settlement"], pending["reservedCredits"]) == ("pending", 3)
    site.stream("finalize", {"actualTokens": 1})
    assert site.ask("GET", "/streaming-sessions/active", site.ann).json() == []
    for path in ("recent", "recent/ann?minutes=60"):
        answer = site.ask("GET", f"/streaming-sessions/{path}", site.sue).json()
        assert [session["status"] for session in answer["sessions"]] == ["settled"]
    site.ahead[0] = DAY
    assert site.ask("GET", "/streaming-sessions/recent", site.sue).json()["sessions"] == []


# ── Who may what ────────────────────────────────────────────────────────────────────────────────────────────────────

OWN = ("/credits/balance", "/credits/total-balance", "/credits/statement", "/streaming-sessions/active")
USERS = (*OWN, "/prices")
SUPERVISORS = (
    ("GET", "/credits/balance/ann"),
    ("GET", "/credits/statement/ann"),
    ("GET", "/credits/allocations/all"),
    ("POST", "/credits/allocate"),
    ("POST", "/credits/allocate-by-email"),
    ("POST", "/credits/set"),
    ("PUT", "/credits/adjust"),
    ("DELETE", "/credits/remove"),
    ("GET", "/streaming-sessions/active/ann"),
    ("GET", "/streaming-sessions/recent"),
    ("GET", "/streaming-sessions/recent/ann"),
)
SERVICES = ("initialize", "extend", "reprice", "finalize", "abort", "void")
BODY = {"userId": "ann", "email": "ann", "credits": 1, "adjustment": 1}


def test_nothing_is_told_without_a_token(site: Site) -> None:
    for method, path in [*(("GET", path) for path in USERS), *SUPERVISORS]:
        answer = site.ask(method, path, {}, BODY if method != "GET" else None)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path


def test_end_users_cannot_do_what_supervisors_do_nor_supervisors_what_admins_do(site: Site) -> None:
    for method, path in SUPERVISORS:
        assert site.ask(method, path, site.ann, BODY if method != "GET" else None).status_code == 403, path
    assert site.ask("GET", "/streaming-sessions/active/all", site.sue).status_code == 403
    price = {"modelId": "any", "input": 1, "output": 1}
    assert site.ask("PUT", "/prices", site.sue, price).status_code == 403


def test_users_whatever_their_role_cannot_settle_streams(site: Site) -> None:
    site.grant(12)
    site.open()
    bodies: dict[str, dict[str, Any]] = {
        "initialize": {"modelId": "any", "estimatedTokens": 1},
        "extend": {"outputTokens": 1, "step": 1},
        "reprice": {"modelId": "any", "inputTokens": 1, "maxOutputTokens": 1},
        "finalize": {"actualTokens": 0},
        "abort": {},
        "void": {},
    }
    unscoped = bearer("chat", "service", "other:scope")
    for path in SERVICES:
        for who in (site.ann, site.sue, site.root, unscoped):
            body = {"sessionId": ONE} | bodies[path]
            assert site.ask("POST", f"/streaming-sessions/{path}", who, body).status_code == 403
    assert site.balance()["reservedCredits"] == 3


def test_services_cannot_act_as_users(site: Site) -> None:
    for path in OWN:
        assert site.ask("GET", path, site.chat, X_User_ID="u-ann").status_code == 403


def test_a_service_that_may_settle_also_sees_prices(site: Site) -> None:
    assert site.ask("GET", "/prices", site.chat).json() == site.ask("GET", "/prices", site.ann).json()
    assert site.ask("GET", "/prices", bearer("chat", "service", "auth:read")).status_code == 403


def test_a_service_names_a_user_by_id_without_anybody_being_asked(site: Site) -> None:
    """Chat has verified the token that bears the id: a stream begins although auth is away, and nobody knows the id."""
    unknown = "0" * 32
    refused = site.stream("initialize", {"modelId": "any", "estimatedTokens": 1}, X_User_ID=unknown)
    assert (refused.status_code, refused.json()["availableCredits"]) == (402, 0)


def test_giving_a_stream_up_returns_all_and_is_no_error_where_nothing_was_held(site: Site) -> None:
    site.grant(12)
    site.open()
    ended = site.stream("void", {})
    assert (ended.status_code, ended.json()["refund"]) == (200, 3)
    assert site.stream("void", {}).json() == ended.json()
    assert site.stream("void", {"sessionId": TWO}).json() == {"sessionId": TWO, "receipt": None}
    assert site.balance()["reservedCredits"] == 0


def test_a_receipt_of_another_user_is_not_found(site: Site) -> None:
    site.grant(10)
    site.open()
    path = f"/streaming-sessions/{ONE}/receipt"
    missing = site.ask("GET", f"/streaming-sessions/{TWO}/receipt", site.bob).json()
    hidden = site.ask("GET", path, site.bob)
    assert (hidden.status_code, hidden.json()["detail"]) == (404, missing["detail"])
    assert site.ask("GET", path, site.sue).status_code == 200


# ── Prices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_price_is_set_by_an_admin_and_seen_by_everybody(site: Site) -> None:
    body = {"modelId": "any", "input": 10, "cachedInput": 2.5, "output": 40}
    answer = site.ask("PUT", "/prices", site.root, body)
    assert answer.status_code == 200
    assert answer.json().items() >= (body | {"reasoning": 40}).items()
    seen = {price["modelId"]: price for price in site.ask("GET", "/prices", site.ann).json()["prices"]}
    assert seen["any"] == answer.json()
    assert seen["*"]["output"] == 4000
    late = body | {"effectiveFrom": "2000-01-01T00:00:00Z"}
    assert site.ask("PUT", "/prices", site.root, late).status_code == 400


def test_the_same_price_for_the_same_instant_may_be_repeated_but_not_another(site: Site) -> None:
    body = {"modelId": "any", "input": 1, "output": 2, "effectiveFrom": "2090-01-01T00:00:00Z"}
    first = site.ask("PUT", "/prices", site.root, body)
    assert site.ask("PUT", "/prices", site.root, body).content == first.content
    assert site.ask("PUT", "/prices", site.root, body | {"input": 2}).status_code == 409


# ── Harm ────────────────────────────────────────────────────────────────────────────────────────────────────────────

AMOUNTS = ["true", "null", '"5"', "NaN", "Infinity", "-Infinity", "1e400", "0.0000001", "1000000001", "[]", "9" * 5000]


def test_an_amount_that_is_not_one_is_400(site: Site) -> None:
    paths = (("POST", "/credits/allocate"), ("DELETE", "/credits/remove"))
    for amount, (method, path) in itertools.product([*AMOUNTS, "0", "-1"], paths):
        answer = site.ask(method, path, site.sue, f'{{"userId": "ann", "credits": {amount}}}'.encode())
        assert answer.status_code == 400, (amount[:20], answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["message"]
    assert site.balance()["totalCredits"] == 0


def test_an_amount_comes_back_as_it_went_in(site: Site) -> None:
    for amount in (0.1, 0.000001, 123456789.123456, 999999999.999999, 1e-6, 2.3, 7):
        site.ask("POST", "/credits/set", site.sue, {"userId": "ann", "credits": amount})
        assert site.balance()["totalCredits"] == amount


@pytest.mark.parametrize("text", ["\\u0000", "\\ud800", "a" * 2000])
def test_text_that_no_database_takes_is_400(site: Site, text: str) -> None:
    asked = (
        ("POST", "/credits/allocate", site.sue, f'{{"userId": "{text}", "credits": 1}}'),
        ("POST", "/credits/allocate", site.sue, f'{{"userId": "ann", "credits": 1, "notes": "{text}"}}'),
        ("POST", "/credits/calculate", site.ann, f'{{"modelId": "{text}", "tokens": 1}}'),
        ("PUT", "/prices", site.root, f'{{"modelId": "{text}", "input": 1, "output": 1}}'),
        ("POST", "/streaming-sessions/finalize", site.chat, f'{{"sessionId": "{text}", "actualTokens": 1}}'),
        ("POST", "/streaming-sessions/finalize", site.chat, f'{{"sessionId": "{ONE}", "usageSource": "{text}"}}'),
    )
    for method, path, who, body in asked:
        assert site.ask(method, path, who, body.encode()).status_code == 400, (path, body[:80])


COUNTS = ["-1", "1.5", '"7"', "true", "1e30", "9" * 40, "100000001", "NaN"]


def test_a_token_count_that_is_not_one_is_400(site: Site) -> None:
    for count in COUNTS:
        asked = (
            (site.ann, "/credits/calculate", f'{{"modelId": "any", "tokens": {count}}}'),
            (site.chat, "/streaming-sessions/finalize", f'{{"sessionId": "{ONE}", "actualTokens": {count}}}'),
            (site.chat, "/streaming-sessions/extend", f'{{"sessionId": "{ONE}", "step": {count}, "outputTokens": 1}}'),
        )
        for who, path, body in asked:
            assert site.ask("POST", path, who, body.encode()).status_code == 400, (path, count)


OUT_OF_BOUNDS = [
    "/credits/statement?after=-1",
    "/credits/statement?after=99999999999999999999999",
    "/credits/statement?limit=0",
    "/credits/statement?limit=1000000",
    "/credits/statement?after=NaN",
    "/credits/allocations/all?after=%00",
    "/credits/allocations/all?limit=-5",
    "/credits/balance/%00",
    f"/credits/balance/{'a' * 300}",
    "/streaming-sessions/recent?minutes=0",
    "/streaming-sessions/recent?minutes=99999999999",
    "/streaming-sessions/stream-1/receipt",
    "/streaming-sessions/%ff/receipt",
]


def test_a_query_or_path_out_of_bounds_is_400(site: Site) -> None:
    for path in OUT_OF_BOUNDS:
        assert site.ask("GET", path, site.root).status_code == 400, path


def test_cached_tokens_beyond_the_input_are_400(site: Site) -> None:
    site.grant(10)
    site.open()
    for usage in ({"inputTokens": 1, "cachedInputTokens": 2}, {"outputTokens": 1, "reasoningTokens": 2}):
        assert site.stream("finalize", {"usage": usage}).status_code == 400


def test_a_price_from_beyond_all_dates_is_400(site: Site) -> None:
    for instant in ("9999-12-31T23:59:59-12:00", 1e300, "soon", -1):
        body = {"modelId": "any", "input": 1, "output": 1, "effectiveFrom": instant}
        assert site.ask("PUT", "/prices", site.root, body).status_code == 400


def test_the_dearest_price_and_the_longest_answer_stay_within_the_books(site: Site) -> None:
    site.grant(1)
    dearest = {"modelId": "gold", "input": 10**9, "output": 10**9}
    free = {"modelId": "gift", "input": 0, "output": 0}
    assert site.ask("PUT", "/prices", site.root, dearest).status_code == 200
    assert site.ask("PUT", "/prices", site.root, free).status_code == 200
    refused = site.open(modelId="gold", maxOutputTokens=100_000_000, sliceTokens=100_000_000)
    assert refused.status_code == 402
    site.grant(10**6)
    assert site.stream("initialize", {"modelId": "gold", "estimatedTokens": 1}).status_code == 201
    most = {"inputTokens": 100_000_000, "outputTokens": 100_000_000}
    receipt = site.stream("finalize", {"usage": most}).json()["receipt"]
    assert (receipt["chargedCredits"], receipt["uncollectedCredits"]) == (1_000_001, 2 * 10**11 - 1_000_001)
