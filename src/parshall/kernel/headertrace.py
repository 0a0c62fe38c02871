"""The outermost ASGI layer: has a request recorded where that is wanted, and is not there at all where it is not."""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from enum import StrEnum

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parshall.kernel import hops
from parshall.kernel.clock import Clock
from parshall.kernel.debugtokens import Debugger, debugger_of, unverified
from parshall.kernel.errors import ParshallError
from parshall.kernel.exchange import decoded
from parshall.kernel.fingerprints import DEBUG_HEADER, Fingerprints
from parshall.kernel.headers import LOGGED_PATH, STREAM_ID_HEADER
from parshall.kernel.ids import stream_id_in
from parshall.kernel.pushing import push_of, pushing
from parshall.kernel.recording import Recording, Sink, current, unharmed
from parshall.kernel.telemetry import log
from parshall.kernel.tokens import API_KEY_PREFIX, TokenVerifier, presented_token

NEVER_KEPT = ("/health", "/api/health", "/metrics", "/api/debug/")
"""Paths that are asked again and again, or to read what was traced: they would push out what is looked for."""
_NAMED_IN_BODY = ("/update-stream", "/observe")
"""Paths of requests about a stream that neither path nor header name before the answer does."""
_DEBUG = DEBUG_HEADER.lower().encode()
_STREAM_ID = STREAM_ID_HEADER.lower()
_logger = log("headers")


class Mode(StrEnum):
    """Which requests are traced without being asked for, and whether lines of code are noted."""

    OFF = "off"
    ON = "on"
    DEVELOPMENT = "development"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """Whose requests, and which streams', are traced for the time being."""

    users: frozenset[str] = frozenset()
    streams: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.users or self.streams)


@dataclass(slots=True, kw_only=True)
class Tracing:
    """What this process traces now, and what becomes of it. Without `sink` traces are kept nowhere."""

    mode: Mode
    fingerprints: Fingerprints
    service: str
    clock: Clock
    verifier: TokenVerifier | None = None
    switched: Switched = field(default_factory=Switched)
    sink: Sink | None = None

    @property
    def is_idle(self) -> bool:
        """Whether only a debug header can have a request traced."""
        return self.mode is Mode.OFF and not self.switched

    async def recording_of(self, scope: Scope) -> Recording | None:
        """The recording of a request that may have to be traced; None for any other."""
        note, debugger = "", None
        try:
            debugger = await self._debugger(scope)
        except ParshallError as error:
            note = f"The debug header was ignored: {error.detail}"
            _logger.warning("debug_header_ignored", reason=error.detail)
        reason = self._reason(scope, debugger)
        if reason is None:
            return None
        with_places = self.mode is Mode.DEVELOPMENT
        made = Recording(
            scope,
            reason=reason,
            service=self.service,
            fingerprints=self.fingerprints,
            with_places=with_places,
            at=self.clock(),
        )
        made.notes += [note] if note else []
        made.voucher = _header(scope, _DEBUG) if debugger is not None and debugger.is_service else None
        return made

    def finish(self, recording: Recording, scope: Scope) -> None:
        """The response is over: keep the trace if it turns out to be one that was asked for."""
        bound = structlog.contextvars.get_contextvars()
        stream_id = bound.get("stream") or _stream_of(recording, scope)
        user_id = bound.get("user") or self._user_of(scope)
        reason = self._confirmed(recording.reason, user_id, stream_id)
        wanted = reason is not None and not scope["path"].startswith(NEVER_KEPT)
        recording.reason = reason or recording.reason
        recording.finish(
            stream_id=stream_id,
            user_id=user_id,
            request_id=bound.get("request_id"),
            sink=self.sink if wanted else None,
        )
        if self.mode is Mode.DEVELOPMENT:
            for fault in recording.faults:
                _logger.error("header_fault", path=scope.get(LOGGED_PATH), **fault.wire())

    async def _debugger(self, scope: Scope) -> Debugger | None:
        presented = _header(scope, _DEBUG)
        if not presented or self.verifier is None:
            return None
        return await debugger_of(self.verifier, presented)

    def _reason(self, scope: Scope, debugger: Debugger | None) -> str | None:
        """Why a request may have to be traced, as far as its head tells."""
        if debugger is not None:
            return "service" if debugger.is_service else "token"
        if self.mode is not Mode.OFF:
            return "configuration"
        if self.switched.streams and self._may_concern(scope):
            return "switch"
        return "switch" if self.switched.users and self._may_come_from(scope) else None

    def _may_concern(self, scope: Scope) -> bool:
        path: str = scope["path"]
        named = stream_id_in(path) or _header(scope, _STREAM_ID.encode())
        return named in self.switched.streams or path.endswith(_NAMED_IN_BODY)

    def _may_come_from(self, scope: Scope) -> bool:
        """A first look at the caller's token; `finish` goes by what was verified."""
        token = presented_token(Request(scope))
        known = None if self.verifier is None else self.verifier.remembered(token)
        if known is not None:
            return known.user_id in self.switched.users
        return token.startswith(API_KEY_PREFIX) or unverified(token, 1).get("sub") in self.switched.users

    def _confirmed(self, reason: str, user_id: str | None, stream_id: str | None) -> str | None:
        if reason != "switch":
            return reason
        if stream_id in self.switched.streams:
            return "stream"
        return "user" if user_id in self.switched.users else None

    def _user_of(self, scope: Scope) -> str | None:
        """The caller of a request that was turned away before anybody asked who it is."""
        known = None if self.verifier is None else self.verifier.remembered(presented_token(Request(scope)))
        return None if known is None else known.user_id


class HeaderTrace:
    """In front of everything. Off, the application gets what the server gave, and nothing stands in between."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        """`tracing` says what is on; it may change at any time."""
        self._app = app
        self._tracing = tracing

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        if scope["type"] != "http" or (self._tracing.is_idle and not _asks(scope)):
            return self._app(scope, receive, send)
        return self._traced(scope, receive, send)

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        recording: Recording | None = None
        with unharmed("begin"):
            recording = await self._tracing.recording_of(scope)
        if recording is None:
            await self._app(scope, receive, send)
            return
        token = current.set(recording)
        try:
            await self._app(_noting_pushes(recording, scope), receive, _noting(recording, send))
        finally:
            current.reset(token)
            with unharmed("finish"):
                self._tracing.finish(recording, scope)


def _noting(recording: Recording, send: Send) -> Send:
    async def note(message: Message) -> None:
        with unharmed("send"):
            _note(recording, message)
        await send(message)

    return note


def _noting_pushes(recording: Recording, scope: Scope) -> Scope:
    push = push_of(scope)
    if push is None:
        return scope

    def note(piece: bytes) -> bool:
        recording.body()
        return push(piece)

    return pushing(scope, note)


def _note(recording: Recording, message: Message) -> None:
    if message["type"] == "http.response.body":
        if message.get("body"):
            recording.body()
    elif message["type"] == "http.response.start":
        fields = message.get("headers", ())
        recording.begun(message["status"], fields)
        if recording.voucher is not None:
            told = hops.report(recording.received, decoded(fields), voucher=recording.voucher)
            message["headers"] = [*fields, (hops.REPORT_HEADER.lower().encode(), told)]


def _asks(scope: Scope) -> bool:
    for name, _ in scope["headers"]:  # noqa: SIM110 - a generator would take twice as long, and every request comes here
        if name == _DEBUG:
            return True
    return False


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


def _stream_of(recording: Recording, scope: Scope) -> str | None:
    """The stream that a request was about, from its response, its path or its own header."""
    fields = recording.started.fields if recording.started is not None else ()
    answered = next((value for name, value in fields if name.lower() == _STREAM_ID), "")
    named = answered or scope["path"] + "/" + _header(scope, _STREAM_ID.encode())
    return stream_id_in(named)
