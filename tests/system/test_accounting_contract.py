"""Every row of accounting's wire contract on a real service, and the conventions that hold for all of them."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from tests.postgres import Engine
from tests.system.test_accounting_http import ONE, TWO, People, Site, served
from tests.system.test_organisations_http import ALLOWED

from parshall.accounting.http import router
from parshall.accounting.service import Accounting
from parshall.kernel import clock

THREE = "stream-1800000000-00000003"
ANN = ("u-ann", "ann", "ann@example.org")
"""One user, by id, username and e-mail address."""

RECEIPT = {
    *("streamingSessionId", "outcome", "modelId", "inputTokens", "cachedInputTokens", "outputTokens"),
    *("reasoningTokens", "usageSource", "reservedCredits", "chargedCredits", "returnedCredits", "balanceAfter"),
    *("settlement", "priceVersion", "transfers"),
}
GRANT = {"id", "userId", "totalCredits", "remainingCredits", "expiresAt"}
CHANGED = {"userId", "previousCredits", "newCredits", "message"}
BALANCE = {"totalCredits", "availableCredits", "reservedCredits", "activeAllocations"}
CHECKED = {"sufficient", "hasSufficientCredits", "credits", "requiredCredits"}
ENTRY = {"id", "at", "kind", "credits", "balanceAfter", "streamingSessionId"}
SLICE = {"sessionId", "allocatedCredits", "grantedOutputTokens", "expiresAt", "status"}
SESSION = {"sessionId", "userId", "modelId", "status", "allocatedCredits", "startedAt"}
STATS = {"totalRecords", "totalCredits", "byService", "byDay", "byModel", "recentActivity"}
PRICE = {"modelId", "input", "cachedInput", "output", "reasoning", "effectiveFrom", "version"}


@dataclass(frozen=True)
class Row:
    """A row of the contract: who asks what, and what the answer has. `inside` names a list and what its items have."""

    method: str
    path: str
    who: str
    body: dict[str, Any] | None = None
    status: int = 200
    members: frozenset[str] | set[str] = frozenset()
    inside: tuple[str, set[str]] | None = None
    amount: str | None = None
    """The member of the body that is an amount."""
    on_behalf: bool = False
    """Whether a service names the user in X-User-ID."""
    values: dict[str, Any] = field(default_factory=dict)
    """Members whose value is known: ann holds 100 credits, 3 of them for the stream ONE."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def _changed(method: str, path: str, amount: str, **values: Any) -> Row:
    body = {"userId": "ann", amount: 10}
    return Row(method, path, "sue", body, members=CHANGED, amount=amount, values={"previousCredits": 100} | values)


def _service(path: str, body: dict[str, Any], answers: int, members: set[str], **values: Any) -> Row:
    return Row("POST", f"/streaming-sessions/{path}", "chat", body, answers, members, on_behalf=True, values=values)


USED = {"service": "search", "operation": "query", "inputTokens": 5, "outputTokens": 7, "credits": 1.5}
BUDGET = {"modelId": "any", "inputTokens": 1000, "maxOutputTokens": 1000, "sliceTokens": 500}
LISTED = ("activeAllocations", {"id", "credits", "remaining", "expiresAt", "allocatedAt"})
HELD = {"totalCredits": 100, "availableCredits": 97, "reservedCredits": 3}
NEW_PRICE = {"modelId": "new", "input": 1, "cachedInput": 0.5, "output": 4, "reasoning": 5}

ROWS = [
    Row("GET", "/credits/balance", "ann", members=BALANCE, inside=LISTED, values=HELD),
    Row("GET", "/credits/total-balance", "ann", values={"totalCredits": 100}),
    Row("GET", "/credits/balance/{who}", "sue", members=BALANCE, inside=LISTED, values=HELD),
    Row("POST", "/credits/check", "ann", {"requiredCredits": 97}, members=CHECKED, amount="requiredCredits"),
    Row("POST", "/credits/calculate", "ann", {"modelId": "any", "tokens": 1000}, values={"credits": 4}),
    Row(
        *("POST", "/credits/deduct", "ann", {"credits": 10}),
        members={"message"},
        amount="credits",
        values={"success": True, "remainingBalance": 87},
    ),
    Row("POST", "/credits/allocate", "sue", {"userId": "ann", "credits": 10}, 201, GRANT, amount="credits"),
    Row("POST", "/credits/allocate-by-email", "sue", {"email": "ann", "credits": 10}, 201, GRANT, amount="credits"),
    _changed("POST", "/credits/set", "credits", newCredits=10),
    _changed("PUT", "/credits/adjust", "adjustment", newCredits=110),
    _changed("DELETE", "/credits/remove", "credits", newCredits=90),
    Row("GET", "/credits/allocations/all", "sue", inside=("allocations", GRANT)),
    Row("GET", "/credits/statement", "ann", members={"userId", "next"}, inside=("entries", ENTRY)),
    Row("GET", "/credits/statement/{who}", "sue", members={"userId", "next"}, inside=("entries", ENTRY)),
    _service("initialize", {"sessionId": TWO, **BUDGET}, 201, SLICE, status="active", allocatedCredits=3),
    _service("extend", {"sessionId": ONE, "outputTokens": 900, "step": 1}, 200, SLICE, final=True, allocatedCredits=5),
    _service("reprice", {"sessionId": ONE, **BUDGET, "modelId": "other"}, 200, SLICE, allocatedCredits=3),
    _service("finalize", {"sessionId": ONE, "actualTokens": 1250}, 200, {"sessionId"}, actualCredits=2, refund=1),
    _service("abort", {"sessionId": ONE, "tokensGenerated": 250}, 200, {"sessionId"}, partialCredits=2, refund=1),
    _service("void", {"sessionId": ONE}, 200, {"sessionId", "receipt"}, actualCredits=0, refund=3),
    Row("GET", "/streaming-sessions/active", "ann", inside=("", SESSION)),
    Row("GET", "/streaming-sessions/active/all", "root", inside=("", SESSION)),
    Row("GET", "/streaming-sessions/active/{who}", "sue", inside=("", SESSION)),
    Row("GET", "/streaming-sessions/recent", "sue", members={"timestamp", "filter"}, inside=("sessions", SESSION)),
    Row("GET", "/streaming-sessions/recent/{who}?minutes=60", "sue", inside=("sessions", SESSION)),
    Row("GET", f"/streaming-sessions/{THREE}/receipt", "ann", members=RECEIPT, values={"settlement": "settled"}),
    Row("POST", "/usage/record", "chat", USED, 201, {"id", "timestamp"}, None, "credits", True, {"userId": "u-ann"}),
    Row("GET", "/usage/stats", "ann", members=STATS, values={"totalRecords": 1, "byService": {"chat": 0}}),
    Row("GET", "/usage/stats/{who}", "sue", members=STATS, values={"totalRecords": 1, "userId": "u-ann"}),
    Row("GET", "/usage/system-stats", "root", members=STATS | {"byUser"}, values={"totalRecords": 1}),
    Row("GET", "/prices", "ann", inside=("prices", PRICE)),
    Row("PUT", "/prices", "root", NEW_PRICE, members=PRICE, values=NEW_PRICE),
]
EVERY = pytest.mark.parametrize("row", ROWS, ids=str)
TOKENS = {"ann": 3, "sue": 2, "root": 1, "chat": 0}
"""What a person of a higher role may do, one of a lower may not; the numbers are the ranks."""


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    """The service on either engine. Ann has 100 credits, a running stream, and one that was voided."""
    ahead = [0]
    accounting = Accounting(
        engine.open("parshall.accounting"), directory=People(), clock=clock.now, reservation_seconds=600
    )
    with served(accounting) as client:
        made = Site(client=client, ahead=ahead)
        made.grant(100)
        made.open()
        made.stream("initialize", {"sessionId": THREE, "modelId": "any", "estimatedTokens": 1})
        made.stream("abort", {"sessionId": THREE})
        yield made


def ask(site: Site, row: Row, *, who: str = "ann", body: Any = None, **headers: str) -> Any:
    """The row asked for; `who` is how ann is named wherever a user is named."""
    named = {"X_User_ID": who} if row.on_behalf else {}
    sent = row.body if body is None else body
    if isinstance(sent, dict):
        sent = {name: who if name in ("userId", "email") else value for name, value in sent.items()}
    token = getattr(site, row.who)
    return site.ask(row.method, row.path.replace("{who}", who), token, sent, **(named | headers))


def assert_problem(answer: Any, status: int, code: str | None = None) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert answer.status_code == problem["status"] == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "instance", "message", "code", "error", "requestId"} <= set(problem)
    assert problem["error"] == problem["code"].upper()
    assert problem["message"] and problem["requestId"] == answer.headers["x-request-id"]
    assert code is None or problem["code"] == code
    return problem


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@EVERY
def test_a_row_answers_with_its_status_and_members(site: Site, row: Row) -> None:
    answer = ask(site, row)
    assert answer.status_code == row.status, answer.text
    body = answer.json()
    if row.inside:
        name, members = row.inside
        items = body[name] if name else body
        assert items and all(members <= set(item) for item in items)
    if isinstance(body, dict):
        assert set(row.members) <= set(body)
        assert {name: body[name] for name in row.values} == row.values


def test_every_route_is_a_row() -> None:
    def plain(path: str) -> str:
        return re.sub(r"{\w+}", "*", path.partition("?")[0].replace(THREE, "*"))

    app = FastAPI()
    app.include_router(router)
    offered = {
        (method.upper(), plain(path.removeprefix("/api")))
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    ranked = {
        (method, plain("/organisations" + re.sub(r"members/\w+", "members/*", path.replace("{group}", "/*"))))
        for method, path, *_ in ALLOWED
    }
    assert offered == {(row.method, plain(row.path)) for row in ROWS} | ranked


@pytest.mark.parametrize("path", ["finalize", "abort"])
def test_what_ends_a_stream_answers_with_its_receipt(site: Site, path: str) -> None:
    row = next(row for row in ROWS if row.path.endswith(path))
    receipt = ask(site, row).json()["receipt"]
    assert set(receipt) >= RECEIPT
    assert receipt["priceVersion"] == "*@1970-01-01T00:00:00.000000Z"
    assert (receipt["reservedCredits"], receipt["chargedCredits"], receipt["returnedCredits"]) == (3, 2, 1)
    entries = site.ask("GET", "/credits/statement", site.ann).json()["entries"]
    assert receipt["transfers"] == [e["id"] for e in entries if e["streamingSessionId"] == ONE][1:]


def test_too_little_is_402_with_what_was_needed_and_what_there_is(site: Site) -> None:
    members = {"requiredCredits": 4000, "availableCredits": 97, "reservedCredits": 3}
    stream = site.stream("initialize", {"sessionId": TWO, "modelId": "any", "estimatedTokens": 1_000_000})
    assert assert_problem(stream, 402, "insufficient_credits").items() >= members.items()
    taken = site.ask("POST", "/credits/deduct", site.ann, {"credits": 4000})
    assert assert_problem(taken, 402, "insufficient_credits").items() >= members.items()


def test_a_statement_is_paged_oldest_first_without_gap_or_repetition(site: Site) -> None:
    whole = site.ask("GET", "/credits/statement", site.ann).json()["entries"]
    for path, who in (("/credits/statement", site.ann), ("/credits/statement/ann@example.org", site.sue)):
        seen: list[Any] = []
        after: int | None = 0
        while after is not None:
            page = site.ask("GET", f"{path}?after={after}&limit=2", who).json()
            seen += page["entries"]
            after = page["next"]
        assert seen == whole
    assert [entry["id"] for entry in whole] == list(range(1, len(whole) + 1))
    assert [e["kind"] for e in whole] == ["grant", "reserve", "reserve", "release"]
    assert [e["streamingSessionId"] for e in whole] == [None, ONE, THREE, THREE]


# ── Who asks, and who is named ──────────────────────────────────────────────────────────────────────────────────────


@EVERY
def test_without_a_token_a_row_is_401(site: Site, row: Row) -> None:
    answer = site.ask(row.method, row.path.replace("{who}", "ann"), {}, row.body)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert_problem(answer, 401, "unauthenticated")


@EVERY
def test_whoever_may_not_is_403(site: Site, row: Row) -> None:
    users = [name for name in ("ann", "sue", "root") if row.who == "chat" or TOKENS[name] > TOKENS[row.who]]
    services = [] if row.who == "chat" or (row.method, row.path) == ("GET", "/prices") else ["chat"]
    for name in [*users, *services]:
        answer = site.ask(row.method, row.path.replace("{who}", "ann"), getattr(site, name), row.body)
        assert_problem(answer, 403, "forbidden")


NAMING = [row for row in ROWS if "{who}" in row.path or row.on_behalf or {"userId", "email"} & set(row.body or ())]


@pytest.mark.parametrize(("row", "who"), list(itertools.product(NAMING, ANN)), ids=str)
def test_a_user_is_named_by_id_username_or_email_anywhere(site: Site, row: Row, who: str) -> None:
    answer = ask(site, row, who=who)
    assert answer.status_code == row.status, answer.text
    assert answer.json() if not isinstance(answer.json(), dict) else answer.json().get("userId", "u-ann") == "u-ann"


@pytest.mark.parametrize("row", NAMING, ids=str)
def test_an_unknown_user_is_404_anywhere(site: Site, row: Row) -> None:
    assert_problem(ask(site, row, who="nobody"), 404, "not_found")


def test_another_method_is_405_and_allow_names_what_there_is(site: Site) -> None:
    for row in ROWS:
        answer = site.ask("PATCH", row.path.replace("{who}", "ann"), getattr(site, row.who), {})
        assert_problem(answer, 405, "method_not_allowed")
        assert row.method in answer.headers["allow"]


# ── Idempotency ─────────────────────────────────────────────────────────────────────────────────────────────────────

KEYED = [row for row in ROWS if row.body and row.path.split("/")[1] in ("credits", "usage", "prices")]
KEYED = [row for row in KEYED if row.path not in ("/credits/check", "/credits/calculate")]


@pytest.mark.parametrize("row", KEYED, ids=str)
def test_a_repeated_key_repeats_the_first_answer_however_the_user_is_named(site: Site, row: Row) -> None:
    first = ask(site, row, who="ann@example.org", Idempotency_Key="k")
    assert first.status_code == row.status
    before = site.ask("GET", "/credits/statement", site.ann).content, len(site.stats()["recentActivity"])
    for who in ANN:
        again = ask(site, row, who=who, Idempotency_Key="k")
        assert (again.status_code, again.content) == (first.status_code, first.content)
    assert before == (site.ask("GET", "/credits/statement", site.ann).content, len(site.stats()["recentActivity"]))
    assert row.body is not None
    changed = row.body | ({row.amount: 11} if row.amount else {"input": 7})
    assert_problem(ask(site, row, body=changed, Idempotency_Key="k"), 409, "id_reused")
    fresh = ask(site, row, Idempotency_Key="k2")
    assert fresh.status_code == row.status
    assert fresh.content != first.content


@pytest.mark.parametrize("row", KEYED, ids=str)
def test_a_key_that_is_none_is_400(site: Site, row: Row) -> None:
    for key in ("a b", "x" * 256, "\u00e9"):
        answer = site.client.request(
            *(row.method, f"/api{row.path}"),
            json=row.body,
            headers=[*getattr(site, row.who).items(), ("Idempotency-Key", key.encode())],
        )
        assert_problem(answer, 400, "invalid_request")


def test_a_refused_request_leaves_its_key_unused(site: Site) -> None:
    for status in (402, 200):
        answer = site.ask("POST", "/credits/deduct", site.ann, {"credits": 200}, Idempotency_Key="k")
        assert answer.status_code == status
        site.grant(500)


@pytest.mark.parametrize("path", ["initialize", "extend", "finalize", "abort"])
def test_a_streams_call_repeats_its_first_answer_by_the_streams_id_and_no_key_harms(site: Site, path: str) -> None:
    row = next(row for row in ROWS if row.path.endswith(path))
    first = ask(site, row)
    for key in ({}, {"Idempotency_Key": "k"}, {"Idempotency_Key": "of another"}, {"Idempotency_Key": "no key"}):
        again = ask(site, row, who="ann@example.org", **key)
        assert (again.status_code, again.content) == (first.status_code, first.content)
    other = {"maxOutputTokens": 9, "outputTokens": 9, "actualTokens": 9, "tokensGenerated": 9}
    assert row.body is not None
    assert_problem(ask(site, row, body=row.body | other), 409, "id_reused")


def test_first_answers_outlive_the_stream_but_nothing_is_granted_again(site: Site) -> None:
    """The exception to repeating: a slice of an ended stream must not look like one that pays."""
    opened = {"sessionId": ONE, **BUDGET}
    more = {"sessionId": ONE, "outputTokens": 900, "step": 1}
    extended = site.stream("extend", more)
    site.stream("finalize", {"sessionId": ONE, "actualTokens": 1})
    assert site.stream("extend", more).content == extended.content
    assert_problem(site.stream("initialize", opened), 409, "reservation_ended")
    assert_problem(site.stream("extend", more | {"step": 2}), 409, "reservation_ended")
    assert_problem(site.stream("abort", {"sessionId": ONE, "tokensGenerated": 5}), 409)


# ── Bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────


NO_BODIES = [b"", b"{", b"[]", b"null", b"7", b'"x"', b"{}", b"\xff", b"[" * 5000]


@pytest.mark.parametrize("row", [row for row in ROWS if row.body], ids=str)
def test_a_body_that_is_none_is_400_and_names_what_is_wrong(site: Site, row: Row) -> None:
    for body in NO_BODIES:
        problem = assert_problem(ask(site, row, body=body), 400)
        assert problem["errors"] and all(set(each) == {"path", "message"} for each in problem["errors"])
        parses = body not in (b"{", b"\xff") and not body.startswith(b"[[")
        assert problem["code"] == ("validation_failed" if parses else "malformed_json")


AMOUNTS = [
    *("true", "false", "null", '"5"', '""', "[]", "{}", "NaN", "Infinity", "-Infinity", "1e400", "-1e400"),
    *("0.1234567", "0.30000000000000004", "1e-7", "1000000000.000001", "1000000001", "9" * 30),
]
BELOW_ZERO = ["-1", "-0.000001", "-1e9"]


@pytest.mark.parametrize("row", [row for row in ROWS if row.amount], ids=str)
def test_an_amount_that_is_none_is_400_and_names_the_member(site: Site, row: Row) -> None:
    before = site.balance()
    assert row.body is not None and row.amount is not None
    for amount in [*AMOUNTS, *(BELOW_ZERO if row.amount != "adjustment" else ["0"])]:
        body = json.dumps(row.body | {row.amount: "@"}).replace('"@"', amount).encode()
        problem = assert_problem(ask(site, row, body=body), 400)
        whole = amount.endswith(("NaN", "Infinity"))  # no JSON at all, and so not told of a member
        named = ["body" if whole else row.amount]
        assert [each["path"].rpartition(".")[2] for each in problem["errors"]] == named, amount
    assert site.balance() == before


def test_a_price_that_is_none_is_400(site: Site) -> None:
    for rate, amount in itertools.product(("input", "output", "cachedInput", "reasoning"), [*AMOUNTS, *BELOW_ZERO]):
        if amount == "null" and rate in ("cachedInput", "reasoning"):
            continue
        body = json.dumps(NEW_PRICE | {rate: "@"}).replace('"@"', amount).encode()
        assert_problem(site.ask("PUT", "/prices", site.root, body), 400)
    assert "new" not in {price["modelId"] for price in site.ask("GET", "/prices", site.ann).json()["prices"]}
