"""What every Ledger does, whatever is behind it; and what only shows from inside: grants, expiry, races, books."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError
from tests.apart import Signed, served
from tests.postgres import Engine

from parshall.accounting.changes import Terms
from parshall.accounting.http_streams import router
from parshall.accounting.model import (
    BALANCE_MAX,
    BalanceTooLarge,
    BelowZero,
    ReservationEnded,
    State,
    StepOutOfOrder,
    UnknownReservation,
)
from parshall.accounting.once import Once
from parshall.accounting.pricing import Price
from parshall.accounting.remote import RemoteAccounting
from parshall.accounting.service import Accounting
from parshall.chat.ports import Ledger
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.database import Database
from parshall.kernel.errors import InsufficientCredits, Invalid, KeyReused, NotFound
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Slice, Usage, UsageSource
from parshall.kernel.peer import Peer

ANN = UserId("ann")
START = 1_800_000_000 * SECOND
RESERVATION_SECONDS = 30
ONE = StreamId("stream-1800000000-00000001")
TWO = StreamId("stream-1800000000-00000002")


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


@dataclass
class World:
    """A ledger behind the port, the accounting that keeps its books, and the clock of both.

    Prices: 1 microcredit a token of input, 2 of output and reasoning; the model `free` costs nothing.
    """

    ledger: Ledger
    accounting: Accounting
    database: Database
    at: int = START

    async def grant(self, amount: int, *, seconds: int = 86_400, priority: int = 0) -> str:
        until = self.at + seconds * SECOND
        grant = await self.accounting.allocate(
            ANN, Credits(amount), expires_at=until, granted_by="root", priority=priority
        )
        return grant.id

    async def available(self) -> int:
        return (await self.accounting.balance(ANN)).available

    async def remaining(self) -> dict[str, int]:
        return {grant.id: grant.remaining for grant in await self.accounting.grants_all()}

    async def reserve(
        self, stream_id: StreamId = ONE, *, model: str = "any", read: int = 10, limit: int = 100, piece: int = 20
    ) -> Slice:
        return await self.ledger.reserve(
            stream_id=stream_id,
            user_id=ANN,
            model_id=model,
            input_tokens=read,
            output_tokens_max=limit,
            slice_tokens=piece,
        )

    async def extend(self, step: int, more: int = 20) -> Slice:
        return await self.ledger.extend(stream_id=ONE, step=step, output_tokens=more)

    async def reprice(self, model: str, *, read: int = 10, limit: int = 100, piece: int = 20) -> Slice:
        return await self.ledger.reprice(
            stream_id=ONE, model_id=model, input_tokens=read, output_tokens_max=limit, slice_tokens=piece
        )

    async def dear(self) -> None:
        """Twice the price of the others."""
        price = Price(input=2 * MICRO, cached_input=2 * MICRO, output=4 * MICRO, reasoning=4 * MICRO)
        await self.accounting.prices.put("dear", price, set_by="test")

    async def settle(
        self, stream_id: StreamId = ONE, *, read: int = 10, written: int = 5, outcome: str = "completed"
    ) -> Settlement:
        usage = Usage(input_tokens=read, output_tokens=written)
        return await self.ledger.settle(stream_id=stream_id, usage=usage, source=UsageSource.COUNTED, outcome=outcome)


@pytest.fixture(params=["sqlite", "postgres", "over-http"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Accounting in this process on every engine, and over HTTP on one: what is behind the wire is the same."""
    kind = "postgres" if request.param == "postgres" else "sqlite"
    engine = Engine(kind, tmp_path, request.getfixturevalue("postgres_server") if kind == "postgres" else None)
    database = engine.open("parshall.accounting", clock=lambda: made.at)
    accounting = Accounting(
        database, directory=Nobody(), clock=lambda: made.at, reservation_seconds=RESERVATION_SECONDS
    )
    made = World(ledger=accounting, accounting=accounting, database=database)
    price = Price(input=MICRO, cached_input=MICRO, output=2 * MICRO, reasoning=2 * MICRO)
    await accounting.prices.put("*", price, set_by="test")
    await accounting.prices.put("free", Price(input=0, cached_input=0, output=0, reasoning=0), set_by="test")
    async with AsyncExitStack() as stack:
        if request.param == "over-http":
            url = await stack.enter_async_context(served(router, accounting=accounting))
            remote = RemoteAccounting(Peer("accounting", url, tokens=Signed()), clock=lambda: made.at)
            stack.push_async_callback(remote.close)
            made.ledger = remote
        yield made
    await accounting.close()
    await engine.renew()


# ── Reserve ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_reserving_holds_the_prompt_and_the_first_slice(world: World) -> None:
    await world.grant(1000)
    granted = await world.reserve(read=10, limit=100, piece=20)
    assert granted == Slice(
        reserved=Credits(50), output_tokens=20, expires_at=START + RESERVATION_SECONDS * SECOND, final=False
    )
    assert await world.available() == 950


async def test_a_slice_that_reaches_the_limit_of_the_turn_is_final(world: World) -> None:
    await world.grant(1000)
    assert (await world.reserve(limit=20, piece=64)).final


async def test_a_balance_that_covers_less_than_asked_is_granted_and_final(world: World) -> None:
    await world.grant(17)
    granted = await world.reserve(read=10, piece=20)
    assert (granted.output_tokens, granted.final, granted.reserved) == (3, True, 16)


async def test_a_balance_below_one_token_is_refused_with_what_is_needed_there_and_held(world: World) -> None:
    await world.grant(41)
    await world.reserve(TWO, read=10, limit=10, piece=10)
    with pytest.raises(InsufficientCredits) as refused:
        await world.reserve(read=10)
    assert refused.value.extra == {
        "requiredCredits": 0.000012,
        "availableCredits": 0.000011,
        "reservedCredits": 0.00003,
    }
    assert await world.available() == 11


async def test_reserving_again_gives_the_first_answer_while_the_stream_runs(world: World) -> None:
    await world.grant(1000)
    first = await world.reserve()
    await world.extend(1)
    world.at += SECOND
    assert await world.reserve() == first
    assert await world.available() == 910


async def test_reserving_again_what_has_ended_is_refused_for_nothing_is_held_any_more(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    await world.ledger.void(stream_id=ONE)
    await world.reserve(TWO)
    await world.settle(TWO)
    for ended in (ONE, TWO):
        with pytest.raises(ReservationEnded):
            await world.reserve(ended)


async def test_the_same_id_for_another_request_is_refused(world: World) -> None:
    await world.grant(1000)
    await world.reserve(read=10)
    with pytest.raises(KeyReused):
        await world.reserve(read=11)
    assert await world.available() == 950


async def test_a_free_model_needs_no_credits(world: World) -> None:
    granted = await world.reserve(model="free")
    assert (granted.reserved, granted.output_tokens) == (0, 20)
    assert (await world.settle()).charged == 0


async def test_of_64_reservations_at_once_exactly_those_win_that_the_balance_covers(world: World) -> None:
    await world.grant(100)
    ids = [StreamId(f"stream-1800000000-{number:08x}") for number in range(64)]
    answers = await asyncio.gather(
        *(world.reserve(stream_id, read=0, limit=5, piece=5) for stream_id in ids), return_exceptions=True
    )
    assert sum(isinstance(answer, Slice) for answer in answers) == 10
    assert sum(isinstance(answer, InsufficientCredits) for answer in answers) == 54
    assert await world.available() == 0


async def test_the_same_reservation_many_times_at_once_holds_once(world: World) -> None:
    await world.grant(1000)
    answers = await asyncio.gather(*(world.reserve() for _ in range(16)))
    assert len(set(answers)) == 1
    assert await world.available() == 950


# ── Extend ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_extending_holds_more_output_and_renews_the_reservation(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    world.at += 20 * SECOND
    granted = await world.extend(1)
    assert (granted.reserved, granted.output_tokens, granted.final) == (90, 40, False)
    world.at += 20 * SECOND
    assert await world.accounting.expire_due() == 0


async def test_extending_again_with_the_same_step_holds_nothing_more(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    first = await world.extend(1)
    assert await world.extend(1) == first
    assert await world.available() == 910
    with pytest.raises(KeyReused):
        await world.extend(1, more=21)


async def test_a_step_cannot_be_skipped(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    with pytest.raises(StepOutOfOrder):
        await world.extend(2)


async def test_extensions_end_at_the_limit_of_the_turn(world: World) -> None:
    await world.grant(1000)
    await world.reserve(limit=30, piece=20)
    granted = await world.extend(1)
    assert (granted.output_tokens, granted.final) == (30, True)
    assert await world.extend(2) == granted


async def test_extensions_end_where_the_balance_does(world: World) -> None:
    await world.grant(60)
    await world.reserve()
    granted = await world.extend(1)
    assert (granted.output_tokens, granted.final, granted.reserved) == (25, True, 60)
    with pytest.raises(InsufficientCredits) as refused:
        await world.extend(2)
    assert refused.value.extra["requiredCredits"] == 0.000002
    await world.grant(2)
    assert (await world.extend(2)).output_tokens == 26


async def test_a_reservation_that_has_ended_cannot_be_extended(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    await world.settle()
    with pytest.raises(ReservationEnded):
        await world.extend(1)
    with pytest.raises(UnknownReservation):
        await world.ledger.extend(stream_id=TWO, step=1, output_tokens=1)


# ── Reprice ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_cheaper_model_keeps_what_is_held_and_pays_later_slices_from_it(world: World) -> None:
    await world.grant(1000)
    await world.accounting.prices.put(
        "cheap", Price(input=MICRO, cached_input=MICRO, output=MICRO, reasoning=MICRO), set_by="test"
    )
    await world.reserve(read=10, limit=100, piece=20)
    granted = await world.reprice("cheap", read=12, limit=90)
    assert (granted.reserved, granted.output_tokens, granted.final) == (50, 20, False)
    assert await world.available() == 950
    assert (await world.extend(1, more=15)).reserved == 50, "35 tokens and the prompt cost 47"
    assert (await world.extend(2, more=15)).reserved == 62
    settlement = await world.settle(read=12, written=5)
    assert (settlement.charged, settlement.returned, settlement.price_version[:5]) == (17, 45, "cheap")


async def test_a_dearer_model_takes_what_its_first_slice_needs(world: World) -> None:
    await world.grant(1000)
    await world.dear()
    await world.reserve(read=10, limit=100, piece=20)
    granted = await world.reprice("dear", read=10, limit=100)
    assert (granted.reserved, granted.output_tokens, await world.available()) == (100, 20, 900)
    assert await world.reprice("dear", read=10, limit=100) == granted, "asked again it takes nothing more"
    assert await world.available() == 900
    settlement = await world.settle(read=10, written=5)
    assert (settlement.reserved, settlement.charged, settlement.returned) == (100, 40, 60)


async def test_a_repeated_change_of_model_renews_nothing(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    first = await world.reprice("free")
    world.at += SECOND
    assert await world.reprice("free") == first


async def test_a_dearer_model_gets_as_much_output_as_the_balance_covers(world: World) -> None:
    await world.grant(60)
    await world.dear()
    await world.reserve(read=10, limit=100, piece=20)
    granted = await world.reprice("dear", read=10, limit=100)
    assert (granted.reserved, granted.output_tokens) == (60, 10)
    with pytest.raises(InsufficientCredits):
        await world.extend(1)


async def test_a_model_of_which_no_token_is_covered_is_refused_and_changes_nothing(world: World) -> None:
    await world.grant(50)
    await world.dear()
    await world.reserve(read=10, limit=100, piece=20)
    with pytest.raises(InsufficientCredits) as refused:
        await world.reprice("dear", read=24, limit=100)
    assert refused.value.extra["requiredCredits"] == 0.00001, "52 in all, of which 42 are held"
    settlement = await world.settle(read=10, written=5)
    assert (settlement.reserved, settlement.charged, settlement.returned) == (42, 20, 22)


async def test_the_price_of_the_new_model_is_the_one_in_force_at_the_change(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    await world.dear()
    await world.reprice("dear")
    world.at += SECOND
    await world.accounting.prices.put(
        "dear", Price(input=9 * MICRO, cached_input=MICRO, output=MICRO, reasoning=MICRO), set_by="test"
    )
    assert (await world.settle(read=10, written=5)).charged == 40


async def test_the_answer_to_a_reservation_is_not_repeated_for_another_model(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    await world.reprice("free")
    with pytest.raises(KeyReused):
        await world.reserve()


async def test_only_a_running_reservation_changes_its_model(world: World) -> None:
    with pytest.raises(UnknownReservation):
        await world.reprice("free")
    await world.grant(1000)
    await world.reserve()
    await world.settle()
    with pytest.raises(ReservationEnded):
        await world.reprice("free")


# ── Settle, void ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_settling_charges_what_was_used_and_returns_the_rest(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    settlement = await world.settle(read=10, written=5)
    assert (settlement.reserved, settlement.charged, settlement.returned) == (50, 20, 30)
    assert (settlement.uncollected, settlement.balance_after, settlement.outcome) == (0, 980, "completed")
    assert await world.available() == 980


async def test_settling_again_gives_the_first_answer_and_charges_nothing(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    first = await world.settle()
    await world.grant(5)
    assert await world.settle() == first
    with pytest.raises(KeyReused):
        await world.settle(written=6)
    assert await world.available() == 985


async def test_settling_many_times_at_once_charges_once(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    answers = await asyncio.gather(*(world.settle() for _ in range(16)))
    assert len(set(answers)) == 1
    assert await world.available() == 980


async def test_usage_beyond_the_reservation_is_reserved_before_it_is_charged(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    settlement = await world.settle(written=30)
    assert (settlement.reserved, settlement.charged, settlement.returned) == (70, 70, 0)


async def test_usage_beyond_the_balance_is_written_off_in_plain_sight(world: World) -> None:
    await world.grant(60)
    await world.reserve()
    settlement = await world.settle(written=30)
    assert (settlement.charged, settlement.uncollected, settlement.balance_after) == (60, 10, 0)
    kinds = [entry.kind for entry in await world.accounting.statement(ANN, after=0, limit=100)]
    assert kinds[-1] == "uncollected"


async def test_voiding_restores_what_was_available(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    await world.extend(1)
    settlement = await world.ledger.void(stream_id=ONE)
    assert settlement is not None
    assert (settlement.outcome, settlement.charged, settlement.returned) == ("voided", 0, 90)
    assert await world.available() == 1000
    assert await world.ledger.void(stream_id=ONE) == settlement
    with pytest.raises(ReservationEnded):
        await world.settle()


async def test_voiding_what_was_never_reserved_answers_none_and_settling_it_is_refused(world: World) -> None:
    assert await world.ledger.void(stream_id=ONE) is None
    with pytest.raises(NotFound):
        await world.settle()


async def test_voiding_a_settled_reservation_answers_as_it_was_settled(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    assert await world.settle() == await world.ledger.void(stream_id=ONE)
    assert await world.available() == 980


async def test_of_a_settlement_and_a_void_at_once_one_wins_and_credits_stay_whole(world: World) -> None:
    await world.grant(1000)
    await world.reserve()
    await asyncio.gather(world.settle(), world.ledger.void(stream_id=ONE), return_exceptions=True)
    ended = await world.accounting.receipt(ONE)
    assert ended.settlement is not None
    assert await world.available() == 1000 - ended.settlement.charged


async def test_a_stream_is_charged_at_the_price_it_began_with(world: World) -> None:
    await world.grant(1000)
    began = await world.reserve()
    world.at += SECOND
    dear = Price(input=9 * MICRO, cached_input=9 * MICRO, output=9 * MICRO, reasoning=9 * MICRO)
    await world.accounting.prices.put("any", dear, set_by="test")
    assert (await world.settle()).charged == 20
    assert (await world.reserve(TWO)).reserved > began.reserved


# ── Grants and time ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_soonest_expiring_grant_pays_first_and_gets_back_what_is_left(world: World) -> None:
    late = await world.grant(1000, seconds=2000)
    soon = await world.grant(30, seconds=1000)
    await world.reserve()
    assert await world.remaining() == {late: 980, soon: 0}
    await world.settle(written=2)
    assert await world.remaining() == {late: 1000, soon: 16}


async def test_what_an_extension_took_of_two_grants_goes_back_to_both(world: World) -> None:
    late = await world.grant(1000, seconds=2000)
    await world.reserve(read=0)
    soon = await world.grant(10, seconds=1000)
    await world.extend(1)
    assert await world.remaining() == {late: 930, soon: 0}
    await world.ledger.void(stream_id=ONE)
    assert await world.remaining() == {late: 1000, soon: 10}


async def test_a_grant_that_expires_under_a_stream_pays_for_it_and_its_rest_expires(world: World) -> None:
    await world.grant(1000, seconds=10)
    await world.reserve()
    world.at += 20 * SECOND
    assert await world.available() == 0
    settlement = await world.settle()
    assert (settlement.charged, settlement.returned, settlement.balance_after) == (20, 30, 0)
    entries = await world.accounting.statement(ANN, after=0, limit=100)
    assert [(each.kind, each.amount) for each in entries] == [
        ("grant", 1000),
        ("reserve", 50),
        ("expire", 950),
        ("charge", 20),
        ("release", 30),
        ("expire", 30),
    ]


async def test_a_due_grant_cannot_be_reserved_even_before_it_is_swept(world: World) -> None:
    await world.grant(100, seconds=10)
    world.at += 10 * SECOND
    assert await world.available() == 0
    with pytest.raises(InsufficientCredits) as refused:
        await world.reserve()
    assert refused.value.extra["availableCredits"] == 0


async def test_a_reservation_whose_time_is_up_gives_everything_back(world: World) -> None:
    await world.grant(100)
    await world.reserve()
    world.at += RESERVATION_SECONDS * SECOND
    assert await world.accounting.expire_due() == 1
    assert await world.available() == 100
    assert (await world.accounting.receipt(ONE)).state is State.EXPIRED


async def test_a_late_settlement_charges_what_is_there_now_and_the_reservation_stays_expired(world: World) -> None:
    await world.grant(50)
    await world.reserve()
    world.at += RESERVATION_SECONDS * SECOND
    await world.accounting.expire_due()
    await world.reserve(TWO, read=0, limit=16, piece=16)
    settlement = await world.settle(written=10)
    assert (settlement.charged, settlement.uncollected, settlement.reserved) == (18, 12, 60)
    assert await world.settle(written=10) == settlement
    assert await world.ledger.void(stream_id=ONE) == settlement
    assert (await world.accounting.receipt(ONE)).state is State.EXPIRED
    assert (await world.accounting.balance(ANN)).reserved == 32


async def test_sweeping_takes_more_than_one_batch(world: World) -> None:
    await world.grant(1000)
    for number in range(105):
        await world.reserve(StreamId(f"stream-1800000000-{number:08x}"), read=0, limit=1, piece=1)
    world.at += RESERVATION_SECONDS * SECOND
    assert await world.accounting.expire_due() == 105
    assert await world.available() == 1000


# ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def terms(world: World) -> Terms:
    return Terms(expires_at=world.at + DAY, granted_by="root")


async def test_setting_the_balance_counts_what_streams_hold_and_never_takes_it_from_them(world: World) -> None:
    await world.grant(200)
    await world.reserve()
    changed = await world.accounting.set_balance(ANN, Credits(70), terms(world))
    assert (changed.previous, changed.new, await world.available()) == (200, 70, 20)
    with pytest.raises(BelowZero):
        await world.accounting.set_balance(ANN, Credits(49), terms(world))
    assert (await world.accounting.set_balance(ANN, Credits(500), terms(world))).grant is not None
    assert await world.available() == 450


async def test_adjusting_down_never_goes_below_zero(world: World) -> None:
    await world.grant(100)
    assert (await world.accounting.adjust(ANN, -30, terms(world))).new == 70
    assert (await world.accounting.adjust(ANN, -70, terms(world))).new == 0
    with pytest.raises(BelowZero):
        await world.accounting.adjust(ANN, -1, terms(world))


async def test_deducting_charges_and_refuses_what_is_not_there(world: World) -> None:
    await world.grant(100)
    assert (await world.accounting.deduct(ANN, Credits(60))).available == 40
    with pytest.raises(InsufficientCredits):
        await world.accounting.deduct(ANN, Credits(41))
    assert await world.available() == 40


async def test_a_grant_that_is_due_already_is_refused_and_pays_for_nothing_in_its_batch(world: World) -> None:
    late, set_late, deducted = await asyncio.gather(
        world.grant(100, seconds=0),
        world.accounting.set_balance(ANN, Credits(100), Terms(expires_at=world.at, granted_by="root")),
        world.accounting.deduct(ANN, Credits(50)),
        return_exceptions=True,
    )
    assert isinstance(late, Invalid) and isinstance(set_late, Invalid)
    assert isinstance(deducted, InsufficientCredits)
    assert await world.remaining() == {}


async def test_an_account_cannot_hold_more_than_a_billion_credits(world: World) -> None:
    await world.grant(BALANCE_MAX)
    with pytest.raises(BalanceTooLarge):
        await world.grant(1)


async def test_a_change_under_one_key_happens_once_and_answers_the_same_text(world: World) -> None:
    once = Once.of(ANN, 5, caller=UserId("root"), operation="allocate", key="k")

    async def ask(known: Once) -> str:
        work = world.accounting.allocating(ANN, Credits(5), terms(world))
        return await world.accounting.answer_once(work, render=lambda grant: grant.id, status=201, once=known)

    answers = await asyncio.gather(*(ask(once) for _ in range(8)))
    assert len(set(answers)) == 1
    assert await world.available() == 5
    with pytest.raises(KeyReused):
        await ask(Once.of(ANN, 6, caller=UserId("root"), operation="allocate", key="k"))
    assert await ask(Once.of(ANN, 5, caller=UserId("eve"), operation="allocate", key="k")) not in answers


async def test_transfers_cannot_be_changed_or_deleted(world: World) -> None:
    await world.grant(100)
    for statement in ("UPDATE transfers SET amount = 1", "DELETE FROM transfers"):
        with pytest.raises(IntegrityError, match="append-only"):
            await world.database.write(partial(Connection.execute, statement=text(statement)))


async def test_a_statement_is_paged_without_gap_or_overlap(world: World) -> None:
    for _ in range(5):
        await world.grant(10)
    whole = await world.accounting.statement(ANN, after=0, limit=100)
    first = await world.accounting.statement(ANN, after=0, limit=2)
    rest = await world.accounting.statement(ANN, after=first[-1].number, limit=100)
    assert first + rest == whole
    assert [entry.available_after for entry in whole] == [10, 20, 30, 40, 50]


async def test_all_grants_are_paged_without_gap_or_overlap(world: World) -> None:
    made = [await world.grant(10) for _ in range(5)]
    first = await world.accounting.grants_all(limit=2)
    rest = await world.accounting.grants_all(after=first[-1].id)
    assert sorted(grant.id for grant in first + rest) == sorted(made)


# ── Prices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_price_to_come_holds_only_from_its_instant(world: World) -> None:
    new = Price(input=7 * MICRO, cached_input=7 * MICRO, output=7 * MICRO, reasoning=7 * MICRO)
    usage = Usage(input_tokens=1)
    await world.accounting.prices.put("any", new, set_by="test", effective_from=world.at + SECOND)
    assert await world.accounting.prices.calculate("any", usage) == 1
    assert [each.model_id for each in await world.accounting.prices.all()] == ["*", "any", "free"]
    world.at += SECOND
    assert await world.accounting.prices.calculate("any", usage) == 7


async def test_a_price_cannot_be_set_for_the_past(world: World) -> None:
    price = Price(input=0, cached_input=0, output=0, reasoning=0)
    with pytest.raises(Invalid):
        await world.accounting.prices.put("any", price, set_by="test", effective_from=world.at - 1)


async def test_starting_writes_default_prices_once_and_never_over_others(engine: Engine) -> None:
    database = engine.open("parshall.accounting", clock=lambda: START)
    accounting = Accounting(database, directory=Nobody(), clock=lambda: START, reservation_seconds=30)
    await accounting.start()
    assert await accounting.prices.calculate("any", Usage(input_tokens=1_000_000)) == 1000 * MICRO
    assert await accounting.prices.calculate("smollm2-135m", Usage(output_tokens=1_000_000)) == 400 * MICRO
    free = Price(input=0, cached_input=0, output=0, reasoning=0)
    await accounting.prices.put("*", free, set_by="test")
    await accounting.start()
    assert await accounting.prices.calculate("any", Usage(input_tokens=1_000_000)) == 0
    await accounting.close()
