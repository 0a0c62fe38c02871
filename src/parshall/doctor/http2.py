"""One request over HTTP/2, for servers that choose it by ALPN."""

import asyncio
import contextlib
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from parshall.doctor.wire import READ_BYTES, Request, Target, connect

PROTOCOL = "h2"
SECONDS_MAX = 45.0
_OF_THE_CONNECTION = frozenset({"host", "content-length"})


@dataclass(kw_only=True)
class Frames:
    """What came over HTTP/2."""

    chosen: str | None = None
    """What the server chose by ALPN."""
    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    error: str | None = None

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for given, value in self.headers if given == name.lower()]


async def ask(target: Target, request: Request) -> Frames:
    """Send one request if the server chooses HTTP/2. Raises CannotRun without a connection."""
    reader, writer = await connect(target, PROTOCOL, "http/1.1")
    tls = writer.get_extra_info("ssl_object")
    answer = Frames(chosen=tls.selected_alpn_protocol() if tls else None)
    try:
        if answer.chosen == PROTOCOL:
            async with asyncio.timeout(SECONDS_MAX):
                await _exchange(target, request, reader, writer, answer)
    except (h2.exceptions.ProtocolError, OSError, TimeoutError) as error:
        answer.error = str(error) or type(error).__name__
    finally:
        writer.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(writer.wait_closed(), 1)
    return answer


async def _exchange(
    target: Target, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Frames
) -> None:
    # Inbound headers are not validated: a forbidden one is what we look for.
    config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_inbound_headers=False)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    stream = connection.get_next_available_stream_id()
    connection.send_headers(stream, _head(target, request), end_stream=request.body is None)
    if request.body is not None:
        connection.send_data(stream, request.body, end_stream=True)
    over = False
    while not over:
        writer.write(connection.data_to_send())
        await writer.drain()
        arrived = await reader.read(READ_BYTES)
        if not arrived:
            answer.error = "the connection was closed"
            return
        for event in connection.receive_data(arrived):
            over = _take(event, connection, answer) or over
    writer.write(connection.data_to_send())


def _head(target: Target, request: Request) -> list[tuple[str, str]]:
    own = [
        (":method", request.method),
        (":scheme", target.scheme),
        (":authority", target.authority),
        (":path", target.prefix + request.path),
    ]
    rest = [(name.lower(), value) for name, value in request.fields(target)]
    return own + [(name, value) for name, value in rest if name not in _OF_THE_CONNECTION]


def _take(event: h2.events.Event, connection: h2.connection.H2Connection, answer: Frames) -> bool:
    """Note what an event brings; whether the answer is over."""
    match event:
        case h2.events.ResponseReceived():
            answer.headers = [(str(name), str(value)) for name, value in event.headers or ()]
            answer.status = int(dict(answer.headers).get(":status", 0))
        case h2.events.DataReceived():
            answer.body += event.data or b""
            connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        case h2.events.StreamReset() | h2.events.ConnectionTerminated():
            answer.error = f"the stream was reset (error {event.error_code})"
            return True
        case h2.events.StreamEnded():
            return True
    return False
