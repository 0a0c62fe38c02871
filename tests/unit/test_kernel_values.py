"""Laws of the small values: ids, credits, instants, and what logs may show."""

import itertools
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.kernel import clock
from parshall.kernel.credits import CREDITS_MAX, MICRO, InvalidAmount, parse_credits, text, wire
from parshall.kernel.ids import STREAM_ID_PATTERN, MalformedStreamId, new_id, new_stream_id, parse_stream_id
from parshall.kernel.metering import Settlement, Usage
from parshall.kernel.telemetry import hide_secrets

# ── Ids ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD_ID = "stream-1620847252-a1b2c3d4"


@given(st.integers(min_value=clock.instant(datetime(2001, 9, 10, tzinfo=UTC)), max_value=clock.INSTANT_MAX))
def test_a_made_id_is_an_accepted_one_and_names_its_second(at: int) -> None:
    made = new_stream_id(at=at)
    assert parse_stream_id(made) == made
    assert made.split("-")[1] == str(at // clock.SECOND)
    assert len(made.split("-")[2]) == 32


@given(st.integers(min_value=clock.instant(datetime(2001, 9, 10, tzinfo=UTC)), max_value=clock.INSTANT_MAX - 1))
def test_made_ids_are_uuids_in_the_order_of_their_making(at: int) -> None:
    first, second = new_stream_id(at=at), new_stream_id(at=at + 1)
    digits = UUID(first.split("-")[2])
    assert digits.version == 7 and digits.variant == RFC_4122
    assert digits.int >> 80 == at // 1000
    assert len(first) != len(second) or first < second


def test_made_ids_differ() -> None:
    assert new_stream_id(at=clock.now()) != new_stream_id(at=clock.now())
    assert len({new_id() for _ in range(100)}) == 100


@pytest.mark.parametrize("good", [GOOD_ID, "stream-1620847252123-" + "0" * 32])
def test_a_clients_id_of_the_form_is_taken_as_it_is(good: str) -> None:
    assert parse_stream_id(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        GOOD_ID + "\n",
        "\n" + GOOD_ID,
        " " + GOOD_ID,
        GOOD_ID.upper(),
        "stream-162084725-a1b2c3d4",
        "stream-16208472521234-a1b2c3d4",
        "stream-1620847252-a1b2c3d",
        "stream-1620847252-" + "a" * 33,
        "stream-1620847252-a1b2c3dg",
        "stream-١٦٢٠٨٤٧٢٥٢-a1b2c3d4",
        GOOD_ID + "\r\nSet-Cookie: x=1",
        GOOD_ID + "\0",
    ],
)
def test_any_other_id_is_refused_and_never_echoed(bad: str) -> None:
    with pytest.raises(MalformedStreamId) as refusal:
        parse_stream_id(bad)
    assert not bad or bad not in refusal.value.detail
    assert refusal.value.status == 400


@given(st.from_regex(STREAM_ID_PATTERN))
def test_whatever_matches_the_published_pattern_on_one_line_is_taken(candidate: str) -> None:
    assert parse_stream_id(candidate.removesuffix("\n")) == candidate.removesuffix("\n")


# ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, CREDITS_MAX))
def test_an_amount_survives_the_wire_exactly_as_a_json_number(amount: int) -> None:
    sent = json.dumps(wire(amount))
    assert Decimal(sent) * MICRO == amount
    assert parse_credits(json.loads(sent), allow_zero=True) == amount
    assert parse_credits(json.loads(sent, parse_float=Decimal), allow_zero=True) == amount


@given(st.integers(-CREDITS_MAX, CREDITS_MAX))
def test_an_amount_for_people_is_exact_and_has_no_needless_digit(amount: int) -> None:
    assert Decimal(text(amount)) * MICRO == amount
    assert re.fullmatch(r"-?\d+(\.\d*[1-9])?", text(amount))


def test_amounts_look_as_people_write_them() -> None:
    assert [text(12_500_000), text(1), text(0), text(100 * MICRO)] == ["12.5", "0.000001", "0", "100"]
    assert [wire(12_500_000), wire(2 * MICRO)] == [12.5, 2]
    assert isinstance(wire(2 * MICRO), int)


@given(st.decimals(allow_nan=True, allow_infinity=True) | st.floats() | st.integers() | st.text(max_size=40))
def test_an_amount_is_taken_exactly_or_refused(value: Decimal | float | int | str) -> None:
    try:
        amount = parse_credits(value)
    except InvalidAmount:
        return
    assert 0 < amount <= CREDITS_MAX
    assert Decimal(str(value)) - Decimal(amount) / MICRO == 0


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        "0.0000001",
        1_000_000_000.000001,
        "1.0000000000000000000000000000000000000001",
        "1e999999",
        "1e-999999",
        "1e99999999999999999999",
        10**5000,
        float("nan"),
        float("inf"),
        "sNaN",
        "ten",
        "",
        "\ud800",
        True,
    ],
    ids=itertools.count(),
)
def test_an_amount_that_is_none_is_refused_with_a_400(value: float | str) -> None:
    with pytest.raises(InvalidAmount) as refusal:
        parse_credits(value)
    assert refusal.value.status == 400


def test_zero_is_taken_only_where_it_means_something() -> None:
    assert parse_credits(0, allow_zero=True) == 0
    assert parse_credits("1.50000000000000000000000000000000000", allow_zero=True) == 1_500_000


# ── Instants ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, clock.INSTANT_MAX))
def test_an_instant_survives_the_wire(at: int) -> None:
    sent = clock.rfc3339(at)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", sent)
    assert clock.instant(datetime.fromisoformat(sent)) == at


def test_an_instant_is_the_same_in_every_zone_and_naive_means_utc() -> None:
    noon = datetime(2026, 11, 22, 12, 0, 0, 1, tzinfo=UTC)
    assert clock.rfc3339(clock.instant(noon)) == "2026-11-22T12:00:00.000001Z"
    assert clock.instant(noon) == clock.instant(noon.astimezone(timezone(timedelta(hours=5, minutes=45))))
    assert clock.instant(noon) == clock.instant(noon.replace(tzinfo=None))


def test_the_system_clock_counts_microseconds_since_1970() -> None:
    assert abs(clock.now() - clock.instant(datetime.now(UTC))) < clock.SECOND


# ── Metering ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_usage_that_contradicts_itself_cannot_be_made() -> None:
    for contradiction in (
        {"cached_input_tokens": 1},
        {"reasoning_tokens": 1},
        {"output_tokens": 1, "reasoning_tokens": 2},
    ):
        with pytest.raises(AssertionError):
            Usage(**contradiction)


def test_a_stored_settlement_is_restored_as_it_was() -> None:
    settlement = Settlement(
        outcome="completed",
        reserved=parse_credits(3),
        charged=parse_credits(2),
        returned=parse_credits(1),
        uncollected=parse_credits(0, allow_zero=True),
        balance_after=parse_credits("7.000001"),
        price_version="2026-11-22",
        transfers=(4, 5),
    )
    assert Settlement.restore(json.loads(json.dumps(settlement.stored()))) == settlement


# ── Logs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name",
    ["password", "newPassword", "access_token", "refreshToken", "Authorization", "api_key", "X-Api-Key", "apiKey"],
)
def test_a_log_line_shows_no_secret_at_any_depth(name: str) -> None:
    entry = {"event": "e", name: "s3cret", "headers": {name: "s3cret"}, "list": [{"inner": {name: ["s3cret"]}}]}
    assert "s3cret" not in json.dumps(hide_secrets(None, "info", entry))


def test_a_log_line_keeps_token_counts_and_everything_else() -> None:
    entry = {"event": "settled", "tokens": 12, "output_tokens": 0, "stream": GOOD_ID, "where": ["a", {"b": 1.5}]}
    assert hide_secrets(None, "info", dict(entry)) == entry


def test_hiding_leaves_an_exception_readable_for_the_formatter() -> None:
    caught = (ValueError, ValueError("x"), None)
    assert hide_secrets(None, "error", {"exc_info": caught})["exc_info"] is caught
