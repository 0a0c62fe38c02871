"""Measures how soon a reader that comes back goes on: `python bench/resume.py`.

Readers of streams that run, and of streams that have ended, come back behind a random event, some at a time. What each
gets is held against what the first reader of its stream got behind that event, byte for byte.
"""

import argparse
import random
import signal
import statistics
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from arrival import MILLISECOND, first_read, received
from deployment import Deployment
from load import Record, Request, Run, run
from processes import BENCH, running
from streams import parshall, turns

LOGS = ("parshall", "parshall-valkey")
EVENTS = 500
PAUSES_MILLISECONDS = (10, 20)
"""Between events: what comes in one read would be one event, and a stream that runs must outlast the coming back."""
STREAMS = 20
BEGUN_SECONDS = 2.0
"""How long streams have run when the first reader comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Streams to come back to, how many readers do in all, and how many at a time."""

    name: str
    model: str
    readers: int
    at_once: int


KINDS = (
    Kind(name="ended", model=f"flow-{EVENTS}-{PAUSES_MILLISECONDS[0]}", readers=200, at_once=1),
    Kind(name="ended", model=f"flow-{EVENTS}-{PAUSES_MILLISECONDS[0]}", readers=200, at_once=50),
    Kind(name="running", model=f"flow-{EVENTS}-{PAUSES_MILLISECONDS[1]}", readers=50, at_once=50),
)


@contextmanager
def _streams(deployment: Deployment, kind: Kind) -> Iterator[tuple[list[str], list[Record]]]:
    """Ids of streams, and what their first readers get; they have ended, or run until the block has ended."""
    ids = [f"stream-{random.randrange(10**9, 10**10)}-{random.randbytes(16).hex()}" for _ in range(STREAMS)]
    asked = [
        Request(path=each.path, body=each.body, headers=(*each.headers, ("X-Streaming-Session-Id", name)))
        for each, name in zip(turns(deployment, kind.model, STREAMS), ids, strict=True)
    ]
    records: list[Record] = []
    reading = threading.Thread(target=lambda: records.extend(_run(asked, deployment, STREAMS).records))
    reading.start()
    reading.join(BEGUN_SECONDS if kind.name == "running" else None)
    yield ids, records
    reading.join()


def _run(requests: list[Request], deployment: Deployment, at_once: int) -> Run:
    return run(requests, url=deployment.process.url, at_once=at_once, ramp_seconds=0.0, measured=deployment.process)


def _measured(deployment: Deployment, kind: Kind) -> tuple[list[float], list[float], float]:
    """Milliseconds to the first event and to the last, and those of CPU that a reader took."""
    headers = (("Authorization", f"Bearer {deployment.token}"),)
    with _streams(deployment, kind) as (ids, first):
        offsets = [random.randrange(1, 80 if kind.name == "running" else EVENTS) for _ in range(kind.readers)]
        asked = [
            Request(method="GET", path=f"/api/chat/streams/{ids[n % STREAMS]}?after={offset}", headers=headers)
            for n, offset in enumerate(offsets)
        ]
        made = _run(asked, deployment, kind.at_once)
    by_id = {_id_of(record): received(record)[1] for record in first}
    for record in made.records:
        content = received(record)[1]
        if record.failure is not None or not content or not by_id[_id_of(record)].endswith(content):
            raise SystemExit(f"a reader got something else than the rest of its stream: {record.failure}")
    firsts = [(first_read(each, b"\nid: ") - each.asked_at) / MILLISECOND for each in made.records]
    lasts = [(each.ended_at - each.asked_at) / MILLISECOND for each in made.records]
    return firsts, lasts, made.cpu_seconds / len(made.records) * 1000


def _id_of(record: Record) -> str:
    head = received(record)[0].decode("latin-1").lower()
    return head.partition("x-streaming-session-id: ")[2].partition("\r\n")[0]


def main() -> None:
    """Measure, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=1)
    random.seed(arguments.parse_args().seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whoever ends us ends the servers too
    print("| log | stream | readers at once | first event p50 / p99, ms | whole rest p50 / p99, ms | CPU ms a reader |")
    print("|---|---|---|---|---|---|")
    for name in LOGS:
        with ExitStack() as stack:
            provider = stack.enter_context(running([str(BENCH / "provider.py")]))
            deployment = parshall(stack, name, f"{provider.url}/v1")
            for kind in KINDS:
                first, last, cpu = _measured(deployment, kind)
                rest = f"{_spread(last)} | {cpu:.1f}" if kind.name == "ended" else "as it runs | "
                print(f"| {name} | {kind.name} | {kind.at_once} | {_spread(first)} | {rest} |", flush=True)


def _spread(values: list[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.1f} / {ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]:.1f}"


if __name__ == "__main__":
    main()
