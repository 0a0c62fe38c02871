"""Several real processes on one PostgreSQL and one Valkey: any of them serves any stream, and any of them may go."""

import asyncio
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from tests.followers import Follower
from tests.replicas import WHOLE, Replicas, replicas
from tests.scripted import Script
from tests.serving import ROOT, text_of, tokens_of
from tests.system.test_process import begin
from tests.valkey import Valkey

pytestmark = pytest.mark.one_process(WHOLE)

ID = "stream-1620847252-00000000000000a7"
LONG = "fake-n400-ms10-nousage"


def name_of(number: int) -> str:
    return f"stream-1620847252-{number:016x}"


# ── Any replica serves any stream ───────────────────────────────────────────────────────────────────────────────────


def test_begun_on_one_resumed_observed_and_stopped_on_others(tmp_path: Path, postgres_url: str, valkey: Valkey) -> None:
    with replicas(3, tmp_path, postgres_url, valkey, LEASE_SECONDS="2") as world:
        one, two, three = (world.user(replica=replica) for replica in range(3))
        alice = world.customer("alice", replica=0)
        session = alice.session()
        reading = begin(alice, session, ID, LONG)
        reading.has_chunks(5)
        elsewhere = world.user("alice", replica=1)
        refused = elsewhere.post(f"/api/chat/sessions/{session}/stream", {"message": "again"}, expect=409)
        assert refused["code"] == "stream_active" and refused["streamingSessionId"] == ID
        with elsewhere.streaming("GET", f"/api/chat/streams/{ID}") as (_, events):
            assert [next(events).event for _ in range(6)] == ["session", "model", "chunk", "chunk", "chunk", "chunk"]
        with three.streaming("GET", f"/api/chat/sessions/{session}/observe") as (_, events):
            assert next(events).event == "observer"
            receipt = two.post(f"/api/chat/streams/{ID}/stop")["receipt"]
            kinds = [event.event for event in events]
        assert (receipt["outcome"], receipt["settlement"]) == ("stopped", "settled")
        assert kinds[-1] == "done" and "history-end" in kinds
        assert reading.whole().count(b"event: done") == 1
        for caller in (one, two, three):
            assert caller.state(ID)["receipt"] == receipt
        assert receipt["outputTokens"] == tokens_of(two.resume(ID))
        session = alice.session()
        asked = alice.post(f"/api/chat/sessions/{session}/messages", {"message": "fake-n3-nousage"})
        updated = world.user("alice", replica=2).post(
            f"/api/chat/sessions/{session}/update-stream",
            {
                "completeResponse": asked["response"],
                "streamingSessionId": asked["streamingSessionId"],
                "tokensUsed": 9,
            },
        )
        assert updated["matches"]
        world.check()


# ── A process that dies, at every step ──────────────────────────────────────────────────────────────────────────────

STEPS = {
    "the message and the stream are kept": "parshall.chat.openings:Openings._record:after:1",
    "the credits are reserved": "parshall.chat.openings:Openings._reserve:after:1",
    "the lease is taken": "parshall.chat.streams.shared:SharedStreamLog.acquire:after:1",
    "the first events are logged": "parshall.chat.openings:Openings._log_opening:after:1",
    "an event is about to be logged": "parshall.chat.streams.shared:SharedStreamLog.append:before:12",
    "an event is logged": "parshall.chat.streams.shared:SharedStreamLog.append:after:12",
    "a further slice is reserved": "parshall.accounting.service:Accounting.extend:after:2",
    "the end is about to be kept": "parshall.chat.records:Records.end:before:1",
    "the end is kept": "parshall.chat.records:Records.end:after:1",
    "it is settled": "parshall.accounting.service:Accounting.settle:after:1",
    "the settlement is kept": "parshall.chat.records:Records.settle:after:1",
    "the terminal event is logged": "parshall.chat.streams.shared:SharedStreamLog.close_stream:before:1",
    "the log is closed": "parshall.chat.streams.shared:SharedStreamLog.close_stream:after:1",
    "the close is kept": "parshall.chat.records:Records.close:after:1",
}
BEFORE_ANY_EVENT = tuple(STEPS)[:3]
SOME = [
    "the lease is taken",
    "the first events are logged",
    "an event is logged",
    "the end is kept",
    "it is settled",
    "the terminal event is logged",
]


@pytest.mark.parametrize("steps", [SOME, pytest.param(list(STEPS), marks=pytest.mark.soak)], ids=["some", "all"])
def test_a_producer_killed_at_any_step_leaves_a_stream_that_others_end_and_settle_once(
    tmp_path: Path, postgres_url: str, valkey: Valkey, steps: list[str]
) -> None:
    """One replica for each step, all killed at once, and one that is left."""
    points = [STEPS[step] for step in steps]
    with replicas(
        len(points) + 1,
        tmp_path,
        postgres_url,
        valkey,
        program=(sys.executable, str(ROOT / "tests" / "dying.py")),
        each=lambda replica: {"TEST_DIES": points[replica - 1]} if replica else {},
        LEASE_SECONDS="2",
        SLICE_TOKENS="10",
        TEST_OPENING_SECONDS="3",
    ) as world:
        alice = world.customer("alice", replica=0)
        followers = [
            Follower(
                token=alice.token,
                session=alice.session(),
                stream_id=name_of(number),
                message="fake-n25-ms10-nousage",
            )
            for number in range(len(points))
        ]
        left = world.servers[0].url
        asyncio.run(
            follow(followers, [(server.url, left) for server in world.servers[1:]]),
        )
        for server in world.servers[1:]:
            assert server.process is not None and server.process.wait(10) == -9, "".join(server.output[-5:])
        for step, follower in zip(steps, followers, strict=True):
            assert (follower.refused == 404) == (step in BEFORE_ANY_EVENT), f"{step}: {follower}"
        world.check({each.stream_id: each.events for each in followers if each.events}, replica=0)
        for follower in followers:
            again = alice.ask(follower.session, "fake-n2-nousage")
            assert text_of(again) == Script(n=2).text(), "nothing keeps a chat session from going on"


async def follow(followers: list[Follower], urls: list[tuple[str, str]]) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=30)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(*(each.follow(http, *pair) for each, pair in zip(followers, urls, strict=True)))


# ── A process that sleeps ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_process_that_slept_through_its_leases_neither_appends_nor_settles(
    tmp_path: Path, postgres_url: str, valkey: Valkey
) -> None:
    with replicas(2, tmp_path, postgres_url, valkey, LEASE_SECONDS="1.5") as world:
        alice = world.customer("alice", replica=1)
        direct = world.user("alice", replica=0)
        readings = []
        for number in range(4):
            readings.append(begin(direct, alice.session(), name_of(number), LONG))
            readings[-1].has_chunks(3)
        world.pause(0)
        adopted = {name_of(number): alice.ended(name_of(number)) for number in range(4)}
        events = {name: alice.resume(name) for name in adopted}
        world.resume(0)
        for reading, name in zip(readings, adopted, strict=True):
            seen = reading.whole()
            assert seen.count(b"event: error") == 1, "who read there all the time is told the end"
            assert seen.count(b"event: chunk") == len(events[name]) - 3
        time.sleep(1)  # in which it would append or settle, if it could
        for name, state in adopted.items():
            assert state["outcome"] == "interrupted" and alice.state(name) == state
            assert alice.resume(name) == events[name]
        assert said(world, 0, "lease_lost")
        world.check(events)


# ── A process that is asked to go ───────────────────────────────────────────────────────────────────────────────────


def rolled(world: Replicas, count: int, message: Callable[[int], str]) -> tuple[list[Follower], int]:
    """So many streams by way of the balancer, each with two readers, while every replica is stopped and started again.

    The streams, and how many readers were sent away to come back elsewhere.
    """
    alice = world.customer("alice", credits=1000)
    followers = [
        Follower(token=alice.token, session=alice.session(), stream_id=name_of(number), message=message(number))
        for number in range(count)
    ]
    watchers = [Follower(token=each.token, session=each.session, stream_id=each.stream_id) for each in followers]

    async def both() -> None:
        following = asyncio.create_task(follow(followers, [(world.url, world.url)] * count))
        while not all(each.events for each in followers):
            await asyncio.sleep(0.05)
        random.shuffle(watchers)  # so that each is where the balancer sends it, and not where its stream is produced
        watching = asyncio.create_task(follow(watchers, [(world.url, world.url)] * count))
        while not all(each.events for each in watchers):
            await asyncio.sleep(0.05)
        stops = await asyncio.to_thread(world.rolling_restart)
        assert [code for code, _ in stops] == [0] * len(world.servers)
        await following
        await watching

    asyncio.run(both())
    events = {each.stream_id: each.events for each in followers}
    for watcher in watchers:
        assert watcher.events == events[watcher.stream_id] and not watcher.broken, f"{watcher.stream_id}: {watcher}"
    return followers, sum(each.connections > 1 for each in watchers)


def check_rolled(world: Replicas, followers: list[Follower]) -> int:
    """Every client has exactly what its log holds, and nothing but clean ends; how many were whole."""
    whole = 0
    for each in followers:
        assert not each.broken, f"{each.stream_id}: {each.broken}"
        assert [event.id for event in each.events] == [str(offset + 1) for offset in range(len(each.events))]
        receipt = each.events[-1].json()["receipt"]
        assert receipt["outcome"] in ("completed", "interrupted") and receipt["outputTokens"] == tokens_of(each.events)
        if receipt["outcome"] == "completed":
            whole += 1
            assert text_of(each.events) == Script.of(each.message, "").text()
    assert len(world.check({each.stream_id: each.events for each in followers})) == len(followers)
    return whole


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.soak)])
def test_a_rolling_restart_under_live_streams_costs_nobody_a_character(
    tmp_path: Path, postgres_url: str, valkey: Valkey, count: int
) -> None:
    chance = random.Random(count)
    with replicas(3, tmp_path, postgres_url, valkey, LEASE_SECONDS="2", DRAIN_SECONDS="2") as world:
        followers, sent_away = rolled(
            world, count, lambda _: f"fake-n{chance.randrange(40, 340)}-ms{chance.randrange(20, 40)}-nousage"
        )
        whole = check_rolled(world, followers)
        assert 0 < whole < count and sent_away > 0


def test_where_the_drain_time_allows_it_every_answer_is_whole(
    tmp_path: Path, postgres_url: str, valkey: Valkey
) -> None:
    with replicas(2, tmp_path, postgres_url, valkey, LEASE_SECONDS="2", DRAIN_SECONDS="20") as world:
        followers, _ = rolled(world, 20, lambda number: f"fake-n{100 + number}-ms10-nousage")
        assert check_rolled(world, followers) == len(followers)


def said(world: Replicas, replica: int, event: str) -> bool:
    return any(event in line for line in world.servers[replica].output)
