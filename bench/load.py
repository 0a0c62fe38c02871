"""The load: so many streams at once, each read stamped and kept, to be taken apart after the clock has stopped."""

import asyncio
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import uvloop

from processes import Process

RUN_SECONDS_MAX = 60.0
"""Streams that have not ended then count as failed."""
SAMPLE_SECONDS = 0.1
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request for one stream."""

    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"

    def encoded(self, host: str) -> bytes:
        """The request as HTTP/1.1."""
        own = (("Host", host), ("Content-Type", "application/json"), ("Content-Length", str(len(self.body))))
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in (*own, *self.headers))]
        return "\r\n".join((*lines, "", "")).encode() + self.body


@dataclass(slots=True)
class Record:
    """One stream as it arrived; times are of `time.monotonic_ns`, which all processes of a machine share."""

    asked_at: int = 0
    ended_at: int = 0
    reads: list[tuple[int, bytes]] = field(default_factory=list)
    failure: str | None = "it did not end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one load left behind: the streams, and what they cost the process that served them."""

    records: list[Record]
    wall_seconds: float
    cpu_seconds: float
    resident_bytes_before: int
    resident_bytes_peak: int


class _Slot(asyncio.Protocol):
    """One kept-alive connection that runs streams one after another."""

    def __init__(self, requests: Iterator[bytes], records: list[Record]) -> None:
        self._requests = requests
        self._records = records
        self._record: Record | None = None
        self._tail = b""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        at = time.monotonic_ns()
        record = self._record
        assert record is not None, "the server speaks without having been asked"
        record.reads.append((at, data))
        self._tail = data if len(data) >= len(_LAST_CHUNK) else (self._tail + data)[-len(_LAST_CHUNK) :]
        if self._tail.endswith(_LAST_CHUNK):
            self._end(at, None)
            self._next()
        elif len(record.reads) == 1 and not data.startswith(b"HTTP/1.1 200"):
            self._end(at, data.partition(b"\r\n")[0].decode("latin-1"))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._record is not None:
            self._end(time.monotonic_ns(), f"the connection broke: {exc}")
        if not self.finished.done():
            self.finished.set_result(None)

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            return
        self._tail = b""
        self._record = Record(asked_at=time.monotonic_ns())
        self._records.append(self._record)
        self._transport.write(request)

    def _end(self, at: int, failure: str | None) -> None:
        assert self._record is not None
        self._record.ended_at, self._record.failure = at, failure
        self._record = None


def run(requests: list[Request], *, url: str, at_once: int, ramp_seconds: float, measured: Process) -> Run:
    """Send the requests, `at_once` streams at a time, the first of them spread over `ramp_seconds`."""
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(_run(requests, url=url, at_once=at_once, ramp_seconds=ramp_seconds, measured=measured))
    finally:
        gc.enable()


async def _run(requests: list[Request], *, url: str, at_once: int, ramp_seconds: float, measured: Process) -> Run:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    host = f"{parts.hostname}:{parts.port}"
    waiting = iter([request.encoded(host) for request in requests])
    records: list[Record] = []
    before = peak = measured.resident_bytes()
    cpu, began = measured.cpu_seconds(), time.monotonic()
    slots = {
        asyncio.create_task(_slot(waiting, records, parts.hostname, parts.port, ramp_seconds * n / at_once))
        for n in range(at_once)
    }
    while slots and time.monotonic() < began + ramp_seconds + RUN_SECONDS_MAX:
        _, slots = await asyncio.wait(slots, timeout=SAMPLE_SECONDS)
        peak = max(peak, measured.resident_bytes())
    for slot in slots:
        slot.cancel()
    await asyncio.gather(*slots, return_exceptions=True)
    return Run(
        records=records,
        wall_seconds=time.monotonic() - began,
        cpu_seconds=measured.cpu_seconds() - cpu,
        resident_bytes_before=before,
        resident_bytes_peak=peak,
    )


async def _slot(waiting: Iterator[bytes], records: list[Record], host: str, port: int, delay: float) -> None:
    await asyncio.sleep(delay)
    _, slot = await asyncio.get_running_loop().create_connection(lambda: _Slot(waiting, records), host, port)
    await slot.finished
