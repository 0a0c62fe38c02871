"""What two replicas do to the same accounts, streams and keys at once: nothing is spent, ended or granted twice."""

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contracts.replicas import PACKAGE, RESERVATION_SECONDS, Replicas, streams_of
from tests.postgres import Engine

from parshall.accounting.changes import Terms
from parshall.accounting.model import ReservationEnded, State
from parshall.accounting.once import Once
from parshall.accounting.pricing import Price
from parshall.accounting.service import Accounting
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.errors import InsufficientCredits, KeyReused
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Slice, Usage, UsageSource

ANN = UserId("ann")
REPLICA = Path(__file__).with_name("racing_replica.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def replicas(engine: Engine) -> AsyncIterator[Replicas]:
    opened = await Replicas.open(engine)
    yield opened
    await opened.close()


# ── One balance ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_64_racing_reservations_of_10_on_a_balance_of_100_exactly_10_win(replicas: Replicas) -> None:
    for run in range(100):
        user = UserId(f"user-{run}")
        await replicas.grant(user, 100)
        answers = await asyncio.gather(
            *(
                accounting.reserve_whole(stream_id=stream_id, user_id=user, model_id="any", tokens=10)
                for accounting, stream_id in replicas.spread(streams_of(run, 64))
            ),
            return_exceptions=True,
        )
        won = [answer.reserved for answer in answers if isinstance(answer, Slice)]
        refused = [answer for answer in answers if isinstance(answer, InsufficientCredits)]
        assert (won, len(refused)) == ([10] * 10, 54), answers
        balance = await replicas.each[1].balance(user)
        assert (balance.available, balance.reserved) == (0, 100)
    replicas.check()


async def begun(accounting: Accounting, stream_id: StreamId) -> Slice | InsufficientCredits:
    """The first slice of a stream that may write 500 tokens, or why it could not begin."""
    try:
        return await accounting.reserve(
            stream_id=stream_id, user_id=ANN, model_id="any", input_tokens=0, output_tokens_max=500, slice_tokens=64
        )
    except InsufficientCredits as refused:
        return refused


async def lived(accounting: Accounting, stream_id: StreamId, held: Slice) -> Settlement:
    """The end of a stream that goes on until nothing pays for another token, and wrote all that was paid for."""
    for step in itertools.count(1):
        if held.final:
            break
        try:
            held = await accounting.extend(stream_id=stream_id, step=step, output_tokens=64)
        except InsufficientCredits:
            break
    usage = Usage(output_tokens=held.output_tokens)
    return await accounting.settle(stream_id=stream_id, usage=usage, source=UsageSource.COUNTED, outcome="completed")


@pytest.mark.parametrize(("balance", "refused"), [(2000, 0), (1000, 0), (300, 0), (200, 2), (100, 4), (1, 9)])
async def test_ten_streams_share_a_small_balance_and_each_ends_at_exactly_its_last_paid_token(
    replicas: Replicas, balance: int, refused: int
) -> None:
    await replicas.grant(ANN, balance)
    places = replicas.spread(streams_of(1, 10))
    first = await asyncio.gather(*(begun(*place) for place in places))
    told = [each.extra for each in first if isinstance(each, InsufficientCredits)]
    assert len(told) == refused, "where there is little a slice is small, so that others begin too"
    for each in told:
        needed, there, held = (each[f"{name}Credits"] for name in ("required", "available", "reserved"))
        assert (needed, there, held) == (0.000001, 0, balance / MICRO)
    running = [(*place, held) for place, held in zip(places, first, strict=True) if isinstance(held, Slice)]
    ends = await asyncio.gather(*(lived(*each) for each in running))
    for (*_, held), end in zip(running, ends, strict=True):
        assert 0 < held.reserved <= end.charged == end.reserved, "what began with a slice wrote it, and all it paid for"
        assert (end.uncollected, end.returned) == (0, 0)
    assert sum(end.charged for end in ends) == balance, "together they wrote all that the balance pays for"
    replicas.check()


async def test_two_replicas_that_change_many_accounts_at_once_never_wait_for_each_other_in_a_circle(
    replicas: Replicas,
) -> None:
    """Each replica asks in the other's opposite order; a deadlock would end in an error or a wait of a second."""
    users = [UserId(f"user-{number:02}") for number in range(40)]
    orders = (users, users[::-1])
    terms = Terms(expires_at=replicas.at + DAY, granted_by="root")
    for _ in range(10):
        await asyncio.gather(
            *(
                accounting.adjust(user, 1, terms)
                for accounting, order in zip(replicas.each, orders, strict=True)
                for user in order
            )
        )
    assert [(await replicas.each[0].balance(user)).available for user in users] == [20] * len(users)
    replicas.check()


# ── One stream ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_that_replicas_settle_void_expire_and_extend_at_once_ends_exactly_once(
    replicas: Replicas,
) -> None:
    await replicas.grant(ANN, 10_000)
    streams = streams_of(1, 40)
    usage = Usage(output_tokens=7)
    for accounting, stream_id in replicas.spread(streams):
        await accounting.reserve_whole(stream_id=stream_id, user_id=ANN, model_id="any", tokens=20)
    replicas.at += RESERVATION_SECONDS * SECOND
    said: dict[StreamId, list[object]] = {}

    async def race(stream_id: StreamId) -> None:
        calls = [
            call
            for one in replicas.each
            for call in (
                one.settle(stream_id=stream_id, usage=usage, source=UsageSource.COUNTED, outcome="completed"),
                one.void(stream_id=stream_id),
                one.expire_due(),
                one.extend(stream_id=stream_id, step=1, output_tokens=1),
            )
        ]
        turn = streams.index(stream_id) % len(calls)  # each is first somewhere
        said[stream_id] = await asyncio.gather(*calls[turn:], *calls[:turn], return_exceptions=True)

    for stream_id in streams:
        await race(stream_id)
    states = set()
    for stream_id, answers in said.items():
        receipt = await replicas.each[0].receipt(stream_id)
        states.add(receipt.state)
        assert receipt.state is not State.ACTIVE and receipt.settlement is not None
        assert receipt.settlement.charged in (0, 7)
        assert not [
            each for each in answers if isinstance(each, Exception) and not isinstance(each, ReservationEnded)
        ], answers
        ends = {each for each in answers if isinstance(each, Settlement) and each.charged}
        assert ends <= {receipt.settlement}, "whoever was told of a charge was told of this one"
    assert len(states) > 1, "more than one of them was the first"
    balance = await replicas.each[0].balance(ANN)
    assert balance.reserved == 0
    replicas.check()


async def test_what_one_replica_does_with_a_stream_the_other_goes_by_though_no_credit_moved(
    replicas: Replicas,
) -> None:
    here, there = replicas.each
    await replicas.grant(ANN, 1000)
    paid, free = streams_of(1, 2)
    nothing = Price(input=0, cached_input=0, output=0, reasoning=0)
    await here.prices.put("free", nothing, set_by="test")
    await here.reserve_whole(stream_id=paid, user_id=ANN, model_id="any", tokens=20)
    await here.reserve_whole(stream_id=free, user_id=ANN, model_id="free", tokens=20)
    assert await there.void(stream_id=free) is not None
    with pytest.raises(ReservationEnded):
        await here.extend(stream_id=free, step=1, output_tokens=20)
    replicas.at += SECOND
    renewed = await there.extend(stream_id=paid, step=1, output_tokens=20)
    replicas.at += SECOND
    assert await here.extend(stream_id=paid, step=1, output_tokens=20) == renewed
    replicas.check()


async def test_a_stream_that_all_replicas_reserve_and_settle_at_once_is_held_and_charged_once(
    replicas: Replicas,
) -> None:
    await replicas.grant(ANN, 1000)
    (stream_id,) = streams_of(1, 1)
    many = list(replicas.each) * 8
    held = await asyncio.gather(
        *(one.reserve_whole(stream_id=stream_id, user_id=ANN, model_id="any", tokens=20) for one in many)
    )
    usage = Usage(output_tokens=7)
    ended = await asyncio.gather(
        *(one.settle(stream_id=stream_id, usage=usage, source=UsageSource.COUNTED, outcome="completed") for one in many)
    )
    assert (len(set(held)), len(set(ended))) == (1, 1)
    assert (await replicas.each[1].balance(ANN)).available == 993
    replicas.check()


# ── One key ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("known", [True, False], ids=["known account", "new account"])
async def test_a_key_that_two_replicas_get_at_once_grants_once_and_both_answer_the_same(
    replicas: Replicas, known: bool
) -> None:
    terms = Terms(expires_at=replicas.at + DAY, granted_by="root")
    for run in range(20):
        user = UserId(f"user-{run}")
        if known:
            await replicas.grant(user, 1)
        once = Once.of(user, 5, caller=UserId("root"), operation="allocate", key=f"k{run}")
        answers = await asyncio.gather(
            *(
                one.answer_once(
                    one.allocating(user, Credits(5), terms), render=lambda grant: grant.id, status=201, once=once
                )
                for one in list(replicas.each) * 4
            )
        )
        assert len(set(answers)) == 1
        assert (await replicas.each[1].balance(user)).available == 5 + known
    replicas.check()


async def test_a_key_that_two_replicas_get_for_two_accounts_at_once_changes_one_of_them(replicas: Replicas) -> None:
    """The accounts are locked apart, so only the key itself can tell."""
    terms = Terms(expires_at=replicas.at + DAY, granted_by="root")
    for run in range(20):
        users = [UserId(f"{name}-{run}") for name in ("one", "two")]
        answers = await asyncio.gather(
            *(
                one.answer_once(
                    one.allocating(user, Credits(5), terms),
                    render=lambda grant: grant.id,
                    status=201,
                    once=Once.of(user, 5, caller=UserId("root"), operation="allocate", key=f"k{run}"),
                )
                for one, user in zip(replicas.each, users, strict=True)
            ),
            return_exceptions=True,
        )
        assert {isinstance(each, KeyReused) for each in answers} == {True, False}, answers
        held = [(await replicas.each[0].balance(user)).available for user in users]
        assert sorted(held) == [0, 5]
    replicas.check()


# ── Real processes ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_replicas_in_processes_of_their_own_grant_once_and_reserve_no_more_than_was_granted(
    replicas: Replicas,
) -> None:
    rounds = 10
    url = replicas.engine.url(PACKAGE)
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, str(REPLICA), url, str(number), str(rounds)),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for number in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    one, other = (json.loads(output) for output, _ in outputs)
    assert len(one) == rounds
    for user, (grant, won) in one.items():
        assert grant == other[user][0], "the key of both was answered once"
        assert won + other[user][1] == [10] * 10
    replicas.check()
