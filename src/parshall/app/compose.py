"""The one place that knows every service: builds them from the settings and joins them into an ASGI application."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi_swagger import patch_fastapi
from starlette.types import ASGIApp

from parshall import __version__
from parshall.accounting.http import router as accounting_router
from parshall.accounting.remote import RemoteAccounting
from parshall.accounting.service import Accounting
from parshall.app.apart import ALL, ServiceName
from parshall.app.config import Settings
from parshall.app.local import only_one_of, open_database, prepare_home
from parshall.app.page import DOCTOR_HEADERS, DOCTOR_PAGE, HOME_POLICY, api_page, browser_file, guide, home_page
from parshall.app.parts import Parts, parts_of
from parshall.app.people import Users
from parshall.app.tracing import Traced, traced_parts
from parshall.auth.http import router as auth_router
from parshall.auth.http import wellknown as wellknown_router
from parshall.chat.catalog import Catalog
from parshall.chat.failover import Retries
from parshall.chat.http import router as chat_router
from parshall.chat.http_door import Door
from parshall.chat.http_supervision import router as supervision_router
from parshall.chat.openings import Limits
from parshall.chat.peers import NoPeers, Peers
from parshall.chat.ports import Provider, StreamLog
from parshall.chat.providers import counting
from parshall.chat.providers.embedded import MODEL_ID, EmbeddedProvider
from parshall.chat.providers.openai import OpenAIProvider
from parshall.chat.reader import Reading
from parshall.chat.service import Chat
from parshall.chat.streaming import Streaming
from parshall.chat.streams.address import Address
from parshall.chat.streams.engine import Engine
from parshall.chat.streams.local import LocalStreamLog
from parshall.chat.streams.peers import SharedPeers
from parshall.chat.streams.shared import SharedStreamLog
from parshall.chat.supervision import Supervision
from parshall.kernel import clock
from parshall.kernel.credits import wire
from parshall.kernel.database import Database, answers
from parshall.kernel.deadlines import Deadlines
from parshall.kernel.errors import NotFound, StartupError
from parshall.kernel.http import Edge, install_errors
from parshall.kernel.problems import PROBLEMS
from parshall.kernel.ratelimit import RateLimit
from parshall.kernel.tokens import TokenVerifier
from parshall.kernel.windows import LocalWindows, SharedWindows, Windows

HEALTH_PATHS = ("/health", "/api/health")
"""Never counted: who watches a deployment must not be turned down when it is busy."""
HEALTH_SECONDS_MAX = 2.0
LEASE_SHARE = 0.75
"""Of the time within which a dead process's streams are adopted: the rest is for a sweep to find and to end them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chatting:
    """What a process holds that serves chat."""

    service: Chat
    supervision: Supervision
    database: Database
    stream_log: StreamLog


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Everything that one serving process holds; `name` is that of its one service, or of all."""

    name: str
    parts: Parts
    chatting: Chatting | None
    verifier: TokenVerifier
    readers: set[Reading]
    limit: RateLimit
    traced: Traced
    settings: Settings


@asynccontextmanager
async def system(settings: Settings, services: frozenset[ServiceName] = ALL) -> AsyncIterator[System]:
    """The services, adopted streams included; on leaving, every stream ends in order. Raises StartupError."""
    prepare_home(settings.home_dir)
    async with AsyncExitStack() as stack:
        if ServiceName.CHAT in services and settings.lacking_to_share(services):
            stack.enter_context(only_one_of(settings.home_dir, "serving"))
        parts = await stack.enter_async_context(parts_of(settings, services))
        chatting = await _chatting(settings, parts, stack) if ServiceName.CHAT in services else None
        verifier = TokenVerifier(parts.auth.key_set, issuer=settings.issuer, clock=clock.now, exchange=parts.exchange)
        name = "parshall" if services == ALL else min(services).value
        chat = (chatting.database, Users(parts.auth)) if chatting else None
        traced = stack.enter_context(traced_parts(settings, name, verifier, chat))
        windows = SharedWindows(settings.limits_url) if settings.limits_url else LocalWindows()
        stack.push_async_callback(windows.close)
        yield System(
            name=name,
            parts=parts,
            chatting=chatting,
            verifier=verifier,
            readers=set(),
            limit=_rate_limit(settings, windows, verifier),
            traced=traced,
            settings=settings,
        )


async def _chatting(settings: Settings, parts: Parts, stack: AsyncExitStack) -> Chatting:
    assert parts.accounting is not None, "chat never goes without"
    database = open_database(settings, "chat")
    stack.push_async_callback(database.close)
    owner = uuid.uuid4().hex
    stream_log, peers = await _stream_log(settings, owner)
    stack.push_async_callback(stream_log.close)  # streams end it themselves; this is for a start that fails
    catalog = Catalog(await _providers(settings), fallbacks=_fallbacks(settings))
    streaming = Streaming(
        database=database,
        stream_log=stream_log,
        peers=peers,
        owner=owner,
        ledger=parts.accounting,
        catalog=catalog,
        clock=clock.now,
        limits=_limits(settings),
    )
    stack.push_async_callback(streaming.close, drain_seconds=0)
    await streaming.recover()
    chat = Chat(
        database,
        streaming=streaming,
        catalog=catalog,
        clock=clock.now,
        retention_seconds=settings.stream_retention_hours * 3600,
    )
    supervision = Supervision(database, chat=chat, stream_log=stream_log, people=Users(parts.auth), clock=clock.now)
    return Chatting(service=chat, supervision=supervision, database=database, stream_log=stream_log)


def application(built: System) -> ASGIApp:
    """The ASGI application over a system, with its services under /api."""
    app = FastAPI(
        title="Parshall" if built.name == "parshall" else f"Parshall {built.name}",
        version=__version__,
        summary="Metered AI streams: login, chat, Server-Sent Events and prepaid credits that never drift.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        responses=PROBLEMS,
        redirect_slashes=False,  # a redirect says what Host said, and over plain HTTP
    )
    _add_pages(app)
    patch_fastapi(app, redirect_from_root_to_docs=False)  # its files for /docs: it must work offline
    app.state.verifier = built.verifier
    app.state.readers = built.readers
    app.state.allowed_origins = frozenset(built.settings.allowed_origins)
    app.state.on_disconnect = built.settings.on_disconnect
    install_errors(app)
    _add_services(app, built)
    _add_operations(app, built)
    served: ASGIApp = Door(app) if built.chatting else Deadlines(app)
    return built.traced.in_front_of(Edge(served, allowed_origins=built.settings.allowed_origins, limit=built.limit))


def _add_pages(app: FastAPI) -> None:
    page, policy = api_page()

    @app.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(home_page(version=__version__), headers={"Content-Security-Policy": HOME_POLICY})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _add_services(app: FastAPI, built: System) -> None:
    parts, routers = built.parts, []
    if parts.local_auth is not None:
        app.state.auth = parts.local_auth
        routers += [auth_router, wellknown_router]
    if parts.local_accounting is not None:
        app.state.accounting = parts.local_accounting
        routers += [accounting_router]
    if built.chatting is not None:
        assert parts.accounting is not None
        app.state.chat = built.chatting.service
        app.state.supervision = built.chatting.supervision
        app.state.price_of = _Prices(parts.accounting).of
        routers += [chat_router, supervision_router]
    for router in routers:
        app.include_router(router)
    built.traced.offer(app)


def _add_operations(app: FastAPI, built: System) -> None:
    @app.get("/documentation/{name}", response_class=PlainTextResponse, include_in_schema=False)
    async def documentation(name: str) -> str:
        text = guide(name)
        if text is None:
            raise NotFound("There is no such guide; the page at / lists them.")
        return text

    @app.get("/doctor", include_in_schema=False)
    @app.get("/doctor/{name}", include_in_schema=False)
    async def doctor(name: str = DOCTOR_PAGE) -> Response:
        found = browser_file(name)
        if found is None:
            raise NotFound("There is no such file; the page is at /doctor.")
        content, media_type = found
        return Response(content, media_type=media_type, headers=DOCTOR_HEADERS)

    async def health(request: Request) -> JSONResponse:
        """Whether this process can serve; 503 names what is down."""
        down = await _down(built)
        body: dict[str, Any] = {
            "status": "unavailable" if down else "ok",
            "service": built.name,
            "version": request.app.version,
            "timestamp": clock.rfc3339(clock.now()),
        }
        return JSONResponse(body | ({"down": down} if down else {}), status_code=503 if down else 200)

    for path in HEALTH_PATHS:
        app.get(path, tags=["operations"])(health)

    @app.get("/api/version", tags=["operations"])
    async def version() -> dict[str, str]:
        """The version that runs."""
        return {"service": built.name, "version": __version__}


async def _down(built: System) -> list[str]:
    """What keeps this process from serving; empty when nothing does. Another service that is away does not."""
    down = ["draining"] if built.chatting and built.chatting.service.streaming.draining else []
    checks = tuple(_checks(built))
    fine = await asyncio.gather(*(_is_fine(check) for _, check in checks))
    return down + [name for (name, _), is_fine in zip(checks, fine, strict=True) if not is_fine]


async def _is_fine(check: Callable[[], Awaitable[None]]) -> bool:
    try:
        async with asyncio.timeout(HEALTH_SECONDS_MAX):
            await check()
    except Exception:
        return False
    return True


def _checks(built: System) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
    if built.parts.local_auth is not None:
        yield "auth database", built.parts.local_auth.answer
    if built.parts.local_accounting is not None:
        yield "accounting database", built.parts.local_accounting.answer
    if built.chatting is not None:
        yield "chat database", partial(answers, built.chatting.database)
        yield "stream log", built.chatting.stream_log.check


class _Prices:
    """What a model costs, in the form that the model list shows."""

    def __init__(self, accounting: Accounting | RemoteAccounting) -> None:
        self._accounting = accounting

    async def of(self, model_id: str) -> dict[str, Any]:
        """Credits per million tokens of a model."""
        version = await self._accounting.prices.in_force(model_id)
        price = version.price
        return {
            "input": wire(price.input),
            "cachedInput": wire(price.cached_input),
            "output": wire(price.output),
            "reasoning": wire(price.reasoning),
            "per": "million tokens",
        }


async def _stream_log(settings: Settings, owner: str) -> tuple[StreamLog, Peers]:
    """The log, and who else writes to it. Raises StartupError."""
    if settings.stream_log_url is None:
        return LocalStreamLog(settings.home_dir / "streams.db", clock=clock.now), NoPeers()
    engine = await Engine.connect(Address.parse(settings.stream_log_url))
    retention_seconds = settings.stream_retention_hours * 3600
    log = SharedStreamLog(engine, clock=clock.now, retention_seconds=retention_seconds)
    return log, SharedPeers(engine, owner=owner, clock=clock.now)


def _limits(settings: Settings) -> Limits:
    return Limits(
        output_tokens_max=settings.max_output_tokens,
        slice_tokens=settings.slice_tokens,
        stream_seconds_max=settings.stream_timeout,
        lease_seconds=settings.lease_seconds * LEASE_SHARE,
        grace_seconds=settings.disconnect_grace_seconds,
        streams_per_user_max=settings.max_streams_per_user,
        streams_max=settings.max_streams,
        retries=Retries(times_max=settings.provider_retries, pause_seconds_max=settings.provider_retry_seconds_max),
    )


def _rate_limit(settings: Settings, windows: Windows, verifier: TokenVerifier) -> RateLimit:
    return RateLimit(
        windows,
        verifier=verifier,
        per_user=settings.requests_per_minute,
        per_address=settings.anonymous_requests_per_minute,
        exempt=HEALTH_PATHS,
    )


async def _providers(settings: Settings) -> list[Provider]:
    """The configured server first: who sets one up wants it asked by default."""
    providers: list[Provider] = []
    if settings.openai_base_url:
        await asyncio.to_thread(counting.prepare)
        key = settings.openai_api_key
        providers.append(
            OpenAIProvider(
                base_url=settings.openai_base_url,
                api_key=key.get_secret_value() if key else None,
                models=settings.openai_models or ("*",),
                first_token_seconds=settings.first_token_seconds,
                idle_seconds=settings.idle_seconds,
            )
        )
    if settings.embedded_model:
        providers.append(await EmbeddedProvider.start())
    if not providers:
        raise StartupError("No model is configured: set PARSHALL_EMBEDDED_MODEL=on or PARSHALL_OPENAI_BASE_URL.")
    return providers


def _fallbacks(settings: Settings) -> tuple[str, ...]:
    if settings.fallback_model is None:
        return (MODEL_ID,) if settings.embedded_model else ()
    return settings.fallback_model
