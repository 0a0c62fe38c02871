"""A machine that does anything to the real ledger in any order, and rebuilds every balance from transfers each time."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from tests.ledgers import check_books, read_books
from tests.postgres import Engine

from parshall.accounting.audit import audit
from parshall.accounting.changes import Terms
from parshall.accounting.metered import SHARED_TOKENS_MIN
from parshall.accounting.model import BelowZero, ReservationEnded, State
from parshall.accounting.pricing import Price
from parshall.accounting.service import Accounting
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.errors import Conflict, InsufficientCredits, KeyReused
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Slice, Usage, UsageSource

T = TypeVar("T")
USERS = (UserId("ann"), UserId("bob"))
START = 1_800_000_000 * SECOND
RESERVATION_SECONDS = 30

people = st.sampled_from(USERS)
tokens = st.integers(0, 40)
amounts = st.integers(1, 120)  # few enough that streams run short


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


class LedgerMachine(RuleBasedStateMachine):
    """Grants, streams, replays, clock jumps and sweeps in any order."""

    streams: Bundle[StreamId] = Bundle("streams")

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.at = START
        self.engine = engine
        self.runner = asyncio.Runner()
        self.database = engine.open("parshall.accounting", clock=lambda: self.at)
        self.ledger = Accounting(
            self.database, directory=Nobody(), clock=lambda: self.at, reservation_seconds=RESERVATION_SECONDS
        )
        self.opened: dict[StreamId, tuple[dict[str, Any], Slice]] = {}
        self.repriced: dict[StreamId, Price] = {}
        self.extended: dict[tuple[StreamId, int], tuple[int, Slice]] = {}
        self.settled: dict[StreamId, tuple[dict[str, Any], Settlement]] = {}
        self.price = Price(input=MICRO, cached_input=MICRO // 2, output=3 * MICRO, reasoning=4 * MICRO)
        dear = Price(input=2 * MICRO, cached_input=MICRO, output=9 * MICRO, reasoning=4 * MICRO)
        self.prices = {"any": self.price, "dear": dear}
        self.run(self.ledger.prices.put("*", self.price, set_by="test"))
        self.run(self.ledger.prices.put("dear", dear, set_by="test"))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.ledger.close())
        self.run(self.engine.renew())
        self.runner.close()

    def terms(self, days: int = 1, priority: int = 0) -> Terms:
        return Terms(expires_at=self.at + days * DAY, granted_by="root", priority=priority)

    # ── grants ──

    @rule(user=people, amount=amounts, seconds=st.sampled_from([10, 45, 100, 86_400]), priority=st.integers(0, 1))
    def allocate(self, user: UserId, amount: int, seconds: int, priority: int) -> None:
        until = self.at + seconds * SECOND
        self.run(self.ledger.allocate(user, Credits(amount), expires_at=until, granted_by="root", priority=priority))

    @rule(user=people, amount=amounts)
    def deduct(self, user: UserId, amount: int) -> None:
        before = self.run(self.ledger.balance(user)).available
        try:
            after = self.run(self.ledger.deduct(user, Credits(amount)))
        except InsufficientCredits:
            assert amount > before
        else:
            assert after.available == before - amount

    @rule(user=people, total=st.integers(0, 150))
    def set_balance(self, user: UserId, total: int) -> None:
        before = self.run(self.ledger.balance(user))
        try:
            self.run(self.ledger.set_balance(user, Credits(total), self.terms()))
        except BelowZero:
            assert total < before.reserved
        else:
            assert self.run(self.ledger.balance(user)).total == total

    # ── streams ──

    @rule(target=streams, user=people, read=tokens, limit=st.integers(1, 60), piece=st.integers(1, 40))
    def reserve(self, user: UserId, read: int, limit: int, piece: int) -> Any:
        stream_id = StreamId(f"stream-1800000000-{len(self.opened):08x}{'0' * 24}")
        request: dict[str, Any] = {
            "user_id": user,
            "model_id": "any",
            "input_tokens": read,
            "output_tokens_max": limit,
            "slice_tokens": piece,
        }
        before = self.run(self.ledger.balance(user))
        try:
            granted = self.run(self.ledger.reserve(stream_id=stream_id, **request))
        except InsufficientCredits:
            assert before.available < read + 4
            return multiple()
        self.opened[stream_id] = (request, granted)
        after = self.run(self.ledger.balance(user))
        assert after.available == before.available - granted.reserved
        assert after.reserved == before.reserved + granted.reserved
        return stream_id

    @rule(stream_id=streams, more=st.integers(1, 30))
    def extend(self, stream_id: StreamId, more: int) -> None:
        before = self.run(self.ledger.receipt(stream_id))
        try:
            granted = self.run(self.ledger.extend(stream_id=stream_id, step=before.step + 1, output_tokens=more))
        except ReservationEnded:
            assert before.state is not State.ACTIVE
            return
        except InsufficientCredits:
            assert self.run(self.ledger.balance(before.account_id)).available < 9
            return
        assert granted.output_tokens <= before.output_tokens_max
        shared = before.output_tokens + min(more, SHARED_TOKENS_MIN)  # where there is little, all get some
        assert granted.final or shared <= granted.output_tokens <= before.output_tokens + more
        self.extended[stream_id, before.step + 1] = (more, granted)

    @rule(stream_id=streams, model=st.sampled_from(["any", "dear"]), read=tokens, limit=st.integers(1, 60))
    def reprice(self, stream_id: StreamId, model: str, read: int, limit: int) -> None:
        before = self.run(self.ledger.receipt(stream_id))
        piece = min(20, limit)
        request = {"model_id": model, "input_tokens": read, "output_tokens_max": limit, "slice_tokens": piece}
        try:
            granted = self.run(self.ledger.reprice(stream_id=stream_id, **request))
        except ReservationEnded:
            assert before.state is not State.ACTIVE
            return
        except InsufficientCredits:
            assert self.run(self.ledger.receipt(stream_id)) == before, "what is refused has changed nothing"
            return
        self.repriced[stream_id] = self.prices[model]
        assert granted.reserved >= max(
            before.reserved, self.prices[model].ceiling(input_tokens=read, output_tokens=granted.output_tokens)
        )
        assert self.run(self.ledger.reprice(stream_id=stream_id, **request)) == granted

    @rule(stream_id=streams, read=tokens, cached=tokens, written=tokens, thought=tokens)
    def settle(self, stream_id: StreamId, read: int, cached: int, written: int, thought: int) -> None:
        usage = Usage(
            input_tokens=read,
            cached_input_tokens=min(cached, read),
            output_tokens=written,
            reasoning_tokens=min(thought, written),
        )
        report: dict[str, Any] = {"usage": usage, "source": UsageSource.COUNTED, "outcome": "completed"}
        before = self.run(self.ledger.receipt(stream_id))
        try:
            settlement = self.run(self.ledger.settle(stream_id=stream_id, **report))
        except KeyReused:
            assert self.settled[stream_id][0] != report
            return
        except ReservationEnded:
            assert before.state is State.VOIDED
            return
        first = self.settled.setdefault(stream_id, (report, settlement))
        assert first == (report, settlement), "M3: a replay gives the first answer"
        price = self.repriced.get(stream_id, self.price)
        assert settlement.charged <= settlement.reserved, "M7"
        assert settlement.charged + settlement.returned == settlement.reserved
        assert settlement.charged + settlement.uncollected == price.cost(usage), "no use goes unseen"
        self.nothing_due_is_left(before.account_id)
        assert settlement.uncollected == 0 or settlement.balance_after == 0, "nothing is written off while any is left"

    @rule(stream_id=streams)
    def void(self, stream_id: StreamId) -> None:
        answer = self.run(self.ledger.void(stream_id=stream_id))
        assert answer is not None
        if stream_id in self.settled:
            assert answer == self.settled[stream_id][1]
        self.nothing_due_is_left(self.opened[stream_id][0]["user_id"])

    def nothing_due_is_left(self, user: UserId) -> None:
        """Behind a write on an account none of its grants is due and still holds credits."""
        grants = [grant for grant in self.run(self.ledger.grants_all()) if grant.account_id == user]
        assert all(grant.remaining == 0 for grant in grants if grant.expires_at <= self.at)

    # ── replays ──

    @rule(stream_id=streams)
    def reserve_again(self, stream_id: StreamId) -> None:
        request, first = self.opened[stream_id]
        if stream_id in self.repriced:
            with pytest.raises(Conflict):
                self.run(self.ledger.reserve(stream_id=stream_id, **(request | {"model_id": "neither"})))
            return
        if self.run(self.ledger.receipt(stream_id)).state is State.ACTIVE:
            assert self.run(self.ledger.reserve(stream_id=stream_id, **request)) == first
        else:
            with pytest.raises(ReservationEnded):
                self.run(self.ledger.reserve(stream_id=stream_id, **request))
        with pytest.raises(KeyReused):
            self.run(self.ledger.reserve(stream_id=stream_id, **(request | {"input_tokens": 41})))

    @rule(stream_id=streams, step=st.integers(1, 3))
    def extend_again(self, stream_id: StreamId, step: int) -> None:
        if (stream_id, step) in self.extended:
            more, first = self.extended[stream_id, step]
            assert self.run(self.ledger.extend(stream_id=stream_id, step=step, output_tokens=more)) == first
            with pytest.raises(Conflict):
                self.run(self.ledger.extend(stream_id=stream_id, step=step, output_tokens=more + 1))

    # ── time ──

    @rule(seconds=st.sampled_from([1, 11, 31, 50, 90_000]))
    def pass_time(self, seconds: int) -> None:
        self.at += seconds * SECOND

    @rule(seconds=st.sampled_from([0, 12, 31]))
    def sweep(self, seconds: int) -> None:
        self.at += seconds * SECOND
        self.run(self.ledger.expire_due())
        assert self.run(self.ledger.expire_due()) == 0
        assert all(each.expires_at > self.at for each in self.run(self.ledger.active(None)))

    @invariant()
    def books_rebuild(self) -> None:
        books = self.run(self.database.read(read_books))
        check_books(books)
        assert self.run(self.database.read(audit)).findings.kept == [], "the audit finds nothing where nothing is wrong"
        written_off = sum(row.amount for row in books.transfers if row.kind == "uncollected")
        assert written_off == sum(settlement.uncollected for _, settlement in self.settled.values())

    @invariant()
    def no_due_credits_are_shown(self) -> None:
        for user in USERS:
            assert all(grant.expires_at > self.at for grant in self.run(self.ledger.balance(user)).grants)


QUICK = settings(
    max_examples=25,
    stateful_step_count=35,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def check_machine(engine: Engine, length: settings) -> None:
    made = []

    def machine() -> LedgerMachine:
        made.append(LedgerMachine(engine))
        return made[-1]

    run_state_machine_as_test(machine, settings=length)
    assert len(made) >= length.max_examples


def test_whatever_happens_in_any_order_the_books_rebuild(engine: Engine) -> None:
    check_machine(engine, QUICK)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_same_for_long_enough_to_meet_the_rare(engine: Engine) -> None:
    """A late settlement beside other streams, a grant that falls due under several."""
    check_machine(engine, settings(QUICK, max_examples=1000))
