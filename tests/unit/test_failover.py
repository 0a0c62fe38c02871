"""The laws of a failure before the first token: asked again within bounds, then the next model, and one charge."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.postgres import Engine
from tests.scripted import Script
from tests.turns import ALICE, LIMITS, USER, Rig, rig, text_of, tokens_of

from parshall.accounting.pricing import Price
from parshall.chat.catalog import Catalog
from parshall.chat.charge import Counted, believable, charged
from parshall.chat.failover import Retries
from parshall.chat.frames import EVENT_CHARACTERS_MAX, beginning, joined, text_frame
from parshall.chat.model import Outcome
from parshall.chat.ports import ProviderFailure, TextDelta
from parshall.chat.providers.refusal import pause_seconds
from parshall.kernel.credits import MICRO
from parshall.kernel.errors import Unavailable
from parshall.kernel.metering import Slice, Usage, UsageSource
from parshall.kernel.sse import Event

SPARE = "fake-n4"
DEAR = "fake-n6"
QUICK = Retries(times_max=2, pause_seconds_min=0.01, pause_seconds_max=0.5)
FAST = replace(LIMITS, retries=QUICK)


@pytest.fixture
async def turns(tmp_path: Path, engine: Engine) -> AsyncIterator[Rig]:
    async with rig(tmp_path, engine, limits=FAST, fallbacks=(DEAR, SPARE)) as made:
        await made.grant(10)
        rate = 50 * MICRO * 1_000_000  # 50 credits a token: more than there is
        price = Price(input=rate, cached_input=rate, output=rate, reasoning=rate)
        await made.accounting.prices.put(DEAR, price, set_by="test")
        price = Price(input=100 * MICRO, cached_input=MICRO, output=7 * MICRO, reasoning=7 * MICRO)
        await made.accounting.prices.put(SPARE, price, set_by="test")
        yield made


async def asked(turns: Rig, model_id: str, message: str = "hello") -> list[Event]:
    return await turns.read(await turns.ask(await turns.session(), message, model_id=model_id))


def models_of(events: list[Event]) -> list[tuple[str, bool]]:
    data = [event.json() for event in events if event.event == "model"]
    return [(each["model"], each["fallbackApplied"]) for each in data]


async def nothing_is_held(turns: Rig) -> None:
    assert (await turns.accounting.balance(USER)).reserved == 0


# ── Asked again ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_model_that_is_busy_for_a_moment_answers_as_if_it_had_not_been(turns: Rig) -> None:
    events = await asked(turns, "fake", "fake-n7-busy2")
    assert [event.event for event in events] == ["session", "model", *["chunk"] * 7, "done"]
    assert models_of(events) == [("fake", False)]
    assert len(turns.provider.prompts) == 3
    await nothing_is_held(turns)


async def test_a_model_that_stays_busy_is_not_asked_for_ever(tmp_path: Path, engine: Engine) -> None:
    async with rig(tmp_path, engine, limits=FAST) as turns:
        await turns.grant(1)
        events = await asked(turns, "fake-status503")
        assert [event.event for event in events] == ["session", "model", "error"]
        assert (events[-1].json()["code"], events[-1].json()["retryable"]) == ("provider_busy", True)
        assert events[-1].json()["receipt"]["chargedCredits"] == 0
        assert len(turns.provider.prompts) == 1 + QUICK.times_max
        await nothing_is_held(turns)


@pytest.mark.parametrize("script", ["fake-die0", "fake-garbage0", "fake-status400"])
async def test_what_may_have_been_billed_or_would_fail_alike_is_asked_once(
    tmp_path: Path, engine: Engine, script: str
) -> None:
    async with rig(tmp_path, engine, limits=FAST) as turns:
        await turns.grant(1)
        assert (await asked(turns, script))[-1].event == "error"
        assert len(turns.provider.prompts) == 1


async def test_a_stop_ends_the_pause(tmp_path: Path, engine: Engine) -> None:
    slow = Retries(times_max=2, pause_seconds_min=30, pause_seconds_max=60)
    limits = replace(
        LIMITS,
        output_tokens_max=100,
        slice_tokens=50,
        stream_seconds_max=60,
        lease_seconds=5,
        grace_seconds=5,
        retries=slow,
    )
    async with rig(tmp_path, engine, limits=limits) as turns:
        await turns.grant(1)
        stream_id = await turns.ask(await turns.session(), "hello", model_id="fake-status503")
        await asyncio.sleep(0.05)
        began = time.monotonic()
        ended = await turns.streaming.stop(await turns.streaming.find(stream_id, caller=ALICE))
        assert ended.ending is not None and ended.ending.outcome is Outcome.STOPPED
        assert time.monotonic() - began < 5
        await nothing_is_held(turns)


failures = st.builds(
    ProviderFailure,
    code=st.sampled_from(["provider_busy", "provider_unreachable"]),
    pause_seconds=st.none() | st.floats(0, 10**9),
)


@given(failures, st.integers(1, 12), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_bounded_and_never_shorter_than_what_the_provider_asks_for(
    failure: ProviderFailure, count: int, chance: float
) -> None:
    pause = Retries(times_max=5, pause_seconds_max=10).pause(failure, asked=count, chance=chance)
    wanted = failure.pause_seconds or 0
    if pause is None:
        assert count > 5 or wanted > 10
    else:
        assert count <= 5 and wanted <= pause <= 10


def test_pauses_of_those_who_failed_together_differ() -> None:
    failure = ProviderFailure(code="provider_busy", pause_seconds=2)
    dice = random.Random(7)
    pauses = {Retries().pause(failure, asked=1, chance=dice.random()) for _ in range(50)}
    assert len(pauses) == 50


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3),
        (" 0 ", 0),
        ("Tue, 24 Nov 2026 12:00:30 GMT", 30),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0),
        ("-5", None),
        ("soon", None),
        ("9" * 50, None),
        ("٣", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date_and_nonsense_is_none(header: str | None, seconds: int | None) -> None:
    assert pause_seconds(header, now=datetime(2026, 11, 24, 12, tzinfo=UTC)) == seconds


# ── Another model ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("script", ["fake-status503", "fake-status429-after3600", "fake-die0", "fake-status404"])
async def test_a_model_that_fails_before_its_first_token_is_stood_in_for(turns: Rig, script: str) -> None:
    events = await asked(turns, script)
    assert [event.event for event in events] == ["session", "model", "model", *["chunk"] * 4, "done"]
    assert models_of(events) == [(script, False), (SPARE, True)]
    assert [event.id for event in events] == [str(offset) for offset in range(1, 9)]
    receipt = events[-1].json()["receipt"]
    assert (receipt["modelId"], receipt["outputTokens"], receipt["settlement"]) == (SPARE, 4, "settled")
    price = await turns.accounting.prices.calculate(SPARE, Usage(input_tokens=2, output_tokens=4))
    assert receipt["chargedCredits"] * MICRO == pytest.approx(price), "at the price of the model that answered"
    assert receipt["priceVersion"].startswith(SPARE)
    await nothing_is_held(turns)


async def test_the_record_names_the_model_that_answered(turns: Rig) -> None:
    stream_id = await turns.ask(await turns.session(), "hello", model_id="fake-status503")
    stream = await turns.ended(stream_id)
    assert (stream.requested_model, stream.model_id, stream.fallback_applied) == ("fake-status503", SPARE, True)
    kept = await turns.accounting.receipt(stream_id)
    assert (kept.model_id, kept.reserved >= (kept.charged or 0) > 0) == (SPARE, True)


async def test_what_was_delivered_is_told_rightly_behind_two_model_events(turns: Rig) -> None:
    receipt = (await asked(turns, "fake-status503"))[-1].json()["receipt"]
    assert receipt["deliveredTokens"] == receipt["outputTokens"] == 4


async def test_a_stand_in_that_cannot_be_paid_for_is_passed_over(turns: Rig) -> None:
    await asked(turns, "fake-status503")
    asked_for = [prompt.model_id for prompt in turns.provider.prompts]
    assert asked_for == ["fake-status503"] * 3 + [SPARE], "the dear one comes first in the chain"


async def test_where_no_stand_in_is_able_the_first_failure_stands(turns: Rig) -> None:
    events = await asked(turns, "fake-status503", "fake-status503")  # every model plays this
    assert models_of(events) == [("fake-status503", False), (SPARE, True)]
    assert events[-1].json()["code"] == "provider_busy"
    assert events[-1].json()["receipt"]["chargedCredits"] == 0
    assert (await turns.accounting.balance(USER)).available == 10 * MICRO
    await nothing_is_held(turns)


async def test_a_request_that_was_refused_is_not_asked_around(turns: Rig) -> None:
    events = await asked(turns, "fake-status400")
    assert [event.event for event in events] == ["session", "model", "error"]
    assert events[-1].json()["code"] == "provider_refused"


async def test_nobody_finishes_what_another_model_has_begun(turns: Rig) -> None:
    events = await asked(turns, "fake", "fake-n9-die2")
    assert models_of(events) == [("fake", False)]
    assert events[-1].event == "error" and text_of(events) == Script(n=2).text()
    assert events[-1].json()["receipt"]["outputTokens"] == 2


async def test_without_accounting_the_first_failure_stands_and_nothing_stays_held(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path, engine, limits=FAST, fallbacks=(SPARE,)) as turns:
        await turns.grant(10)

        async def down(**_: Any) -> Slice:
            raise Unavailable

        monkeypatch.setattr(turns.accounting, "reprice", down)
        events = await asked(turns, "fake-status503")
        assert [event.event for event in events] == ["session", "model", "error"]
        assert events[-1].json()["code"] == "provider_busy"
        await nothing_is_held(turns)


@pytest.mark.parametrize("step", ["ledger", "record", "log"])
async def test_a_process_that_dies_while_handing_over_charges_nothing(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whichever of ledger, record and log was the last that was written, the log holds no token."""
    async with rig(tmp_path, engine, limits=FAST, fallbacks=(SPARE,)) as turns:
        await turns.grant(10)
        session, dead = await turns.session(), asyncio.Event()
        owner, name = {
            "ledger": (turns.streaming.records, "move"),
            "record": (turns.log, "append"),
            "log": (turns.provider, "stream"),
        }[step]
        real = getattr(owner, name)

        async def die(*_: Any, **__: Any) -> None:
            dead.set()
            await asyncio.Event().wait()

        async def stream(prompt: Any, take: Any) -> None:
            await (real(prompt, take) if prompt.model_id != SPARE else die())

        async def append(lease: Any, frames: Any, *, first_offset: int) -> None:
            await (die() if first_offset == 3 else real(lease, frames, first_offset=first_offset))

        monkeypatch.setattr(owner, name, {"move": die, "append": append, "stream": stream}[name])
        stream_id = await turns.ask(session, "hello", model_id="fake-status503")
        async with asyncio.timeout(10):
            await dead.wait()
        for task in turns.streaming.producers._tasks.values():
            task.cancel()
        await asyncio.sleep(0.05)
        monkeypatch.undo()
    async with rig(tmp_path, engine, limits=FAST) as turns:
        assert await turns.streaming.recover() == 1
        events = await turns.read(stream_id)
        assert (events[-1].event, events[-1].json()["code"]) == ("error", "interrupted")
        assert len(models_of(events)) == (2 if step == "log" else 1)
        assert (await turns.accounting.balance(USER)).available == 10 * MICRO
        await nothing_is_held(turns)


async def test_stand_ins_are_tried_in_their_order_and_each_once(turns: Rig) -> None:
    catalog = Catalog([turns.provider], fallbacks=("no such", "fake-n1", "fake-n2"))
    tried: set[str] = set()
    found: list[str] = []
    while (choice := await catalog.stand_in(tried)) is not None:
        assert choice.fallback_applied
        tried.add(choice.card.id)
        found.append(choice.card.id)
    assert found == ["fake-n1", "fake-n2"]


# ── What a provider says it used ────────────────────────────────────────────────────────────────────────────────────

COUNTED = Counted(input_tokens=20, output_tokens=10, reasoning_tokens=0, text_bytes=60, output_tokens_max=1000)


@pytest.mark.parametrize(
    ("usage", "can_be"),
    [
        (Usage(input_tokens=20, output_tokens=10), True),
        (Usage(input_tokens=1, output_tokens=76), True),
        (Usage(input_tokens=1, output_tokens=77), False),
        (Usage(input_tokens=1, output_tokens=576, reasoning_tokens=500), True),
        (Usage(input_tokens=1, output_tokens=2001, reasoning_tokens=2000), False),
        (Usage(input_tokens=0, output_tokens=10), False),
        (Usage(input_tokens=20, output_tokens=0), False),
        (Usage(input_tokens=1064, output_tokens=10), True),
        (Usage(input_tokens=1065, output_tokens=10), False),
    ],
)
def test_a_report_counts_only_where_it_can_be_true(usage: Usage, can_be: bool) -> None:
    assert believable(usage, COUNTED) == can_be
    expected = (usage, UsageSource.PROVIDER) if can_be else (Usage(input_tokens=20, output_tokens=10), "counted")
    assert charged(Outcome.COMPLETED, usage, COUNTED) == expected
    assert charged(Outcome.STOPPED, usage, COUNTED)[1] == "counted", "it is not about what arrived"


def test_an_empty_answer_may_be_reported_as_such() -> None:
    nothing = Counted(input_tokens=20, output_tokens=0, reasoning_tokens=0, text_bytes=0, output_tokens_max=1000)
    assert believable(Usage(input_tokens=20, output_tokens=0), nothing)
    assert charged(Outcome.PROVIDER_ERROR, None, nothing) == (Usage(), UsageSource.COUNTED)


# ── Large events ────────────────────────────────────────────────────────────────────────────────────────────────────

LINE_BYTES_MAX = 65_535
"""Longer lines are an error to Go's bufio.Scanner and asyncio's StreamReader; aiohttp takes twice as much."""

pieces = st.builds(
    TextDelta,
    st.text(max_size=30) | st.integers(0, 3 * EVENT_CHARACTERS_MAX).map("𝄞".__mul__),
    st.integers(0, 20_000),
    st.booleans(),
)


@given(st.lists(pieces, min_size=1, max_size=8))
def test_no_event_is_too_large_and_together_they_say_the_same(deltas: list[TextDelta]) -> None:
    events = joined(deltas)
    assert all(len(event.text) <= EVENT_CHARACTERS_MAX and event.tokens >= 0 for event in events)
    assert all(len(text_frame(event, 131_072, 10_000_000)) <= LINE_BYTES_MAX for event in events)
    for kind in (False, True):
        assert "".join(e.text for e in events if e.reasoning is kind) == "".join(
            d.text for d in deltas if d.reasoning is kind
        )
        assert sum(e.tokens for e in events if e.reasoning is kind) == sum(
            d.tokens for d in deltas if d.reasoning is kind
        )


@given(st.text(min_size=1, max_size=99), st.integers(1, 99), st.data())
def test_the_beginning_of_a_delta_holds_no_more_than_its_share(text: str, tokens: int, data: Any) -> None:
    paid = data.draw(st.integers(0, tokens - 1))
    part = beginning(TextDelta(text, tokens), paid)
    assert text.startswith(part.text) and part.tokens == paid
    assert len(part.text) * tokens <= len(text) * paid


async def test_an_answer_in_one_piece_is_paid_for_in_one_step_and_logged_in_several(
    tmp_path: Path, engine: Engine
) -> None:
    limits = replace(
        LIMITS, output_tokens_max=1024, slice_tokens=5, stream_seconds_max=20, lease_seconds=5, grace_seconds=1
    )
    async with rig(tmp_path, engine, limits=limits) as turns:
        await turns.grant(1000)
        events = await asked(turns, "fake-n1-big5-nousage")
        assert (events[-1].event, len(text_of(events)), tokens_of(events)) == ("done", 5006, 1001)
        assert (await turns.accounting.receipt(events[0].json()["streamingSessionId"])).step < 5


async def test_an_answer_in_one_piece_ends_at_the_last_token_that_its_limit_allows(turns: Rig) -> None:
    stream_id = await turns.ask(await turns.session(), "fake-n1-big5", output_tokens_max=101)
    events = await turns.read(stream_id)
    assert (events[-1].json()["finishReason"], tokens_of(events)) == ("length", 101)
    assert text_of(events) == (Script(n=1).text() + "long " * 1000)[: 6 + 500]
