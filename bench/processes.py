"""Processes under measurement: start one, learn where it listens, read its CPU time and memory, stop it."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 15
BENCH = Path(__file__).parent
_URL = re.compile(r"http://[\w.:]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A running server."""

    pid: int
    url: str

    def cpu_seconds(self) -> float:
        """CPU time since its start, all threads together (Linux: the CPU clock of another process)."""
        return time.clock_gettime((~self.pid << 3) | 2)

    def resident_bytes(self) -> int:
        """Resident memory now (Linux)."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def running(program: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    """Run a Python program that prints its URL, until the block ends. Raises RuntimeError with what it said instead."""
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            [sys.executable, *program],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        timer = threading.Timer(START_SECONDS_MAX, child.kill)
        timer.start()
        try:
            url = _announced(child)
            timer.cancel()
            if url is None:
                said.seek(0)
                raise RuntimeError(f"{' '.join(program)} did not start: {said.read()[-1000:]}")
            yield Process(pid=child.pid, url=url)
        finally:
            timer.cancel()
            _stop(child)


def _announced(child: subprocess.Popen[str]) -> str | None:
    assert child.stdout is not None
    for line in child.stdout:
        found = _URL.search(line)
        if found is not None:
            return found[0]
    return None


def _stop(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.communicate(timeout=STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
