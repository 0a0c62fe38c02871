"""Laws of usage on both engines: the database's sums are those of the records, whatever they are and whoever paid."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, text
from tests.postgres import Engine

from parshall.accounting.activity import GROUPS_MAX, RECENT_MAX, SPAN_DAYS_MAX, Report, Sum
from parshall.accounting.service import Accounting
from parshall.accounting.tables import reservations, usage_records
from parshall.kernel.clock import DAY, SECOND, rfc3339
from parshall.kernel.credits import CREDITS_MAX, MICRO
from parshall.kernel.database import Database
from parshall.kernel.errors import Invalid
from parshall.kernel.ids import StreamId, UserId, new_id
from parshall.kernel.metering import Usage, UsageSource

START = 1_800_000_000 * SECOND - 1_800_000_000 * SECOND % DAY
ANN, BOB = UserId("ann"), UserId("bob")


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


class World:
    """The service on an engine, at an instant of the test's own, and rows put beneath it."""

    def __init__(self, engine: Engine) -> None:
        self.at = START
        self.engine = engine
        self.database: Database = engine.open("parshall.accounting", clock=lambda: self.at)
        self.accounting = Accounting(self.database, directory=Nobody(), clock=lambda: self.at, reservation_seconds=30)

    async def put(self, table: Any, rows: Iterable[dict[str, Any]]) -> None:
        made = list(rows)
        if made:
            await self.database.write(lambda connection: _insert(connection, table, made))

    async def report(self, user_id: UserId | None = None, *, days: int = 10) -> Report:
        since, until = START, START + days * DAY
        if user_id is None:
            return await self.accounting.usage.of_all(since=since, until=until)
        return await self.accounting.usage.of_user(user_id, since=since, until=until)


def _insert(connection: Connection, table: Any, rows: list[dict[str, Any]]) -> None:
    connection.execute(insert(table), rows)


@pytest.fixture
async def world(engine: Engine) -> AsyncIterator[World]:
    made = World(engine)
    await made.accounting.start()
    yield made
    await made.accounting.close()


def used(**more: Any) -> dict[str, Any]:
    plain = {"id": new_id(), "user_id": ANN, "service": "search", "operation": "query", "model_id": None}
    counts = {"input_tokens": 1, "output_tokens": 2, "credits": MICRO, "at": START, "metadata": "{}"}
    return plain | counts | more


def ended(number: int, **more: Any) -> dict[str, Any]:
    """A reservation that has ended, whose account need not be its user's."""
    plain = {
        "id": f"stream-1800000000-{number:08x}",
        "account_id": ANN,
        "user_id": ANN,
        "model_id": "small",
        "price_version": "*@1970-01-01T00:00:00.000000Z",
        "state": "settled",
        "parts": "[]",
        "usage_source": "counted",
        "outcome": "completed",
    }
    zero = ("reserved", "input_tokens", "output_tokens", "output_tokens_max", "slice_tokens", "slice_tokens_min")
    more_zero = ("step", "expires_at", "first_reserved", "first_output_tokens", "first_expires_at", "first_final")
    counts = {"used_input_tokens": 3, "used_output_tokens": 4, "charged": MICRO, "created_at": START, "ended_at": START}
    return plain | dict.fromkeys((*zero, *more_zero), 0) | counts | more


# ── Sums ────────────────────────────────────────────────────────────────────────────────────────────────────────────

instants = st.integers(START - DAY, START + 11 * DAY)
people = st.sampled_from(["ann", "bob", "eve"])
amounts = st.one_of(st.integers(0, 3 * MICRO), st.just(CREDITS_MAX))
records = st.builds(
    used,
    user_id=people,
    service=st.sampled_from(["search", "images", "chat"]),
    model_id=st.sampled_from([None, "small", "large"]),
    credits=amounts,
    input_tokens=st.integers(0, 9),
    at=instants,
)
streams = st.fixed_dictionaries(
    {
        "user_id": people,
        "account_id": st.sampled_from(["ann", "guild"]),
        "model_id": st.sampled_from(["small", "large"]),
        "charged": amounts,
        "ended_at": instants,
        "created_at": st.just(START - 2 * DAY),
        "outcome": st.sampled_from(["completed", "voided"]),
    }
)


def added(rows: Iterable[dict[str, Any]]) -> Sum:
    found = list(rows)
    names = ("credits", "input_tokens", "output_tokens")
    return Sum(len(found), *(sum(row[name] for row in found) for name in names))


def grouped(rows: list[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[Any, Sum]:
    groups: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return {name: added(group) for name, group in groups.items() if name is not None}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A reservation as the use that it is."""
    tokens = {"input_tokens": row["used_input_tokens"], "output_tokens": row["used_output_tokens"]}
    return row | tokens | {"service": "chat", "credits": row["charged"], "at": row["ended_at"]}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(records, max_size=25), st.lists(streams, max_size=25))
async def test_a_report_adds_up_what_was_used_within_its_span(
    engine: Engine, recorded: list[dict[str, Any]], reserved: list[dict[str, Any]]
) -> None:
    await engine.renew()
    world = World(engine)
    rows = [row | {"id": new_id()} for row in recorded]
    opened = [ended(number, **more) for number, more in enumerate(reserved)]
    await world.put(usage_records, rows)
    await world.put(reservations, opened)
    within = [row for row in [*rows, *map(plain, opened)] if START <= row["at"] < START + 10 * DAY]
    for user in (None, ANN, BOB):
        expected = [row for row in within if user in (None, row["user_id"])]
        report = await world.report(user)
        assert report.total == added(expected)
        assert report.by_service.named == grouped(expected, lambda row: row["service"])
        assert report.by_model.named == grouped(expected, lambda row: row["model_id"])
        assert report.by_day.named == grouped(expected, lambda row: rfc3339(row["at"])[:10])
        newest = sorted(expected, key=lambda row: (-row["at"], row["id"]))[:RECENT_MAX]
        assert [each.at for each in report.recent] == [row["at"] for row in newest]
        if user is None:
            assert report.by_user is not None
            assert report.by_user.named == grouped(expected, lambda row: row["user_id"])
        else:
            assert report.by_user is None
    await world.accounting.close()


async def test_a_sum_may_pass_64_bits(world: World) -> None:
    """More than 9,223 records of the most that one may say would not fit, and SQLite refuses such a sum."""
    await world.put(usage_records, (used(credits=CREDITS_MAX - 1) for _ in range(10_000)))
    report = await world.report()
    assert report.total.credits == 10_000 * (CREDITS_MAX - 1) > 2**63
    assert report.by_service.named["search"] == report.total


async def test_of_many_groups_the_dearest_are_named_and_the_rest_is_one_sum(world: World) -> None:
    many = GROUPS_MAX + 30
    await world.put(usage_records, (used(model_id=f"m{n:04d}", credits=n + 1) for n in range(many)))
    await world.put(usage_records, [used(credits=10**9)])
    report = await world.report()
    assert list(report.by_model.named) == [f"m{n:04d}" for n in reversed(range(30, many))]
    assert report.by_model.rest == Sum(30, sum(range(1, 31)), 30, 60)
    assert report.by_service.rest is None


async def test_a_running_stream_is_not_used_yet_and_a_settled_one_is_what_it_charged(world: World) -> None:
    await world.accounting.allocate(ANN, 10 * MICRO, expires_at=START + DAY, granted_by="root")  # type: ignore[arg-type]
    stream = StreamId("stream-1800000000-00000001")
    await world.accounting.reserve(
        stream_id=stream, user_id=ANN, model_id="any", input_tokens=10, output_tokens_max=100, slice_tokens=100
    )
    assert (await world.report()).total == Sum(0, 0, 0, 0)
    usage = Usage(input_tokens=10, output_tokens=5)
    world.at = START + DAY - 1
    settled = await world.accounting.settle(
        stream_id=stream, usage=usage, source=UsageSource.COUNTED, outcome="completed"
    )
    report = await world.report(ANN)
    assert report.total == Sum(1, settled.charged, 10, 5)
    assert settled.charged > 0
    assert list(report.by_day.named) == [rfc3339(START)[:10]]
    (recent,) = report.recent
    assert (recent.id, recent.service, recent.operation, recent.model_id) == (stream, "chat", "completed", "any")


# ── Spans ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_span_is_never_empty_nor_longer_than_a_report_may_be(world: World) -> None:
    ask = world.accounting.usage.of_all
    longest = START + SPAN_DAYS_MAX * DAY
    assert (await ask(since=START, until=longest)).span.until == longest
    for since, until in ((START, START), (START + 1, START), (START, longest + 1), (START + 1, None)):
        with pytest.raises(Invalid):
            await ask(since=since, until=until)


async def test_without_a_span_the_last_30_days_are_reported_up_to_this_very_instant(world: World) -> None:
    world.at = START + 40 * DAY
    edges = (world.at - 30 * DAY, world.at - 30 * DAY + 1, world.at, world.at + 1)
    await world.put(usage_records, (used(at=at) for at in edges))
    report = await world.accounting.usage.of_user(ANN, since=None, until=None)
    assert [record.at for record in report.recent] == [world.at, world.at - 30 * DAY + 1]


async def test_what_is_recorded_lies_at_most_minutes_ahead(world: World) -> None:
    def recording(at: int) -> Any:
        work = world.accounting.usage.recording(ANN, service="s", operation="o", at=at)
        return world.accounting.answer_once(work, render=lambda made: made.record.id, status=201, once=None)

    await recording(START + 300 * SECOND)
    with pytest.raises(Invalid):
        await recording(START + 300 * SECOND + 1)


async def test_many_reports_at_once_all_answer(world: World) -> None:
    await world.put(usage_records, [used()])
    reports = await asyncio.gather(*(world.report() for _ in range(8)))
    assert [report.total.records for report in reports] == [1] * 8


async def test_reports_and_sweeps_find_their_rows_by_an_index(engine: Engine, world: World) -> None:
    def indexes(connection: Connection) -> set[str]:
        query = "SELECT name FROM sqlite_master WHERE type = 'index'"
        if engine.name == "postgres":
            query = "SELECT indexname FROM pg_indexes"
        return set(connection.execute(text(query)).scalars())

    assert {"reservations_ended", "usage_at", "usage_of", "idempotency_created"} <= await world.database.read(indexes)
