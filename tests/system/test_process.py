"""The life of the serving process: how it starts, ends in mid-stream, and what the next start makes of that."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.serving import Caller, Server, serving, upstream

pytestmark = pytest.mark.executed("how a process starts and ends is what it is about")

LONG = "fake-n400-ms10"


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with upstream() as url:
        yield url


def settings(scripted: str, **more: str) -> dict[str, str]:
    return {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": scripted, "OPENAI_MODELS": "fake,*"} | more


def begin(caller: Caller, session: str, stream_id: str, message: str) -> "Reading":
    return Reading(caller, session, stream_id, message)


class Reading:
    """A stream that is read in a thread until it ends, cleanly or not."""

    def __init__(self, caller: Caller, session: str, stream_id: str, message: str) -> None:
        self.stream_id = stream_id
        self.raw = b""
        self._socket = socket.create_connection(("127.0.0.1", int(caller.url.rpartition(":")[2])), timeout=30)
        content = json.dumps({"message": message}).encode()
        head = (
            f"POST /api/chat/sessions/{session}/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {caller.token}\r\n"
            f"Content-Type: application/json\r\nX-Streaming-Session-Id: {stream_id}\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + content)
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(self._read)

    def _read(self) -> bytes:
        try:
            while not self.raw.endswith(b"0\r\n\r\n") and (chunk := self._socket.recv(65536)):
                self.raw += chunk
        except OSError:
            pass
        finally:
            self._socket.close()
        return self.raw

    def has_chunks(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while self.raw.count(b"event: chunk") < count:
            assert time.monotonic() < deadline, self.raw
            time.sleep(0.01)

    def whole(self) -> bytes:
        try:
            return self._done.result(30)
        finally:
            self._pool.shutdown()


# ── SIGTERM, SIGINT ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_mid_stream_ends_readers_cleanly_settles_and_exits_in_time(
    scripted: str, tmp_path: Path, number: int
) -> None:
    with serving(tmp_path, **settings(scripted, DRAIN_SECONDS="0.5")) as server:
        caller = server.customer("alice")
        stream_id = "stream-1620847252-00000000000000b2"
        reading = begin(caller, caller.session(), stream_id, LONG)
        reading.has_chunks(5)
        code, seconds = server.stop(number)
        seen = reading.whole()
        assert code == 0 and seconds < 5
        assert seen.endswith(b"0\r\n\r\n"), "the chunked body must be finished"
        assert b"retry: " in seen and seen.count(b"event: error") == 1
        assert b'"code":"interrupted"' in seen and b'"settlement":"settled"' in seen
        assert not [line for line in server.output if "Traceback" in line]
        server.start()
        caller = server.user("alice", "alice-password")
        events = caller.resume(stream_id)
        assert f"data: {events[-1].data}\nid: {events[-1].id}\n\n".encode() in seen
        assert caller.balance()["reservedCredits"] == 0
        caller.close()


def test_a_short_answer_is_finished_before_the_process_goes(scripted: str, tmp_path: Path) -> None:
    with serving(tmp_path, **settings(scripted, DRAIN_SECONDS="4")) as server:
        caller = server.customer("alice")
        reading = begin(caller, caller.session(), "stream-1620847252-00000000000000c3", "fake-n60-ms10")
        reading.has_chunks(3)
        code, _ = server.stop()
        assert code == 0 and b"event: done" in reading.whole()
        caller.close()


def test_a_reader_that_never_reads_does_not_hold_up_the_exit(scripted: str, tmp_path: Path) -> None:
    with serving(tmp_path, **settings(scripted, DRAIN_SECONDS="0.2", MAX_OUTPUT_TOKENS="100000")) as server:
        caller = server.customer("alice", credits=10_000)
        session = caller.session()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        body = json.dumps({"message": "fake-n20000-b400"}).encode()
        connection.sendall(
            f"POST /api/chat/sessions/{session}/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {caller.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        time.sleep(1)
        assert server.user().get("/health")["status"] == "ok"
        code, seconds = server.stop()
        assert code == 0 and seconds < 5
        connection.close()
        caller.close()


# ── Starts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_generated_admin_password_is_printed_once_and_works(scripted: str, tmp_path: Path) -> None:
    own = settings(scripted) | {"ADMIN_PASSWORD": ""}
    with serving(tmp_path, **own) as server:
        line = next(line for line in server.output if "password" in line or server_waits(server))
        password = line.split("password ", 1)[1].split()[0]
        server.user("admin", password).close()
        server.stop()
        server.output.clear()
        server.start()
        time.sleep(0.2)
        assert not [line for line in server.output if "password" in line]


def server_waits(server: Server) -> bool:
    deadline = time.monotonic() + 5
    while not any("password" in line for line in server.output) and time.monotonic() < deadline:
        time.sleep(0.01)
    return False


def test_python_runs_the_command_as_a_module() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "parshall", "version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0 and "0.1.0" in answer.stdout
