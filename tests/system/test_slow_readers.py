"""Readers that do not read, on real sockets: they cost bounded memory, are cut in time, disturb nobody, and resume."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.ledgers import check_ledger
from tests.scripted import Script
from tests.serving import Caller, Server, serving, text_of, upstream

from parshall.kernel.sse import EventParser

pytestmark = pytest.mark.executed("memory is measured")

STALL_SECONDS = 3
BUFFER_BYTES = 65_536
READER_BYTES_MAX = 3 * BUFFER_BYTES + 60_000
"""What the transport holds, the write that waits behind it, the batch it was cut from, and the request itself."""
KEEPALIVE_SECONDS = 5
SCRIPT = "fake-n1500-b400-ms2"
TEXT = Script(n=1500, b=400).text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    options = {
        "EMBEDDED_MODEL": "off",
        "OPENAI_MODELS": "fake,*",
        "MAX_OUTPUT_TOKENS": "100000",
        "DISCONNECT_GRACE_SECONDS": "0.3",
        "READER_STALL_SECONDS": str(STALL_SECONDS),
        "READER_BUFFER_BYTES": str(BUFFER_BYTES),
    }
    with upstream() as url, serving(home, OPENAI_BASE_URL=url, **options) as running:
        yield running
        running.kill()
    check_ledger(home / "accounting.db")


@pytest.fixture
def caller(server: Server, request: pytest.FixtureRequest) -> Iterator[Caller]:
    made = server.customer(f"user{abs(hash(request.node.name))}"[:20], credits=10_000)
    yield made
    made.close()


def asleep(server: Server, caller: Caller, path: str) -> socket.socket:
    """A client that has sent its request and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    lines = (f"GET {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {caller.token}", "", "")
    connection.sendall("\r\n".join(lines).encode())
    return connection


def was_cut(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP | select.POLLERR | select.POLLHUP)
    return bool(poll.poll(0))


def rest_of(connection: socket.socket) -> bytes:
    """What had arrived before the cut."""
    got = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65_536):
            got += piece
    return bytes(got)


def events_of(answer: bytes) -> list[str]:
    """The ids of the whole events in an answer that was sent in chunks, in order."""
    body = answer.partition(b"\r\n\r\n")[2]
    stream = bytearray()
    while b"\r\n" in body:
        size, _, body = body.partition(b"\r\n")
        stream += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return [event.id for event in EventParser().feed(bytes(stream))]


class Watched:
    """The most memory that a process has held while it was watched."""

    def __init__(self, server: Server) -> None:
        self._process = server.child("chat")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.most = self._process.memory_info().rss

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.most = max(self.most, self._process.memory_info().rss)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def begun(caller: Caller, message: str) -> str:
    """A stream that its caller leaves at once."""
    path = f"/api/chat/sessions/{caller.session()}/stream"
    with caller.streaming("POST", path, {"message": message}) as (response, events):
        next(events)
        return response.headers["X-Streaming-Session-Id"]


@pytest.mark.parametrize("readers", [300, pytest.param(1000, marks=pytest.mark.soak)])
def test_readers_that_never_read_cost_bounded_memory_and_are_cut_and_disturb_nobody(
    server: Server, caller: Caller, readers: int
) -> None:
    caller.resume(begun(caller, SCRIPT))  # what one stream costs is not counted
    stream = begun(caller, SCRIPT)
    path = f"/api/chat/streams/{stream}"
    with Watched(server) as memory, contextlib.ExitStack() as stack:
        began = time.monotonic()
        sleepers = [stack.enter_context(asleep(server, caller, path)) for _ in range(readers)]
        whole = caller.resume(stream)
        took = time.monotonic() - began
        assert text_of(whole) == TEXT and whole[-1].event == "done"
        while not all(was_cut(each) for each in sleepers):
            assert time.monotonic() < began + took + 4 * STALL_SECONDS, sum(map(was_cut, sleepers))
            time.sleep(0.1)
        check_resumable(caller, stream, sleepers, [event.id for event in whole])
    assert took < 30, "the provider takes four seconds; a reader that is awake does not wait for those asleep"
    assert memory.most - memory.before < readers * READER_BYTES_MAX
    assert caller.balance()["reservedCredits"] == 0


def check_resumable(caller: Caller, stream: str, sleepers: list[socket.socket], ids: list[str]) -> None:
    """Each got the beginning of the stream, and gets the rest."""
    for number, connection in enumerate(sleepers):
        came = events_of(rest_of(connection))
        assert came == ids[: len(came)] and len(came) < len(ids)
        if number % 50 == 0:
            rest = caller.resume(stream, after=int(came[-1]) if came else 0)
            assert came + [event.id for event in rest] == ids


def test_a_slow_reader_that_keeps_reading_is_not_cut(server: Server, caller: Caller) -> None:
    stream = begun(caller, SCRIPT)
    whole = [event.id for event in caller.resume(stream)]
    with asleep(server, caller, f"/api/chat/streams/{stream}") as connection:
        got, began = bytearray(), time.monotonic()
        while not got.endswith(b"0\r\n\r\n"):
            piece = connection.recv(4096)
            assert piece, "cut"
            got += piece
            time.sleep(0.03)
        assert time.monotonic() - began > STALL_SECONDS
        assert events_of(bytes(got)) == whole


def test_whatever_of_an_answer_is_left_unread_its_connection_does_not_stay(server: Server, caller: Caller) -> None:
    """Also where so little waits that nothing ever blocked, here or in the kernel."""
    stream = begun(caller, SCRIPT)
    caller.resume(stream)
    with contextlib.ExitStack() as stack:
        for after in range(900, 1500, 25):
            stack.enter_context(asleep(server, caller, f"/api/chat/streams/{stream}?after={after}"))
        time.sleep(1)
        assert connections_of(server) > 20
        deadline = time.monotonic() + KEEPALIVE_SECONDS + 3 * STALL_SECONDS
        while (left := connections_of(server)) > 2:  # the caller's own, and the customer's maker's
            assert time.monotonic() < deadline, left
            time.sleep(0.2)


def connections_of(server: Server) -> int:
    found = server.child("chat").net_connections("tcp4")
    return sum(each.status != "LISTEN" and each.laddr.port == server.port for each in found)


def test_a_reader_that_is_cut_no_longer_keeps_a_stream_alive(server: Server, caller: Caller) -> None:
    body = {"message": "fake-n1600-b400-ms15", "onDisconnect": "stop"}  # some 24 seconds
    with caller.streaming("POST", f"/api/chat/sessions/{caller.session()}/stream", body) as (response, events):
        next(events)
        stream = response.headers["X-Streaming-Session-Id"]
        sleeper = asleep(server, caller, f"/api/chat/streams/{stream}")
        time.sleep(0.2)  # it has joined before the first one leaves
    with sleeper:
        receipt = caller.ended(stream)["receipt"]
    assert receipt["outcome"] == "abandoned"


def test_an_idle_connection_and_a_quiet_stream_are_left_alone(server: Server, caller: Caller) -> None:
    """Silence of the server is no fault of the reader."""
    with caller.streaming(
        "POST", f"/api/chat/sessions/{caller.session()}/stream", {"message": f"fake-n2-ms{STALL_SECONDS * 1500}"}
    ) as (_, events):
        assert [event.event for event in events][-1] == "done"
