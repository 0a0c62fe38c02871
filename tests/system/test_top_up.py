"""Credits that run out in mid answer: what was paid for is kept, and after a top-up the chat session goes on."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.ledgers import check_ledger
from tests.serving import Caller, Server, serving, stream_id_of, text_of, tokens_of
from tests.system.test_process import settings
from tests.upstream import Upstream

from parshall.kernel.sse import Event

QUESTION = "Tell me a long story about a river that learns to measure itself."
SCRIPT = "fake-n400-nousage"
CONTINUE = "fake-n5-nousage Continue."
"""The first word is what the scripted model plays."""


@pytest.fixture
def asked() -> Iterator[Upstream]:
    """A scripted server that remembers what it was asked, in a thread of this process."""
    loop, upstream = asyncio.new_event_loop(), Upstream()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(upstream.start(), loop).result(10)
    yield upstream
    asyncio.run_coroutine_threadsafe(upstream.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def run_out(caller: Caller, session: str, message: str) -> list[Event]:
    """Ask until the credits are gone: a clean end at the last paid token, with what was paid for kept."""
    events = caller.ask(session, message)
    done = events[-1].json()
    assert (events[-1].event, done["status"], done["finishReason"]) == ("done", "incomplete", "credit_limit")
    assert "Top up" in done["message"]
    receipt = done["receipt"]
    assert (receipt["outcome"], receipt["settlement"], receipt["uncollectedCredits"]) == ("credit_limit", "settled", 0)
    assert receipt["outputTokens"] == tokens_of(events) > 0
    messages = caller.get(f"/api/chat/sessions/{session}/messages")["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant"]
    assert messages[1]["content"] == text_of(events) != ""
    balance = caller.balance()
    one_more = {
        **{name: receipt[name] for name in ("modelId", "inputTokens")},
        "outputTokens": receipt["outputTokens"] + 1,
    }
    dearer = caller.post("/api/credits/calculate", one_more)["credits"] - receipt["chargedCredits"]
    assert balance["reservedCredits"] == 0
    assert 0 <= balance["availableCredits"] < dearer, "it ended at the last token that could be paid for"
    return events


def go_on(server: Server, caller: Caller, session: str, first: list[Event], message: str) -> list[Event]:
    """Without credits the next question is refused and leaves nothing; after a top-up it is answered."""
    path = f"/api/chat/sessions/{session}/stream"
    refused = caller.post(path, {"message": message}, expect=402)
    assert refused["code"] == "insufficient_credits"
    server.user().post("/api/credits/allocate", {"userId": "alice", "credits": 50}, expect=201)
    second = caller.ask(session, message, maxTokens=20)
    done = second[-1].json()
    assert (done["status"], done["finishReason"] in ("stop", "length")) == ("complete", True)
    assert done["usage"]["inputTokens"] > tokens_of(first), "the model has read what it had written"
    contents = [each["content"] for each in caller.get(f"/api/chat/sessions/{session}/messages")["messages"]]
    assert contents[1:] == [text_of(first), message, text_of(second)]
    assert caller.resume(stream_id_of(first)) == first, "the stream that was cut short stays as it was"
    return second


def test_a_network_providers_answer_is_cut_at_the_last_paid_token_and_continued_after_a_top_up(
    asked: Upstream, tmp_path: Path
) -> None:
    with serving(tmp_path, **settings(asked.base_url)) as server:
        caller = server.customer("alice", credits=1)
        session = caller.session()
        first = run_out(caller, session, SCRIPT)
        go_on(server, caller, session, first, CONTINUE)
        assert spoken(asked) == [
            {"role": "user", "content": SCRIPT},
            {"role": "assistant", "content": text_of(first)},
            {"role": "user", "content": CONTINUE},
        ]
        assert server.stop()[0] == 0
    check_ledger(tmp_path / "accounting.db")


def test_the_embedded_models_answer_is_cut_at_the_last_paid_token_and_continued_after_a_top_up(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        caller = server.customer("alice", credits=0.2)
        session = caller.session()
        first = run_out(caller, session, QUESTION)
        go_on(server, caller, session, first, "Continue the story.")
        assert server.stop()[0] == 0
    check_ledger(tmp_path / "accounting.db")


def spoken(asked: Upstream) -> list[dict[str, Any]]:
    """What the model was told last, without what the server itself says to it."""
    return [each for each in asked.requests[-1].body["messages"] if each["role"] != "system"]
