"""A turn that could not begin because something was away: what is kept of it, for how long, and for whom."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.postgres import Engine
from tests.turns import USER, Rig, rig, text_of
from tests.unit.test_turn import Faulty, balance

from parshall.chat import undoing
from parshall.chat.model import ChatSession, Stream
from parshall.chat.ports import LogAway
from parshall.kernel import clock
from parshall.kernel.credits import MICRO
from parshall.kernel.errors import Unavailable
from parshall.kernel.ids import StreamId

ID = "stream-1620847252-00000000000000d1"
UNDO_SECONDS = 0.2


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    monkeypatch.setattr(undoing, "UNDO_SECONDS_MAX", UNDO_SECONDS)
    monkeypatch.setattr(undoing, "RETRY_SECONDS", 0.02)
    return Faulty()


@pytest.fixture
async def turns(tmp_path: Path, engine: Engine, ledger: Faulty) -> AsyncIterator[Rig]:
    async with rig(tmp_path, engine, ledger=ledger) as made:
        ledger.real = made.accounting
        await made.grant(10)
        yield made


def fail_appends(turns: Rig, monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
    append, failures = turns.log.append, itertools.count()

    async def failing(*given: Any, **named: Any) -> None:
        if next(failures) < times:
            raise LogAway
        await append(*given, **named)

    monkeypatch.setattr(turns.log, "append", failing)


async def check_streams_once(turns: Rig, session: Any) -> None:
    events = await turns.read(await turns.ask(session, "fake-n5", proposed=ID))
    assert events[-1].event == "done" and text_of(events) != ""
    await turns.ended(StreamId(ID))
    assert (await balance(turns))[1] == 0
    chat = await turns.chat.get(session, user_id=USER)
    assert [message.role for message in chat.messages] == ["user", "assistant"]


async def test_a_client_that_was_told_to_come_back_gets_its_answer_under_the_same_id(
    turns: Rig, ledger: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reservation of the first try pays: it is found, not made again."""
    session = await turns.session()
    fail_appends(turns, monkeypatch, times=2)
    for _ in range(2):
        with pytest.raises(LogAway):
            await turns.ask(session, "fake-n5", proposed=ID)
        assert (await turns.chat.get(session, user_id=USER)).messages == []
    await check_streams_once(turns, session)
    assert "void" not in ledger.calls


async def test_the_same_after_a_reservation_whose_answer_was_lost(turns: Rig, ledger: Faulty) -> None:
    session = await turns.session()
    ledger.mute = {"reserve"}
    with pytest.raises(Unavailable):
        await turns.ask(session, "fake-n5", proposed=ID)
    assert (await balance(turns))[1] > 0
    await check_streams_once(turns, session)


async def test_a_client_that_does_not_come_back_gets_its_credits_back(
    turns: Rig, ledger: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undoing, "RETURN_SECONDS_MAX", 0.1)
    ledger.mute, ledger.down = {"reserve"}, {"void"}
    with pytest.raises(Unavailable):
        await turns.ask(await turns.session(), "fake-n5", proposed=ID)
    await asyncio.sleep(0.3)
    ledger.down = set()
    async with asyncio.timeout(5):
        while await balance(turns) != (10 * MICRO, 0):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert await turns.streaming.records.find(StreamId(ID)) is None
    assert await turns.streaming.sweep() == 0


@pytest.mark.parametrize("proposed", [ID, None])
@pytest.mark.parametrize("voids", [1, 2])
async def test_a_reservation_that_was_made_behind_its_void_is_given_back_too(
    turns: Rig, ledger: Faulty, monkeypatch: pytest.MonkeyPatch, proposed: str | None, voids: int
) -> None:
    """What a service that froze had already been sent is done once it thaws, in any order."""
    monkeypatch.setattr(undoing, "RETURN_SECONDS_MAX", 0.1)
    monkeypatch.setattr(undoing, "LATE_SECONDS", (0.1, 0.2))
    reserve, void, sent = ledger.reserve, ledger.void, []

    async def freezing(**arguments: Any) -> Any:
        sent.append(arguments)
        raise Unavailable

    async def thawing(**arguments: Any) -> Any:
        settlement = await void(**arguments)
        if ledger.calls.count("void") == voids:
            await reserve(**sent[0])
        return settlement

    monkeypatch.setattr(ledger, "reserve", freezing)
    monkeypatch.setattr(ledger, "void", thawing)
    with pytest.raises(Unavailable):
        await turns.ask(await turns.session(), "fake-n5", proposed=proposed)
    async with asyncio.timeout(5):
        while ledger.calls.count("void") <= voids:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.4)
    assert await balance(turns) == (10 * MICRO, 0)
    assert ledger.calls.count("void") == voids + 1, "what has ended is not asked after again"
    assert await turns.streaming.sweep() == 0


async def test_who_comes_back_to_an_id_that_may_be_reserved_late_is_served(
    turns: Rig, ledger: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undoing, "RETURN_SECONDS_MAX", 0.05)
    monkeypatch.setattr(undoing, "LATE_SECONDS", (30.0,))
    session = await turns.session()
    ledger.down = {"reserve"}
    with pytest.raises(Unavailable):
        await turns.ask(session, "fake-n5", proposed=ID)
    async with asyncio.timeout(5):
        while "void" not in ledger.calls or await turns.streaming.records.find(StreamId(ID)) is not None:
            await asyncio.sleep(0.01)
    ledger.down = set()
    await check_streams_once(turns, session)


async def test_credits_are_not_taken_from_a_turn_that_another_process_has_begun(
    turns: Rig, ledger: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undoing, "RETURN_SECONDS_MAX", 0.1)
    session = await turns.session()
    ledger.mute = {"reserve"}
    records, kept = turns.streaming.records, []
    add_stream = turns.streaming.openings._record

    async def record(stream: Stream, chat: ChatSession, ask: Any) -> None:
        kept.append(stream)
        await add_stream(stream, chat, ask)

    monkeypatch.setattr(turns.streaming.openings, "_record", record)
    with pytest.raises(Unavailable):
        await turns.ask(session, "fake-n5", proposed=ID)
    elsewhere = undoing.replace(kept[0], created_at=kept[0].created_at + 1)
    await records.add(elsewhere)
    await asyncio.sleep(0.4)
    assert (await balance(turns))[1] > 0 and "void" not in ledger.calls
    assert await records.find(StreamId(ID)) == elsewhere


async def test_credits_are_given_back_at_a_stop_of_the_process(tmp_path: Path, engine: Engine, ledger: Faulty) -> None:
    async with rig(tmp_path, engine, ledger=ledger) as turns:
        ledger.real = turns.accounting
        await turns.grant(10)
        ledger.mute = {"reserve"}
        with pytest.raises(Unavailable):
            await turns.ask(await turns.session(), "fake-n5", proposed=ID)
    async with rig(tmp_path, engine) as turns:
        assert await balance(turns) == (10 * MICRO, 0)


async def test_a_record_that_cannot_be_removed_at_once_is_removed_later_and_is_in_nobodys_way(
    turns: Rig, ledger: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await turns.session()
    forget, away = turns.streaming.records.forget, True

    async def forgetting(stream_id: StreamId) -> None:
        if away:
            raise Unavailable
        await forget(stream_id)

    monkeypatch.setattr(turns.streaming.records, "forget", forgetting)
    ledger.mute = {"reserve"}
    for _ in range(3):
        with pytest.raises(Unavailable):
            await turns.ask(session, "fake-n5", proposed=ID)
    away = False
    await check_streams_once(turns, session)


async def test_a_record_whose_answer_was_lost_begins_when_it_is_asked_for_again(
    turns: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the store keeps it only after it was looked for: what was sent may arrive late."""
    session = await turns.session()
    record, late = turns.streaming.openings._record, []

    async def recording(*given: Any) -> None:
        late.append(given)
        raise Unavailable("the answer was lost")

    monkeypatch.setattr(turns.streaming.openings, "_record", recording)
    with pytest.raises(Unavailable):
        await turns.ask(session, "fake-n5", proposed=ID)
    await record(*late[0])
    monkeypatch.setattr(turns.streaming.openings, "_record", record)
    await check_streams_once(turns, session)


async def test_a_lease_that_could_not_be_given_back_is_waited_for(turns: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await turns.session()
    lease = await turns.log.acquire(StreamId(ID), owner="another", at=clock.now(), until=clock.now() + 2_000_000)
    assert lease is not None
    with pytest.raises(Unavailable):
        await turns.ask(session, "fake-n5", proposed=ID)
    await asyncio.sleep(2.05)
    await check_streams_once(turns, session)
