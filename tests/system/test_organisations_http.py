"""Organisations over HTTP: who may do what on each route, what members see, replays, and input that means harm."""

from typing import Any

import pytest
from tests.system.test_accounting_http import AMOUNTS, ONE, PEOPLE, TWO, Site, bearer
from tests.system.test_accounting_http import site as site

EVE = bearer("eve", "enduser")
NOBODY = "0" * 32


def ask(
    site: Site, method: str, path: str, who: dict[str, str], body: Any = None, expect: int = 200, **more: str
) -> Any:
    answer = site.ask(method, f"/organisations{path}", who, body, **more)
    assert answer.status_code == expect, (method, path, answer.text)
    return answer.json()


@pytest.fixture
def group(site: Site) -> str:
    """An organisation with 100 credits, whose manager is ann and whose member is bob."""
    made: str = ask(site, "POST", "", site.sue, {"name": "Physics"}, 201)["id"]
    ask(site, "POST", f"/{made}/allocate", site.sue, {"credits": 100}, 201)
    ask(site, "PUT", f"/{made}/members/ann", site.sue, {"role": "manager"})
    ask(site, "PUT", f"/{made}/members/bob@example.org", site.sue, {"limitPerDay": 10, "limitTotal": 30})
    return f"/{made}"


# ── Who may ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ALLOWED = [
    # method, path, body, and the answers to supervisor, manager, member, stranger
    ("POST", "", {"name": "Optics"}, 201, 403, 403, 403),
    ("GET", "", None, 200, 403, 403, 403),
    ("GET", "/mine", None, 404, 200, 200, 404),
    ("GET", "{group}", None, 200, 200, 200, 404),
    ("PATCH", "{group}", {"name": "Optics"}, 200, 403, 403, 403),
    ("GET", "{group}/balance", None, 200, 200, 403, 404),
    ("GET", "{group}/statement", None, 200, 200, 403, 404),
    ("POST", "{group}/allocate", {"credits": 1}, 201, 403, 403, 403),
    ("POST", "{group}/set", {"credits": 50}, 200, 403, 403, 403),
    ("PUT", "{group}/adjust", {"adjustment": -1}, 200, 403, 403, 403),
    ("DELETE", "{group}/remove", {"credits": 1}, 200, 403, 403, 403),
    ("GET", "{group}/members", None, 200, 200, 403, 404),
    ("PUT", "{group}/members/root", {"limitPerDay": 1}, 200, 200, 403, 404),
    ("PUT", "{group}/members/root", {"role": "manager"}, 200, 403, 403, 404),
    ("PUT", "{group}/members/ann", {"limitPerDay": None}, 200, 403, 403, 404),
    ("PUT", "{group}/members/bob", {"limitTotal": None}, 200, 200, 403, 404),
    ("DELETE", "{group}/members/ann", None, 200, 403, 403, 404),
    ("DELETE", "{group}/members/bob", None, 200, 200, 403, 404),
]


@pytest.mark.parametrize("rank", range(4), ids=["supervisor", "manager", "member", "stranger"])
@pytest.mark.parametrize(("method", "path", "body", "answers"), [(*row[:3], row[3:]) for row in ALLOWED])
def test_each_route_answers_each_rank_as_documented(
    site: Site, group: str, method: str, path: str, body: Any, answers: tuple[int, ...], rank: int
) -> None:
    who = (site.sue, site.ann, site.bob, EVE)[rank]
    ask(site, method, path.format(group=group), who, body, answers[rank])


def test_nobody_and_no_service_is_let_in(site: Site, group: str) -> None:
    for method, path, body, *_ in ALLOWED:
        ask(site, method, path.format(group=group), {}, body, 401)
        ask(site, method, path.format(group=group), site.chat, body, 403)


def test_an_organisation_that_is_not_there_is_404(site: Site, group: str) -> None:
    for method, path, body, *_ in ALLOWED:
        if "{group}" in path:
            ask(site, method, path.format(group=f"/{NOBODY}"), site.sue, body, 404)
    assert site.ask("GET", "/credits/allocations/all", site.sue).json()["allocations"][0]["userId"] == group[1:]


# ── What is seen ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_member_sees_limits_use_and_what_may_be_drawn_now(site: Site, group: str) -> None:
    site.stream("initialize", {"modelId": "any", "estimatedTokens": 1000}, X_User_ID="bob")
    mine = ask(site, "GET", "/mine", site.bob)
    assert mine["organisation"]["name"] == "Physics"
    assert (mine["role"], mine["limitPerDay"], mine["limitPerMonth"], mine["limitTotal"]) == ("member", 10, None, 30)
    assert (mine["usedToday"], mine["usedThisMonth"], mine["usedTotal"]) == (4, 4, 4)
    assert (mine["limitLeft"], mine["availableCredits"]) == (6, 6)
    own = site.ask("GET", "/credits/balance", site.bob).json()
    assert (own["availableCredits"], own["organisation"]["availableCredits"]) == (0, 6)
    assert own["organisation"] == {
        "id": group[1:],
        "name": "Physics",
        "role": "member",
        "availableCredits": 6,
        "limitLeft": 6,
    }
    assert site.ask("GET", "/credits/balance/bob", site.sue).json() == own


def test_who_belongs_to_none_has_no_organisation_in_the_balance(site: Site) -> None:
    assert site.balance()["organisation"] is None


def test_a_stream_draws_on_the_group_and_shows_in_its_balance_and_statement(site: Site, group: str) -> None:
    site.stream("initialize", {"modelId": "any", "estimatedTokens": 1000}, X_User_ID="bob")
    held = ask(site, "GET", f"{group}/balance", site.ann)
    assert (held["availableCredits"], held["reservedCredits"], held["totalCredits"]) == (96, 4, 100)
    assert (held["organisationId"], "userId" in held, len(held["activeAllocations"])) == (group[1:], False, 1)
    receipt = site.stream("finalize", {"actualTokens": 500}, X_User_ID="bob").json()["receipt"]
    assert (receipt["accountId"], receipt["chargedCredits"], receipt["returnedCredits"]) == (group[1:], 2, 2)
    told = ask(site, "GET", f"{group}/statement?limit=3", site.ann)
    assert [entry["kind"] for entry in told["entries"]] == ["grant", "reserve", "charge"]
    rest = ask(site, "GET", f"{group}/statement?after={told['next']}", site.ann)
    assert [(entry["kind"], entry["streamingSessionId"]) for entry in rest["entries"]] == [("release", ONE)]
    assert site.ask("GET", "/credits/statement", site.bob).json()["entries"] == []


def test_beyond_the_limit_the_own_account_pays_and_without_one_the_refusal_names_both(site: Site, group: str) -> None:
    big = {"modelId": "any", "estimatedTokens": 2501}
    refused = site.stream("initialize", big, X_User_ID="bob")
    assert refused.status_code == 402
    told = refused.json()
    assert (told["requiredCredits"], told["availableCredits"], told["organisationCredits"]) == (10.004, 0, 10)
    assert "organisation" in told["message"]
    site.grant(20, userId="bob")
    assert site.stream("initialize", big, X_User_ID="bob").status_code == 201
    receipt = site.ask("GET", f"/streaming-sessions/{ONE}/receipt", site.bob).json()
    assert receipt["accountId"] == "u-bob"
    body = {"sessionId": TWO, "modelId": "any", "estimatedTokens": 2500}
    assert site.ask("POST", "/streaming-sessions/initialize", site.chat, body, X_User_ID="bob").status_code == 201
    assert site.ask("GET", f"/streaming-sessions/{TWO}/receipt", site.bob).json()["accountId"] == group[1:]


def test_checking_counts_the_payer_that_covers_more(site: Site, group: str) -> None:
    enough = site.ask("POST", "/credits/check", site.bob, {"requiredCredits": 10}).json()
    assert (enough["sufficient"], enough["credits"]) == (True, 10)
    site.grant(11, userId="bob")
    assert site.ask("POST", "/credits/check", site.bob, {"requiredCredits": 11}).json()["sufficient"]
    assert not site.ask("POST", "/credits/check", site.bob, {"requiredCredits": 11.000001}).json()["sufficient"]


def test_deducting_takes_from_the_own_account_alone(site: Site, group: str) -> None:
    assert site.ask("POST", "/credits/deduct", site.bob, {"credits": 1}).status_code == 402
    assert ask(site, "GET", f"{group}/balance", site.ann)["availableCredits"] == 100


def test_lists_are_paged_by_name_and_by_user(site: Site, group: str) -> None:
    for name in ("Chemistry", "  Zoology "):
        ask(site, "POST", "", site.sue, {"name": name}, 201)
    first = ask(site, "GET", "?limit=2", site.sue)
    assert [each["name"] for each in first["organisations"]] == ["Chemistry", "Physics"]
    rest = ask(site, "GET", f"?limit=2&after={first['next']}", site.sue)
    assert ([each["name"] for each in rest["organisations"]], rest["next"]) == (["Zoology"], None)
    page = ask(site, "GET", f"{group}/members?limit=1", site.ann)
    assert ([each["userId"] for each in page["members"]], page["next"]) == (["u-ann"], "u-ann")
    rest = ask(site, "GET", f"{group}/members?after=u-ann", site.ann)
    assert ([each["userId"] for each in rest["members"]], rest["next"]) == (["u-bob"], None)


# ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_credits_are_given_and_taken_as_for_a_user(site: Site, group: str) -> None:
    granted = ask(site, "POST", f"{group}/allocate", site.sue, {"credits": 5, "priority": 1, "notes": "more"}, 201)
    assert (granted["organisationId"], granted["totalCredits"], granted["notes"]) == (group[1:], 5, "more")
    changed = ask(site, "POST", f"{group}/set", site.sue, {"credits": 50})
    assert (changed["organisationId"], changed["previousCredits"], changed["newCredits"]) == (group[1:], 105, 50)
    assert ask(site, "PUT", f"{group}/adjust", site.sue, {"adjustment": 2.5})["newCredits"] == 52.5
    assert ask(site, "DELETE", f"{group}/remove", site.sue, {"credits": 52.5})["newCredits"] == 0
    assert ask(site, "DELETE", f"{group}/remove", site.sue, {"credits": 1}, 400)["code"] == "below_zero"


def test_a_user_in_another_organisation_is_409(site: Site, group: str) -> None:
    other = ask(site, "POST", "", site.sue, {"name": "Optics"}, 201)["id"]
    assert ask(site, "PUT", f"/{other}/members/bob", site.sue, {}, 409)["code"] == "already_member"
    assert ask(site, "DELETE", f"/{other}/members/bob", site.sue, None, 404)["code"] == "not_found"
    ask(site, "DELETE", f"{group}/members/bob", site.ann)
    assert ask(site, "PUT", f"/{other}/members/bob", site.sue, {})["organisationId"] == other


def test_a_name_that_is_taken_is_409(site: Site, group: str) -> None:
    assert ask(site, "POST", "", site.sue, {"name": " Physics"}, 409)["code"] == "organisation_exists"
    other = ask(site, "POST", "", site.sue, {"name": "physics"}, 201)["id"]
    ask(site, "PATCH", f"/{other}", site.sue, {"name": "Physics"}, 409)
    assert ask(site, "PATCH", group, site.sue, {"name": "Physics"})["name"] == "Physics"


def test_an_unknown_user_is_404_and_one_who_is_gone_can_still_be_removed(
    site: Site, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(site, "PUT", f"{group}/members/nobody", site.sue, {}, 404)
    monkeypatch.delitem(PEOPLE, "bob")
    ask(site, "DELETE", f"{group}/members/bob", site.sue, None, 404)
    ask(site, "DELETE", f"{group}/members/u-bob", site.sue)


REPEATED = [
    ("POST", "", {"name": "Optics"}, {"name": "Acoustics"}, 201),
    ("PATCH", "{group}", {"name": "Optics"}, {"name": "Acoustics"}, 200),
    ("POST", "{group}/allocate", {"credits": 5}, {"credits": 6}, 201),
    ("POST", "{group}/set", {"credits": 5}, {"credits": 6}, 200),
    ("PUT", "{group}/adjust", {"adjustment": 5}, {"adjustment": 6}, 200),
    ("DELETE", "{group}/remove", {"credits": 5}, {"credits": 6}, 200),
    ("PUT", "{group}/members/root", {"limitPerDay": None}, {}, 200),
]


@pytest.mark.parametrize(("method", "path", "body", "other", "status"), REPEATED)
def test_a_repeated_key_repeats_the_answer_byte_for_byte_and_another_request_is_409(
    site: Site, group: str, method: str, path: str, body: Any, other: Any, status: int
) -> None:
    path = f"/organisations{path.format(group=group)}"
    first, again = (site.ask(method, path, site.sue, body, Idempotency_Key="one") for _ in range(2))
    assert (first.status_code, first.content) == (status, again.content)
    assert again.status_code == status
    refused = site.ask(method, path, site.sue, other, Idempotency_Key="one")
    assert (refused.status_code, refused.json()["code"]) == (409, "id_reused")


def test_a_removal_is_repeated_under_its_key_and_refused_without(site: Site, group: str) -> None:
    path = f"{group}/members/bob"
    first = ask(site, "DELETE", path, site.ann, Idempotency_Key="one")
    assert ask(site, "DELETE", path, site.ann, Idempotency_Key="one") == first
    ask(site, "DELETE", path, site.ann, expect=404)


# ── Harm ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_name_is_400(site: Site, group: str) -> None:
    for name in ('""', '"   "', '"a\\u0000"', '"\\ud800"', f'"{"a" * 101}"', "7", "null", "[]", "{}"):
        for method, path in (("POST", ""), ("PATCH", group)):
            ask(site, method, path, site.sue, f'{{"name": {name}}}'.encode(), 400)


def test_what_is_no_limit_or_role_is_400_and_changes_nothing(site: Site, group: str) -> None:
    before = ask(site, "GET", f"{group}/members", site.ann)
    for amount in [*(each for each in AMOUNTS if each != "null"), "-1", '"1"']:
        for name in ("limitPerDay", "limitPerMonth", "limitTotal"):
            ask(site, "PUT", f"{group}/members/bob", site.ann, f'{{"{name}": {amount}}}'.encode(), 400)
    for role in ('"owner"', '""', "1", "[]"):
        ask(site, "PUT", f"{group}/members/bob", site.sue, f'{{"role": {role}}}'.encode(), 400)
    assert ask(site, "GET", f"{group}/members", site.ann) == before


def test_a_limit_of_nothing_is_a_limit(site: Site, group: str) -> None:
    put = ask(site, "PUT", f"{group}/members/bob", site.ann, {"limitPerDay": 0})
    assert (put["limitPerDay"], put["limitLeft"]) == (0, 0)


def test_a_path_or_query_out_of_bounds_is_400(site: Site, group: str) -> None:
    for path in (
        "/nonsense",
        f"/{'A' * 32}",
        f"/{'0' * 33}",
        "/%00",
        "?limit=0",
        "?limit=501",
        "?after=%00",
        f"?after={'a' * 101}",
        f"{group}/members?limit=501",
        f"{group}/members?after=%00",
        f"{group}/members?after={'a' * 300}",
        f"{group}/statement?after=-1",
        f"{group}/statement?after={'9' * 30}",
        f"{group}/statement?limit=501",
    ):
        ask(site, "GET", path, site.sue, None, 400)
    ask(site, "DELETE", f"{group}/members/%00", site.sue, None, 400)
    ask(site, "PUT", f"{group}/members/{'a' * 300}", site.sue, {}, 400)
