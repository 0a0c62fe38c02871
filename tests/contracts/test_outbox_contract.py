"""What reaches the outbox and how replicas share it, on both engines: in the ledger's transactions, or not at all."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from tests.announcing import ANN, EVERYTHING, LOW, NOTICE, Deployment, deployment, only
from tests.postgres import Engine

from parshall.accounting.announcements import Policy, Topic
from parshall.accounting.books import Books
from parshall.accounting.combine import Operation
from parshall.accounting.ended import Report, settle
from parshall.accounting.model import Kind, ReservationEnded
from parshall.accounting.outbox import LEASE_SECONDS, RETENTION_DAYS, Outbox, Verdict
from parshall.accounting.wire import receipt_wire
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.errors import InsufficientCredits
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Usage, UsageSource

BOB = UserId("bob")
ONE = StreamId("stream-1800000000-00000001")
TWO = StreamId("stream-1800000000-00000002")


@pytest.fixture
async def made(engine: Engine) -> AsyncIterator[Deployment]:
    async with deployment(engine) as made:
        yield made


# ── What is announced ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_settled_stream_is_announced_once_with_its_receipt(made: Deployment) -> None:
    await made.grant(1000)
    await made.reserve(ONE)
    assert await made.told("stream.settled") == []
    for _ in range(3):
        await made.settle(ONE)
    event = only(await made.waiting("stream.settled"))
    receipt = receipt_wire(await made.accounting.receipt(ONE))
    assert json.loads(event.body) == {"userId": ANN, **receipt}
    assert (event.subject, event.at, receipt["chargedCredits"]) == (ONE, made.at, 0.00002)


async def test_a_voided_or_expired_stream_is_not_announced_and_a_late_report_is(made: Deployment) -> None:
    await made.grant(1000)
    await made.reserve(ONE)
    await made.accounting.void(stream_id=ONE)
    await made.reserve(TWO)
    made.later(31)
    assert await made.accounting.expire_due() == 1
    assert await made.told() == []
    await made.settle(TWO)
    assert await made.told() == [("stream.settled", TWO)]


async def test_a_balance_is_announced_once_for_each_fall_below_the_threshold(made: Deployment) -> None:
    await made.grant(LOW + 5)
    for _ in range(4):
        await made.accounting.deduct(ANN, 5)  # type: ignore[arg-type]
    assert await made.told() == [("balance.low", ANN)], "at the threshold it is not low, and below it was told"
    await made.grant(50)
    assert len(await made.told()) == 1
    await made.accounting.deduct(ANN, 60)  # type: ignore[arg-type]
    assert await made.told() == [("balance.low", ANN)] * 2


async def test_a_low_balance_says_what_is_available_reserved_and_the_threshold(made: Deployment) -> None:
    await made.grant(LOW + 5)
    await made.reserve(ONE, read=6, piece=1)
    assert json.loads(only(await made.waiting("balance.low")).body) == {
        "accountId": ANN,
        "availableCredits": 0.000097,
        "reservedCredits": 0.000008,
        "thresholdCredits": 0.0001,
    }


async def test_expiry_makes_a_balance_low_too(made: Deployment) -> None:
    await made.grant(LOW, seconds=60)
    made.later(61)
    assert await made.accounting.expire_due() == 1
    assert await made.told() == [("balance.low", ANN)]


async def test_a_grant_that_holds_credits_is_announced_once_before_it_expires(made: Deployment) -> None:
    soon = await made.grant(70, seconds=NOTICE // SECOND + 60)
    await made.grant(70, seconds=NOTICE // SECOND + 9000)
    assert await made.accounting.outbox.announce_expiring() == 0
    made.later(60)
    found = [await outbox.announce_expiring() for outbox in (made.accounting.outbox, made.replica(), made.replica())]
    assert (found, await made.told()) == ([1, 0, 0], [("grant.expiring", soon)])


async def test_replicas_that_sweep_at_once_announce_each_grant_once(made: Deployment) -> None:
    grants = [await made.grant(1, seconds=60) for _ in range(30)]
    await asyncio.gather(*(outbox.announce_expiring() for outbox in [made.replica() for _ in range(4)] * 3))
    assert await made.told() == sorted(("grant.expiring", grant) for grant in grants)


async def test_a_grant_that_is_used_up_or_due_is_not_announced(made: Deployment) -> None:
    await made.grant(20, seconds=60)
    await made.accounting.deduct(ANN, 20)  # type: ignore[arg-type]
    await made.grant(20, seconds=30, who=BOB)
    made.later(30)
    assert await made.accounting.outbox.announce_expiring() == 0


async def test_a_grant_that_gets_credits_back_is_announced_then(made: Deployment) -> None:
    grant = await made.grant(30, seconds=600)
    await made.reserve(ONE, read=10, piece=10)
    assert await made.accounting.outbox.announce_expiring() == 0
    await made.settle(ONE, read=10, written=1)
    assert await made.accounting.outbox.announce_expiring() == 1
    assert ("grant.expiring", grant) in await made.told()


async def test_without_a_webhook_nothing_is_recorded(engine: Engine) -> None:
    async with deployment(engine, policy=None) as made:
        await made.grant(LOW, seconds=60)
        await made.streams(1)
        assert await made.accounting.outbox.announce_expiring() == 0
        assert await made.waiting() == []


async def test_only_the_topics_that_are_asked_for_are_recorded(engine: Engine) -> None:
    async with deployment(engine, Policy(topics=frozenset({Topic.BALANCE_LOW}), low_balance=LOW, notice=DAY)) as made:
        await made.grant(LOW, seconds=60)
        await made.streams(1)
        assert await made.accounting.outbox.announce_expiring() == 0
        assert {each.topic for each in await made.waiting()} == {"balance.low"}


# ── In the transaction, or not at all ───────────────────────────────────────────────────────────────────────────────


async def test_what_is_refused_announces_nothing(made: Deployment) -> None:
    await made.grant(LOW + 1)
    with pytest.raises(InsufficientCredits):
        await made.accounting.deduct(ANN, LOW + 2)  # type: ignore[arg-type]
    await made.reserve(ONE, read=1, piece=1)
    await made.accounting.void(stream_id=ONE)
    before = await made.told()
    with pytest.raises(ReservationEnded):
        await made.settle(ONE)
    assert await made.told() == before == [("balance.low", ANN)], "the reservation alone went below"


def broken(books: Books) -> None:
    report = Report(usage=Usage(input_tokens=10), source=UsageSource.PROVIDER, outcome="completed")
    settle(books, ONE, report)
    books.take(books.account(ANN), Kind.DEDUCT, 900)
    raise ZeroDivisionError


async def test_a_batch_that_is_undone_announces_nothing_and_takes_no_other_with_it(made: Deployment) -> None:
    await made.grant(1000)
    await made.reserve(ONE)
    await made.reserve(TWO)
    run = made.accounting._combiner.run
    answers = await asyncio.gather(
        run(Operation(broken, account_id=ANN, stream_id=ONE)), made.settle(TWO), return_exceptions=True
    )
    assert isinstance(answers[0], ZeroDivisionError) and answers[1] is None
    assert await made.told() == [("stream.settled", TWO)]
    assert (await made.accounting.receipt(ONE)).ended_at is None


async def test_an_outbox_that_refuses_undoes_the_settlement_too(made: Deployment) -> None:
    await made.grant(1000)
    await made.reserve(ONE)
    drop = "ALTER TABLE outbox RENAME TO elsewhere"
    await made.accounting._database.write(lambda c: c.execute(text(drop)))
    with pytest.raises(Exception, match="outbox"):
        await made.settle(ONE)
    back = "ALTER TABLE elsewhere RENAME TO outbox"
    await made.accounting._database.write(lambda c: c.execute(text(back)))
    assert (await made.accounting.receipt(ONE)).ended_at is None
    await made.settle(ONE)
    assert await made.told() == [("stream.settled", ONE)]


# ── Claims ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_replicas_that_claim_at_once_never_hold_the_same_one(made: Deployment) -> None:
    await made.grant(100_000)
    streams = await made.streams(60)
    replicas = [made.accounting.outbox, made.replica(), made.replica()]

    async def all_of(outbox: Outbox) -> list[str]:
        held: list[str] = []
        for _ in range(30):
            held += [each.subject for each in await outbox.claim(4)]
        return held

    held = await asyncio.gather(*map(all_of, replicas))
    assert sorted(itertools.chain(*held)) == sorted(streams), "each is held by one of them, and none is left"


async def test_a_claim_takes_no_more_than_it_is_asked_for_and_the_longest_due_first(made: Deployment) -> None:
    await made.grant(100_000)
    early = await made.streams(2)
    made.later(1)
    await made.streams(2, first=3)
    assert {each.subject for each in await made.accounting.outbox.claim(2)} == set(early)
    assert len(await made.accounting.outbox.claim(1)) == 1


async def test_what_a_dead_replica_held_is_taken_over_when_its_lease_is_over_and_not_before(made: Deployment) -> None:
    await made.grant(1000)
    await made.streams(1)
    first = only(await made.accounting.outbox.claim(9))
    made.later(LEASE_SECONDS - 0.001)
    other = made.replica()
    assert await other.claim(9) == []
    made.later(0.001)
    second = only(await other.claim(9))
    assert (second.id, second.body, second.attempts) == (first.id, first.body, first.attempts + 1)


async def test_whoever_lost_a_claim_cannot_put_off_or_give_up_what_another_holds(made: Deployment) -> None:
    await made.grant(1000)
    await made.streams(1)
    lost = only(await made.accounting.outbox.claim(9))
    made.later(LEASE_SECONDS)
    held = only(await made.replica().claim(9))
    for delay in (0, None):
        await made.accounting.outbox.record([Verdict(delivery=lost, problem="late", delay=delay)])
    assert only(await made.waiting()) == held
    await made.accounting.outbox.record([Verdict(delivery=lost, delivered=True)])
    assert await made.waiting() == [], "what was delivered is delivered, whoever did it"


async def test_a_claim_waits_for_nobody(made: Deployment) -> None:
    if made.engine.name == "sqlite":
        assert (await made.accounting.outbox.claim(1)) == [], "SQLite has one writer, and nobody to wait for"
        return
    await made.grant(100_000)
    streams = await made.streams(3)
    database = made.engine.open("parshall.accounting")
    locked, release = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(connection) -> None:  # type: ignore[no-untyped-def]
        connection.execute(text("SELECT id FROM outbox WHERE subject = :one FOR UPDATE"), {"one": streams[0]}).all()
        loop.call_soon_threadsafe(locked.set)
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(20)

    holding = asyncio.create_task(database.write(hold))
    await asyncio.wait_for(locked.wait(), 20)
    claimed = await asyncio.wait_for(made.accounting.outbox.claim(9), 5)
    release.set()
    await holding
    assert sorted(each.subject for each in claimed) == streams[1:]


# ── Given up, tried again, forgotten ────────────────────────────────────────────────────────────────────────────────


async def given_up(made: Deployment, count: int) -> list[str]:
    await made.streams(count)
    claimed = await made.accounting.outbox.claim(count)
    await made.accounting.outbox.record([Verdict(delivery=each, problem="HTTP 410") for each in claimed])
    return sorted(each.id for each in claimed)


async def test_what_was_given_up_is_kept_listed_first_and_tried_again_on_demand(made: Deployment) -> None:
    await made.grant(100_000)
    ids = await given_up(made, 3)
    made.later(DAY / SECOND)
    await made.streams(1, first=9)
    assert [(each.due_at is None, each.last_error) for each in await made.waiting()] == [
        *[(True, "HTTP 410")] * 3,
        (False, ""),
    ]
    outbox = made.accounting.outbox
    assert [each.attempts for each in await outbox.claim(9)] == [1], "nothing that was given up is due"
    assert await outbox.retry([ids[0], "unknown"]) == 1
    assert await outbox.retry(None) == 2
    assert sorted(each.id for each in await outbox.claim(9)) == ids
    assert await outbox.retry(None) == 0


async def test_what_was_given_up_is_forgotten_after_its_retention_and_what_waits_is_not(made: Deployment) -> None:
    await made.grant(100_000)
    await given_up(made, 2)
    await made.streams(1, first=9)
    made.later(RETENTION_DAYS * DAY / SECOND)
    await made.accounting.outbox.trim()
    assert len(await made.waiting()) == 3
    made.later(1)
    await made.accounting.outbox.trim()
    assert [each.due_at is None for each in await made.waiting()] == [False]


async def test_an_outbox_that_grows_too_long_loses_its_oldest(made: Deployment) -> None:
    await made.grant(100_000)
    for number in range(1, 8):
        await made.streams(1, first=number)
        made.later(1)
    database = made.engine.open("parshall.accounting", clock=lambda: made.at)
    await Outbox(database, EVERYTHING, rows_max=3).trim()
    assert [each.subject[-1] for each in await made.waiting()] == ["5", "6", "7"]
