"""Requests on their way in: on how many connections, when they are due, how large, and what HTTP/1.1 forbids."""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from parshall.kernel.bodies import BODY_BYTES_MAX
from parshall.kernel.problems import PROBLEM_JSON
from parshall.kernel.telemetry import log

HEAD_SECONDS = 8.0
BODY_SECONDS = 30.0
HEAD_BYTES_MAX = 32 * 1024
"""Of the request line and all header fields together."""
HEADERS_MAX = 100
TARGET_BYTES_MAX = 8 * 1024
MESSAGE_BYTES_MAX = 8 * BODY_BYTES_MAX
"""Of one request as it arrives: a body in tiny chunks has several times its own size."""
SURPLUS_MAX = 64
"""Connections beyond the limit that are told so; further ones are cut without a word."""
SURPLUS_SECONDS = 1.0
"""How long one of them may take to ask."""
RETRY_SECONDS = 1
FULL_TOLD_SECONDS = 60.0
"""Between two lines of the log that say that all connections are taken."""

_HOST = re.compile(rb"[A-Za-z0-9._-]+(:[0-9]{1,5})?\Z|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?\Z")
_TARGETS = (b"/", b"http://", b"https://")
_logger = log("http")

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is turned away before any route sees it; the connection ends with it (RFC 9112 §9.6)."""

    status: int
    code: str
    detail: str
    retry_seconds: int | None = None

    def response(self) -> bytes:
        """The response, whole."""
        phrase = HTTPStatus(self.status).phrase
        document = {"type": "about:blank", "title": phrase, "status": self.status, "detail": self.detail}
        document |= {"message": self.detail, "code": self.code, "error": self.code.upper()}
        body = json.dumps(document, separators=(",", ":")).encode("ascii")
        again = "" if self.retry_seconds is None else f"Retry-After: {self.retry_seconds}\r\n"
        head = (
            f"HTTP/1.1 {self.status} {phrase}\r\n{again}Content-Type: {PROBLEM_JSON}\r\nContent-Length: {len(body)}\r\n"
            "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode("ascii") + body


MALFORMED = Refusal(400, "malformed_http", "This is not a well-formed HTTP/1.1 request; correct it and send it again.")
LATE = Refusal(408, "request_timeout", "The request did not arrive in time; send it again, and faster.")
LONG_TARGET = Refusal(414, "uri_too_long", f"The URL may have at most {TARGET_BYTES_MAX} bytes; send a shorter one.")
LONG_HEAD = Refusal(
    431,
    "header_fields_too_large",
    f"The header may have at most {HEADERS_MAX} fields and {HEAD_BYTES_MAX} bytes; send less.",
)
LONG_MESSAGE = Refusal(413, "body_too_large", f"The body may have at most {BODY_BYTES_MAX} bytes; send less.")
CODED = Refusal(501, "transfer_coding_unknown", "Only the transfer coding chunked is known; send the body without one.")
VERSION = Refusal(505, "http_version_unknown", "This server speaks HTTP/1.1; a proxy in front may speak others.")
HOST = Refusal(400, "host_wrong", "An HTTP/1.1 request names its host, once and as a host; correct the field Host.")
TARGET = Refusal(400, "target_wrong", "The request target has to be a path, with a query at most; correct it.")
FULL = Refusal(
    503, "connections_full", "All connections of this server are taken; try again shortly.", retry_seconds=RETRY_SECONDS
)


def refusal_of(version: str, method: bytes, target: bytes, headers: Headers) -> Refusal | None:
    """Why a head is turned away that the parser lets pass, None where it is right."""
    if version not in ("1.1", "1.0"):
        return VERSION
    if len(target) > TARGET_BYTES_MAX:
        return LONG_TARGET
    if b"#" in target or not (target.startswith(_TARGETS) or (target, method) == (b"*", b"OPTIONS")):  # RFC 9112 §3.2
        return TARGET
    size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers)
    if size > HEAD_BYTES_MAX or len(headers) > HEADERS_MAX:
        return LONG_HEAD
    if any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in headers):
        return CODED  # RFC 9112 §6.1; the parser takes the chunks apart and would leave what is coded to nobody
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or not (_HOST.match(hosts[0]) if hosts else version == "1.0"):  # RFC 9112 §3.2
        return HOST
    return None


class Arrival(HttpToolsProtocol):
    """uvicorn's connection, which lets nobody take their time, or more than their share of memory, to ask.

    The head of a request has to be here `head_seconds` after the connection or the first byte, and the body
    `body_seconds` after that. A connection between two requests is uvicorn's, which lets it wait for five seconds.

    Beyond `connections_max` open ones a connection gets an answer to `spared` paths, else 503, and is closed; beyond
    SURPLUS_MAX more it is cut. Those that are open are served as ever.
    """

    head_seconds: ClassVar[float] = HEAD_SECONDS
    body_seconds: ClassVar[float] = BODY_SECONDS
    connections_max: ClassVar[int | None] = None
    spared: ClassVar[frozenset[bytes]] = frozenset()
    _full_told_at: ClassVar[float] = float("-inf")
    _is_surplus = False
    _due: asyncio.TimerHandle | None = None
    _awaited = "head"
    """What of the request that began last is on its way: `head`, `body`, or nothing."""
    _due_for = ""
    _arrived = 0
    _refused = False
    _why: Refusal | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Whoever connects has something to say."""
        super().connection_made(transport)
        surplus = 0 if self.connections_max is None else len(self.connections) - self.connections_max
        self._is_surplus = surplus > 0
        if self._is_surplus:
            self._tell_full()
        if surplus > SURPLUS_MAX:
            self._refused = True
            transport.abort()
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is on its way any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come; the usual request comes in one piece and sets no timer."""
        if self._refused:
            return
        self._arrived += len(data)
        super().data_received(data)
        if not self._refused:
            self._check_size()

    def _check_size(self) -> None:
        if len(self.headers or ()) > HEADERS_MAX or (self._awaited == "head" and self._arrived > HEAD_BYTES_MAX):
            self._refuse(LONG_TARGET if len(self.url) > TARGET_BYTES_MAX else LONG_HEAD)
        elif self._awaited and self._arrived > MESSAGE_BYTES_MAX:
            self._refuse(LONG_MESSAGE)
        else:
            self._expect()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._awaited, self._arrived = "head", 1

    def on_headers_complete(self) -> None:
        """The head is here. Fields that come behind the body (trailers) are no part of it (RFC 9110 §6.5.1)."""
        parser = self.parser
        self._why = refusal_of(parser.get_http_version(), parser.get_method(), self.url, self.headers)
        if self._why is None and self._is_surplus and self.url.partition(b"?")[0] not in self.spared:
            self._why = FULL
        if self._why is not None:
            raise ValueError(self._why.code)  # stops the parser, which lets data_received answer
        super().on_headers_complete()
        if self._is_surplus:
            self.cycle.keep_alive = False
        self.headers = []
        self._awaited = "body"

    def on_message_complete(self) -> None:
        """The request is whole."""
        super().on_message_complete()
        self._awaited = ""

    def _unsupported_upgrade_warning(self) -> None:
        """Answered as if it had not asked (RFC 9110 §7.8); what follows may be another protocol, so it is the last."""
        self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the signature is uvicorn's
        """The parser has stopped, by itself or because of the head."""
        self._refuse(self._why or MALFORMED)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer and hang up; where answers to earlier requests are under way, they go out first and then it ends."""
        self._refused = True
        self._stop_waiting()
        _logger.info("request_refused", status=refusal.status, code=refusal.code)
        earlier = self._is_answering()
        if earlier and self._awaited != "body":
            self.cycle.keep_alive = False
            self.flow.pause_reading()
        elif self.pipeline or (earlier and self.cycle.response_started):
            self.transport.abort()
        else:
            if earlier:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.transport.write(refusal.response())
            self.transport.close()

    def _expect(self) -> None:
        """Have a timer for what is on its way, and none where nothing is."""
        wanted = self._awaited
        if not wanted and self.timeout_keep_alive_task is None and not self._is_answering():
            wanted = "head"  # something came that begins no request, such as an empty line
        if wanted == self._due_for:
            return
        self._stop_waiting()
        if wanted:
            seconds = self.head_seconds if wanted == "head" else self.body_seconds
            seconds = min(seconds, SURPLUS_SECONDS) if self._is_surplus else seconds
            self._due, self._due_for = self.loop.call_later(seconds, self._is_due), wanted

    @classmethod
    def _tell_full(cls) -> None:
        if (now := time.monotonic()) - Arrival._full_told_at >= FULL_TOLD_SECONDS:
            Arrival._full_told_at = now
            _logger.warning("connections_full", connections_max=cls.connections_max)

    def _is_answering(self) -> bool:
        newest = getattr(self, "cycle", None)  # uvicorn's types forget that there is none before the first request
        return newest is not None and not newest.response_complete

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due, self._due_for = None, ""

    def _is_due(self) -> None:
        self._due, self._due_for = None, ""
        if self.flow.read_paused:  # it is we who do not read
            self._expect()
        elif self._awaited == "head" and not self._arrived:
            self.transport.close()
        else:
            self._refuse(LATE)
