"""Traces as a collector gets them: one from the client through all services to the provider, and none at any cost."""

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.otlp import Receiver, Span, receiving
from tests.scraping import TOKEN, scrape
from tests.scripted import Script
from tests.serving import Caller, Server, serving, stream_id_of, text_of, upstream
from tests.upstream import Upstream

from parshall.app.tracing import tracing
from parshall.chat.ports import Delta, Prompt, PromptMessage
from parshall.chat.providers.openai import OpenAIProvider
from parshall.kernel import trace
from parshall.kernel.errors import StartupError

SETTINGS = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*", "METRICS_TOKEN": TOKEN}
CALLER_SPAN = "b7ad6b7169203331"
STREAM_ROUTE = "POST /api/chat/sessions/{session_id}/stream"
NAMES = {"reserve", "stream", "provider", "settle", STREAM_ROUTE}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Server]:
    """The three services, each exporting for itself."""
    with pytest.MonkeyPatch.context() as patch, upstream() as url:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        home = tmp_path_factory.mktemp("home")
        with serving(home, split=True, OPENAI_BASE_URL=url, DRAIN_SECONDS="0.5", **SETTINGS) as running:
            yield running


@pytest.fixture(scope="module")
def alice(server: Server) -> Caller:
    return server.customer("alice")


def has_all(spans: list[Span]) -> bool:
    return {span.name for span in spans} >= NAMES and sum(span.name.endswith("/finalize") for span in spans) == 1


def test_one_trace_runs_from_the_client_through_chat_and_accounting_to_the_provider(
    server: Server, receiver: Receiver, alice: Caller
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-{CALLER_SPAN}-01"}
    stream_id = stream_id_of(alice.ask(alice.session(), "fake-n5", headers=headers))
    spans = receiver.trace(trace_id, has_all)
    named = {span.name: span for span in spans}
    by_id = {span.id: span for span in spans}

    def way_up(span: Span) -> list[str]:
        above = by_id.get(span.parent)
        return [span.name, *([] if above is None else way_up(above))]

    asked = "POST /api/streaming-sessions"
    assert named[STREAM_ROUTE].parent == CALLER_SPAN
    assert way_up(named[f"{asked}/initialize"]) == [f"{asked}/initialize", "POST accounting", "reserve", STREAM_ROUTE]
    assert way_up(named[f"{asked}/finalize"])[2:] == ["settle", "stream", STREAM_ROUTE]
    assert way_up(named["provider"]) == ["provider", "stream", STREAM_ROUTE]
    assert named["provider"].events == ("first token",)
    services = {span.name: span.service for span in spans}
    assert services[STREAM_ROUTE] == services["stream"] == "parshall-chat"
    assert services[f"{asked}/initialize"] == services[f"{asked}/finalize"] == "parshall-accounting"
    for name in (*NAMES, f"{asked}/initialize", f"{asked}/finalize"):
        assert named[name].attributes["parshall.streaming_session_id"] == stream_id, name
    assert named[STREAM_ROUTE].attributes["http.response.status_code"] == 200
    assert not any(span.failed for span in spans)
    told = [str(span) for span in receiver.spans]
    assert not [span for span in told if alice.token in span or "alice-password" in span]


def test_the_span_of_a_stream_outlives_the_request_that_began_it(receiver: Receiver, alice: Caller) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319d"
    headers = {"traceparent": f"00-{trace_id}-{CALLER_SPAN}-01"}
    path = f"/api/chat/sessions/{alice.session()}/stream"
    with alice.streaming("POST", path, {"message": "fake-n60-ms10"}, headers) as (_, events):
        stream_id_of([next(events)])
    named = {span.name: span for span in receiver.trace(trace_id, has_all)}
    assert named["stream"].ended > named[STREAM_ROUTE].ended
    assert named["settle"].began >= named["provider"].ended


def test_a_failure_is_seen_in_the_span_that_it_belongs_to(receiver: Receiver, alice: Caller) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319e"
    alice.ask(alice.session(), "fake-n20-die5", headers={"traceparent": f"00-{trace_id}-{CALLER_SPAN}-01"})
    failed = {span.name: span.failed for span in receiver.trace(trace_id, has_all)}
    assert [name for name, has_failed in failed.items() if has_failed] == ["provider"]


def test_what_the_caller_does_not_sample_is_not_exported_and_what_begins_here_is(
    receiver: Receiver, alice: Caller
) -> None:
    unsampled, sampled = "0af7651916cd43dd8448eb211c8031a0", "0af7651916cd43dd8448eb211c8031a1"
    session = alice.session()
    scrape(alice.url)
    alice.get("/health")
    alice.ask(session, "fake-n1", headers={"traceparent": f"00-{unsampled}-{CALLER_SPAN}-00"})
    alice.ask(session, "fake-n1", headers={"traceparent": f"00-{sampled}-{CALLER_SPAN}-01"})
    receiver.trace(sampled, has_all)
    assert not [span for span in receiver.spans if span.trace_id == unsampled]
    roots = [span for span in receiver.spans if not span.parent and span.name == "POST /api/chat/sessions"]
    assert roots, "a request without a trace begins one"
    assert not [span for span in receiver.spans if span.name in ("GET /metrics", "GET /health")]


def test_what_waits_for_accounting_is_told_by_chat_and_by_no_other_service(server: Server, alice: Caller) -> None:
    accounting, session = server.child("accounting"), alice.session()
    path = f"/api/chat/sessions/{session}/stream"
    with alice.streaming("POST", path, {"message": "fake-n40-ms10"}) as (_, events):
        stream_id = stream_id_of([next(events)])
        accounting.suspend()
        try:
            list(events)
            deadline = time.monotonic() + 15
            while scrape(server.url).sum("parshall_settlements_pending") != 1:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert scrape(server.url).sum("parshall_settlement_pending_oldest_seconds") > 0
        finally:
            accounting.resume()
    settled = alice.ended(stream_id)["receipt"]["chargedCredits"]
    assert scrape(server.services["accounting"]).sum("parshall_credits_settled_total") >= settled
    assert scrape(server.services["auth"]).sum("parshall_credits_settled_total") == 0


def test_an_exporter_that_hangs_costs_streams_and_the_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)  # takes every connection and never says a word
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
        with upstream() as url, serving(tmp_path, OPENAI_BASE_URL=url, **SETTINGS) as server:
            caller = server.customer("alice")
            for _ in range(8):
                assert text_of(caller.ask(caller.session(), "fake-n5")) == Script(n=5).text()
            code, seconds = server.stop()
        assert (code, seconds < 15) == (0, True)
        assert not [line for line in server.output if "Traceback" in line]


async def test_the_provider_is_told_of_the_trace_and_of_the_span_where_there_is_one(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Prompt(model_id="fake", messages=(PromptMessage(role="user", content="fake-n1"),), output_tokens_max=5)
    async with Upstream() as provider:
        asked = OpenAIProvider(base_url=provider.base_url, api_key=None, models=("fake",))
        taken: list[Delta] = []
        trace.begin(f"00-{'a' * 32}-{'b' * 16}-01")
        await asked.stream(prompt, taken.extend)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        with tracing("test"), trace.span("asked", "client"):
            place = trace.current()
            await asked.stream(prompt, taken.extend)
        await asked.close()
        without, with_trace = [each.headers for each in provider.requests]
    assert place is not None
    assert without["traceparent"].startswith(f"00-{'a' * 32}-") and without["traceparent"].endswith("-01")
    assert with_trace["traceparent"] == f"00-{place.trace_id}-{place.span_id}-01"
    assert [span.id for span in receiver.spans if span.name == "asked"] == [place.span_id], (
        "sent at the end at the latest"
    )


def test_nothing_is_imported_or_made_where_nobody_asks_for_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with tracing("parshall"), trace.span("something"):
        assert trace.running() is None


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, r"install parshall\[otel\]"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf alone"),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=1,Bearer secret"},
            r"^OTEL_EXPORTER_OTLP_HEADERS is not a list [^1]*$",
        ),
    ],
)
def test_what_keeps_traces_from_being_exported_keeps_the_server_from_starting(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(StartupError, match=sentence), tracing("parshall"):
        pass


def test_what_asks_for_no_traces_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name, value in (("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with tracing("parshall"), trace.span("something"):
                assert trace.running() is None
