"""A TCP relay before a server, which resets connections in the middle of the streams that they carry."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator

PIECE_BYTES = 65_536
WITHIN_BYTES = 10
"""So far behind the beginning of its data an event is cut: between two events nothing would be lost anyway."""
ARRIVAL_SECONDS = 0.02
"""What was sent before a reset has this long to be read."""
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Relay:
    """Passes bytes both ways; each next stream is reset within an event, after as many bytes or more as `cuts` say."""

    def __init__(self, port: int, cuts: Iterable[int]) -> None:
        """`port` is the server's, on the loopback. Once the cuts are used up nothing is cut any more."""
        self.cuts = deque(cuts)
        self.url = ""
        self._server_port = port
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._passing: set[asyncio.Task[None]] = set()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._begin, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._up.set()
        await self._over.wait()
        server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _begin(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._pass(client, answer))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _pass(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        server, request = await asyncio.open_connection("127.0.0.1", self._server_port)
        ways = {asyncio.ensure_future(_copy(client, request)), asyncio.ensure_future(self._cut(server, answer))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            request.transport.abort()
            answer.close()

    async def _cut(self, server: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """Copy the answers of one connection, up to the cut where one of them is a stream."""
        left: int | None = None
        while piece := await server.read(PIECE_BYTES):
            if left is None and b"text/event-stream" in piece and self.cuts:
                head = piece.index(b"\r\n\r\n", piece.index(b"text/event-stream")) + 4
                left = head + self.cuts.popleft()
            at = -1 if left is None else piece.find(b"data: ", max(left, 0))
            if at >= 0:
                answer.write(piece[: at + WITHIN_BYTES])
                await answer.drain()
                await asyncio.sleep(ARRIVAL_SECONDS)
                _reset(answer)
                return
            left = None if left is None else left - len(piece)
            answer.write(piece)
            await answer.drain()

    def run(self) -> None:
        """Serve until `close`; for a thread of its own."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def wait(self) -> None:
        """Wait until it listens."""
        assert self._up.wait(10)

    def close(self) -> None:
        """End `run`, and every connection."""
        self._loop.call_soon_threadsafe(self._over.set)


@contextlib.contextmanager
def relay(port: int, cuts: Iterable[int] = ()) -> Iterator[Relay]:
    """A running relay to that port."""
    made = Relay(port, cuts)
    thread = threading.Thread(target=made.run)
    thread.start()
    made.wait()
    try:
        yield made
    finally:
        made.close()
        thread.join(10)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    writer.transport.abort()
