"""Laws of the limits on streams at once: never more than may run, and every ending gives its slot back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select
from tests.postgres import Engine
from tests.turns import ALICE, LIMITS, USER, Rig, rig

from parshall.accounting.tables import reservations
from parshall.chat.model import Ask
from parshall.chat.slots import Slots, TooManyStreams
from parshall.kernel.errors import InsufficientCredits, NotFound, Unavailable
from parshall.kernel.ids import SessionId, StreamId, UserId

PER_USER = 3
IN_ALL = 5
FEW = replace(LIMITS, streams_per_user_max=PER_USER, streams_max=IN_ALL)
BOB = UserId("b" * 32)
ID = "stream-1620847252-a1b2c3d4e5f6a7b8"

STEPS = st.lists(st.tuples(st.sampled_from(["take", "release"]), st.integers(0, 9), st.sampled_from("abc")))


@given(STEPS)
def test_no_more_run_than_may_and_none_is_refused_without_cause(steps: list[tuple[str, int, str]]) -> None:
    slots, running = Slots(per_user=PER_USER, in_all=IN_ALL), dict[str, str]()
    for act, number, user in steps:
        stream_id = StreamId(f"stream-{number}")
        if act == "release":
            slots.release(stream_id)
            running.pop(stream_id, None)
        elif stream_id not in running:
            full = Counter(running.values())[user] >= PER_USER or len(running) >= IN_ALL
            try:
                slots.take(stream_id, UserId(user))
                running[stream_id] = user
                assert not full
            except TooManyStreams:
                assert full
        assert len(slots) == len(running) <= IN_ALL
        assert max(Counter(running.values()).values(), default=0) <= PER_USER


def test_a_refusal_says_whose_limit_it_is() -> None:
    slots = Slots(per_user=1, in_all=2)
    slots.take(StreamId("one"), USER)
    with pytest.raises(TooManyStreams) as refused:
        slots.take(StreamId("two"), USER)
    assert (refused.value.status, refused.value.extra) == (429, {"scope": "user", "limit": 1})
    assert int(refused.value.headers["Retry-After"]) >= 1
    slots.take(StreamId("two"), BOB)
    with pytest.raises(TooManyStreams) as refused:
        slots.take(StreamId("three"), UserId("c" * 32))
    assert refused.value.extra == {"scope": "deployment", "limit": 2}


# ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def turns(tmp_path: Path, engine: Engine) -> AsyncIterator[Rig]:
    async with rig(tmp_path, engine, limits=FEW) as made:
        await made.grant(10)
        yield made


def taken(turns: Rig) -> int:
    return len(turns.streaming.openings._slots)


async def none_taken(turns: Rig) -> None:
    async with asyncio.timeout(10):
        while taken(turns):
            await asyncio.sleep(0.01)


async def test_of_ten_that_ask_at_once_as_many_as_may_begin_and_the_rest_leave_nothing(turns: Rig) -> None:
    sessions = [await turns.session() for _ in range(10)]
    answers = await asyncio.gather(*(turns.ask(s, "fake-n500-ms5") for s in sessions), return_exceptions=True)
    begun = [answer for answer in answers if isinstance(answer, str)]
    assert len(begun) == PER_USER == taken(turns)
    assert [type(answer) for answer in answers if not isinstance(answer, str)] == [TooManyStreams] * 7
    refused = [s for s, answer in zip(sessions, answers, strict=True) if not isinstance(answer, str)]
    for session in refused:
        assert (await turns.chat.get(session, user_id=USER)).messages == []
    held = await turns.accounting._database.read(lambda c: c.scalar(select(func.count()).select_from(reservations)))
    assert held == PER_USER, "nothing was reserved for those refused"
    for stream_id in begun:
        await turns.streaming.stop(await turns.streaming.find(stream_id, caller=ALICE))
    await none_taken(turns)
    assert await turns.ask(refused[0], "fake-n1")


async def test_the_deployments_limit_holds_across_users(turns: Rig) -> None:
    await turns.grant(10, BOB)
    mine = [await turns.session() for _ in range(3)]
    other = [await turns.session(BOB) for _ in range(3)]
    for session in mine:
        await turns.ask(session, "fake-n500-ms5")
    for session in other[:2]:
        await ask_as_bob(turns, session)
    with pytest.raises(TooManyStreams) as refused:
        await ask_as_bob(turns, other[2])
    assert refused.value.extra["scope"] == "deployment"


async def ask_as_bob(turns: Rig, session: SessionId) -> StreamId:
    ask = Ask(message="fake-n500-ms5")
    return await turns.streaming.ask(ask, user_id=BOB, session_id=session, proposed=None)


async def test_attaching_to_ones_stream_takes_no_slot(turns: Rig) -> None:
    sessions = [await turns.session() for _ in range(PER_USER)]
    await turns.ask(sessions[0], "fake-n200-ms5", proposed=ID)
    for session in sessions[1:]:
        await turns.ask(session, "fake-n200-ms5")
    assert await turns.ask(sessions[0], "fake-n200-ms5", proposed=ID) == ID
    assert taken(turns) == PER_USER


@pytest.mark.parametrize(
    "script", ["fake-n3", "fake-n0", "fake-n9-die4", "fake-n9-error1", "fake-status500", "fake-n9-garbage2"]
)
async def test_a_slot_is_free_again_when_the_reader_sees_the_end(turns: Rig, script: str) -> None:
    for _ in range(PER_USER - 1):
        await turns.ask(await turns.session(), "fake-n500-ms20")
    for _ in range(4):
        events = await turns.read(await turns.ask(await turns.session(), script))
        assert events[-1].event in ("done", "error")


async def test_a_stream_out_of_credits_gives_its_slot_back(tmp_path: Path, engine: Engine) -> None:
    async with rig(tmp_path, engine, limits=replace(FEW, streams_per_user_max=1)) as turns:
        with pytest.raises(InsufficientCredits):
            await turns.ask(await turns.session(), "fake-n5")
        assert taken(turns) == 0
        await turns.grant(0.04)
        events = await turns.read(await turns.ask(await turns.session(), "fake-n500"))
        assert events[-1].json()["finishReason"] == "credit_limit"
        with pytest.raises(InsufficientCredits):
            await turns.ask(await turns.session(), "fake-n5 " + "word " * 500)
        assert taken(turns) == 0


async def test_an_opening_that_fails_gives_its_slot_back(turns: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(PER_USER + 1):
        with pytest.raises(NotFound):
            await turns.ask(SessionId("0" * 32), "fake-n5")

    async def broken(*_: object) -> None:
        raise RuntimeError("broken")

    session = await turns.session()
    for step in ("_log_opening", "_reserve", "_record"):
        monkeypatch.setattr(turns.streaming.openings, step, broken)
        for _ in range(PER_USER + 1):
            with pytest.raises(RuntimeError):
                await turns.ask(session, "fake-n5")
    assert taken(turns) == 0


async def test_a_caller_that_hangs_up_before_the_first_event_keeps_no_slot_beyond_the_stream(turns: Rig) -> None:
    asking = asyncio.create_task(turns.ask(await turns.session(), "fake-n5-ms1", proposed=ID))
    while not taken(turns):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await none_taken(turns)
    assert (await turns.ended(StreamId(ID))).ending is not None


async def test_a_producer_that_is_cancelled_gives_its_slot_back(turns: Rig) -> None:
    stream_id = await turns.ask(await turns.session(), "fake-n500-ms5")
    turns.streaming.producers._tasks[stream_id].cancel()
    await none_taken(turns)
    assert stream_id not in turns.streaming.producers


async def test_a_stream_that_times_out_or_is_shut_down_gives_its_slot_back(tmp_path: Path, engine: Engine) -> None:
    async with rig(tmp_path, engine, limits=replace(FEW, stream_seconds_max=0.1)) as turns:
        await turns.grant(10)
        events = await turns.read(await turns.ask(await turns.session(), "fake-n500-ms20"))
        assert events[-1].json()["code"] == "timeout"
        await none_taken(turns)
        await turns.ask(await turns.session(), "fake-n500-ms20")
        await turns.streaming.end_producers(drain_seconds=0)
        await none_taken(turns)
        with pytest.raises(Unavailable):
            await turns.ask(await turns.session(), "fake-n1")
        assert taken(turns) == 0
