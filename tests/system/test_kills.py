"""What kill -9 of the serving process leaves behind, and what the next start makes of it.

How a process starts is for test_process.py: a fork is killed as any process is.
"""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.ledgers import check_ledger
from tests.serving import serving, text_of, tokens_of, upstream
from tests.system.test_process import LONG, begin, settings

from parshall.kernel.sse import Event


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.soak)])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where the books are: in the data folder, or in a PostgreSQL database of all services."""
    if request.param == "sqlite":
        return tmp_path / "accounting.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


def named(kept: Path | str) -> dict[str, str]:
    """The setting that names them, where they are not in the data folder."""
    return {"DATABASE_URL": kept} if isinstance(kept, str) else {}


def test_after_kill_9_the_next_start_adopts_settles_from_the_log_and_keeps_the_text(
    scripted: str, tmp_path: Path, kept: Path | str
) -> None:
    with serving(tmp_path, **settings(scripted, **named(kept))) as server:
        caller = server.customer("alice")
        session, stream_id = caller.session(), "stream-1620847252-00000000000000a1"
        reading = begin(caller, session, stream_id, LONG)
        reading.has_chunks(10)
        server.kill()
        seen = reading.whole()
        server.start()
        caller = server.user("alice", "alice-password")
        state = caller.state(stream_id)
        events = caller.resume(stream_id)
        assert (state["outcome"], state["receipt"]["usageSource"]) == ("interrupted", "log")
        assert state["receipt"]["settlement"] == "settled"
        assert (events[-1].event, events[-1].json()["retryable"]) == ("error", True)
        assert state["receipt"]["outputTokens"] == tokens_of(events) > 0
        for event in events[:-1]:
            if f"id: {event.id}\n".encode() in seen:
                assert event.data.encode() in seen
        assert seen.count(b"event: chunk") <= len(events) - 3, "S1: nothing was shown that the log does not hold"
        messages = caller.get(f"/api/chat/sessions/{session}/messages")["messages"]
        assert messages[1]["content"] == text_of(events) != ""
        assert caller.balance()["reservedCredits"] == 0
        caller.close()
        server.stop()
    check_ledger(kept)


def test_killed_at_random_moments_nothing_acknowledged_is_lost_and_nothing_stays_reserved(
    scripted: str, tmp_path: Path, kept: Path | str, record_property: Callable[[str, object], None]
) -> None:
    seed = random.randrange(10**6)
    record_property("seed", seed)
    chance = random.Random(seed)
    charged: dict[str, float] = {}
    with serving(tmp_path, **settings(scripted, **named(kept))) as server:
        server.customer("alice").close()
        for round_number in range(4):
            caller = server.user("alice", "alice-password")
            sessions = [caller.session() for _ in range(6)]
            ids = [f"stream-1620847252-{round_number:08x}{n:08x}" for n in range(6)]
            readings = [
                begin(caller, s, i, f"fake-n{chance.randrange(1, 60)}-ms{chance.randrange(1, 12)}")
                for s, i in zip(sessions, ids, strict=True)
            ]
            time.sleep(chance.random() * 0.8)
            server.kill()
            whole = [reading.whole() for reading in readings]
            server.start()
            again = server.user("alice", "alice-password")
            for stream_id, seen in zip(ids, whole, strict=True):
                if b"event: session" in seen:
                    state = again.ended(stream_id)
                    charged[stream_id] = state["receipt"]["chargedCredits"]
                    logged = again.resume(stream_id)
                    assert [e.event for e in logged].count("done") + [e.event for e in logged].count("error") == 1
                    assert seen.count(b"event: chunk") <= len(text_chunks(logged))
                if b"event: done" in seen:
                    assert state["outcome"] == "completed", "an acknowledged end stays as it was"
            assert again.balance()["reservedCredits"] == 0
            again.close()
            caller.close()
        server.stop()
    check_ledger(kept)


def text_chunks(events: list[Event]) -> list[Event]:
    return [event for event in events if event.event == "chunk"]
