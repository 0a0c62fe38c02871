"""Measures streams: the provider alone, a bare pass-through, and Parshall, in turn: `python bench/streams.py`.

Every round starts all three anew and visits them scenario by scenario, so that a noisy moment of the machine hits all
of them; what is compared is compared within a round. A stream that is not whole and right counts as an error.
"""

import argparse
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tables
from answers import answer
from arrival import Arrival, Wrong, arrival
from deployment import Deployment, deployed
from load import Request, Run, run
from processes import BENCH, Process, running

sys.path.insert(0, str(BENCH.parent))

from tests.valkey import Valkey

WARM_UP_STREAMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """So many streams of one model, `at_once` of them open at a time."""

    name: str
    model: str
    at_once: int
    streams: int
    ramp_seconds: float = 0.0


SCENARIOS = (
    Scenario(name="idle200", model="flow-5-1000", at_once=200, streams=200, ramp_seconds=2.0),
    Scenario(name="one", model="flow-5-10", at_once=1, streams=60),
    Scenario(name="paced50", model="flow-50-20", at_once=50, streams=200, ramp_seconds=1.0),
    Scenario(name="paced200", model="flow-50-20", at_once=200, streams=400, ramp_seconds=1.0),
    Scenario(name="long50", model="flow-250-20", at_once=50, streams=100, ramp_seconds=2.5),
    Scenario(name="long200", model="flow-250-20", at_once=200, streams=400, ramp_seconds=5.0),
    Scenario(name="short32", model="flow-1-0", at_once=32, streams=300),
    Scenario(name="full32", model="flow-250-0", at_once=32, streams=96),
)
_WARM_UP = Scenario(name="warm-up", model="flow-5-10", at_once=4, streams=WARM_UP_STREAMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One of the servers that are compared; `requests` makes so many requests for a model."""

    name: str
    process: Process
    requests: Callable[[str, int], list[Request]]

    def measure(self, scenario: Scenario) -> dict[str, Any]:
        """Run a scenario; its figures as plain JSON."""
        made = run(
            self.requests(scenario.model, scenario.streams),
            url=self.process.url,
            at_once=scenario.at_once,
            ramp_seconds=scenario.ramp_seconds,
            measured=self.process,
        )
        return _figures(made, scenario, metered=self.name.startswith("parshall"))


def _figures(made: Run, scenario: Scenario, *, metered: bool) -> dict[str, Any]:
    """CPU in microseconds per event of the provider, however many of them a server passes on as one."""
    asked = answer(scenario.model)
    arrivals: list[Arrival] = []
    errors: Counter[str] = Counter()
    for record in made.records:
        try:
            arrivals.append(arrival(record, asked, metered=metered))
        except (Wrong, ValueError, KeyError, StopIteration) as error:
            errors[f"{type(error).__name__}: {error}"] += 1
    missing = scenario.streams - len(made.records)
    if missing:
        errors["never sent"] += missing
    events = max(1, len(arrivals) * asked.events)
    grown = made.resident_bytes_peak - made.resident_bytes_before
    return {
        "errors": dict(errors),
        "streams": len(arrivals),
        "events_per_second": events / made.wall_seconds,
        "streams_per_second": len(arrivals) / made.wall_seconds,
        "words_per_event": sum(one.words for one in arrivals) / events,
        "cpu_share": made.cpu_seconds / made.wall_seconds,
        "cpu_us_per_event": made.cpu_seconds / events * 1e6,
        "cpu_us_per_stream": made.cpu_seconds / max(1, len(arrivals)) * 1e6,
        "kib_per_stream": grown / scenario.at_once / 1024,
        "resident_mib": made.resident_bytes_peak / 1024 / 1024,
        **{
            f"{name}_{label}": _percentile([getattr(one, name) for one in arrivals], share)
            for name in ("first_event", "first_word", "under_way")
            for label, share in (("p50", 0.5), ("p99", 0.99))
        },
    }


def _percentile(values: Sequence[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def _completions(model: str, count: int) -> list[Request]:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "How does a flume work?"}]}
    return [Request(path="/v1/chat/completions", body=json.dumps(body).encode())] * count


def turns(deployment: Deployment, model: str, count: int) -> list[Request]:
    """As many requests, each in a chat session of its own."""
    body = json.dumps({"message": "How does a flume work?", "modelId": model}).encode()
    headers = (("Authorization", f"Bearer {deployment.token}"),)
    return [
        Request(path=f"/api/chat/sessions/{session}/stream", body=body, headers=headers)
        for session in deployment.new_sessions(count)
    ]


def parshall(stack: ExitStack, name: str, provider: str, against: Path | None = None) -> Deployment:
    """A deployment for the block, as its name says it: `parshall[-valkey][-before]`."""
    settings: dict[str, str] = {}
    if "-valkey" in name:
        server = stack.enter_context(Valkey.start(durable=False))
        server.ask("CONFIG", "SET", "appendonly", "yes")  # with fsync every second, as its guide has it
        settings["PARSHALL_STREAM_LOG_URL"] = server.url
    if name.endswith("-before"):
        assert against is not None, "--against says where the code to compare with lies"
        settings["PYTHONPATH"] = str(against.resolve() / "src")
    return stack.enter_context(deployed(provider, settings))


def _target(deployment: Deployment, name: str) -> Target:
    return Target(name=name, process=deployment.process, requests=lambda model, count: turns(deployment, model, count))


def one_round(
    scenarios: Sequence[Scenario], targets: Sequence[str], number: int, *, against: Path | None = None
) -> list[dict[str, Any]]:
    """Start the servers, measure every scenario on each of them in turn, stop them."""
    with ExitStack() as stack:
        provider = stack.enter_context(running([str(BENCH / "provider.py")]))
        base = f"{provider.url}/v1"
        chosen = [Target(name="provider", process=provider, requests=_completions)]
        if "passthrough" in targets:
            process = stack.enter_context(running([str(BENCH / "passthrough.py"), base]))
            chosen.append(Target(name="passthrough", process=process, requests=_completions))
        chosen += [
            _target(parshall(stack, name, base, against), name) for name in targets if name.startswith("parshall")
        ]
        for target in chosen:
            target.measure(_WARM_UP)
        results: list[dict[str, Any]] = []
        for scenario in scenarios:
            for target in chosen:
                result = {"round": number, "scenario": scenario.name, "target": target.name}
                results.append(result | target.measure(scenario))
                print(tables.line(results[-1]), file=sys.stderr, flush=True)
        return results


def main() -> None:
    """Measure, print the tables, keep the raw results where asked to."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [scenario.name for scenario in SCENARIOS]
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--scenarios", default=",".join(names), help=f"some of {', '.join(names)}")
    arguments.add_argument(
        "--targets",
        default="passthrough,parshall,parshall-valkey",
        help="of passthrough, parshall, parshall-valkey, parshall-before, parshall-valkey-before",
    )
    arguments.add_argument("--against", type=Path, help="a checkout that the targets named -before run")
    arguments.add_argument("--out", type=Path, help="keep the raw results in this JSON file")
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whoever ends us ends the servers too
    wanted = given.scenarios.split(",")
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in wanted]
    results: list[dict[str, Any]] = []
    for number in range(given.rounds):
        results += one_round(scenarios, given.targets.split(","), number, against=given.against)
        if given.out:
            given.out.write_text(json.dumps(results, indent=1))
    print(tables.whole(results, scenarios=[scenario.name for scenario in scenarios]))
    wrong = sum(sum(result["errors"].values()) for result in results)
    if wrong:
        raise SystemExit(f"{wrong} streams were not whole and right; the figures mean nothing.")


if __name__ == "__main__":
    main()
