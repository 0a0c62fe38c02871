"""Laws of observing inside one process: for how long, by whom, and how it ends."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.requests import Request
from starlette.types import Message, Scope
from tests.postgres import Engine
from tests.turns import Rig, rig

from parshall.chat import observer as observing
from parshall.chat.http_supervision import ObserveResponse
from parshall.chat.observations import ObservationEnd
from parshall.chat.observer import Observer
from parshall.chat.supervision import REPLAY_SECONDS, Person, SessionNotActive, Supervision
from parshall.kernel import clock, sse
from parshall.kernel.clock import SECOND
from parshall.kernel.errors import Forbidden, Unavailable
from parshall.kernel.ids import UserId
from parshall.kernel.tokens import Principal, Role

BOSS = Principal(user_id=UserId("b" * 32), username="boss", email="boss@example.org", role=Role.SUPERVISOR)


class Staff:
    """The people of a company, whose roles change."""

    def __init__(self) -> None:
        self.role: Role | None = Role.SUPERVISOR
        self.away = False

    async def find(self, who: str) -> Person | None:
        if self.away:
            raise Unavailable
        return None if self.role is None else Person(id=UserId(who), username=who, email=who, role=self.role)

    async def search(self, text: str, *, limit: int) -> list[Person]:
        raise AssertionError(f"nobody looks for {text}, {limit}")


class Desk:
    """A supervisor's desk, with a clock that can be turned."""

    def __init__(self, world: Rig) -> None:
        self.world = world
        self.staff = Staff()
        self.late = 0
        self.supervision = Supervision(
            world.chat._database,
            chat=world.chat,
            stream_log=world.log,
            people=self.staff,
            clock=lambda: clock.now() + self.late,
        )


@pytest.fixture
async def desk(tmp_path: Path, engine: Engine) -> AsyncIterator[Desk]:
    async with rig(tmp_path, engine) as world:
        await world.grant(100)
        yield Desk(world)


async def seen_by(observer: Observer) -> list[str]:
    """The kinds of all events that an observer is sent."""
    try:
        async with asyncio.timeout(20):
            return [event.event async for chunk in observer for event in sse.parse([chunk])]
    finally:
        observer.leave()


async def test_an_ended_stream_can_be_observed_for_a_minute(desk: Desk) -> None:
    session = await desk.world.session()
    stream = await desk.world.ended(await desk.world.ask(session, "fake-n3"))
    assert stream.ending is not None
    desk.late = (REPLAY_SECONDS - 5) * SECOND
    _, observer = await desk.supervision.observe(session, by=BOSS, after=0)
    assert (await seen_by(observer))[-2:] == ["done", "history-end"]
    assert observer.end is ObservationEnd.STREAM_ENDED
    desk.late = REPLAY_SECONDS * SECOND
    with pytest.raises(SessionNotActive):
        await desk.supervision.observe(session, by=BOSS, after=0)


@pytest.mark.parametrize("role", [None, Role.ENDUSER])
async def test_who_is_no_supervisor_any_more_is_refused_and_nothing_is_noted(desk: Desk, role: Role | None) -> None:
    session = await desk.world.session()
    await desk.world.ended(await desk.world.ask(session, "fake-n3"))
    desk.staff.role = role
    with pytest.raises(Forbidden):
        await desk.supervision.observe(session, by=BOSS, after=0)
    assert await desk.supervision.observations(user=None, observer=None, after=None, limit=10) == []


@pytest.mark.parametrize("change", ["demoted", "deleted", "unknown"])
async def test_who_may_no_longer_look_is_sent_away_in_mid_stream(
    desk: Desk, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observing, "CHECK_SECONDS", 0.05)
    session = await desk.world.session()
    stream_id = await desk.world.ask(session, "fake-n900-ms20")
    observation, observer = await desk.supervision.observe(session, by=BOSS, after=0)
    watching = asyncio.create_task(seen_by(observer))
    await asyncio.sleep(0.2)
    assert not watching.done()
    if change == "unknown":
        desk.staff.away = True
    else:
        desk.staff.role = Role.ENDUSER if change == "demoted" else None
    assert (await watching)[-1] == "observer-end"
    await desk.supervision.observed(observation, observer)
    desk.staff.away, desk.staff.role = False, Role.SUPERVISOR
    (kept,) = await desk.supervision.observations(user=None, observer=BOSS.user_id, after=None, limit=10)
    assert (kept.end, kept.shown_to) == ("not_allowed", observer.offset)
    assert desk.world.streaming.producers.get(stream_id) is not None, "the stream goes on"


async def test_an_end_that_cannot_be_kept_does_not_break_the_response(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await desk.world.session()
    await desk.world.ended(await desk.world.ask(session, "fake-n3"))
    observation, observer = await desk.supervision.observe(session, by=BOSS, after=0)

    async def away(*_arguments: object) -> None:
        raise Unavailable

    async def connected() -> Message:
        return await asyncio.Event().wait() or {}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    monkeypatch.setattr(desk.supervision, "observed", away)
    state = SimpleNamespace(readers=set(), allowed_origins=frozenset())
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "app": SimpleNamespace(state=state)}
    response = ObserveResponse(Request(scope), observation, observer, desk.supervision)
    await asyncio.wait_for(response(scope, connected, send), 10)
    assert sent[0]["status"] == 200 and not sent[-1]["more_body"]
    (kept,) = await desk.supervision.observations(user=None, observer=None, after=None, limit=10)
    assert kept.ended_at is None


async def test_an_observer_that_leaves_at_once_is_let_go(desk: Desk) -> None:
    session = await desk.world.session()
    await desk.world.ask(session, "fake-n900-ms20")
    _, observer = await desk.supervision.observe(session, by=BOSS, after=0)
    observer.interrupt()
    assert await seen_by(observer) == ["observer", "history-start", "history-end"]
    assert observer.end is ObservationEnd.LEFT
