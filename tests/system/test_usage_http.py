"""Usage over HTTP: spans as clients write them, what may be recorded, and who sees whose."""

import itertools
import json
from typing import Any

import pytest
from tests.system.test_accounting_http import ONE, Site
from tests.system.test_accounting_http import site as site

USED = {"userId": "ann", "service": "search", "operation": "query"}


def record(site: Site, **more: Any) -> Any:
    return site.ask("POST", "/usage/record", site.chat, USED | more)


def recorded(site: Site, **more: Any) -> dict[str, Any]:
    answer = record(site, **more)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_a_recorded_use_comes_back_as_it_went_in_and_charges_nothing(site: Site) -> None:
    site.grant(5)
    told = {"modelId": "small", "inputTokens": 3, "outputTokens": 4, "credits": 0.25, "metadata": {"q": ["a", None]}}
    made = recorded(site, timestamp="2026-11-01T08:30:00.5+02:00", **told)
    assert made.items() >= (told | {"userId": "u-ann", "timestamp": "2026-11-01T06:30:00.500000Z"}).items()
    assert site.balance()["availableCredits"] == 5
    stats = site.stats("?startDate=2026-11-01&endDate=2026-11-01")
    assert stats["byService"] == {"search": 0.25}
    assert stats["byDay"] == {"2026-11-01": 0.25}
    assert stats["byModel"] == {"small": 0.25}
    sums = {"records": 1, "credits": 0.25, "inputTokens": 3, "outputTokens": 4}
    assert stats["details"]["byModel"] == {"small": sums}
    (recent,) = stats["recentActivity"]
    assert (recent["id"], recent["streamingSessionId"]) == (made["id"], None)


def test_a_stream_counts_for_chat_with_what_it_charged(site: Site) -> None:
    site.grant(12)
    site.open()
    site.stream("finalize", {"usage": {"inputTokens": 1000, "outputTokens": 250}})
    stats = site.stats()
    assert (stats["totalRecords"], stats["totalCredits"], stats["byService"]) == (1, 2, {"chat": 2})
    assert (stats["totalInputTokens"], stats["totalOutputTokens"]) == (1000, 250)
    (recent,) = stats["recentActivity"]
    assert (recent["streamingSessionId"], recent["operation"]) == (ONE, "completed")


def test_the_user_is_named_in_the_body_or_the_header_and_both_must_mean_the_same(site: Site) -> None:
    body = {"service": "s", "operation": "o"}

    def status(more: dict[str, str], **headers: str) -> int:
        code: int = site.ask("POST", "/usage/record", site.chat, body | more, **headers).status_code
        return code

    assert status({}, X_User_ID="ann") == 201
    assert status({"userId": "u-ann"}, X_User_ID="ann@example.org") == 201
    assert status({"userId": "bob"}, X_User_ID="ann") == 400
    assert status({}) == 400
    assert site.stats()["totalRecords"] == 2


def test_everybody_sees_their_own_and_an_admin_all(site: Site) -> None:
    recorded(site, credits=1)
    recorded(site, credits=2, userId="bob")
    assert site.stats()["totalCredits"] == 1
    assert site.ask("GET", "/usage/stats/bob@example.org", site.sue).json()["totalCredits"] == 2
    everybody = site.ask("GET", "/usage/system-stats", site.root).json()
    assert everybody["byUser"] == {"u-ann": 1, "u-bob": 2}
    assert (everybody["totalCredits"], everybody["userId"], everybody["rest"]) == (3, None, {})


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        ("?startDate=2026-11-02&endDate=2026-11-03", ["02", "03"]),
        ("?startDate=2026-11-02T00:00:00Z&endDate=2026-11-03T00:00:00Z", ["02"]),
        ("?startDate=2026-11-02T01:00:00%2B01:00&endDate=2026-11-02", ["02"]),
        ("?startDate=2026-11-02T00:00:00.000001Z&endDate=2026-11-03T23:59:59", ["03"]),
        ("?startDate=2026-11-03&endDate=2026-11-03T00:00:00.000001Z", ["03"]),
    ],
)
def test_a_date_is_a_whole_day_and_a_date_time_an_instant(site: Site, query: str, seen: list[str]) -> None:
    for day in ("01", "02", "03", "04"):
        recorded(site, credits=1, timestamp=f"2026-11-{day}T00:00:00Z")
    assert site.stats(query)["byDay"] == {f"2026-11-{day}": 1 for day in seen}


WRONG_DATES = [
    *("", "soon", "2026", "2026-13-01", "2026-02-30", "2026-11-24T25:00:00Z", "1795375080", "20261124"),
    *("2026-11-24T08:30", "2026-11-24T08:30:00+99:00", "2026-11-24T08:30:00%2B99:00", "٢٠٢٦-11-24", "1969-12-30"),
    *("0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00", "2026-W47", "%00", "NaN"),
]


@pytest.mark.parametrize("date", WRONG_DATES)
def test_a_date_that_is_none_is_400_and_says_which(site: Site, date: str) -> None:
    for name, path in itertools.product(("startDate", "endDate"), ("/usage/stats", "/usage/system-stats")):
        answer = site.ask("GET", f"{path}?{name}={date}", site.root)
        assert answer.status_code == 400, (date, answer.text)
        assert [each["path"] for each in answer.json()["errors"]] == [f"query.{name}"]


@pytest.mark.parametrize(
    "query",
    [
        "?startDate=2026-11-24&endDate=2026-11-23",
        "?startDate=2024-01-01&endDate=2026-01-01",
        "?startDate=9999-12-30",
        "?startDate=2020-01-01",
        "?endDate=1970-01-01T00:00:00Z",
    ],
)
def test_a_span_that_cannot_be_is_400(site: Site, query: str) -> None:
    for path, who in (("/usage/stats", site.ann), ("/usage/stats/ann", site.sue), ("/usage/system-stats", site.root)):
        answer = site.ask("GET", path + query, who)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


WRONG = {
    "service": ["", "a" * 101, "\x00", 5, None],
    "operation": ["", "a" * 101, "a\nb", None],
    "modelId": ["", "a" * 256, 5],
    "inputTokens": [-1, 1.5, "3", True, 100_000_001],
    "outputTokens": [-1, 1.5, "3", True, 100_000_001],
    "timestamp": ["soon", 5, -1, "2026-11-24", "2999-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-02-30T00:00:00Z"],
    "metadata": ["x", [], None, 5, {"a": "x" * 4096}, {"a": "\u00e9" * 700}],
    "userId": ["", "a" * 255, "\x00", 5],
}


@pytest.mark.parametrize(("member", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_member_that_is_none_is_400_and_nothing_is_recorded(site: Site, member: str, value: Any) -> None:
    assert record(site, **{member: value}).status_code == 400
    assert site.stats()["totalRecords"] == 0


def test_metadata_too_deep_or_without_a_form_is_400(site: Site) -> None:
    for written in ('{"a": NaN}', '{"a":' * 900 + "1" + "}" * 900, '{"a":' * 20000 + "1" + "}" * 20000):
        body = json.dumps(USED | {"metadata": "@"}).replace('"@"', written).encode()
        assert site.ask("POST", "/usage/record", site.chat, body).status_code == 400
    assert recorded(site, metadata={"\x00": "\ud800"})["metadata"] == {"\x00": "\ud800"}


def test_an_amount_recorded_is_what_is_summed_to_the_last_microcredit(site: Site) -> None:
    for credits in (0.1, 0.2, 0.000001):
        recorded(site, credits=credits)
    assert site.stats()["totalCredits"] == 0.300001
