"""Metrics as a collector gets them by OTLP: what a scrape tells, of each process for itself."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.otlp import Point, Receiver, receiving
from tests.scraping import TOKEN, Scraped, scrape
from tests.serving import serving, upstream

from parshall.app import metering as module
from parshall.app.metering import metering
from parshall.kernel.errors import StartupError

SETTINGS = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*", "METRICS_TOKEN": TOKEN}
QUIET = ("parshall_stream", "parshall_tokens", "parshall_credits", "parshall_first_token", "parshall_log_append")
"""What changes with streams alone, so that an export and a scrape a moment later agree."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
        yield running


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def quiet(points: dict[Point, float]) -> dict[Point, float]:
    return {key: value for key, value in points.items() if key[0].startswith(QUIET)}


def scraped(found: Scraped) -> dict[Point, float]:
    return quiet(dict(found.samples))


def test_what_is_exported_is_what_a_scrape_tells(tmp_path: Path, receiver: Receiver) -> None:
    completed = "parshall_streams_ended_total", frozenset({("outcome", "completed")})
    with upstream() as url, serving(tmp_path, OPENAI_BASE_URL=url, **SETTINGS) as server:
        caller = server.customer("alice")
        for prompt in ("fake-n5", "fake-n20-die5", "fake-n300"):
            caller.ask(caller.session(), prompt)
        assert scrape(server.url).sum("parshall_streams_ended_total", outcome="completed") == 2
        wanted = [scraped(scrape(each)) for each in server.urls]
        until(lambda: len(receiver.metrics) == len(wanted))
        until(lambda: all(each in [quiet(points) for points in receiver.metrics.values()] for each in wanted))
        (points,) = [points for points in receiver.metrics.values() if points.get(completed)]
        assert points["parshall_open_streams", frozenset()] == 0
        assert sum(name == "parshall_first_token_seconds_bucket" for name, _ in quiet(points)) > 5
        caller.ask(caller.session(), "fake-n1")
        server.stop()
    told = [points[completed] for points in receiver.metrics.values() if points.get(completed)]
    assert told == [3], "the last export is made at the end"


def test_services_apart_export_each_for_itself(tmp_path: Path, receiver: Receiver) -> None:
    with upstream() as url, serving(tmp_path, split=True, OPENAI_BASE_URL=url, **SETTINGS) as server:
        caller = server.customer("alice")
        caller.ask(caller.session(), "fake-n5")
        wanted = [scraped(scrape(each)) for each in server.urls]
        until(lambda: len(receiver.metrics) == 3)
        until(lambda: all(each in [quiet(points) for points in receiver.metrics.values()] for each in wanted))


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, "http/protobuf alone"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "soon"}, "OTEL_METRIC_EXPORT_INTERVAL is a whole number"),
        ({"OTEL_EXPORTER_OTLP_METRICS_HEADERS": "Bearer secret"}, r"^OTEL_EXPORTER_OTLP_METRICS_HEADERS is not a list"),
    ],
)
def test_what_keeps_metrics_from_being_exported_keeps_the_server_from_starting(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=sentence), metering("parshall"):
        pass


@pytest.mark.parametrize("variable", [("OTEL_SDK_DISABLED", "true"), ("OTEL_METRICS_EXPORTER", "none")])
def test_what_asks_for_no_metrics_wins(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    with metering("parshall"):
        time.sleep(0.3)
    assert receiver.metrics == {}


def test_an_export_that_fails_is_not_the_last(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    told, calls = module.told, iter(range(100_000))

    def at_first_not(*given: Any, **more: Any) -> Any:
        if next(calls) < 2:
            raise RuntimeError("a fault of ours")
        return told(*given, **more)

    monkeypatch.setattr(module, "told", at_first_not)
    with metering("parshall"):
        until(lambda: len(receiver.metrics) == 1)
