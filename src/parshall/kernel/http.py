"""What every HTTP surface shares: request ids, CORS, limits, and the caller's identity."""

import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parshall.kernel import headers as names
from parshall.kernel import metrics, trace
from parshall.kernel.bodies import BODY_BYTES_MAX
from parshall.kernel.browsers import SECURITY
from parshall.kernel.errors import Forbidden, ParshallError, Unauthenticated
from parshall.kernel.ids import new_id
from parshall.kernel.ratelimit import REFUSED_CALLER, Pairs, RateLimit
from parshall.kernel.recording import RawHeaders, header_list
from parshall.kernel.refusals import TOO_LARGE, problem
from parshall.kernel.requests import counted
from parshall.kernel.scopes import check_scope
from parshall.kernel.telemetry import log
from parshall.kernel.tokens import Principal, Role, presented_token

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,40}\Z")
"""No longer, for it is logged and our tokens have 43 characters and more."""
_CONTENT_LENGTH = re.compile(r"[0-9]{1,15}\Z")
_logger = log("http")


class WireModel(BaseModel):
    """A request body: camelCase on the wire, unknown members ignored (clients may send more than we read)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, str_max_length=BODY_BYTES_MAX)


async def current_principal(request: Request) -> Principal:
    """The verified caller of this request. Raises Unauthenticated, or Forbidden for another's X-User-ID.

    `X-User-ID` is believed only from a service; a user may name nobody but themselves.
    """
    token = presented_token(request)
    if not token:
        raise Unauthenticated
    if (refused := request.scope.get(REFUSED_CALLER)) is not None:  # once is enough: wrong keys are counted
        raise refused
    address = request.client.host if request.client else "unknown"
    principal: Principal = await request.app.state.verifier.verify(token, address)
    check_scope(principal, request)
    claimed = request.headers.get(names.USER_ID_HEADER)
    if claimed and not principal.is_service and claimed not in (principal.user_id, principal.username):
        raise Forbidden("X-User-ID names another user than the access token; leave the header out.")
    structlog.contextvars.bind_contextvars(user=principal.user_id)
    return principal


_documented = HTTPBearer(auto_error=False, description="The accessToken of POST /api/auth/login, or an API key.")


async def _caller(
    request: Request, _credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_documented)]
) -> Principal:
    """The caller, told to the OpenAPI document as well."""
    return await current_principal(request)


async def _user(principal: Annotated[Principal, Depends(_caller)]) -> Principal:
    if principal.is_service:
        raise Forbidden("This is for users; a service token cannot do it.")
    return principal


async def current_user(request: Request) -> Principal:
    """The verified caller, who is no service. Raises Unauthenticated and Forbidden."""
    return await _user(await current_principal(request))


def _role(role: Role) -> Callable[[Principal], Awaitable[Principal]]:
    async def check(principal: Annotated[Principal, Depends(_user)]) -> Principal:
        principal.require(role)
        return principal

    return check


Caller = Annotated[Principal, Depends(_caller)]
"""Any verified caller, service or user."""
User = Annotated[Principal, Depends(_user)]
Supervisor = Annotated[Principal, Depends(_role(Role.SUPERVISOR))]
Admin = Annotated[Principal, Depends(_role(Role.ADMIN))]


@lru_cache(maxsize=2)
def _date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


class Edge:
    """The outermost ASGI layer: request id, log context, CORS, rate and body limit, and a 500 that leaks nothing."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_origins: Iterable[str] = (),
        limit: RateLimit | None = None,
        words: Collection[str] = frozenset(),
        service: str = "parshall",
    ) -> None:
        """`allowed_origins` are exact origins such as `https://chat.example.org`; without `limit` all may call.

        `words` are the fixed parts of paths: all that logs show of a path, beside ids. `service` is who answers, in
        metrics.
        """
        self._app = app
        self._words = words
        self._service = service
        self._origins = frozenset(allowed_origins)
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(names.REQUEST_ID_HEADER, "")
        request_id = scope["request_id"] = given if _REQUEST_ID.match(given) else new_id()
        scope[names.LOGGED_PATH] = names.loggable(scope["path"], self._words)
        structlog.contextvars.clear_contextvars()
        trace_id = trace.begin(headers.get(trace.TRACEPARENT_HEADER, ""))
        structlog.contextvars.bind_contextvars(request_id=request_id, trace=trace_id)
        exchange = _Exchange(scope, receive, send, cors=names.cors_headers(headers.get("origin"), self._origins))
        with counted(exchange, service=self._service):
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await self._preflight(exchange)
                return
            await self._serve(exchange, headers)

    async def _serve(self, exchange: "_Exchange", headers: Headers) -> None:
        began = time.perf_counter()
        try:
            if await self._admitted(exchange, headers):
                await self._app(exchange.scope, exchange.receive, exchange.send)
        except _BodyTooLarge:
            await exchange.refuse(413, "body_too_large", TOO_LARGE)
        except Exception:
            _logger.exception("request_failed", path=exchange.scope[names.LOGGED_PATH])
            await exchange.refuse(500, "internal_error", ParshallError.default)
        finally:
            method, path = exchange.scope["method"], exchange.scope[names.LOGGED_PATH]
            milliseconds = round((time.perf_counter() - began) * 1000, 1)
            client = exchange.scope.get("client")
            told = {"status": exchange.status, "milliseconds": milliseconds, "client": client[0] if client else None}
            _logger.info("request", method=method, path=path, **told)

    async def _admitted(self, exchange: "_Exchange", headers: Headers) -> bool:
        """Whether the request goes on; where it does not, the refusal is sent."""
        if self._limit is not None:
            admission = await self._limit.admit(Request(exchange.scope))
            exchange.limits = admission.fields
            if (refusal := admission.refusal) is not None:
                metrics.rate_limited.inc()
                await exchange.refuse(refusal.status, refusal.code, refusal.detail, headers=refusal.headers)
                return False
        length = headers.get("content-length", "0")
        if not _CONTENT_LENGTH.match(length) or int(length) > BODY_BYTES_MAX:
            await exchange.refuse(413, "body_too_large", TOO_LARGE)
            return False
        return True

    async def _preflight(self, exchange: "_Exchange") -> None:
        allowed = [
            ("Access-Control-Allow-Methods", ", ".join(names.METHODS)),
            ("Access-Control-Allow-Headers", ", ".join(names.ALLOWED)),
            ("Access-Control-Max-Age", "600"),
        ]
        await exchange.respond(204, b"", allowed if exchange.cors else [("Vary", "Origin")])


class _BodyTooLarge(HTTPException):
    """The body that arrives without a Content-Length has passed BODY_BYTES_MAX.

    An HTTPException, since FastAPI takes any other for a body that does not parse and answers 400.
    """

    def __init__(self) -> None:
        super().__init__(413)


class _Exchange:
    """One request with its response: adds the headers that every response carries."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, cors: list[tuple[str, str]]) -> None:
        self.scope = scope
        self.cors = cors
        self.limits: Pairs = ()
        self._receive = receive
        self._send = send
        self.status: int | None = None
        self.answered_at: float | None = None
        self._body_bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._body_bytes += len(message.get("body", b""))
            if self._body_bytes > BODY_BYTES_MAX:
                raise _BodyTooLarge
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.answered_at = message["status"], time.perf_counter()
            message["headers"] = self._completed(message.get("headers", ()))
        await self._send(message)

    def _completed(self, headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
        """What is missing is appended, never prepended: on a stream the id header must stay the first (H1)."""
        raw = header_list(headers)
        there = {name.lower(): place for place, (name, _) in reversed(tuple(enumerate(raw)))}
        own = ((names.REQUEST_ID_HEADER, self.scope["request_id"]), ("Date", _date(int(time.time()))))
        for name, value in (*self.cors, *own, *SECURITY, *self.limits):
            key, wanted = name.encode("latin-1"), value.encode("latin-1")
            place = there.get(key.lower())
            if place is None:
                raw.append((key, wanted))
            elif key == b"Vary" and wanted not in raw[place][1]:
                raw[place] = (key, raw[place][1] + b", " + wanted)
        return raw

    async def respond(self, status: int, body: bytes, pairs: list[tuple[str, str]]) -> None:
        raw = [(name.encode(), value.encode()) for name, value in pairs]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    async def refuse(self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None) -> None:
        """Answer with a problem; after the status line only the connection's end can tell."""
        if self.status is not None:
            return
        title = code.replace("_", " ")
        document = problem(Request(self.scope), status=status, code=code, title=title, detail=detail, headers=headers)
        await document(self.scope, self._receive, self.send)
