"""The laws of a turn: what is logged, delivered, counted and charged, however it ends."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from tests.postgres import Engine
from tests.scripted import NASTY, Script
from tests.turns import ALICE, LIMITS, USER, Rig, rig, text_of, tokens_of

from parshall.chat import store, undoing
from parshall.chat.model import Message, Stream, StreamActive
from parshall.chat.ports import LogUnavailable
from parshall.kernel import clock
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.errors import Conflict, InsufficientCredits, KeyReused, NotFound, Unavailable
from parshall.kernel.ids import SessionId, StreamId, new_id
from parshall.kernel.metering import Settlement, Slice, Usage, UsageSource
from parshall.kernel.tokens import Principal, Role

ID = "stream-1620847252-a1b2c3d4e5f6a7b8"


@pytest.fixture
async def turns(tmp_path: Path, engine: Engine) -> AsyncIterator[Rig]:
    async with rig(tmp_path, engine) as made:
        await made.grant(10)
        yield made


@pytest.fixture
async def session(turns: Rig) -> SessionId:
    return await turns.session()


async def balance(turns: Rig) -> tuple[int, int]:
    found = await turns.accounting.balance(USER)
    return found.available, found.reserved


# ── The whole way ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_is_session_model_chunks_and_one_done(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n7")
    events = await turns.read(stream_id)
    assert [event.event for event in events] == ["session", "model", *["chunk"] * 7, "done"]
    assert [event.id for event in events] == [str(offset) for offset in range(1, 11)]
    assert events[0].json()["streamingSessionId"] == stream_id
    assert text_of(events) == Script(n=7).text()


async def test_the_receipt_charges_what_the_provider_reports(turns: Rig, session: SessionId) -> None:
    events = await turns.read(await turns.ask(session, "fake-n7"))
    done = events[-1].json()
    receipt = done["receipt"]
    assert (receipt["inputTokens"], receipt["outputTokens"], receipt["usageSource"]) == (2, 7, "provider")
    price = await turns.accounting.prices.calculate("fake", Usage(input_tokens=2, output_tokens=7))
    assert receipt["chargedCredits"] * MICRO == pytest.approx(price)
    assert await balance(turns) == (10 * MICRO - price, 0)
    assert receipt["balanceAfter"] * MICRO == pytest.approx(10 * MICRO - price)


async def test_without_a_report_our_own_count_is_charged(turns: Rig, session: SessionId) -> None:
    events = await turns.read(await turns.ask(session, "fake-n7-nousage"))
    receipt = events[-1].json()["receipt"]
    assert (receipt["usageSource"], receipt["outputTokens"]) == ("counted", tokens_of(events))


async def test_question_and_answer_are_in_the_history(turns: Rig, session: SessionId) -> None:
    await turns.read(await turns.ask(session, "fake-n3"))
    await turns.read(await turns.ask(session, "fake-n2 again"))
    conversation = await turns.chat.get(session, user_id=USER)
    assert [message.role for message in conversation.messages] == ["user", "assistant"] * 2
    assert conversation.messages[1].content == Script(n=3).text()
    assert [m.content for m in turns.provider.prompts[-1].messages] == ["fake-n3", Script(n=3).text(), "fake-n2 again"]


@pytest.mark.parametrize("brief", [2, 3, 4])
async def test_a_model_is_told_the_whole_conversation_however_long_it_is(
    turns: Rig, session: SessionId, monkeypatch: pytest.MonkeyPatch, brief: int
) -> None:
    monkeypatch.setattr("parshall.chat.openings.BRIEF_MESSAGES_MAX", brief)
    for number in (1, 2, 3):
        await turns.read(await turns.ask(session, f"fake-n{number}"))
    said = [each for number in (1, 2) for each in (f"fake-n{number}", Script(n=number).text())]
    assert [m.content for m in turns.provider.prompts[-1].messages] == [*said, "fake-n3"]


async def test_hard_text_arrives_unharmed(turns: Rig, session: SessionId) -> None:
    events = await turns.read(await turns.ask(session, "fake-nasty"))
    assert text_of(events) == "".join(NASTY)
    conversation = await turns.chat.get(session, user_id=USER)
    assert conversation.messages[-1].content == "".join(NASTY), "a NUL too, which PostgreSQL cannot keep as it is"


async def test_reasoning_is_told_apart_and_counted_as_output(turns: Rig, session: SessionId) -> None:
    events = await turns.read(await turns.ask(session, "fake-n4-think-nousage"))
    assert [event.event for event in events][2:4] == ["reasoning", "chunk"]
    usage = events[-1].json()["usage"]
    assert (usage["outputTokens"], usage["reasoningTokens"]) == (4, 1)


async def test_resuming_after_any_offset_yields_the_rest_byte_for_byte(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n30-ms1")
    whole = await turns.read(stream_id)
    for after in range(len(whole) + 1):
        assert await turns.read(stream_id, after=after) == whole[after:]


async def test_two_readers_see_the_same(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n30-ms1")
    one, two = await asyncio.gather(turns.read(stream_id), turns.read(stream_id))
    assert one == two and len(one) == 33


async def test_a_reader_that_leaves_does_not_disturb_the_stream(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n20-ms2")
    reader = await turns.streaming.attach(stream_id, after=0)
    await anext(reader)
    reader.leave()
    receipt = await turns.receipt(stream_id)
    assert (receipt["outcome"], receipt["outputTokens"]) == ("completed", 20)


async def test_the_receipt_tells_generated_from_delivered(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n20-ms2")
    reader = await turns.streaming.attach(stream_id, after=0)
    while reader._offset < 7:
        await anext(reader)
    seen = reader._offset - 2
    reader.leave()
    receipt = await turns.receipt(stream_id)
    assert receipt["deliveredTokens"] == seen < receipt["outputTokens"]


# ── One id ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_same_request_again_attaches_and_charges_once(turns: Rig, session: SessionId) -> None:
    first = await turns.ask(session, "fake-n20-ms2", proposed=ID)
    again = await turns.ask(session, "fake-n20-ms2", proposed=ID)
    assert first == again == ID
    one, two = await asyncio.gather(turns.read(first), turns.read(again))
    late = await turns.read(await turns.ask(session, "fake-n20-ms2", proposed=ID))
    assert one == two == late
    assert len(turns.provider.prompts) == 1
    assert len((await turns.chat.get(session, user_id=USER)).messages) == 2


async def test_fifty_simultaneous_requests_with_one_id_are_one_stream(turns: Rig, session: SessionId) -> None:
    await asyncio.gather(*(turns.ask(session, "fake-n5", proposed=ID) for _ in range(50)))
    await turns.read(StreamId(ID))
    assert len(turns.provider.prompts) == 1


async def test_the_same_id_with_another_message_is_refused(turns: Rig, session: SessionId) -> None:
    await turns.ask(session, "fake-n5", proposed=ID)
    with pytest.raises(KeyReused):
        await turns.ask(session, "fake-n6", proposed=ID)
    with pytest.raises(KeyReused):
        await turns.ask(await turns.session(), "fake-n5", proposed=ID)


async def test_a_second_stream_in_the_session_is_refused_and_the_first_named(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n20-ms5")
    with pytest.raises(StreamActive) as refused:
        await turns.ask(session, "fake-n1")
    assert refused.value.extra["streamingSessionId"] == stream_id
    assert len((await turns.chat.get(session, user_id=USER)).messages) == 1


async def test_a_stream_is_invisible_to_other_users_but_not_to_supervisors(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n5")
    other = Principal(user_id="v" * 32, username="bob", email="", role=Role.ENDUSER)  # type: ignore[arg-type]
    boss = Principal(user_id="w" * 32, username="boss", email="", role=Role.SUPERVISOR)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await turns.streaming.find(stream_id, caller=other)
    assert (await turns.streaming.find(stream_id, caller=boss)).id == stream_id
    assert (await turns.streaming.find(stream_id, caller=ALICE)).id == stream_id


# ── Ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_stopping_keeps_and_charges_what_was_logged_and_stops_the_provider(
    turns: Rig, session: SessionId
) -> None:
    stream_id = await turns.ask(session, "fake-n500-ms2")
    reading = asyncio.create_task(turns.read(stream_id))
    await asyncio.sleep(0.1)
    await turns.streaming.stop(await turns.streaming.find(stream_id, caller=ALICE))
    sent = turns.provider.sent
    events = await reading
    receipt = events[-1].json()["receipt"]
    assert receipt["outcome"] == "stopped" and 0 < receipt["outputTokens"] < 500
    assert receipt["outputTokens"] == tokens_of(events)
    assert events[-1].json()["status"] == "incomplete"
    assert (await turns.chat.get(session, user_id=USER)).messages[1].content == text_of(events)
    await asyncio.sleep(0.05)
    assert turns.provider.sent == sent and turns.provider.hung_up == 1
    assert (await balance(turns))[1] == 0


async def test_stopping_twice_gives_the_same_receipt(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n500-ms2")
    stream = await turns.streaming.find(stream_id, caller=ALICE)
    one, two = await asyncio.gather(turns.streaming.stop(stream), turns.streaming.stop(stream))
    assert one == two == await turns.streaming.stop(stream)


async def test_a_stop_before_the_first_token_still_ends_the_stream(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n5-ttft5000")
    stopped = await turns.streaming.stop(await turns.streaming.find(stream_id, caller=ALICE))
    assert stopped.ending is not None and stopped.ending.usage.output_tokens == 0
    assert (await turns.read(stream_id))[-1].event == "done"


@pytest.mark.parametrize("script", ["fake-n9-die4", "fake-n9-garbage4", "fake-n9-error4"])
async def test_a_provider_that_fails_midway_ends_in_one_error_and_a_partial_charge(
    turns: Rig, session: SessionId, script: str
) -> None:
    events = await turns.read(await turns.ask(session, script))
    assert [event.event for event in events].count("error") == 1 and events[-1].event == "error"
    failure = events[-1].json()
    assert failure["retryable"] is True
    assert failure["receipt"]["outcome"] == "provider_error"
    assert failure["receipt"]["outputTokens"] == tokens_of(events) == 4
    assert (await balance(turns))[1] == 0


@pytest.mark.parametrize("script", ["fake-status500", "fake-status429", "fake-n9-die0"])
async def test_an_answer_without_a_token_costs_nothing(turns: Rig, session: SessionId, script: str) -> None:
    events = await turns.read(await turns.ask(session, script))
    assert events[-1].json()["receipt"]["chargedCredits"] == 0
    assert await balance(turns) == (10 * MICRO, 0)


async def test_a_stream_that_takes_too_long_is_ended(tmp_path: Path, engine: Engine) -> None:
    async with rig(tmp_path, engine, limits=replace(LIMITS, stream_seconds_max=0.2)) as turns:
        await turns.grant(1)
        events = await turns.read(await turns.ask(await turns.session(), "fake-n9-stall3"))
        assert events[-1].json()["code"] == "timeout"
        assert events[-1].json()["receipt"]["outputTokens"] == 3


async def test_a_stream_that_nobody_reads_is_abandoned_after_the_grace_where_asked(
    turns: Rig, session: SessionId
) -> None:
    stream_id = await turns.ask(session, "fake-n900-ms2", on_disconnect="stop")
    reader = await turns.streaming.attach(stream_id, after=0)
    await asyncio.sleep(0.2)
    assert stream_id in turns.streaming.producers, "somebody reads: it must go on"
    reader.leave()
    receipt = await turns.receipt(stream_id)
    assert receipt["outcome"] == "abandoned" and 0 < receipt["outputTokens"] < 900


async def test_a_reader_who_comes_back_in_time_saves_the_stream(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n150-ms2", on_disconnect="stop")
    for _ in range(5):
        reader = await turns.streaming.attach(stream_id, after=0)
        reader.leave()
        await asyncio.sleep(0.02)
    assert (await turns.read(stream_id))[-1].json()["receipt"]["outcome"] == "completed"


# ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_without_credits_nothing_is_kept_and_the_id_stays_free(tmp_path: Path, engine: Engine) -> None:
    async with rig(tmp_path, engine) as turns:
        session = await turns.session()
        with pytest.raises(InsufficientCredits):
            await turns.ask(session, "fake-n5", proposed=ID)
        assert (await turns.chat.get(session, user_id=USER)).messages == []
        assert turns.provider.prompts == []
        await turns.grant(1)
        assert (await turns.read(await turns.ask(session, "fake-n5", proposed=ID)))[-1].event == "done"


async def test_the_stream_ends_at_exactly_the_last_paid_token(tmp_path: Path, engine: Engine) -> None:
    async with rig(tmp_path, engine) as turns:
        cost = await turns.accounting.prices.calculate("fake", Usage(input_tokens=2, output_tokens=130))
        await turns.grant(cost / MICRO)
        events = await turns.read(await turns.ask(await turns.session(), "fake-n500-nousage"))
        done = events[-1].json()
        assert (done["finishReason"], done["status"]) == ("credit_limit", "incomplete")
        assert done["receipt"]["outputTokens"] == tokens_of(events) == 130
        assert await balance(turns) == (0, 0)


async def test_a_long_answer_is_paid_slice_by_slice(turns: Rig, session: SessionId) -> None:
    events = await turns.read(await turns.ask(session, "fake-n400"))
    opening, receipt = events[0].json(), events[-1].json()["receipt"]
    assert receipt["outputTokens"] == 400
    assert opening["reservedCredits"] < receipt["chargedCredits"] <= receipt["reservedCredits"]


async def test_the_turns_own_limit_ends_it_as_length(turns: Rig, session: SessionId) -> None:
    events = await turns.read(await turns.ask(session, "fake-n400", output_tokens_max=60))
    assert events[-1].json()["finishReason"] == "length"
    assert tokens_of(events) == 60


class Faulty:
    """The real ledger behind a line that the test cuts: before the call arrives, or before its answer does."""

    def __init__(self) -> None:
        self.real: Any = None
        self.down: set[str] = set()
        self.mute: set[str] = set()
        self.calls: list[str] = []

    async def _call(self, name: str, **arguments: Any) -> Any:
        self.calls.append(name)
        if name in self.down:
            raise Unavailable
        answer = await getattr(self.real, name)(**arguments)
        if name in self.mute:
            self.mute.discard(name)
            raise Unavailable("the answer was lost")
        return answer

    async def reserve(self, **arguments: Any) -> Slice:
        return await self._call("reserve", **arguments)  # type: ignore[no-any-return]

    async def extend(self, **arguments: Any) -> Slice:
        return await self._call("extend", **arguments)  # type: ignore[no-any-return]

    async def settle(self, **arguments: Any) -> Settlement:
        return await self._call("settle", **arguments)  # type: ignore[no-any-return]

    async def void(self, **arguments: Any) -> Settlement | None:
        return await self._call("void", **arguments)  # type: ignore[no-any-return]


@pytest.fixture
async def faulty(tmp_path: Path, engine: Engine) -> AsyncIterator[tuple[Rig, Faulty]]:
    ledger = Faulty()
    async with rig(tmp_path, engine, ledger=ledger) as made:
        ledger.real = made.accounting
        await made.grant(10)
        yield made, ledger


async def test_accounting_down_before_the_stream_leaves_nothing_behind(faulty: tuple[Rig, Faulty]) -> None:
    turns, ledger = faulty
    session = await turns.session()
    ledger.down = {"reserve", "void"}
    with pytest.raises(Unavailable):
        await turns.ask(session, "fake-n5", proposed=ID)
    assert (await turns.chat.get(session, user_id=USER)).messages == []
    ledger.down = set()
    assert (await turns.read(await turns.ask(session, "fake-n5", proposed=ID)))[-1].event == "done"


async def test_a_reservation_whose_answer_was_lost_is_returned(faulty: tuple[Rig, Faulty]) -> None:
    turns, ledger = faulty
    ledger.mute = {"reserve"}
    with pytest.raises(Unavailable):
        await turns.ask(await turns.session(), "fake-n5")
    assert await balance(turns) == (10 * MICRO, 0)


async def test_a_voided_id_never_streams_for_free(faulty: tuple[Rig, Faulty], monkeypatch: pytest.MonkeyPatch) -> None:
    turns, ledger = faulty
    monkeypatch.setattr(undoing, "RETURN_SECONDS_MAX", 0)
    session = await turns.session()
    ledger.mute = {"reserve"}
    with pytest.raises(Unavailable):
        await turns.ask(session, "fake-n5", proposed=ID)
    while (await balance(turns))[1]:
        await asyncio.sleep(0.01)
    with pytest.raises(Conflict):
        await turns.ask(session, "fake-n5", proposed=ID)
    assert turns.provider.prompts == []


async def test_accounting_down_at_the_end_leaves_the_settlement_pending_and_settles_once_after(
    faulty: tuple[Rig, Faulty],
) -> None:
    turns, ledger = faulty
    stream_id = await turns.ask(await turns.session(), "fake-n5")
    ledger.down = {"settle"}
    events = await turns.read(stream_id)
    assert events[-1].json()["receipt"]["settlement"] == "pending"
    assert events[-1].json()["receipt"]["chargedCredits"] is None
    ledger.down = set()
    await turns.ended(stream_id)
    assert await turns.streaming.sweep() == 1
    assert await turns.streaming.sweep() == 0
    price = await turns.accounting.prices.calculate("fake", Usage(input_tokens=2, output_tokens=5))
    assert await balance(turns) == (10 * MICRO - price, 0)
    assert (await turns.receipt(stream_id))["settlement"] == "settled"


async def test_a_settlement_whose_answer_was_lost_is_charged_once(faulty: tuple[Rig, Faulty]) -> None:
    turns, ledger = faulty
    ledger.mute = {"settle"}
    stream_id = await turns.ask(await turns.session(), "fake-n5")
    await turns.read(stream_id)
    await turns.ended(stream_id)
    assert await turns.streaming.sweep() == 1
    price = await turns.accounting.prices.calculate("fake", Usage(input_tokens=2, output_tokens=5))
    assert await balance(turns) == (10 * MICRO - price, 0)


async def test_an_extension_is_repeated_until_it_is_answered(faulty: tuple[Rig, Faulty]) -> None:
    turns, ledger = faulty
    ledger.down = {"extend"}
    stream_id = await turns.ask(await turns.session(), "fake-n200-ms1")
    await asyncio.sleep(0.5)
    ledger.down = set()
    events = await turns.read(stream_id)
    assert events[-1].json()["receipt"]["outcome"] == "completed"
    assert tokens_of(events) == 200


async def test_unpaid_tokens_are_never_logged(faulty: tuple[Rig, Faulty], monkeypatch: pytest.MonkeyPatch) -> None:
    turns, ledger = faulty
    monkeypatch.setattr("parshall.chat.credit.EXTEND_SECONDS_MAX", 0.3)
    ledger.down = {"extend"}
    events = await turns.read(await turns.ask(await turns.session(), "fake-n200"))
    assert events[-1].json()["code"] == "accounting_unavailable"
    assert tokens_of(events) == LIMITS.slice_tokens


async def test_what_the_log_could_not_keep_is_neither_charged_nor_stored(
    turns: Rig, session: SessionId, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, appends = turns.log.append, 0

    async def append(lease: Any, frames: Any, *, first_offset: int) -> None:
        nonlocal appends
        appends += 1
        if appends == 6:
            raise LogUnavailable("the disk is full")
        await kept(lease, frames, first_offset=first_offset)

    monkeypatch.setattr(turns.log, "append", append)
    events = await turns.read(await turns.ask(session, "fake-n20-ms1"))
    receipt = events[-1].json()["receipt"]
    assert events[-1].json()["code"] == "log_unavailable"
    assert receipt["outputTokens"] == tokens_of(events) == 4
    assert (await turns.chat.get(session, user_id=USER)).messages[1].content == text_of(events)


# ── Restart ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_whose_process_died_is_adopted_and_settled_from_the_log(tmp_path: Path, engine: Engine) -> None:
    async with rig(tmp_path, engine) as turns:
        await turns.grant(10)
        session = await turns.session()
        stream_id = await turns.ask(session, "fake-n500-ms2")
        await asyncio.sleep(0.1)
        for task in turns.streaming.producers._tasks.values():
            task.cancel()  # as if the process had ended here: nothing is concluded
        await asyncio.sleep(0.05)
        seen, closed = await turns.log.read(stream_id, after=0, limit=512)
        assert not closed
    async with rig(tmp_path, engine) as turns:
        assert await turns.streaming.sweep() == 1
        events = await turns.read(stream_id)
        last = events[-1].json()
        assert (events[-1].event, last["code"], last["retryable"]) == ("error", "interrupted", True)
        assert (last["receipt"]["usageSource"], last["receipt"]["outputTokens"]) == ("log", tokens_of(events))
        assert len(events) == len(seen) + 1
        assert (await turns.chat.get(session, user_id=USER)).messages[1].content == text_of(events) != ""
        price = await turns.accounting.prices.calculate("fake", Usage(input_tokens=2, output_tokens=tokens_of(events)))
        assert await balance(turns) == (10 * MICRO - price, 0)
        assert await turns.streaming.sweep() == 0


@pytest.mark.parametrize("reserved", [False, True])
async def test_a_turn_that_died_before_its_first_event_is_undone(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, reserved: bool
) -> None:
    """The process ends between keeping the record and the first event: nobody knows the id, nothing may remain."""
    async with rig(tmp_path, engine) as turns:
        await turns.grant(10)
        session = await turns.session()

        async def die(stream: Any, prompt: Any, *_: Any, **_more: Any) -> None:
            if reserved:
                await turns.streaming.openings._reserve(stream, prompt)

        monkeypatch.setattr(turns.streaming.openings, "_begin", die)
        await turns.ask(session, "fake-n5", proposed=ID)
        assert (await balance(turns))[1] == 0 or reserved
    async with rig(tmp_path, engine) as turns:
        assert await turns.streaming.sweep() == 0, "too young: it may be opening elsewhere"
        assert await turns.streaming.recover() == 1
        assert await balance(turns) == (10 * MICRO, 0)
        assert (await turns.chat.get(session, user_id=USER)).messages == []
        assert (await turns.read(await turns.ask(session, "fake-n5")))[-1].event == "done"
        assert await turns.streaming.sweep() == 0


async def test_the_sweeper_leaves_streams_that_are_opening_or_running_alone(turns: Rig) -> None:
    await turns.grant(1000)
    sweeping = True

    async def sweep() -> int:
        moved = 0
        while sweeping:
            moved += await turns.streaming.sweep()
            await asyncio.sleep(0)
        return moved

    async def use() -> str:
        events = await turns.read(await turns.ask(await turns.session(), "fake-n5-ms1"))
        outcome: str = events[-1].json()["receipt"]["outcome"]
        return outcome

    sweeper = asyncio.create_task(sweep())
    for _ in range(5):
        assert set(await asyncio.gather(*(use() for _ in range(20)))) == {"completed"}
    sweeping = False
    assert await sweeper == 0


async def test_shutting_down_ends_and_settles_running_streams(tmp_path: Path, engine: Engine) -> None:
    async with rig(tmp_path, engine) as turns:
        await turns.grant(10)
        stream_id = await turns.ask(await turns.session(), "fake-n500-ms2")
        reading = asyncio.create_task(turns.read(stream_id))
        await asyncio.sleep(0.05)
        await turns.streaming.end_producers(drain_seconds=0.05)
        events = await reading
        assert events[-1].json()["code"] == "interrupted"
        assert events[-1].json()["receipt"]["settlement"] == "settled"
        with pytest.raises(Unavailable):
            await turns.ask(await turns.session(), "fake-n1")


async def test_a_short_answer_finishes_within_the_drain_time(tmp_path: Path, engine: Engine) -> None:
    async with rig(tmp_path, engine) as turns:
        await turns.grant(10)
        stream_id = await turns.ask(await turns.session(), "fake-n50-ms2")
        await turns.streaming.end_producers(drain_seconds=5)
        assert (await turns.read(stream_id))[-1].event == "done"


# ── Chat sessions ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_session_in_which_a_stream_is_beginning_is_not_deleted(
    turns: Rig, session: SessionId, engine: Engine
) -> None:
    """The record of the stream is not committed yet when the deletion looks for one."""
    begun, release = threading.Event(), threading.Event()
    at = clock.now()
    stream = Stream(
        id=StreamId(ID), session_id=session, user_id=USER, fingerprint="", requested_model=None, model_id="fake",
        fallback_applied=False, on_disconnect="continue", input_tokens=1, epoch=1, created_at=at,
    )  # fmt: skip
    message = Message(id=new_id(), role="user", content="hello", stream_id=stream.id, tokens=0, created_at=at)

    def record(connection: Connection) -> None:
        store.add_stream(connection, stream)
        store.add_message(connection, session, message)
        begun.set()
        assert release.wait(20)

    recording = asyncio.create_task(turns.streaming.records._database.write(record))
    assert await asyncio.to_thread(begun.wait, 20)
    deleting = asyncio.create_task(turns.chat.delete(session, user_id=USER))
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(one_waits, engine):
            await asyncio.sleep(0.01)
    release.set()
    await recording
    with pytest.raises(Unavailable, match="being recovered"):
        await deleting
    assert [m.content for m in (await turns.chat.get(session, user_id=USER)).messages] == ["hello"]


def one_waits(engine: Engine) -> bool:
    """Whether a transaction waits for another; on SQLite one always does, in the queue of the one writer."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    if engine.name == "sqlite":
        return True
    return engine.look("parshall.chat", lambda c: c.exec_driver_sql(waiting).first()) is not None


async def test_deleting_a_session_stops_and_settles_its_stream_first(turns: Rig, session: SessionId) -> None:
    stream_id = await turns.ask(session, "fake-n500-ms2")
    await asyncio.sleep(0.05)
    await turns.chat.delete(session, user_id=USER)
    assert (await turns.receipt(stream_id))["settlement"] == "settled"
    assert (await balance(turns))[1] == 0
    with pytest.raises(NotFound):
        await turns.chat.get(session, user_id=USER)


async def test_an_acknowledgement_compares_with_the_log_and_ends_a_running_stream(
    turns: Rig, session: SessionId
) -> None:
    stream_id = await turns.ask(session, "fake-n3")
    await turns.read(stream_id)
    whole = Script(n=3).text()
    for text, expected in ((whole, "exact"), (whole[:5], "prefix"), ("made up", "different")):
        done = await turns.chat.acknowledge(session, user_id=USER, named=stream_id, text=text)
        assert done.comparison == expected
    running = await turns.ask(session, "fake-n500-ms2")
    done = await turns.chat.acknowledge(session, user_id=USER, named=running, text="")
    assert done.stream.ending is not None and done.stream.ending.outcome.value == "stopped"


async def test_what_pays_is_what_settles(turns: Rig, session: SessionId) -> None:
    """The ledger's own receipt and chat's agree."""
    stream_id = await turns.ask(session, "fake-n9")
    await turns.read(stream_id)
    stream = await turns.ended(stream_id)
    kept = await turns.accounting.receipt(stream_id)
    assert stream.settlement is not None and kept.settlement == stream.settlement
    assert isinstance(stream.settlement.charged, int) and stream.settlement.charged > Credits(0)
    assert stream.ending is not None and stream.ending.usage_source is UsageSource.PROVIDER
