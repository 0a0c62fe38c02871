"""A real Valkey killed with -9 under a serving process: readers are told to come back, answers are kept and settled."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import quick
from tests.ledgers import check_ledger
from tests.scripted import Script
from tests.serving import Caller, Server, serving, text_of, tokens_of, upstream
from tests.system.test_process import begin, settings
from tests.system.test_starts import failing
from tests.valkey import Valkey, unused_port

from parshall.kernel.sse import Event

ID = "stream-1620847252-00000000000000e1"
TOKENS = 3
"""Of each word of the scripted model, by our own count."""


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture
def engine() -> Iterator[Valkey]:
    """A server that the test may kill."""
    with Valkey.start() as server:
        yield server


def shared(scripted: str, engine: Valkey, **more: str) -> dict[str, str]:
    return settings(scripted, STREAM_LOG_URL=engine.url, LEASE_SECONDS="1.5") | more


def until(what: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def closed(engine: Valkey, stream_id: str) -> bool:
    return engine.ask("HGET", f"parshall:{{{stream_id}}}:lease", "closed") is not None


def check_whole(caller: Caller, session: str, stream_id: str, seen: bytes, words: int) -> None:
    """The stream as it can be read now: it holds all that was seen, ends in one terminal event, and the books agree."""
    events = caller.resume(stream_id)
    assert [event.id for event in events] == [str(offset + 1) for offset in range(len(events))]
    assert [event.event for event in events].count("done") == 1 and events[-1].event == "done"
    shown = seen.partition(b"\r\n\r\n")[2]
    for event in events[: shown.count(b"\nevent: ")]:
        assert f"event: {event.event}\ndata: {event.data}\nid: {event.id}\n\n".encode() in shown, "S1"
    assert f"id: {len(events) + 1}\n".encode() not in shown
    messages = caller.get(f"/api/chat/sessions/{session}/messages")["messages"]
    assert text_of(events) == Script(n=words).text() == messages[1]["content"]
    receipt = events[-1].json()["receipt"]
    assert receipt == caller.state(stream_id)["receipt"] and receipt["settlement"] == "settled"
    assert receipt["outputTokens"] == tokens_of(events) == TOKENS * words
    assert caller.balance()["reservedCredits"] == 0


def test_without_an_outage_everything_is_as_on_the_local_log(scripted: str, engine: Valkey, tmp_path: Path) -> None:
    with serving(tmp_path, **shared(scripted, engine)) as server:
        caller = server.customer("alice")
        session = caller.session()
        reading = begin(caller, session, ID, "fake-n50-ms2-nousage")
        check_whole(caller, session, ID, reading.whole(), 50)
        assert not (tmp_path / "streams.db").exists()
        whole = caller.resume(ID)
        for after in range(0, len(whole) + 1, 7):
            assert caller.resume(ID, after) == whole[after:]
        code, _ = server.stop()
        assert code == 0
        assert not [line for line in server.output if "Traceback" in line]


@pytest.mark.parametrize("loss", ["nothing", "everything"])
def test_an_engine_that_is_killed_and_comes_back_in_mid_stream(
    scripted: str, engine: Valkey, tmp_path: Path, loss: str
) -> None:
    """With its data, or without: then the stream is kept again from what is at hand."""
    with serving(tmp_path, **shared(scripted, engine)) as server:
        caller = server.customer("alice")
        session = caller.session()
        reading = begin(caller, session, ID, "fake-n150-ms20-nousage")
        reading.has_chunks(10)
        engine.kill()
        seen = reading.whole()
        assert seen.endswith(b"retry: 1000\n\n\r\n0\r\n\r\n"), "readers are told to come back, by a clean end"
        assert b"event: done" not in seen and b"event: error" not in seen
        health = caller.http.get("/health")
        assert (health.status_code, health.json()["down"]) == (503, ["stream log"])
        refused = caller.http.post(
            f"/api/chat/sessions/{caller.session()}/stream", json={"message": "fake-n3"}, headers=caller.headers()
        )
        assert (refused.status_code, refused.json()["code"]) == (503, "log_unavailable")
        assert refused.headers["retry-after"] == "1"
        if loss == "everything":
            engine.forget()
        engine.restart()
        until(lambda: caller.http.get("/health").status_code == 200)
        again = resumed(caller, ID, seen)
        assert again == caller.resume(ID)[last_offset(seen) :], "a reader that comes back gets the rest"
        check_whole(caller, session, ID, seen, 150)
        assert not [line for line in server.output if "Traceback" in line]
        server.stop()
    check_ledger(tmp_path / "accounting.db")


def test_an_engine_that_is_away_when_the_answer_ends(scripted: str, engine: Valkey, tmp_path: Path) -> None:
    """The answer is kept and settled without it; when it is back, so is the rest of the stream."""
    with serving(tmp_path, **shared(scripted, engine)) as server:
        caller = server.customer("alice")
        session = caller.session()
        reading = begin(caller, session, ID, "fake-n60-ms20-nousage")
        reading.has_chunks(10)
        engine.kill()
        seen = reading.whole()
        state = caller.ended(ID)
        assert (state["outcome"], state["receipt"]["outputTokens"]) == ("completed", 60 * TOKENS)
        messages = caller.get(f"/api/chat/sessions/{session}/messages")["messages"]
        assert messages[1]["content"] == Script(n=60).text()
        assert caller.balance()["reservedCredits"] == 0
        until(lambda: said(server, "log_left_to_the_sweep"))
        engine.restart()
        until(lambda: closed(engine, ID))
        check_whole(caller, session, ID, seen, 60)
        server.stop()
        assert not [line for line in server.output if "Traceback" in line]
    check_ledger(tmp_path / "accounting.db")


def test_an_engine_that_comes_back_empty_after_the_end(scripted: str, engine: Valkey, tmp_path: Path) -> None:
    """The events are gone and no reader is told otherwise; answer and receipt are not."""
    with serving(tmp_path, **shared(scripted, engine)) as server:
        caller = server.customer("alice")
        session = caller.session()
        reading = begin(caller, session, ID, "fake-n40-ms20-nousage")
        reading.has_chunks(5)
        engine.kill()
        reading.whole()
        receipt = caller.ended(ID)["receipt"]
        until(lambda: said(server, "log_left_to_the_sweep"))
        engine.forget()
        engine.restart()
        until(lambda: closed(engine, ID))
        gone = caller.get(f"/api/chat/streams/{ID}", expect=404)
        assert (gone["code"], gone["reason"]) == ("stream_forgotten", "log_lost")
        assert caller.state(ID)["receipt"] == receipt
        assert caller.get(f"/api/chat/sessions/{session}/messages")["messages"][1]["content"] == Script(n=40).text()
        assert text_of(caller.ask(session, "fake-n3")) == Script(n=3).text()
        server.stop()
    check_ledger(tmp_path / "accounting.db")


def test_an_engine_that_falls_silent_is_as_one_that_is_gone(scripted: str, engine: Valkey, tmp_path: Path) -> None:
    with serving(tmp_path, **shared(scripted, engine)) as server:
        caller = server.customer("alice")
        session = caller.session()
        reading = begin(caller, session, ID, "fake-n300-ms20-nousage")
        reading.has_chunks(10)
        engine.freeze()
        seen = reading.whole()
        assert seen.endswith(b"retry: 1000\n\n\r\n0\r\n\r\n")
        engine.thaw()
        until(lambda: closed(engine, ID))
        check_whole(caller, session, ID, seen, 300)
        server.stop()


def test_process_and_engine_killed_together_the_next_start_settles_from_the_log(
    scripted: str, engine: Valkey, tmp_path: Path
) -> None:
    with serving(tmp_path, **shared(scripted, engine)) as server:
        caller = server.customer("alice")
        session = caller.session()
        reading = begin(caller, session, ID, "fake-n400-ms10-nousage")
        reading.has_chunks(10)
        engine.kill()
        server.kill()
        seen = reading.whole()
        engine.restart()
        server.start()
        caller = server.user("alice", "alice-password")
        state = caller.ended(ID)  # once the lease of the dead process has run out
        events = caller.resume(ID)
        assert (state["outcome"], state["receipt"]["usageSource"]) == ("interrupted", "log")
        assert seen_chunks(seen) * TOKENS <= tokens_of(events) == state["receipt"]["outputTokens"]
        assert (events[-1].event, events[-1].json()["code"]) == ("error", "interrupted")
        assert caller.balance()["reservedCredits"] == 0
        server.stop()
    check_ledger(tmp_path / "accounting.db")


def test_a_stop_while_the_engine_is_away_ends_in_time_and_the_next_start_closes_the_log(
    scripted: str, engine: Valkey, tmp_path: Path
) -> None:
    with serving(tmp_path, **shared(scripted, engine, DRAIN_SECONDS="0.3")) as server:
        caller = server.customer("alice")
        session = caller.session()
        reading = begin(caller, session, ID, "fake-n400-ms10-nousage")
        reading.has_chunks(10)
        engine.kill()
        reading.whole()
        code, seconds = server.stop()
        assert code == 0 and seconds < 6
        assert not [line for line in server.output if "Traceback" in line]
        engine.restart()
        server.start()
        caller = server.user("alice", "alice-password")
        until(lambda: closed(engine, ID))
        events = caller.resume(ID)
        receipt = caller.state(ID)["receipt"]
        assert (receipt["outcome"], receipt["settlement"]) == ("interrupted", "settled")
        assert tokens_of(events) == receipt["outputTokens"]
        server.stop()
    check_ledger(tmp_path / "accounting.db")


def test_a_start_without_its_engine_is_one_sentence(tmp_path: Path) -> None:
    url = f"valkey://ann:secret-word@127.0.0.1:{unused_port()}"
    words = failing(Server(home=tmp_path, settings={"STREAM_LOG_URL": url}), "stream log", "PARSHALL_STREAM_LOG_URL")
    assert "secret-word" not in words
    words = failing(Server(home=tmp_path, settings={"STREAM_LOG_URL": "valkey://ann:secret-word"}), "number of a port")
    assert "secret-word" not in words


def test_the_engines_password_is_shown_nowhere(scripted: str, tmp_path: Path) -> None:
    with Valkey.start(password="very-secret") as engine:
        with serving(tmp_path, **shared(scripted, engine)) as server:
            caller = server.customer("alice")
            assert text_of(caller.ask(caller.session(), "fake-n3")) == Script(n=3).text()
            engine.kill()
            caller.http.get("/health")
            shown = quick.run(
                [str(Path(server.process.args[0])), "config", "--json"],  # type: ignore[union-attr, index]
                env=server.environment(),
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout
            assert "STREAM_LOG_URL" in shown and json.loads(shown)
            server.stop()
        assert "very-secret" not in shown + "".join(server.output)


def resumed(caller: Caller, stream_id: str, seen: bytes) -> list[Event]:
    """The rest of a stream, asked for again and again as a browser does, until it has ended."""
    rest: list[Event] = []
    deadline = time.monotonic() + 30
    while not rest or rest[-1].event not in ("done", "error"):
        assert time.monotonic() < deadline
        rest += caller.resume(stream_id, last_offset(seen) + len(rest))
        time.sleep(0.1)
    return rest


def last_offset(seen: bytes) -> int:
    return max(int(line[4:]) for line in seen.splitlines() if line.startswith(b"id: "))


def said(server: Server, event: str) -> bool:
    return any(event in line for line in server.output)


def seen_chunks(seen: bytes) -> int:
    return seen.count(b"event: chunk")
