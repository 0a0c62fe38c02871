"""Every fault of a provider against a real server process: one terminal event, the logged text, a settled receipt."""

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.ledgers import check_ledger
from tests.scripted import NASTY, Script
from tests.serving import Caller, Server, serving, stream_id_of, text_of, tokens_of, upstream

from parshall.kernel.sse import Event

SPARE = "fake-n3"
CREDITS = 100_000
TIMEOUTS = {"FIRST_TOKEN_SECONDS": "0.8", "IDLE_SECONDS": "0.5", "PROVIDER_RETRY_SECONDS_MAX": "2"}
NAMES = (f"user{number}" for number in itertools.count())


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A script and what comes of it. `ends` is a code or a finish reason; at `length` some of the text is enough."""

    script: str
    ends: str
    text: str = Script().text()
    source: str = "counted"
    free: bool = False


FAULTS = [
    Fault(script="fake", ends="stop", source="provider"),
    Fault(script="fake-busy2", ends="stop", source="provider"),
    Fault(script="fake-busy1-after1", ends="stop", source="provider"),
    Fault(script="fake-status429", ends="provider_busy", text="", free=True),
    Fault(script="fake-status429-after3600", ends="provider_busy", text="", free=True),
    Fault(script="fake-status500", ends="provider_busy", text="", free=True),
    Fault(script="fake-status503-after1", ends="provider_busy", text="", free=True),
    Fault(script="fake-status400", ends="provider_refused", text="", free=True),
    Fault(script="fake-redirect", ends="provider_refused", text="", free=True),
    Fault(script="fake-json", ends="provider_garbage", text="", free=True),
    Fault(script="fake-stall0", ends="provider_timeout", text="", free=True),
    Fault(script="fake-ttft3000", ends="provider_timeout", text="", free=True),
    Fault(script="fake-stall2", ends="provider_timeout", text=Script(n=2).text()),
    Fault(script="fake-die0", ends="provider_cut", text="", free=True),
    Fault(script="fake-die2-ms20", ends="provider_cut", text=Script(n=2).text()),
    Fault(script="fake-nofinish", ends="provider_cut"),
    Fault(script="fake-garbage0", ends="provider_garbage", text="", free=True),
    Fault(script="fake-garbage2", ends="provider_garbage", text=Script(n=2).text()),
    Fault(script="fake-error0", ends="provider_busy", text="", free=True),
    Fault(script="fake-error2", ends="provider_busy", text=Script(n=2).text()),
    Fault(script="fake-noise", ends="stop", source="provider"),
    Fault(script="fake-noise-nofinish-n0", ends="provider_cut", text="", free=True),
    Fault(script="fake-nasty", ends="stop", text="".join(NASTY), source="provider"),
    Fault(script="fake-n0", ends="stop", text="", source="provider"),
    Fault(script="fake-nousage", ends="stop"),
    Fault(script="fake-nousage-nodone", ends="stop"),
    Fault(script="fake-zerousage", ends="stop"),
    Fault(script="fake-badusage", ends="stop"),
    Fault(script="fake-nanusage", ends="stop"),
    Fault(script="fake-textusage", ends="stop"),
    Fault(script="fake-manyusage", ends="stop"),
    Fault(script="fake-n1-big50-nousage", ends="stop", text=Script(n=1, big=50).text()),
    Fault(script="fake-n1-big1000-nousage", ends="length", text=Script(n=1, big=1000).text()),
    Fault(script="fake-n4000-burst-nousage", ends="stop", text=Script(n=4000).text()),
    Fault(script="fake-n20000-burst-nousage", ends="length", text=Script(n=20_000).text()),
]


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture(scope="module")
def server(scripted: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without a fallback; what it leaves behind is checked from nothing once it is gone."""
    home = tmp_path_factory.mktemp("home")
    with serving(home, **options(scripted, FALLBACK_MODEL="")) as running:
        yield running
        running.kill()
    check_ledger(home / "accounting.db")


def options(url: str, **more: str) -> dict[str, str]:
    offered = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": url, "OPENAI_MODELS": f"fake,{SPARE},*"}
    return offered | TIMEOUTS | {"MAX_OUTPUT_TOKENS": "1000000"} | more


@pytest.fixture
def caller(server: Server) -> Iterator[Caller]:
    made = server.customer(next(NAMES), credits=CREDITS)
    yield made
    made.close()


def check_end(caller: Caller, session: str, events: list[Event], fault: Fault, *, had: int = CREDITS) -> None:
    """What holds after any fault: S3, S4, and nothing is held."""
    stream = stream_id_of(events)
    terminal = [event for event in events if event.event in ("done", "error")]
    assert terminal == [events[-1]], "exactly one, last"
    end = events[-1].json()
    receipt = end["receipt"]
    assert end.get("code", end.get("finishReason")) == fault.ends
    assert [event.id for event in events] == [str(offset) for offset in range(1, len(events) + 1)]
    text = text_of(events)
    assert text == fault.text or (fault.ends == "length" and text and fault.text.startswith(text))
    assert caller.resume(stream) == events, "what is logged is what was delivered"
    said = [m for m in caller.get(f"/api/chat/sessions/{session}/messages")["messages"] if m["role"] == "assistant"]
    assert "".join(message["content"] for message in said) == text
    assert (receipt["settlement"], receipt["usageSource"]) == ("settled", fault.source)
    if fault.source == "counted":
        assert receipt["outputTokens"] == tokens_of(events)
    assert (receipt["chargedCredits"] == 0) == fault.free
    balance = caller.balance()
    assert balance["reservedCredits"] == 0
    assert balance["availableCredits"] == receipt["balanceAfter"] == round(had - receipt["chargedCredits"], 6)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.script)
def test_after_any_fault_there_is_one_end_the_logged_text_and_a_settled_receipt(caller: Caller, fault: Fault) -> None:
    session = caller.session()
    words = f"{fault.script} for {next(NAMES)}"  # a script counts the requests of the same words
    check_end(caller, session, caller.ask(session, words), fault)
    again = caller.ask(session, "fake")
    assert again[-1].event == "done", "the next turn finds nothing in its way"


def test_retries_wait_as_long_as_the_provider_asks_and_no_longer_than_is_bearable(caller: Caller) -> None:
    began = time.monotonic()
    assert caller.ask(caller.session(), "fake-busy1-after1 wait")[-1].event == "done"
    assert time.monotonic() - began >= 1
    began = time.monotonic()
    assert caller.ask(caller.session(), "fake-busy1-after3600 wait")[-1].json()["code"] == "provider_busy"
    assert time.monotonic() - began < 5


def test_a_flood_of_events_leaves_room_for_others(server: Server, caller: Caller) -> None:
    """Some ten thousand events a second: whoever asks meanwhile is answered."""
    other = server.customer(next(NAMES))
    session = caller.session()
    flood = threading.Thread(target=lambda: [caller.ask(session, "fake-n4000-burst-nousage") for _ in range(5)])
    flood.start()
    slowest = 0.0
    while flood.is_alive():
        began = time.monotonic()
        other.balance()
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.02)
    flood.join()
    assert slowest < 3
    assert caller.balance()["reservedCredits"] == 0
    other.close()


# ── Another model ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def backed(scripted: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With models to fall back on, the first of them too dear for anybody."""
    home = tmp_path_factory.mktemp("home")
    with serving(home, **options(scripted, FALLBACK_MODEL=f"fake-n9,{SPARE}")) as running:
        admin = running.user()
        admin.request("PUT", "/api/prices", {"modelId": "fake-n9", "input": 10**9, "output": 10**9})
        admin.request("PUT", "/api/prices", {"modelId": SPARE, "input": 7000, "output": 9000})
        yield running
        running.kill()
    check_ledger(home / "accounting.db")


@pytest.mark.parametrize(
    "model",
    ["fake-status503", "fake-status429-after3600", "fake-status404", "fake-stall0", "fake-die0", "fake-garbage0"],
)
def test_a_failing_model_is_stood_in_for_at_the_price_of_the_one_that_answers(backed: Server, model: str) -> None:
    caller = backed.customer(next(NAMES), credits=100)
    try:
        session = caller.session()
        events = caller.ask(session, "hello", modelId=model)
        fault = Fault(script=model, ends="stop", text=Script(n=3).text(), source="provider")
        check_end(caller, session, events, fault, had=100)
        models = [event.json() for event in events if event.event == "model"]
        assert models == [
            {"model": model, "fallbackApplied": False},
            {"model": SPARE, "fallbackApplied": True},
        ]
        receipt = events[-1].json()["receipt"]
        cached, fresh = receipt["cachedInputTokens"], receipt["inputTokens"] - receipt["cachedInputTokens"]
        price = (7000 * (fresh + cached) + 9000 * receipt["outputTokens"]) / 1_000_000
        assert (receipt["modelId"], receipt["chargedCredits"]) == (SPARE, pytest.approx(price))
        state = caller.state(stream_id_of(events))
        assert (state["modelId"], state["fallbackApplied"]) == (SPARE, True)
    finally:
        caller.close()


@pytest.mark.parametrize("back", [False, True])
def test_a_server_that_is_not_there_is_asked_again_and_then_given_up(tmp_path: Path, back: bool) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    with serving(tmp_path, **options(url, FALLBACK_MODEL="", OPENAI_MODELS="fake", PROVIDER_RETRIES="4")) as server:
        caller = server.customer("alice", credits=CREDITS)
        session = caller.session()
        with ExitStack() as stack:
            late = threading.Timer(0.3, lambda: stack.enter_context(upstream(port)))
            if back:
                late.start()
            events = caller.ask(session, "fake")
            late.cancel()
        fault = Fault(script="", ends="provider_unreachable", text="", free=True)
        check_end(caller, session, events, FAULTS[0] if back else fault)
        caller.close()
        server.kill()
    check_ledger(tmp_path / "accounting.db")
