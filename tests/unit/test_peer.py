"""Calls between services: repeated where that is safe, given up in time, and never made of what is away."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Request
from tests import migrated
from tests.apart import Signed, Wire, served

from parshall.accounting import remote
from parshall.accounting.http_streams import router as streams
from parshall.accounting.pricing import Price
from parshall.accounting.remote import RemoteAccounting, RemotePrices
from parshall.accounting.service import Accounting
from parshall.kernel import clock, peer, trace
from parshall.kernel.clock import DAY
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.deadlines import seconds_left
from parshall.kernel.errors import Conflict, InsufficientCredits, Unauthenticated, Unavailable
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Usage, UsageSource
from parshall.kernel.peer import Peer, Refusal

ANN = UserId("a" * 32)
ONE = StreamId("stream-1800000000-00000001")
OPENING: dict[str, Any] = {
    "stream_id": ONE,
    "user_id": ANN,
    "model_id": "any",
    "input_tokens": 10,
    "output_tokens_max": 100,
    "slice_tokens": 20,
}
LOSSES = [0, 1, 2]


class Nobody:
    async def resolve(self, who: str) -> UserId:
        raise AssertionError("an id needs no look-up")


@asynccontextmanager
async def books(folder: Path) -> AsyncIterator[tuple[Accounting, RemoteAccounting, Wire]]:
    """A ledger, the same over HTTP, and the wire between."""
    database = migrated.opened(folder / "accounting.db", "parshall.accounting", synchronous="NORMAL")
    accounting = Accounting(database, directory=Nobody(), clock=clock.now, reservation_seconds=60)
    price = Price(input=MICRO, cached_input=MICRO, output=2 * MICRO, reasoning=2 * MICRO)
    await accounting.prices.put("*", price, set_by="test")
    await accounting.allocate(ANN, Credits(1000), expires_at=clock.now() + DAY, granted_by="root")
    async with AsyncExitStack() as stack:
        wire = Wire(await stack.enter_async_context(served(streams, accounting=accounting)))
        ledger = RemoteAccounting(
            Peer("accounting", await stack.enter_async_context(wire), tokens=Signed()), clock=clock.now
        )
        stack.push_async_callback(ledger.close)
        yield accounting, ledger, wire
    await accounting.close()


# ── Lost answers ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lost", LOSSES)
async def test_whatever_answer_is_lost_each_step_is_done_once(tmp_path: Path, lost: int) -> None:
    async with books(tmp_path) as (accounting, ledger, wire):
        wire.lose = lost
        first = await ledger.reserve(**OPENING)
        wire.lose = lost
        more = await ledger.extend(stream_id=ONE, step=1, output_tokens=20)
        wire.lose = lost
        ended = await ledger.settle(
            stream_id=ONE, usage=Usage(input_tokens=10, output_tokens=5), source=UsageSource.LOG, outcome="completed"
        )
        kinds = [entry.kind.value for entry in await accounting.statement(ANN, after=0, limit=100)]
        assert (first.reserved, more.reserved, ended.charged) == (50, 90, 20)
        assert kinds == ["grant", "reserve", "reserve", "charge", "release"]
        assert wire.requests == 3 * (1 + lost)


async def test_a_lost_answer_to_giving_up_gives_up_once(tmp_path: Path) -> None:
    async with books(tmp_path) as (accounting, ledger, wire):
        await ledger.reserve(**OPENING)
        wire.lose = 1
        ended = await ledger.void(stream_id=ONE)
        assert ended is not None and (ended.returned, ended.charged) == (50, 0)
        assert (await accounting.balance(ANN)).available == 1000


async def test_a_refusal_arrives_with_its_figures_and_is_not_repeated(tmp_path: Path) -> None:
    async with books(tmp_path) as (_, ledger, wire):
        with pytest.raises(InsufficientCredits) as refused:
            await ledger.reserve(**OPENING | {"input_tokens": 10_000})
        assert refused.value.extra == {"requiredCredits": 0.010002, "availableCredits": 0.001, "reservedCredits": 0}
        assert wire.requests == 1


# ── Away ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_away_is_unavailable_at_once_and_comes_back_by_itself(tmp_path: Path) -> None:
    async with books(tmp_path) as (_, ledger, wire):
        wire.cut()
        for _ in range(2):
            with pytest.raises(Unavailable) as refused:
                await ledger.reserve(**OPENING)
            assert refused.value.headers["Retry-After"] == "1"
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(Unavailable):
                await ledger.reserve(**OPENING)
        assert time.monotonic() - began < 0.5, "nobody waits for what is known to be away"
        wire.is_cut = False
        await asyncio.sleep(peer.OPEN_SECONDS)
        assert (await ledger.reserve(**OPENING)).reserved == 50


async def test_what_hangs_is_given_up_within_the_time_of_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "CALL_SECONDS_MAX", 0.5)
    monkeypatch.setattr(peer, "ATTEMPT_SECONDS_MAX", 0.2)
    async with books(tmp_path) as (accounting, ledger, wire):
        wire.delay_seconds = 30
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await ledger.reserve(**OPENING)
        assert time.monotonic() - began < 1
        assert wire.requests == 2
        assert (await accounting.balance(ANN)).reserved == 50, "it was done, and only the answer was late"
        wire.delay_seconds = 0
        assert (await ledger.reserve(**OPENING)).reserved == 50


def test_one_success_closes_the_breaker_and_failures_apart_do_not_open_it() -> None:
    breaker = peer.Breaker()
    for _ in range(3 * peer.FAILURES_MAX):
        breaker.record(ok=False)
        breaker.record(ok=True)
    assert breaker.lets_through()
    for _ in range(peer.FAILURES_MAX):
        breaker.record(ok=False)
    assert not breaker.lets_through()
    breaker.record(ok=True)
    assert breaker.lets_through()


# ── What goes along ─────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def answering(work: Callable[[Request], Any]) -> AsyncIterator[Peer]:
    router = APIRouter(prefix="/api")

    @router.get("/asked")
    async def asked(request: Request) -> Any:
        return await work(request)

    async with served(router) as url:
        made = Peer("other", url)
        yield made
        await made.close()


async def test_a_call_carries_the_trace_and_how_long_it_is_waited_for() -> None:
    async def work(request: Request) -> dict[str, Any]:
        return {"headers": dict(request.headers), "left": seconds_left(60)}

    trace_id = trace.begin("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    async with answering(work) as other:
        answer = await other.call("GET", "/api/asked", dict)
    assert trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert re.fullmatch(rf"00-{trace_id}-[0-9a-f]{{16}}-01", answer["headers"]["traceparent"])
    assert 1 < answer["left"] <= float(answer["headers"]["x-answer-within"]) <= peer.ATTEMPT_SECONDS_MAX


@pytest.mark.parametrize(
    "header",
    ["", "x", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01"],
)
def test_a_malformed_trace_is_replaced_and_never_passed_on(header: str) -> None:
    made = trace.begin(header)
    assert re.fullmatch(r"[0-9a-f]{32}", made) and made not in header
    assert trace.traceparent().startswith(f"00-{made}-")


async def test_work_that_nobody_waits_for_is_given_up_by_the_service_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "ATTEMPT_SECONDS_MAX", 0.2)
    monkeypatch.setattr(peer, "PAUSES_SECONDS", ())
    given_up = asyncio.Event()

    async def work(_request: Request) -> dict[str, Any]:
        try:
            await asyncio.sleep(30)
        finally:
            given_up.set()
        return {}

    async with answering(work) as other:
        with pytest.raises(Unavailable):
            await other.call("GET", "/api/asked", dict)
        async with asyncio.timeout(5):
            await given_up.wait()


async def test_a_token_that_is_not_taken_is_replaced_once() -> None:
    """The key that signed it may have been taken back."""

    class Fading:
        def __init__(self) -> None:
            self.left = ["old", "new"]

        async def token(self) -> str:
            return self.left[0]

        def refused(self, token: str) -> None:
            assert self.left.pop(0) == token

    async def work(request: Request) -> dict[str, Any]:
        if request.headers["authorization"] == "Bearer old":
            raise Unauthenticated
        return {"as": request.headers["authorization"]}

    async with answering(work) as other:
        other.tokens = Fading()
        assert await other.call("GET", "/api/asked", dict) == {"as": "Bearer new"}


async def test_prices_are_remembered_and_shown_on_while_accounting_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PRICES_SECONDS_MAX", 0)
    router, rates = APIRouter(prefix="/api"), {"cachedInput": 0.5, "output": 2, "reasoning": 2.000001}

    @router.get("/prices")
    async def prices() -> dict[str, Any]:
        terms = [("any", 1, "2020"), ("any", 3, "2021"), ("any", 9, "2999"), ("*", 7, "2020")]
        listed = [{"modelId": m, "input": i, "effectiveFrom": f"{y}-01-01T00:00:00.000000Z"} for m, i, y in terms]
        return {"prices": [each | rates for each in listed]}

    async with served(router) as url, Wire(url) as wire_url:
        accounting = Peer("accounting", wire_url)
        known = RemotePrices(accounting, clock=clock.now)
        found = [(await known.in_force(model)).price.input for model in ("any", "other")]
        assert found == [3 * MICRO, 7 * MICRO]
        assert (await known.in_force("any")).price.reasoning == 2 * MICRO + 1
        await accounting.close()
    assert (await known.in_force("any")).price.input == 3 * MICRO
    await accounting.close()


async def test_a_refusal_that_nobody_expects_is_a_fault_between_services_and_tells_the_user_nothing() -> None:
    async def work(_request: Request) -> dict[str, Any]:
        raise Conflict("inner words")

    async with answering(work) as other:
        with pytest.raises(Refusal) as refused:
            await other.call("GET", "/api/asked", dict)
    assert isinstance(refused.value.error(Conflict), Conflict)
    unexpected = refused.value.error(InsufficientCredits)
    assert isinstance(unexpected, Unavailable) and "inner" not in json.dumps([unexpected.detail, unexpected.extra])


async def test_an_answer_in_another_form_is_unavailable() -> None:
    async def work(_request: Request) -> list[int]:
        return [1]

    async with answering(work) as other:
        with pytest.raises(Unavailable):
            await other.call("GET", "/api/asked", dict)
