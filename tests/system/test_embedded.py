"""The main job as it comes: `parshall up` with the real embedded model, nothing configured."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.serving import Caller, Server, serving, stream_id_of, text_of, tokens_of

from parshall.kernel.credits import MICRO

pytestmark = pytest.mark.executed("a native library with threads of its own")

QUESTION = "What is the capital of France? Answer in one short sentence."
LONG = "Tell me a long story about a river that learns to measure itself."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("home"), "--demo") as running:
        yield running


@pytest.fixture
def demo(server: Server) -> Caller:
    return server.user("demo", "demo-password")


@pytest.fixture
def session(demo: Caller) -> str:
    return demo.session()


def test_a_question_is_answered_streamed_and_charged_by_the_models_own_count(demo: Caller, session: str) -> None:
    before = demo.balance()["availableCredits"]
    events = demo.ask(session, QUESTION)
    text = text_of(events)
    assert "Paris" in text and "<|" not in text
    done = events[-1].json()
    receipt = done["receipt"]
    assert (done["status"], done["finishReason"]) == ("complete", "stop")
    assert (receipt["usageSource"], receipt["modelId"]) == ("provider", "smollm2-135m")
    assert receipt["outputTokens"] == tokens_of(events)
    usage = {"modelId": "smollm2-135m", **{n: receipt[n] for n in ("inputTokens", "outputTokens")}}
    assert demo.post("/api/credits/calculate", usage)["credits"] == receipt["chargedCredits"]
    assert demo.balance()["availableCredits"] * MICRO == pytest.approx((before - receipt["chargedCredits"]) * MICRO)
    assert demo.balance()["reservedCredits"] == 0


def test_the_model_remembers_the_conversation(demo: Caller, session: str) -> None:
    first = demo.ask(session, "What is the capital of France?")[-1].json()["usage"]
    second = demo.ask(session, "And what is the capital of Italy?")
    assert "Rome" in text_of(second)
    assert second[-1].json()["usage"]["inputTokens"] > first["inputTokens"] + first["outputTokens"]


def test_text_arrives_while_it_is_generated(demo: Caller, session: str) -> None:
    times: list[float] = []
    with demo.streaming("POST", f"/api/chat/sessions/{session}/stream", {"message": LONG, "maxTokens": 60}) as (
        _,
        all_,
    ):
        times = [time.monotonic() for event in all_ if event.event == "chunk"]
    assert len(times) > 20 and times[-1] - times[0] > 0.1, "the events must not come all at once"


def test_resuming_at_every_offset_gives_the_rest(demo: Caller, session: str) -> None:
    whole = demo.ask(session, QUESTION)
    for after in range(len(whole) + 1):
        assert demo.resume(stream_id_of(whole), after) == whole[after:]


def test_two_readers_see_the_same_answer(demo: Caller, session: str) -> None:
    headers = {"X-Streaming-Session-Id": "stream-1620847252-000000000000e001"}
    with ThreadPoolExecutor() as pool:
        first = pool.submit(demo.ask, session, LONG, maxTokens=80, headers=headers)
        time.sleep(0.5)
        second = pool.submit(demo.resume, headers["X-Streaming-Session-Id"])
        assert first.result() == second.result()


def test_stop_ends_the_model_at_once_and_frees_it_for_the_next(demo: Caller, session: str) -> None:
    stream_id = "stream-1620847252-000000000000e002"
    headers = {"X-Streaming-Session-Id": stream_id}
    with demo.streaming("POST", f"/api/chat/sessions/{session}/stream", {"message": LONG}, headers) as (_, events):
        for event in events:
            if event.event == "chunk" and event.json()["totalTokens"] > 5:
                break
        began = time.monotonic()
        stopped = demo.post(f"/api/chat/streams/{stream_id}/stop")
        assert time.monotonic() - began < 3
        rest = list(events)
    assert rest[-1].json()["receipt"] == stopped["receipt"]
    assert stopped["receipt"]["usageSource"] == "counted"
    assert stopped["receipt"]["outputTokens"] == tokens_of(demo.resume(stream_id)) > 5
    assert "Paris" in text_of(demo.ask(demo.session(), QUESTION))


def test_a_reader_who_leaves_finds_the_whole_answer_later(demo: Caller, session: str) -> None:
    stream_id = "stream-1620847252-000000000000e003"
    headers, body = {"X-Streaming-Session-Id": stream_id}, {"message": LONG, "maxTokens": 50}
    with demo.streaming("POST", f"/api/chat/sessions/{session}/stream", body, headers) as (_, events):
        next(events)
    state = demo.ended(stream_id)
    assert (state["outcome"], state["receipt"]["outputTokens"]) == ("completed", 50)
    assert (
        text_of(demo.resume(stream_id)) == demo.get(f"/api/chat/sessions/{session}/messages")["messages"][1]["content"]
    )


def test_an_unknown_model_falls_back_and_says_so(demo: Caller, session: str) -> None:
    events = demo.ask(session, QUESTION, modelId="gpt-unheard-of")
    assert events[1].json() == {"model": "smollm2-135m", "fallbackApplied": True}
    assert events[-1].json()["receipt"]["modelId"] == "smollm2-135m"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_listens_on_one_port_only(server: Server) -> None:
    """The model's own server must not be a side door past the meter."""
    pid = server.child("chat").pid
    own = {
        entry.readlink().name.removeprefix("socket:[").removesuffix("]")
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if str(entry.readlink()).startswith("socket:")
    }
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in own:
                listening.add(int(columns[1].rpartition(":")[2], 16))
    assert listening == {server.port}


def test_after_kill_9_in_mid_answer_the_next_start_settles_what_was_logged(tmp_path: Path) -> None:
    with serving(tmp_path, "--demo") as server:
        demo = server.user("demo", "demo-password")
        session, stream_id = demo.session(), "stream-1620847252-000000000000e004"
        body, headers = {"message": LONG}, {"X-Streaming-Session-Id": stream_id}
        with demo.streaming("POST", f"/api/chat/sessions/{session}/stream", body, headers) as (_, events):
            for event in events:
                if event.event == "chunk" and event.json()["totalTokens"] >= 10:
                    break
            server.kill()
        server.start()
        demo = server.user("demo", "demo-password")
        receipt = demo.ended(stream_id)["receipt"]
        assert (receipt["outcome"], receipt["usageSource"]) == ("interrupted", "log")
        assert receipt["outputTokens"] == tokens_of(demo.resume(stream_id)) >= 10
        assert demo.get(f"/api/chat/sessions/{session}/messages")["messages"][1]["content"]
        code, seconds = server.stop()
        assert code == 0 and seconds < 5
