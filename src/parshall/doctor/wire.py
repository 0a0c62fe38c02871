"""One request over a connection of its own, and its answer as it came: order, case and times of what arrived."""

import asyncio
import contextlib
import ssl
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import h11

from parshall.doctor.model import CannotRun
from parshall.kernel.sse import Event, EventParser

CONNECT_SECONDS_MAX = 10.0
READ_SECONDS_MAX = 45.0
"""Three pings (15 s) may be missed before a silent connection counts as dead."""
BODY_BYTES_MAX = 16 * 1024 * 1024
READ_BYTES = 65_536

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go: scheme, host and port of a URL, the path before every path, and whom TLS trusts."""

    scheme: str
    host: str
    port: int
    prefix: str
    ca_file: str | None = None

    @staticmethod
    def of(url: str, *, ca_file: str | None = None) -> "Target":
        """The target of a URL. Raises CannotRun for an address that cannot be one."""
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (ValueError, KeyError):
            parts, port = urlsplit(""), 0
        if not parts.hostname:
            raise CannotRun(f"{url!r} is no address of a server; give one such as https://chat.example.org.")
        return Target(
            scheme=parts.scheme, host=parts.hostname, port=port, prefix=parts.path.rstrip("/"), ca_file=ca_file
        )

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """The value of Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port in (80, 443) else f"{host}:{self.port}"

    def tls(self, *protocols: str) -> ssl.SSLContext | None:
        """The TLS side of a connection that offers those protocols by ALPN. Raises CannotRun for a bad CA file."""
        if not self.is_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise CannotRun(f"The file of certificates {self.ca_file} cannot be used ({error}).") from error
        context.set_alpn_protocols(protocols)
        return context


@dataclass(kw_only=True)
class Answer:
    """What came back; times are in seconds since the request was sent."""

    version: str = ""
    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    """In the order and case of the wire."""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    head: str = ""
    """The head as it came, byte for byte."""
    head_seconds: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """What each read of the body gave, and when."""
    cut: str | None = None
    """Why the body ended before it was whole; None where it was."""
    seconds: float = 0.0

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for given, value in self.headers if given.lower() == name.lower()]

    def one(self, name: str) -> str:
        """The values of a header as one, the way that clients join them; empty where there is none."""
        return ", ".join(self.all(name))

    @cached_property
    def body(self) -> bytes:
        """The body, decompressed where it can be."""
        whole = b"".join(piece for _, piece in self.pieces)
        if self.one("Content-Encoding").lower() in ("gzip", "deflate", "x-gzip"):
            with contextlib.suppress(zlib.error):
                return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(whole)
        return whole

    @property
    def is_stream(self) -> bool:
        """Whether it is a success and calls itself an event stream."""
        return self.status == 200 and self.one("Content-Type").lower().startswith("text/event-stream")

    def timed(self) -> list[tuple[float, Event]]:
        """The events, each with the time of its arrival. A body that was compressed gives them at its end."""
        pieces = [(self.seconds, self.body)] if self.all("Content-Encoding") else self.pieces
        return list(_timed(pieces))

    def events(self) -> list[Event]:
        """The events."""
        return [event for _, event in self.timed()]


def _timed(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, Event]]:
    parser = EventParser()
    for seconds, piece in pieces:
        with contextlib.suppress(ValueError):
            for event in parser.feed(piece):
                yield seconds, event


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to ask."""

    method: str
    path: str
    headers: Pairs = ()
    body: bytes | None = None
    read_seconds_max: float = READ_SECONDS_MAX
    total_seconds_max: float = 330.0

    def fields(self, target: Target) -> list[tuple[str, str]]:
        """All headers, those of the message included."""
        length = [] if self.body is None else [("Content-Length", str(len(self.body)))]
        return [("Host", target.authority), ("User-Agent", "parshall-doctor"), *self.headers, *length]


async def ask(target: Target, request: Request) -> Answer:
    """Send one request over HTTP/1.1 and read the answer to its end, or to where it was cut.

    Raises CannotRun when there is no connection or what answers does not speak HTTP.
    """
    reader, writer = await connect(target, "http/1.1")
    answer = Answer()
    try:
        async with asyncio.timeout(request.total_seconds_max):
            await _Exchange(target, request, reader, writer, answer).run()
    except (h11.LocalProtocolError, UnicodeError) as error:
        raise CannotRun(
            f"The request to {request.path} cannot be sent as it is ({error}); check headers and token."
        ) from error
    except TimeoutError:
        answer.cut = f"it went on for {request.total_seconds_max:.0f} s and was given up"
    except (h11.RemoteProtocolError, OSError) as error:
        answer.cut = str(error) or type(error).__name__
    finally:
        writer.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(writer.wait_closed(), 1)
    if not answer.status:
        raise CannotRun(f"{target.scheme}://{target.authority} gives no HTTP answer ({answer.cut}).")
    return answer


async def connect(target: Target, *protocols: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that offers those protocols where it is encrypted. Raises CannotRun."""
    tls: dict[str, Any] = {}
    if target.is_tls:
        tls = {"ssl": target.tls(*protocols), "server_hostname": target.host}
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            return await asyncio.open_connection(target.host, target.port, limit=READ_BYTES, **tls)
    except ssl.SSLCertVerificationError as error:
        raise CannotRun(
            f"The certificate of {target.host} is not trusted ({error.verify_message}); renew it, send the "
            f"whole chain, "
            "or name its authority with --ca-file."
        ) from error
    except (OSError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise CannotRun(f"{target.authority} cannot be reached ({reason}); check the address.") from error


class _Exchange:
    """One request and answer on an open connection."""

    def __init__(
        self,
        target: Target,
        request: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Answer,
    ) -> None:
        self._target = target
        self._request = request
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 * 1024)
        self._began = 0.0
        self._raw = b""
        self._size = 0

    async def run(self) -> None:
        fields = self._request.fields(self._target)
        target = self._target.prefix + self._request.path
        asked = h11.Request(method=self._request.method, target=target, headers=fields)
        sent = [self._connection.send(asked)]
        if self._request.body:
            sent.append(self._connection.send(h11.Data(data=self._request.body)))
        sent.append(self._connection.send(h11.EndOfMessage()))
        self._writer.write(b"".join(part for part in sent if part))
        await self._writer.drain()
        self._began = time.monotonic()
        try:
            while not await self._step():
                pass
        finally:
            self._answer.seconds = time.monotonic() - self._began

    async def _step(self) -> bool:
        """Take the next event of the protocol; whether it was the last."""
        event = self._connection.next_event()
        match event:
            case h11.NEED_DATA:
                await self._read()
            case h11.Response():
                self._take_head(event)
            case h11.Data():
                self._take(bytes(event.data))
            case h11.EndOfMessage():
                self._answer.trailers = _text(event.headers.raw_items())
                return True
            case h11.ConnectionClosed():
                self._answer.cut = "the connection was closed"
                return True
        return self._size > BODY_BYTES_MAX

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(self._request.read_seconds_max):
                arrived = await self._reader.read(READ_BYTES)
        except TimeoutError as error:
            raise OSError(f"nothing came for {self._request.read_seconds_max:.0f} s") from error
        if not self._answer.status:
            self._raw += arrived
        self._connection.receive_data(arrived)

    def _take_head(self, response: h11.Response) -> None:
        answer = self._answer
        answer.version = response.http_version.decode()
        answer.status = response.status_code
        answer.headers = _text(response.headers.raw_items())
        answer.head = self._raw.partition(b"\r\n\r\n")[0].decode("latin-1")
        answer.head_seconds = time.monotonic() - self._began

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        self._answer.pieces.append((time.monotonic() - self._began, data))


def _text(raw: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
