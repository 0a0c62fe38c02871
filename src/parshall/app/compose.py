"""The one place that knows every service: builds them from the settings and joins them into an ASGI application."""

import asyncio
import fcntl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi_swagger import patch_fastapi
from starlette.types import ASGIApp

from parshall import __version__
from parshall.accounting.http import router as accounting_router
from parshall.accounting.service import Accounting
from parshall.app.config import Settings
from parshall.app.local import Parts, local, open_database, prepare_home
from parshall.app.page import HOME_POLICY, api_page, guide, home_page
from parshall.app.people import Users
from parshall.auth.http import router as auth_router
from parshall.auth.http import wellknown as wellknown_router
from parshall.auth.service import Auth
from parshall.chat.catalog import Catalog
from parshall.chat.failover import Retries
from parshall.chat.http import router as chat_router
from parshall.chat.http_supervision import router as supervision_router
from parshall.chat.ports import Provider, StreamLog
from parshall.chat.providers import counting
from parshall.chat.providers.embedded import MODEL_ID, EmbeddedProvider
from parshall.chat.providers.openai import OpenAIProvider
from parshall.chat.reader import Reading
from parshall.chat.service import Chat
from parshall.chat.streaming import Limits, Streaming
from parshall.chat.streams.local import LocalStreamLog
from parshall.chat.streams.shared import SharedStreamLog
from parshall.chat.supervision import Supervision
from parshall.kernel import clock
from parshall.kernel.credits import wire
from parshall.kernel.database import Database
from parshall.kernel.errors import NotFound, StartupError
from parshall.kernel.http import Edge, install_errors
from parshall.kernel.problems import PROBLEMS
from parshall.kernel.ratelimit import RateLimit
from parshall.kernel.tokens import TokenVerifier
from parshall.kernel.windows import LocalWindows, SharedWindows, Windows

HEALTH_PATHS = ("/health", "/api/health")
"""Never counted: who watches a deployment must not be turned down when it is busy."""
HEALTH_SECONDS_MAX = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Everything that one serving process holds."""

    parts: Parts
    chat: Chat
    supervision: Supervision
    chat_database: Database
    stream_log: StreamLog
    verifier: TokenVerifier
    readers: set[Reading]
    limit: RateLimit
    settings: Settings


@asynccontextmanager
async def system(settings: Settings) -> AsyncIterator[System]:
    """All three services, adopted streams included; on leaving, every stream ends in order. Raises StartupError."""
    prepare_home(settings.home_dir)
    async with AsyncExitStack() as stack:
        stack.enter_context(_only_server_of(settings.home_dir))
        parts = await stack.enter_async_context(local(settings))
        database = open_database(settings, "chat")
        stack.push_async_callback(database.close)
        stream_log = await _stream_log(settings)
        stack.push_async_callback(stream_log.close)  # streams end it themselves; this is for a start that fails
        catalog = Catalog(await _providers(settings), fallbacks=_fallbacks(settings))
        streaming = Streaming(
            database=database,
            stream_log=stream_log,
            ledger=parts.accounting,
            catalog=catalog,
            clock=clock.now,
            limits=_limits(settings),
        )
        stack.push_async_callback(streaming.close, drain_seconds=0)
        await streaming.recover()
        chat = Chat(database, streaming=streaming, catalog=catalog, clock=clock.now)
        verifier = _verifier(parts.auth, settings)
        windows = SharedWindows(settings.limits_url) if settings.limits_url else LocalWindows()
        stack.push_async_callback(windows.close)
        yield System(
            parts=parts,
            chat=chat,
            supervision=Supervision(
                database, chat=chat, stream_log=stream_log, people=Users(parts.auth), clock=clock.now
            ),
            chat_database=database,
            stream_log=stream_log,
            verifier=verifier,
            readers=set(),
            limit=_rate_limit(settings, windows, verifier),
            settings=settings,
        )


def application(built: System) -> ASGIApp:
    """The ASGI application over a system, with every service under /api."""
    app = FastAPI(
        title="Parshall",
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
    app.state.auth = built.parts.auth
    app.state.accounting = built.parts.accounting
    app.state.chat = built.chat
    app.state.supervision = built.supervision
    app.state.verifier = built.verifier
    app.state.readers = built.readers
    app.state.allowed_origins = frozenset(built.settings.allowed_origins)
    app.state.on_disconnect = built.settings.on_disconnect
    app.state.price_of = _Prices(built.parts.accounting).of
    install_errors(app)
    for router in (auth_router, wellknown_router, accounting_router, chat_router, supervision_router):
        app.include_router(router)
    _add_operations(app, built)
    return Edge(app, allowed_origins=built.settings.allowed_origins, limit=built.limit)


def _add_pages(app: FastAPI) -> None:
    page, policy = api_page()

    @app.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(home_page(version=__version__), headers={"Content-Security-Policy": HOME_POLICY})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _add_operations(app: FastAPI, built: System) -> None:
    @app.get("/documentation/{name}", response_class=PlainTextResponse, include_in_schema=False)
    async def documentation(name: str) -> str:
        text = guide(name)
        if text is None:
            raise NotFound("There is no such guide; the page at / lists them.")
        return text

    async def health(request: Request) -> JSONResponse:
        """Whether this process can serve; 503 names what is down."""
        down = await _down(built)
        body: dict[str, Any] = {
            "status": "unavailable" if down else "ok",
            "service": "parshall",
            "version": request.app.version,
            "timestamp": clock.rfc3339(clock.now()),
        }
        return JSONResponse(body | ({"down": down} if down else {}), status_code=503 if down else 200)

    for path in HEALTH_PATHS:
        app.get(path, tags=["operations"])(health)

    @app.get("/api/version", tags=["operations"])
    async def version() -> dict[str, str]:
        """The version that runs."""
        return {"service": "parshall", "version": __version__}


async def _down(built: System) -> list[str]:
    """What keeps this process from serving; empty when nothing does."""
    down = ["draining"] if built.chat.streaming.draining else []
    checks = (("chat database", partial(_answers, built.chat_database)), ("stream log", built.stream_log.check))
    for name, check in checks:
        try:
            async with asyncio.timeout(HEALTH_SECONDS_MAX):
                await check()
        except Exception:
            down.append(name)
    return down


async def _answers(database: Database) -> None:
    await database.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())


class _Prices:
    """What a model costs, in the form that the model list shows."""

    def __init__(self, accounting: Accounting) -> None:
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


async def _stream_log(settings: Settings) -> StreamLog:
    if settings.stream_log_url is None:
        return LocalStreamLog(settings.home_dir / "streams.db", clock=clock.now)
    retention_seconds = settings.stream_retention_hours * 3600
    return await SharedStreamLog.open(settings.stream_log_url, clock=clock.now, retention_seconds=retention_seconds)


def _verifier(auth: Auth, settings: Settings) -> TokenVerifier:
    exchange = auth.api_keys.access_token
    return TokenVerifier(auth.key_set, issuer=settings.issuer, clock=clock.now, exchange=exchange)


def _limits(settings: Settings) -> Limits:
    return Limits(
        output_tokens_max=settings.max_output_tokens,
        slice_tokens=settings.slice_tokens,
        stream_seconds_max=settings.stream_timeout,
        lease_seconds=settings.lease_seconds,
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


@contextmanager
def _only_server_of(home: Path) -> Iterator[None]:
    """Hold a data folder for one serving process: the local stream log has one producing process by design.

    The lock goes with the process, however it ends. Raises StartupError while another holds it.
    """
    with (home / "serving.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartupError(
                f"Another Parshall already serves the data folder {home}; stop it or set PARSHALL_HOME_DIR."
            ) from error
        yield
