"""What is counted, each at its place: batches of the ledger, ends of streams, refusals, breakers, backlog, balances."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import Gauge
from sqlalchemy import text
from tests.postgres import Engine
from tests.scraping import Scraped, read
from tests.turns import USER, People, Rig, rig

from parshall.accounting.service import Accounting
from parshall.app.config import load
from parshall.app.watch import Watch
from parshall.chat.catalog import LABELS_MAX, Catalog
from parshall.chat.mismatch import Reason
from parshall.chat.ports import ModelCard
from parshall.kernel import clock, metrics
from parshall.kernel.clock import DAY
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.errors import NotFound, StartupError, Unavailable
from parshall.kernel.ids import StreamId
from parshall.kernel.metering import Settlement, Usage, UsageSource
from parshall.kernel.peer import FAILURES_MAX, Peer


def now() -> Scraped:
    return read(metrics.exposition("")[0].decode())


def value(gauge: Gauge) -> float:
    return next(iter(gauge.collect())).samples[0].value


@pytest.fixture
async def accounting(engine: Engine) -> AsyncIterator[Accounting]:
    made = Accounting(engine.open("parshall.accounting"), directory=People(), clock=clock.now, reservation_seconds=60)
    await made.start()
    terms = {"expires_at": clock.now() + DAY, "granted_by": "test"}
    await made.allocate(USER, Credits(100 * MICRO), **terms)  # type: ignore[arg-type]
    yield made
    await made.close()


async def reserve(accounting: Accounting, number: int) -> StreamId:
    stream_id = StreamId(f"stream-1620847252-{number:032x}")
    await accounting.reserve(
        stream_id=stream_id, user_id=USER, model_id="fake", input_tokens=100, output_tokens_max=500, slice_tokens=50
    )
    return stream_id


# ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_reserved_is_settled_returned_voided_or_still_held(accounting: Accounting) -> None:
    before = now()
    settled, voided, _held = [await reserve(accounting, number) for number in range(3)]
    await reserve(accounting, 0)
    usage = Usage(input_tokens=100, output_tokens=20)
    for _ in range(2):  # a replay moves nothing and counts nothing
        await accounting.settle(stream_id=settled, usage=usage, source=UsageSource.PROVIDER, outcome="completed")
        await accounting.void(stream_id=voided)
    after, balance = now(), await accounting.balance(USER)
    risen = {
        name: round(
            (after.sum(f"parshall_credits_{name}_total") - before.sum(f"parshall_credits_{name}_total")) * MICRO
        )
        for name in ("reserved", "settled", "returned", "voided")
    }
    assert all(risen.values()), risen
    assert risen["reserved"] == risen["settled"] + risen["returned"] + risen["voided"] + balance.reserved
    assert risen["settled"] == 100 * MICRO - balance.available - balance.reserved


async def test_balances_that_do_not_add_up_are_seen(engine: Engine, accounting: Accounting) -> None:
    await reserve(accounting, 1)
    watch = Watch(chat=None, accounting=accounting, readers=set(), clock=clock.now)
    await watch.look_at_books()
    assert value(metrics.ledger_invariant_broken) == 0
    database = engine.open("parshall.accounting")
    for broken in ("available = available + 1", "reserved = reserved - 1", "number = number - 1"):
        column = broken.split()[0]
        (kept,) = await database.write(lambda c, column=column: c.execute(text(f"SELECT {column} FROM accounts")).one())
        await database.write(lambda c, broken=broken: c.execute(text(f"UPDATE accounts SET {broken}")))
        await watch.look_at_books()
        assert (value(metrics.ledger_invariant_broken), await accounting.accounts_that_disagree()) == (1, 1), broken
        await database.write(
            lambda c, column=column, kept=kept: c.execute(text(f"UPDATE accounts SET {column} = :kept"), {"kept": kept})
        )
    await watch.look_at_books()
    assert value(metrics.ledger_invariant_broken) == 0
    await database.close()


# ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class AwayAtTheEnd:
    """A ledger that cannot be reached when a stream is to be settled."""

    def __init__(self, ledger: Accounting) -> None:
        self.ledger = ledger
        self.is_away = True

    def __getattr__(self, name: str) -> object:
        return getattr(self.ledger, name)

    async def settle(self, **usage: object) -> Settlement:
        if self.is_away:
            raise Unavailable
        return await self.ledger.settle(**usage)  # type: ignore[arg-type]


@pytest.fixture
async def turns(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, Engine("sqlite", tmp_path, None)) as made:
        await made.grant(100)
        yield made


async def test_what_waits_for_accounting_is_told_with_its_age_until_it_is_settled(turns: Rig) -> None:
    ledger = AwayAtTheEnd(turns.accounting)
    turns.streaming._recovery._concluder._ledger = ledger  # type: ignore[assignment]
    watch = Watch(chat=turns.chat, accounting=None, readers=set(), clock=clock.now)
    await turns.ended(await turns.ask(await turns.session(), "fake-n2"))
    await watch.look_at_backlog()
    assert value(metrics.settlements_pending) == 1
    assert 0 < value(metrics.settlement_pending_oldest_seconds) < 30
    ledger.is_away = False
    await turns.streaming.sweep()
    await watch.look_at_backlog()
    assert value(metrics.settlements_pending) == value(metrics.settlement_pending_oldest_seconds) == 0


async def test_an_adopted_stream_is_counted_as_it_ended(tmp_path: Path) -> None:
    engine, before = Engine("sqlite", tmp_path, None), now()
    async with rig(tmp_path, engine) as first:
        await first.grant(100)
        stream_id = await first.ask(await first.session(), "fake-n500-ms20")
        reader = await first.streaming.attach(stream_id, after=0)
        for _ in range(6):
            await anext(reader)
        reader.leave()
        first.streaming.producers._tasks[stream_id].cancel()
        await first.streaming.producers.ended(stream_id)
    async with rig(tmp_path, engine) as second:
        await second.streaming.recover()
        await second.ended(stream_id)
    risen = now().sum("parshall_streams_ended_total", outcome="interrupted") - before.sum(
        "parshall_streams_ended_total", outcome="interrupted"
    )
    assert risen == 1


async def test_events_that_are_gone_are_counted_by_why(turns: Rig) -> None:
    name = "parshall_stream_id_refusals_total"
    before, stream_id = now(), await turns.ask(await turns.session(), "fake-n2")
    await turns.ended(stream_id)
    await turns.streaming.trim(closed_before=clock.now() + DAY)
    with pytest.raises(NotFound):
        await turns.chat.attach(stream_id, after=0)
    turns.chat._retention_seconds = 0
    with pytest.raises(NotFound):
        await turns.chat.attach(stream_id, after=0)
    after = now()
    for reason in (Reason.LOG_LOST, Reason.FINISHED_LONG_AGO):
        assert after.sum(name, reason=reason.value) - before.sum(name, reason=reason.value) == 1


def test_a_sweeper_that_stands_still_falls_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    watch = Watch(chat=None, accounting=None, readers=set(), clock=clock.now)
    seconds += 45
    watch.look()
    assert value(metrics.sweep_lag_seconds) == 45
    watch.swept()
    watch.look()
    assert value(metrics.sweep_lag_seconds) == 0


# ── Labels ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Listing:
    """A provider that lists many models and takes any id."""

    async def models(self) -> list[ModelCard]:
        return [self.unlisted(f"model-{number}") for number in range(3 * LABELS_MAX)]

    def unlisted(self, model_id: str) -> ModelCard:
        return ModelCard(id=model_id, name="", description="", provider="openai", context_tokens=1, output_tokens_max=1)


async def test_models_are_told_apart_where_they_are_listed_and_within_a_bound() -> None:
    catalog = Catalog([Listing()], fallbacks=())  # type: ignore[list-item]
    await catalog.choose("named-by-a-client")
    assert catalog.label("named-by-a-client") == metrics.OTHER
    labels = {catalog.label(f"model-{number}") for number in range(3 * LABELS_MAX)}
    assert len(labels) == LABELS_MAX + 1 and metrics.OTHER in labels
    assert catalog.label("model-0") == "model-0", "who was told apart stays so"


async def test_a_service_that_does_not_answer_is_told_as_left_alone() -> None:
    peer = Peer("nobody", "http://127.0.0.1:9")
    for _ in range(FAILURES_MAX):
        with pytest.raises(Unavailable):
            await peer.call("GET", "/", dict[str, str], within=0.6)
    await peer.close()
    assert now().sum("parshall_breaker_open", peer="nobody") == 1


def test_a_token_that_is_too_short_to_be_one_keeps_the_server_from_starting() -> None:
    with pytest.raises(StartupError, match="PARSHALL_METRICS_TOKEN"):
        load(metrics_token="short")
