"""Two chat services on the same records and the same log, as two processes have them: either serves any stream."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.postgres import Engine
from tests.turns import ALICE, LIMITS, USER, Rig, rig, text_of, tokens_of
from tests.valkey import Valkey

from parshall.accounting.service import Accounting
from parshall.chat import openings
from parshall.chat.model import Outcome, StreamActive, StreamForgotten
from parshall.chat.openings import Limits
from parshall.chat.peers import Elsewhere, NoPeers
from parshall.chat.ports import LeaseLost
from parshall.chat.slots import TooManyStreams
from parshall.chat.streams import peers as shared_peers
from parshall.chat.streams.address import Address
from parshall.chat.streams.engine import Engine as LogEngine
from parshall.chat.streams.peers import SharedPeers
from parshall.chat.streams.shared import SharedStreamLog
from parshall.kernel import clock
from parshall.kernel.errors import InsufficientCredits, NotFound, Unavailable
from parshall.kernel.ids import StreamId

ID = "stream-1620847252-00000000000000f1"
LONG = "fake-n400-ms10"
pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers elsewhere are told of, and missed, sooner."""
    monkeypatch.setattr(shared_peers, "ATTEND_SECONDS", 0.05)
    monkeypatch.setattr("parshall.chat.audience.ASK_AGAIN_SECONDS", 0.05)


@asynccontextmanager
async def replica(tmp_path: Path, engine: Engine, valkey: Valkey, limits: Limits = LIMITS) -> AsyncIterator[Rig]:
    log_engine, owner = await LogEngine.connect(Address.parse(valkey.url)), uuid.uuid4().hex
    log = SharedStreamLog(log_engine, clock=clock.now)
    peers = SharedPeers(log_engine, owner=owner, clock=clock.now)
    async with rig(tmp_path, engine, stream_log=log, peers=peers, owner=owner, limits=limits) as made:
        yield made


@pytest.fixture
async def pair(tmp_path: Path, engine: Engine, valkey: Valkey) -> AsyncIterator[tuple[Rig, Rig]]:
    async with replica(tmp_path, engine, valkey) as one, replica(tmp_path, engine, valkey) as two:
        await one.grant(10)
        yield one, two


async def balance(turns: Rig) -> tuple[int, int]:
    found = await turns.accounting.balance(USER)
    return found.available, found.reserved


async def chunks(turns: Rig, stream_id: StreamId, count: int) -> None:
    """Wait until the log holds so many events."""
    async with asyncio.timeout(10):
        while len((await turns.log.read(stream_id, after=0, limit=512))[0]) < count:
            await asyncio.sleep(0.01)


# ── Stop ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_that_another_process_produces_is_stopped_at_once(pair: tuple[Rig, Rig]) -> None:
    one, two = pair
    stream_id = await one.ask(await one.session(), LONG, proposed=ID)
    await chunks(two, stream_id, 5)
    ended = await two.streaming.stop(await two.streaming.find(stream_id, caller=ALICE))
    assert ended.ending is not None and ended.ending.outcome is Outcome.STOPPED and ended.settlement is not None
    events = await two.read(stream_id)
    assert events[-1].json()["receipt"]["outputTokens"] == tokens_of(events) < 400
    assert (await balance(one))[1] == 0


async def test_a_stop_that_is_not_heard_is_said_again(pair: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pair
    monkeypatch.setattr("parshall.chat.streaming.STOP_AGAIN_SECONDS", 0.1)
    said: list[StreamId] = []
    stop = two.streaming._peers.stop

    async def lost_twice(stream_id: StreamId) -> bool:
        said.append(stream_id)
        return await stop(stream_id) if len(said) > 2 else True

    monkeypatch.setattr(two.streaming._peers, "stop", lost_twice)
    stream_id = await one.ask(await one.session(), LONG)
    await chunks(two, stream_id, 3)
    ended = await two.streaming.stop(await two.streaming.find(stream_id, caller=ALICE))
    assert ended.ending is not None and len(said) == 3


async def test_the_inbox_is_heard_again_after_its_connection_was_lost(pair: tuple[Rig, Rig], valkey: Valkey) -> None:
    one, two = pair
    stream_id = await one.ask(await one.session(), LONG)
    await chunks(two, stream_id, 3)
    valkey.ask("CLIENT", "KILL", "TYPE", "pubsub")
    ended = await two.streaming.stop(await two.streaming.find(stream_id, caller=ALICE))
    assert ended.ending is not None and ended.ending.outcome is Outcome.STOPPED


async def test_stopping_a_stream_whose_producer_died_ends_it_then_and_there(pair: tuple[Rig, Rig]) -> None:
    one, two = pair
    stream_id = await one.ask(await one.session(), LONG)
    await chunks(two, stream_id, 5)
    one.streaming.producers._tasks[stream_id].cancel()  # its lease is released, and nobody ends it
    async with asyncio.timeout(5):
        while stream_id in one.streaming.producers:
            await asyncio.sleep(0.01)
    ended = await two.streaming.stop(await two.streaming.find(stream_id, caller=ALICE))
    assert ended.ending is not None and ended.ending.outcome is Outcome.INTERRUPTED
    assert (await balance(one))[1] == 0


async def test_a_word_about_a_stream_that_is_not_here_changes_nothing(pair: tuple[Rig, Rig], valkey: Valkey) -> None:
    one, two = pair
    stream_id = await one.ask(await one.session(), "fake-n30-ms10")
    await chunks(two, stream_id, 3)
    inbox = f"parshall:{{{two.streaming.openings._owner}}}:inbox"
    async with asyncio.timeout(5):
        while not valkey.ask("SPUBLISH", inbox, "stream-1-ff"):
            await asyncio.sleep(0.01)
    for word in (stream_id, "", "\udcff", "x" * 10_000):
        valkey.ask("SPUBLISH", inbox, word.encode("utf-8", "surrogateescape"))
    assert (await one.ended(stream_id)).ending.outcome is Outcome.COMPLETED  # type: ignore[union-attr]


# ── Readers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("quick")
async def test_a_stream_that_needs_a_reader_goes_on_for_one_in_another_process(
    tmp_path: Path, engine: Engine, valkey: Valkey
) -> None:
    limits = replace(LIMITS, grace_seconds=0.2)
    async with replica(tmp_path, engine, valkey, limits) as one, replica(tmp_path, engine, valkey, limits) as two:
        await one.grant(10)
        stream_id = await one.ask(await one.session(), "fake-n80-ms10", on_disconnect="stop")
        events = await two.read(stream_id)
        assert events[-1].json()["receipt"]["outcome"] == "completed"
        assert text_of(events) and events[-1].json()["receipt"]["deliveredTokens"] > 0


@pytest.mark.usefixtures("quick")
async def test_once_the_last_reader_anywhere_has_gone_it_ends_after_the_grace(
    tmp_path: Path, engine: Engine, valkey: Valkey
) -> None:
    limits = replace(LIMITS, grace_seconds=0.3)
    async with replica(tmp_path, engine, valkey, limits) as one, replica(tmp_path, engine, valkey, limits) as two:
        await one.grant(10)
        stream_id = await one.ask(await one.session(), LONG, on_disconnect="stop")
        reader = await two.streaming.attach(stream_id, after=0)
        began = time.monotonic()
        async for _ in reader:
            if time.monotonic() - began > 0.8:
                break
        assert stream_id in one.streaming.producers, "read elsewhere, it outlives the grace period"
        reader.leave()
        left = time.monotonic()
        ended = await one.ended(stream_id)
        assert ended.ending is not None and ended.ending.outcome is Outcome.ABANDONED
        assert time.monotonic() - left >= 0.25
        assert ended.ending.delivered_tokens is not None
        assert 0 < ended.ending.delivered_tokens < ended.ending.usage.output_tokens


@pytest.mark.usefixtures("quick")
async def test_a_process_that_falls_silent_reads_no_more(
    tmp_path: Path, engine: Engine, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_peers, "ABSENT_SECONDS", 0.3)
    limits = replace(LIMITS, grace_seconds=0.1)
    async with replica(tmp_path, engine, valkey, limits) as one, replica(tmp_path, engine, valkey, limits) as two:
        await one.grant(10)
        stream_id = await one.ask(await one.session(), LONG, on_disconnect="stop")
        await two.streaming.attach(stream_id, after=0)
        for task in two.streaming._peers._tasks:  # type: ignore[attr-defined]
            task.cancel()
        ended = await one.ended(stream_id)
        assert ended.ending is not None and ended.ending.outcome is Outcome.ABANDONED


@pytest.mark.usefixtures("quick")
async def test_whoever_only_looks_is_no_reader(tmp_path: Path, engine: Engine, valkey: Valkey) -> None:
    """An observer in another process follows the log; the stream of a user who has gone ends all the same."""
    limits = replace(LIMITS, grace_seconds=0.2)
    async with replica(tmp_path, engine, valkey, limits) as one, replica(tmp_path, engine, valkey, limits) as two:
        await one.grant(10)
        stream_id = await one.ask(await one.session(), LONG, on_disconnect="stop")
        tail = await two.log.tail(stream_id, after=0, silence_seconds=5)
        async for _ in tail:
            pass
        assert (await one.ended(stream_id)).ending.outcome is Outcome.ABANDONED  # type: ignore[union-attr]


# ── Ask ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_same_turn_asked_of_both_at_once_is_one_stream(pair: tuple[Rig, Rig]) -> None:
    one, two = pair
    for number in range(8):
        session, name = await one.session(), f"stream-1620847252-{number:016x}"
        asked = [each.ask(session, "fake-n4-ms1", proposed=name) for each in (one, two, one, two)]
        assert await asyncio.gather(*asked) == [name] * 4
        first, second = await asyncio.gather(one.read(StreamId(name)), two.read(StreamId(name)))
        assert first == second and [event.event for event in first].count("done") == 1
        messages = (await one.chat.get(session, user_id=USER)).messages
        assert [message.role for message in messages] == ["user", "assistant"]
    assert len(one.provider.prompts) + len(two.provider.prompts) == 8, "each was generated once"
    assert (await balance(one))[1] == 0


async def test_a_turn_that_could_not_be_begun_elsewhere_is_begun_here_or_refused_likewise(
    tmp_path: Path, engine: Engine, valkey: Valkey
) -> None:
    async with replica(tmp_path, engine, valkey) as one, replica(tmp_path, engine, valkey) as two:
        session = await one.session()
        asked = [each.ask(session, "fake-n4", proposed=ID) for each in (one, two)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [InsufficientCredits] * 2
        assert (await one.chat.get(session, user_id=USER)).messages == []


async def test_another_turn_in_the_same_chat_session_is_refused_by_either(pair: tuple[Rig, Rig]) -> None:
    one, two = pair
    session = await one.session()
    answers = await asyncio.gather(*(each.ask(session, LONG) for each in (one, two, one, two)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["StreamActive"] * 3 + ["str"]
    refused = next(answer for answer in answers if isinstance(answer, StreamActive))
    assert refused.status == 409


async def test_a_reader_waits_for_the_first_event_that_another_process_is_about_to_log(
    pair: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    reserve = one.streaming.openings._reserve

    async def slowly(*given: Any) -> Any:
        await asyncio.sleep(0.4)
        return await reserve(*given)

    monkeypatch.setattr(one.streaming.openings, "_reserve", slowly)
    asking = asyncio.create_task(one.ask(await one.session(), "fake-n5", proposed=ID))
    async with asyncio.timeout(5):
        while await two.streaming.records.find(StreamId(ID)) is None:
            await asyncio.sleep(0.01)
    assert (await two.read(StreamId(ID)))[-1].event == "done"
    assert await two.streaming.begun(StreamId(ID)) is not None
    await asking


async def test_a_reader_of_what_comes_to_nothing_is_told_so(
    pair: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair

    async def refuse(*_: Any) -> Any:
        await asyncio.sleep(0.4)
        raise InsufficientCredits

    monkeypatch.setattr(one.streaming.openings, "_reserve", refuse)
    asking = asyncio.create_task(one.ask(await one.session(), "fake-n5", proposed=ID))
    async with asyncio.timeout(5):
        while await two.streaming.records.find(StreamId(ID)) is None:
            await asyncio.sleep(0.01)
    with pytest.raises(NotFound):
        await two.read(StreamId(ID))
    assert await two.streaming.begun(StreamId(ID)) is None
    with pytest.raises(InsufficientCredits):
        await asking


async def test_a_stream_whose_first_event_is_long_in_coming_is_not_said_to_be_forgotten(
    pair: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that began it may have died; whoever adopts the stream gives it its events."""
    one, two = pair
    reserve, go_on = one.streaming.openings._reserve, asyncio.Event()

    async def held_up(*given: Any) -> Any:
        await go_on.wait()
        return await reserve(*given)

    monkeypatch.setattr(one.streaming.openings, "_reserve", held_up)
    monkeypatch.setattr(openings, "OPENING_SECONDS_MAX", 0.2)
    asking = asyncio.create_task(one.ask(await one.session(), "fake-n5", proposed=ID))
    async with asyncio.timeout(5):
        while await two.streaming.records.find(StreamId(ID)) is None:
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await two.streaming.attach(StreamId(ID), after=0)
    go_on.set()
    await asking
    assert (await two.read(StreamId(ID)))[-1].event == "done"


async def test_a_stream_that_the_log_has_forgotten_is_not_waited_for(pair: tuple[Rig, Rig]) -> None:
    one, two = pair
    stream_id = await one.ask(await one.session(), "fake-n3")
    await one.ended(stream_id)
    await one.read(stream_id)
    assert await one.streaming.trim(closed_before=clock.now() + 1)
    with pytest.raises(StreamForgotten):
        await two.streaming.attach(stream_id, after=0)


async def test_the_limits_on_streams_hold_for_both_together(tmp_path: Path, engine: Engine, valkey: Valkey) -> None:
    few = replace(LIMITS, streams_per_user_max=3)
    async with replica(tmp_path, engine, valkey, few) as one, replica(tmp_path, engine, valkey, few) as two:
        await one.grant(10)
        sessions = [await one.session() for _ in range(12)]
        asked = [(one, two)[number % 2].ask(session, LONG) for number, session in enumerate(sessions)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        begun = [answer for answer in answers if isinstance(answer, str)]
        refused = [answer for answer in answers if isinstance(answer, TooManyStreams)]
        assert (len(begun), len(refused)) == (3, 9)
        assert refused[0].extra == {"scope": "user", "limit": 3}
        await two.streaming.stop(await two.streaming.find(StreamId(begun[0]), caller=ALICE))
        assert await two.ask(sessions[answers.index(refused[0])], "fake-n1")
    few = replace(LIMITS, streams_max=2)
    async with replica(tmp_path, engine, valkey, few) as one, replica(tmp_path, engine, valkey, few) as two:
        for each in (one, two):
            await each.ask(await one.session(), LONG)
        with pytest.raises(TooManyStreams) as last:
            await two.ask(await one.session(), LONG)
        assert last.value.extra["scope"] == "deployment"


# ── Adoption ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_producer_that_slept_through_its_lease_cannot_append_or_settle(
    tmp_path: Path, engine: Engine, valkey: Valkey
) -> None:
    limits = replace(LIMITS, lease_seconds=0.3)
    async with replica(tmp_path, engine, valkey, limits) as one, replica(tmp_path, engine, valkey, limits) as two:
        await one.grant(10)
        stream_id = await one.ask(await one.session(), LONG)
        reader = await one.streaming.attach(stream_id, after=0)
        await chunks(two, stream_id, 5)
        renewal, task = one.streaming.producers._renewal, one.streaming.producers._tasks[stream_id]
        assert renewal is not None
        renewal.cancel()  # asleep, as far as its lease goes
        async with asyncio.timeout(5):
            while not await two.streaming.sweep():
                await asyncio.sleep(0.05)
        adopted = await two.streaming.records.find(stream_id)
        assert adopted is not None and adopted.ending is not None
        assert adopted.ending.outcome is Outcome.INTERRUPTED and adopted.settlement is not None
        with pytest.raises(LeaseLost):
            await task
        assert await one.streaming.records.find(stream_id) == adopted
        events = await two.read(stream_id)
        assert events[-1].json()["receipt"]["outputTokens"] == tokens_of(events)
        whole = b"".join([piece async for piece in reader])
        assert whole.endswith(b"\n\n") and whole.count(b"event: error") == 1, "its own readers see the end too"
        assert text_of(events) == (await one.streaming.records.answer(stream_id))
        assert await reserved(one.accounting) == 0


async def test_what_others_hold_is_left_alone(pair: tuple[Rig, Rig]) -> None:
    one, two = pair
    ids = [await one.ask(await one.session(), "fake-n60-ms10") for _ in range(5)]
    for _ in range(10):
        assert await two.streaming.sweep() == 0
        assert await two.streaming.recover() == 0
        await asyncio.sleep(0.02)
    for stream_id in ids:
        assert (await one.ended(stream_id)).ending.outcome is Outcome.COMPLETED  # type: ignore[union-attr]


async def test_both_sweeping_at_once_adopt_each_stream_once(pair: tuple[Rig, Rig]) -> None:
    one, two = pair
    ids = [await one.ask(await one.session(), LONG) for _ in range(12)]
    for task in tuple(one.streaming.producers._tasks.values()):
        task.cancel()
    async with asyncio.timeout(5):
        while len(one.streaming.producers):
            await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        while sum(await asyncio.gather(one.streaming.sweep(), two.streaming.sweep(), two.streaming.sweep())):
            pass
    for stream_id in ids:
        events = await two.read(stream_id)
        assert (
            [event.event for event in events].count("error") == 1 == len({e.id for e in events if e.event == "error"})
        )
        assert events[-1].json()["receipt"]["outputTokens"] == tokens_of(events)
    assert (await balance(one))[1] == 0


async def test_an_opening_that_slept_until_it_was_undone_harms_nobody(
    pair: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id may be another process's turn by now: what it holds there is not undone, and nothing is begun twice."""
    one, two = pair
    session = await one.session()
    awake, asleep = asyncio.Event(), asyncio.Event()
    reserve = one.streaming.openings._reserve

    async def sleeping(*given: Any) -> Any:
        asleep.set()
        await awake.wait()
        return await reserve(*given)

    monkeypatch.setattr(one.streaming.openings, "_reserve", sleeping)
    asking = asyncio.create_task(one.ask(session, LONG, proposed=ID))
    await asleep.wait()
    await two.streaming._recovery.sweep(undo_before=clock.now())  # as another process does after a while
    assert await two.ask(session, LONG, proposed=ID) == ID
    awake.set()
    with pytest.raises(Exception):  # noqa: B017 - whatever it is told, it must not have begun
        await asking
    assert StreamId(ID) not in one.streaming.producers and StreamId(ID) in two.streaming.producers
    ended = await one.streaming.stop(await one.streaming.find(StreamId(ID), caller=ALICE))
    assert ended.settlement is not None and (await balance(one))[1] == 0


async def test_an_opening_that_slept_and_was_undone_is_refused(
    pair: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    monkeypatch.setattr(openings, "LATE_SECONDS", 0)
    opening = one.streaming.openings._log_opening

    async def undone(*given: Any) -> Any:
        await two.streaming._recovery.sweep(undo_before=clock.now())
        return await opening(*given)

    monkeypatch.setattr(one.streaming.openings, "_log_opening", undone)
    with pytest.raises(Unavailable):
        await one.ask(await one.session(), LONG, proposed=ID)
    assert await one.streaming.records.find(StreamId(ID)) is None
    assert (await balance(one))[1] == 0


async def reserved(accounting: Accounting) -> int:
    return (await accounting.balance(USER)).reserved


# ── What the others do not answer ───────────────────────────────────────────────────────────────────────────────────


class Mute(NoPeers):
    """Peers of whom nobody ever says who reads there."""

    shared = True

    async def elsewhere(self, stream_id: StreamId) -> Elsewhere:
        await asyncio.Event().wait()
        raise AssertionError("nobody answers")


async def test_an_end_waits_for_nobody_who_does_not_say_how_far_they_read(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parshall.chat.audience.ASK_SECONDS_MAX", 0.05)
    async with rig(tmp_path, engine, peers=Mute()) as alone:
        await alone.grant(10)
        events = await alone.read(await alone.ask(await alone.session(), "fake-n3"))
        assert events[-1].event == "done"


async def test_whoever_gives_up_waiting_for_a_stop_leaves_nothing_behind(
    pair: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair

    async def unheard(stream_id: StreamId) -> bool:
        return True

    monkeypatch.setattr(two.streaming._peers, "stop", unheard)
    stream_id = await one.ask(await one.session(), "fake-n100-ms10")
    await chunks(two, stream_id, 3)
    stopping = asyncio.create_task(two.streaming.stop(await two.streaming.find(stream_id, caller=ALICE)))
    feeds = two.log._following._feeds  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        while stream_id not in feeds or not feeds[stream_id].tails:
            await asyncio.sleep(0.01)
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    assert stream_id not in feeds or not feeds[stream_id].tails
