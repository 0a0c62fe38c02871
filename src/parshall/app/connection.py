"""HTTP connections whose clients do not read: what waits for them in memory is bounded, and so is how long it waits."""

import asyncio
import socket
import struct
from collections.abc import Collection
from functools import partial
from typing import Any, ClassVar, cast

from parshall.app.arrival import BODY_SECONDS, HEAD_SECONDS, Arrival
from parshall.kernel.headers import LOGGED_PATH
from parshall.kernel.pushing import PUSHES
from parshall.kernel.recording import NAMES_AS_SENT
from parshall.kernel.telemetry import log

_UNSENT_MAX: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_NO_LINGER = struct.pack("ii", 1, 0)

_logger = log("http")


class Connection(Arrival):
    """A connection that is cut when its client takes less than `buffer_bytes` in `stall_seconds` while more waits.

    Only the transport can do that: a response that fails lets uvicorn close the connection, and closing waits for
    the very bytes that nobody reads. A reader that was cut resumes; what it had not read is in the stream's log.
    """

    stall_seconds: ClassVar[float]
    buffer_bytes: ClassVar[int]
    _look: asyncio.TimerHandle | None = None
    _waiting = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let writers wait once `buffer_bytes` are unsent here, and as many in the kernel, which may hold megabytes."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=self.buffer_bytes)
        if _UNSENT_MAX is not None:
            own: socket.socket = transport.get_extra_info("socket")
            own.setsockopt(socket.IPPROTO_TCP, _UNSENT_MAX, self.buffer_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing waits any more."""
        self._forget()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client is behind."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._forget()

    def on_message_begin(self) -> None:
        """Another request: the rest of the answer before it is no longer the last thing to be sent."""
        super().on_message_begin()
        self.scope["extensions"] = {PUSHES: {"push": partial(self._push, self.scope)}}
        if not self.flow.write_paused:
            self._forget()

    def on_response_complete(self) -> None:
        """The rest of an answer has to be taken too, for the connection is kept until it is."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch()

    def _push(self, scope: object, piece: bytes) -> bool:
        """Write a piece of the body of the answer to the request with that scope, as uvicorn's `send` does."""
        cycle = self.cycle
        if (
            self.flow.write_paused
            or cycle.scope is not scope  # the next request has arrived already
            or cycle.disconnected
            or cycle.response_complete
            or not cycle.chunked_encoding
        ):
            return False
        try:
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        except Exception:  # a connection that is just closing: whoever awaits `send` next is told, and nobody else
            return False
        return True

    def _watch(self) -> None:
        self._forget()
        self._waiting = self.transport.get_write_buffer_size()
        self._look = self.loop.call_later(self.stall_seconds, self._looked)

    def _forget(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _looked(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0:
            self._look = None
        elif self._waiting - unsent >= self.buffer_bytes:
            self._watch()
        else:
            _logger.info("connection_cut", path=self.scope.get(LOGGED_PATH), unsent_bytes=unsent)
            own: socket.socket = self.transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)  # else the kernel keeps what nobody reads
            self.transport.abort()


class _AsSent(Connection):
    """A connection that keeps the names of header fields in the case in which they came, for traces."""

    _names: list[bytes]

    def on_message_begin(self) -> None:
        """Another request."""
        super().on_message_begin()
        self._names = []
        scope = cast("dict[str, Any]", self.scope)
        scope[NAMES_AS_SENT] = self._names

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field; one behind the body (a trailer) comes after those that count."""
        self._names.append(name)
        super().on_header(name, value)


def connections(
    *,
    stall_seconds: float,
    buffer_bytes: int,
    head_seconds: float = HEAD_SECONDS,
    body_seconds: float = BODY_SECONDS,
    connections_max: int | None = None,
    spared: Collection[str] = (),
    names_as_sent: bool = False,
) -> type[Connection]:
    """The class of a server's connections, as uvicorn takes it; `names_as_sent` is for traces of every request."""
    bound = {
        "stall_seconds": stall_seconds,
        "buffer_bytes": buffer_bytes,
        "head_seconds": head_seconds,
        "body_seconds": body_seconds,
        "connections_max": connections_max,
        "spared": frozenset(path.encode() for path in spared),
    }
    return type("BoundConnection", (_AsSent if names_as_sent else Connection,), bound)
