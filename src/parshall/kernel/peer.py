"""Another service of the same deployment, over HTTP: asked in time, asked again where it is away, then left alone.

Every call must be safe to repeat: it reads, or carries its own idempotency key. Each carries the trace, the request id
and how long the answer is waited for, so that the logs of all services tell one story.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec
import structlog

from parshall.kernel import calls, metrics, trace
from parshall.kernel.deadlines import WITHIN_HEADER, seconds_left
from parshall.kernel.errors import ParshallError, Unavailable
from parshall.kernel.fingerprints import DEBUG_HEADER
from parshall.kernel.headers import REQUEST_ID_HEADER
from parshall.kernel.recording import current, unharmed
from parshall.kernel.telemetry import log

CALL_SECONDS_MAX = 4.0
"""All attempts of one call; below the 5 s that chat waits for a reservation or a settlement."""
ATTEMPT_SECONDS_MAX = 1.8
"""One attempt; two fit into a call, for the answer of the first may be lost without a word."""
CONNECT_SECONDS_MAX = 1.0
PAUSES_SECONDS = (0.05, 0.15, 0.4)
"""Between attempts; then the service counts as away."""
FAILURES_MAX = 5
"""Failed attempts in a row after which a service is left alone, so that nobody waits for what is away."""
OPEN_SECONDS = 1.0
"""How long; then one call tries it."""
CONNECTIONS_MAX = 128
"""To one service; further calls wait for one within their time."""
VOUCHER_SECONDS_MAX = 0.3
"""How long a traced call waits for a token to ask for a report with, where it carries none itself."""
KEEPALIVE_SECONDS = 4.0
"""Below the five seconds of the server: a request must not meet a connection that is just closing."""

_AWAY = (502, 503, 504)
_LOST = (aiohttp.ClientError, OSError, RuntimeError)
"""What a broken connection raises: TimeoutError is an OSError, and aiohttp reads a closed one with a RuntimeError."""
T = TypeVar("T")
_logger = log("peers")


class Tokens(Protocol):
    """Where a service gets the token that it calls others with."""

    async def token(self) -> str:
        """A token that is valid now. Raises Unavailable."""
        ...

    def refused(self, token: str) -> None:
        """That token was not taken: get another one."""
        ...


class Refusal(Exception):
    """The service answered with a problem; `error` says it in our words."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        """`problem` is the document, empty where there was none."""
        self.status = status
        self.code = str(problem.get("code", ""))
        self.detail = str(problem.get("detail", ""))
        self.extra = {name: value for name, value in problem.items() if name not in _MEMBERS}
        super().__init__(f"{status} {self.code}")

    def error(self, *known: type[ParshallError]) -> ParshallError:
        """The error of those known that bears this code. Any other is a fault between services: Unavailable."""
        for cls in known:
            if cls.code == self.code and cls.status == self.status:
                return cls(self.detail, **self.extra)
        _logger.error("peer_refused", status=self.status, code=self.code, detail=self.detail)
        return Unavailable("A service that this answer needs refuses to help; try again later.", retry_after=5)


_MEMBERS = frozenset(
    {"type", "title", "status", "detail", "instance", "message", "code", "error", "requestId", "errors"}
)
"""Members of a problem document that say what its class says."""


class Peer:
    """One other service. A pool of connections, made on first use: it belongs to the running loop."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        tokens: Tokens | None = None,
        voucher: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        """`name` is for people; `url` is where its paths begin. With `tokens` each call is made as this service.

        `voucher` gives a token of this service to calls that carry none, should they be traced.
        """
        self.name = name
        self.tokens = tokens
        self._voucher = voucher
        self._url = url.rstrip("/")
        self._breaker = Breaker()
        self._is_open = metrics.breaker_open.labels(name)
        self._opened: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: str,
        path: str,
        into: type[T],
        *,
        headers: Mapping[str, str] | None = None,
        within: float | None = None,
        **request: Any,
    ) -> T:
        """The answer as `into`, within CALL_SECONDS_MAX or so many; `request` is given to aiohttp (json, data, params).

        Raises Refusal for any other answer than a success, Unavailable where none can be had in time.
        """
        try:
            with trace.span(f"{method} {self.name}", "client", attributes={"peer.service": self.name}):
                async with asyncio.timeout(seconds_left(within or CALL_SECONDS_MAX)):
                    return await self._repeated(method, path, into, dict(headers or {}), request)
        except TimeoutError as error:
            raise self._away() from error

    async def close(self) -> None:
        """Close every connection."""
        if self._opened is not None:
            await self._opened.close()

    async def _repeated(
        self, method: str, path: str, into: type[T], headers: dict[str, str], request: dict[str, Any]
    ) -> T:
        for pause in (*PAUSES_SECONDS, None):
            if not self._breaker.lets_through():
                raise self._away()
            status, body = await self._authorised(method, path, headers, request)
            if status not in _AWAY:
                return _read(status, body, into)
            if pause is not None:
                await asyncio.sleep(pause)
        raise self._away()

    async def _authorised(
        self, method: str, path: str, headers: dict[str, str], request: dict[str, Any]
    ) -> tuple[int, bytes]:
        """One attempt; with another token where the first is not taken: its key may have been replaced."""
        if self.tokens is None:
            return await self._attempt(method, path, headers, request)
        status, body = 401, b""
        for _ in range(2):
            token = await self.tokens.token()
            status, body = await self._attempt(method, path, headers | {"Authorization": f"Bearer {token}"}, request)
            if status != 401:
                break
            self.tokens.refused(token)
        return status, body

    async def _attempt(
        self, method: str, path: str, headers: dict[str, str], request: dict[str, Any]
    ) -> tuple[int, bytes]:
        """The status and body of one request; 503 for none."""
        call = None
        if (recording := current.get()) is not None:
            call = calls.Call(recording, to=self.name, method=method, url=self._url + path)
            headers = await self._asking_for_a_report(headers)
        seconds = seconds_left(ATTEMPT_SECONDS_MAX)
        sent = _hop(seconds) | headers
        try:
            async with (
                asyncio.timeout(seconds),
                self._session().request(
                    method, self._url + path, headers=sent, allow_redirects=False, **request
                ) as response,
            ):
                answer = response.status, await response.read()
                if call is not None:
                    call.answered(response)
        except _LOST as error:
            _logger.warning("peer_lost", peer=self.name, path=path, reason=type(error).__name__)
            answer = 503, b""
            if call is not None:
                call.lost(sent, type(error).__name__)
        self._breaker.record(ok=answer[0] not in _AWAY)
        self._is_open.set(self._breaker.is_open)
        return answer

    async def _asking_for_a_report(self, headers: dict[str, str]) -> dict[str, str]:
        """The headers of a traced call: with the own token in the debug header too, the receiver tells what came."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        voucher = token if scheme == "Bearer" else ""
        if not voucher and self._voucher is not None:
            with unharmed("voucher"), contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(VOUCHER_SECONDS_MAX):
                    voucher = await self._voucher()
        return headers | {DEBUG_HEADER: voucher} if voucher else headers

    def _away(self) -> Unavailable:
        return Unavailable(f"The service {self.name} cannot be reached now; try again shortly.")

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                headers={"User-Agent": "parshall", "Accept-Encoding": "identity"},
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=KEEPALIVE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._opened


class Breaker:
    """After FAILURES_MAX failures in a row one attempt in OPEN_SECONDS gets through, until one succeeds."""

    def __init__(self) -> None:
        """All is well."""
        self._failures = 0
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the service is left alone, but for the one attempt that tries it."""
        return self._failures >= FAILURES_MAX

    def lets_through(self) -> bool:
        """Whether a call may be tried now; whoever asks does try."""
        if not self.is_open:
            return True
        if (now := time.monotonic()) < self._open_until:
            return False
        self._open_until = now + OPEN_SECONDS
        return True

    def record(self, *, ok: bool) -> None:
        """An attempt has been answered, or not."""
        self._failures = 0 if ok else self._failures + 1
        if self._failures == FAILURES_MAX:
            self._open_until = time.monotonic() + OPEN_SECONDS


def _hop(seconds: float) -> dict[str, str]:
    """The headers of every call between services."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    told = {trace.TRACEPARENT_HEADER: trace.traceparent(), WITHIN_HEADER: f"{seconds:.3f}"}
    return told if request_id is None else told | {REQUEST_ID_HEADER: str(request_id)}


def _read(status: int, body: bytes, into: type[T]) -> T:
    """The answer, or why there is none. Raises Refusal, Unavailable."""
    try:
        if 200 <= status < 300:
            return msgspec.json.decode(body, type=into)
        raise Refusal(status, msgspec.json.decode(body, type=dict[str, Any]) if body else {})
    except msgspec.MsgspecError as error:
        _logger.error("peer_not_understood", status=status, reason=str(error))
        raise Unavailable("A service that this answer needs is not understood; try again later.") from error
