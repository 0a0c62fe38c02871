"""The laws of a turn whose log goes away: the answer goes on, within a bound, and is kept, settled and logged once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from tests.postgres import Engine
from tests.scripted import Script
from tests.turns import ALICE, USER, Rig, rig, text_of, tokens_of

from parshall.chat.ports import Bounds, Lease, LeaseLost, LogAway, LogLost, LogUnavailable
from parshall.kernel import sse
from parshall.kernel.ids import SessionId, StreamId

BEGUN = 6
"""Appends before the log fails: the opening, and some chunks."""


class Failing:
    """The appends of a log that fails from one of them on, until it is told not to."""

    def __init__(self, turns: Rig, error: type[LogUnavailable | LeaseLost]) -> None:
        self._kept = turns.log.append
        self.error: type[LogUnavailable | LeaseLost] | None = error
        self.appends = 0
        self.refused = asyncio.Event()

    async def append(self, lease: Lease, frames: Sequence[bytes], *, first_offset: int) -> None:
        self.appends += 1
        if self.appends > BEGUN and self.error is not None:
            self.refused.set()
            raise self.error
        await self._kept(lease, frames, first_offset=first_offset)


@pytest.fixture
async def turns(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, Engine("sqlite", tmp_path, None)) as made:
        await made.grant(10)
        yield made


@pytest.fixture
async def session(turns: Rig) -> SessionId:
    return await turns.session()


@pytest.fixture
def away(turns: Rig, monkeypatch: pytest.MonkeyPatch) -> Failing:
    return failing(turns, LogAway, monkeypatch)


def failing(turns: Rig, error: type[LogUnavailable | LeaseLost], monkeypatch: pytest.MonkeyPatch) -> Failing:
    made = Failing(turns, error)
    monkeypatch.setattr(turns.log, "append", made.append)
    monkeypatch.setattr("parshall.chat.writer.RETRY_SECONDS", 0.02)
    monkeypatch.setattr("parshall.chat.writer.BACK_SECONDS_MAX", 0.3)
    return made


async def answer_of(turns: Rig, session: SessionId) -> str:
    return (await turns.chat.get(session, user_id=USER)).messages[-1].content


async def swept(turns: Rig, stream_id: StreamId) -> list[sse.Event]:
    """The whole stream once a sweep has brought its log up to date; a second sweep finds nothing to do."""
    assert await turns.streaming.sweep() == 1
    assert await turns.streaming.sweep() == 0
    return await turns.read(stream_id)


async def test_a_log_that_comes_back_in_mid_stream_holds_every_event_as_if_it_had_never_been_away(
    turns: Rig, session: SessionId, away: Failing
) -> None:
    stream_id = await turns.ask(session, "fake-n60-ms5")
    await away.refused.wait()
    await asyncio.sleep(0.1)
    away.error = None
    events = await turns.read(stream_id)
    assert [event.event for event in events] == ["session", "model", *["chunk"] * 60, "done"]
    assert [event.id for event in events] == [str(offset) for offset in range(1, 64)]
    assert text_of(events) == Script(n=60).text() == await answer_of(turns, session)


async def test_a_log_that_stays_away_holds_up_neither_the_answer_nor_its_settlement(
    turns: Rig, session: SessionId, away: Failing
) -> None:
    stream_id = await turns.ask(session, "fake-n40-ms2")
    stream = await turns.ended(stream_id)
    assert stream.settlement is not None and stream.settlement.outcome == "completed"
    assert await answer_of(turns, session) == Script(n=40).text()
    assert (await turns.accounting.balance(USER)).reserved == 0
    away.error = None
    events = await swept(turns, stream_id)
    assert [event.event for event in events] == ["session", "model", *["chunk"] * BEGUN, "done"]
    assert text_of(events) == Script(n=40).text(), "what came while the log was away is one event"
    assert [event.id for event in events] == [str(offset + 1) for offset in range(len(events))]
    receipt = events[-1].json()["receipt"]
    assert receipt["outputTokens"] == tokens_of(events) == 40
    assert events[-2].json()["totalTokens"] == 40


async def test_a_sweep_that_the_log_cuts_short_leaves_the_stream_to_the_very_next_one(
    turns: Rig, session: SessionId, away: Failing
) -> None:
    stream_id = await turns.ask(session, "fake-n40-ms2")
    await turns.ended(stream_id)
    assert await turns.streaming.sweep() == 0
    away.error = None
    assert text_of(await swept(turns, stream_id)) == Script(n=40).text()


async def test_while_the_log_is_away_nobody_is_shown_what_it_does_not_hold(
    turns: Rig, session: SessionId, away: Failing
) -> None:
    stream_id = await turns.ask(session, "fake-n40-ms2")
    reader = await turns.streaming.attach(stream_id, after=0)
    await turns.streaming.producers.ended(stream_id)
    held, _ = await turns.log.read(stream_id, after=0, limit=512)
    shown = b""
    while len(shown) < len(b"".join(held)):
        shown += await anext(reader)
    reader.leave()
    assert shown == b"".join(held)


async def test_more_than_may_wait_ends_the_stream_with_what_was_kept(
    turns: Rig, session: SessionId, away: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parshall.chat.writer.WAITING_BYTES_MAX", 1000)
    stream_id = await turns.ask(session, "fake-n200-ms1")
    stream = await turns.ended(stream_id)
    assert stream.ending is not None and stream.ending.error_code == "log_unavailable"
    away.error = None
    events = await swept(turns, stream_id)
    assert BEGUN < tokens_of(events) == stream.ending.usage.output_tokens < 30
    assert text_of(events) == await answer_of(turns, session)
    assert events[-1].json()["code"] == "log_unavailable"


async def test_a_log_that_has_lost_the_stream_loses_no_answer(
    turns: Rig, session: SessionId, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = failing(turns, LogLost, monkeypatch)
    stream_id = await turns.ask(session, "fake-n40-ms2")
    stream = await turns.ended(stream_id)
    assert stream.settlement is not None and stream.settlement.outcome == "completed"
    assert await answer_of(turns, session) == Script(n=40).text()
    assert log.appends == BEGUN + 1, "it is not asked again"


async def test_a_producer_that_was_fenced_while_the_log_was_away_does_not_settle(
    turns: Rig, session: SessionId, away: Failing
) -> None:
    stream_id = await turns.ask(session, "fake-n200-ms5")
    await away.refused.wait()
    away.error = LeaseLost
    await turns.streaming.producers.ended(stream_id)
    stream = await turns.streaming.records.find(stream_id)
    assert stream is not None and stream.ending is None
    away.error = None
    events = await swept(turns, stream_id)
    assert (events[-1].event, events[-1].json()["code"]) == ("error", "interrupted")
    assert tokens_of(events) == events[-1].json()["receipt"]["outputTokens"]


async def test_stopping_a_stream_does_not_wait_for_its_log(turns: Rig, session: SessionId, away: Failing) -> None:
    stream_id = await turns.ask(session, "fake-n400-ms5")
    await away.refused.wait()
    stopped = await asyncio.wait_for(turns.streaming.stop(await turns.streaming.find(stream_id, caller=ALICE)), 2)
    assert stopped.settlement is not None and stopped.settlement.outcome == "stopped"
    away.error = None
    events = await swept(turns, stream_id)
    assert (events[-1].event, events[-1].json()["finishReason"]) == ("done", "stopped")
    assert text_of(events) == await answer_of(turns, session)


async def test_a_stream_as_long_as_its_log_may_be_ends_as_too_long(
    turns: Rig, session: SessionId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns.log, "bounds", Bounds(events_max=60))
    events = await turns.read(await turns.ask(session, "fake-n200-ms1"))
    assert (events[-1].event, events[-1].json()["finishReason"]) == ("done", "length")
    assert 25 <= tokens_of(events) <= 32
    assert events[-1].json()["receipt"]["outputTokens"] == tokens_of(events)


async def test_an_opening_that_the_log_cannot_keep_leaves_nothing_behind(
    turns: Rig, session: SessionId, away: Failing
) -> None:
    away.appends = BEGUN
    with pytest.raises(LogAway):
        await turns.ask(session, "fake-n3")
    assert (await turns.chat.get(session, user_id=USER)).messages == []
    assert (await turns.accounting.balance(USER)).reserved == 0
