"""Measures what traces of headers cost: off against a commit before them, and on, in turn: `bench/header_trace.py`.

All servers run at once and are visited in turn within a round, so that a noisy moment of the machine hits all of them.
CPU time of the server is compared, within a round: that of a short stream, and of a further event of a longer one.
"""

import argparse
import asyncio
import io
import json
import random
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deployment import Deployment, deployed
from load import Record, Request, run
from parshall.kernel.fingerprints import Fingerprints
from parshall.kernel.headertrace import HeaderTrace, Mode, Tracing
from processes import BENCH, Process, running

SHORT, LONG = "flow-1-0", "flow-250-5"
EVENTS_MORE = 249
SHORT_STREAMS, LONG_STREAMS, AT_ONCE = 96, 16, 8
REQUESTS = 200_000
SETTINGS = ("off", "on", "development")
BEFORE = "before"


def main() -> None:
    """Run rounds and print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--before", required=True, help="the commit to hold it against")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--only", default=",".join(SETTINGS), help="of off, on, development")
    asked = options.parse_args()
    measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with ExitStack() as stack:
        provider = stack.enter_context(running([str(BENCH / "provider.py")])).url + "/v1"
        targets = _targets(asked.before, asked.only.split(","), stack)
        servers = {name: stack.enter_context(deployed(provider, settings)) for name, settings in targets}
        for server in servers.values():
            _cpu(server, SHORT, SHORT_STREAMS)
        for number in range(asked.rounds):
            for name in random.Random(number).sample(sorted(servers), len(servers)):
                measured[name].append(_visit(servers[name]))
    _tell(measured)
    print(f"\nThe layer alone, off: {_layer_nanoseconds():.0f} ns of CPU a request with ten fields.")


def _layer_nanoseconds() -> float:
    """What stands between server and application takes of a request: with it, less without it; the least of nine."""

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        pass

    async def unused(*_: Any) -> Any:
        raise AssertionError("nothing is received or sent")

    fields = [(b"x-field-%d" % number, b"value") for number in range(10)]
    scope = {"type": "http", "path": "/api/chat/streams/x", "headers": fields}
    tracing = Tracing(mode=Mode.OFF, fingerprints=Fingerprints(b"unused"), service="bench", clock=lambda: 0)

    async def ask(asked: Any) -> float:
        began = time.process_time()
        for _ in range(REQUESTS):
            await asked(scope, unused, unused)
        return time.process_time() - began

    layer = HeaderTrace(app, tracing)
    pairs = [(asyncio.run(ask(app)), asyncio.run(ask(layer))) for _ in range(9)]
    return (min(each[1] for each in pairs) - min(each[0] for each in pairs)) / REQUESTS * 1e9


def _targets(before: str, only: Sequence[str], stack: ExitStack) -> list[tuple[str, dict[str, str]]]:
    """The servers by name, each with its environment."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parshall-bench-")))
    packed = subprocess.run(["git", "archive", before, "src"], cwd=BENCH.parent, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    own = {name: {"PARSHALL_HEADER_TRACE": name} for name in only}
    here = {"PYTHONPATH": str(BENCH.parent / "src")}
    return [(BEFORE, {"PYTHONPATH": str(folder / "src")}), *((name, here | each) for name, each in own.items())]


def _visit(server: Deployment) -> tuple[float, float]:
    """Microseconds of CPU of a short stream, and of a further event."""
    short = _cpu(server, SHORT, SHORT_STREAMS) / SHORT_STREAMS
    long = _cpu(server, LONG, LONG_STREAMS) / LONG_STREAMS
    return short * 1e6, (long - short) * 1e6 / EVENTS_MORE


def _cpu(server: Deployment, model: str, streams: int) -> float:
    """Seconds of CPU that so many streams took; each of them was whole."""
    body = json.dumps({"message": "measure", "modelId": model}).encode()
    token = (("Authorization", f"Bearer {server.token}"),)
    requests = [
        Request(path=f"/api/chat/sessions/{session}/stream", body=body, headers=token)
        for session in server.new_sessions(streams)
    ]
    process: Process = server.process
    done = run(requests, url=process.url, at_once=AT_ONCE, ramp_seconds=0.0, measured=process)
    wrong = [record.failure or "no answer" for record in done.records if not _is_whole(record)]
    if wrong or len(done.records) != streams:
        raise SystemExit(f"{len(wrong)} of {len(done.records)} streams failed: {wrong[:1]}")
    return done.cpu_seconds


def _is_whole(record: Record) -> bool:
    """Whether a stream has ended with its answer and its receipt."""
    text = b"".join(each for _, each in record.reads)
    return record.failure is None and b"event: done" in text and b'"settlement":"settled"' in text


def _tell(measured: dict[str, list[tuple[float, float]]]) -> None:
    print("| server | CPU µs/stream: least | median | against before | µs/event: least | median | against before |")
    print("|---|---|---|---|---|---|---|")
    for name, taken in measured.items():
        cells = [name]
        for which in (0, 1):
            own, before = [each[which] for each in taken], [each[which] for each in measured[BEFORE]]
            cells += [f"{min(own):.0f}", f"{statistics.median(own):.0f}", _ratio(own, before)]
        print(f"| {' | '.join(cells)} |")


def _ratio(own: Sequence[float], before: Sequence[float]) -> str:
    """The median of the rounds, with the quarters of them below and above."""
    ratios = [one / other for one, other in zip(own, before, strict=True)]
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


if __name__ == "__main__":
    main()
