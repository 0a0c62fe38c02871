"""The one place that knows every service: builds them from the settings and joins them into an ASGI application."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from fastapi import FastAPI
from starlette.types import ASGIApp

from parshall.app.apart import ALL, ServiceName
from parshall.app.config import Settings
from parshall.app.elsewhere import Elsewhere
from parshall.app.headertracing import Traced, traced_parts
from parshall.app.local import only_one_of, open_database, prepare_home
from parshall.app.parts import Parts, parts_of
from parshall.app.people import Users
from parshall.app.prices import ShownPrices
from parshall.app.surface import name_of, surface, words_of
from parshall.app.watch import Watch
from parshall.chat.catalog import Catalog
from parshall.chat.failover import Retries
from parshall.chat.http_door import Door
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
from parshall.kernel.database import Database, answers
from parshall.kernel.deadlines import Deadlines
from parshall.kernel.errors import StartupError
from parshall.kernel.forwarding import Forwarding
from parshall.kernel.http import Edge
from parshall.kernel.ratelimit import RateLimit
from parshall.kernel.refusals import install_errors
from parshall.kernel.requests import WATCHED_PATHS
from parshall.kernel.tokens import TokenVerifier
from parshall.kernel.windows import LocalWindows, SharedWindows, Windows

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
    """Everything that one serving process holds."""

    services: frozenset[ServiceName]
    parts: Parts
    chatting: Chatting | None
    verifier: TokenVerifier
    readers: set[Reading]
    limit: RateLimit
    traced: Traced
    settings: Settings
    watch: Watch

    @property
    def name(self) -> str:
        """That of its one service, or of all."""
        return name_of(self.services)


@asynccontextmanager
async def system(settings: Settings, services: frozenset[ServiceName] = ALL) -> AsyncIterator[System]:
    """The services, adopted streams included; on leaving, every stream ends in order. Raises StartupError."""
    prepare_home(settings.home_dir)
    async with AsyncExitStack() as stack:
        if ServiceName.CHAT in services and settings.lacking_to_share(services):
            stack.enter_context(only_one_of(settings.home_dir, "serving"))
        parts = await stack.enter_async_context(parts_of(settings, services))
        chatting = await _chatting(settings, parts, stack) if ServiceName.CHAT in services else None
        verifier = TokenVerifier(
            parts.auth.key_set,
            issuer=settings.issuer,
            clock=clock.now,
            exchange=parts.exchange,
            external=parts.external,
        )
        chat = (chatting.database, Users(parts.auth)) if chatting else None
        traced = stack.enter_context(traced_parts(settings, name_of(services), verifier, chat))
        windows = SharedWindows(settings.limits_url) if settings.limits_url else LocalWindows()
        stack.push_async_callback(windows.close)
        readers: set[Reading] = set()
        yield System(
            services=services,
            parts=parts,
            chatting=chatting,
            verifier=verifier,
            readers=readers,
            limit=_rate_limit(settings, windows, verifier),
            traced=traced,
            settings=settings,
            watch=Watch(
                chat=None if chatting is None else chatting.service,
                accounting=parts.local_accounting,
                readers=readers,
                clock=clock.now,
            ),
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
    app = surface(built.services)
    app.state.service = built.name
    app.state.down = partial(_down, built)
    app.state.verifier = built.verifier
    app.state.readers = built.readers
    app.state.allowed_origins = frozenset(built.settings.allowed_origins)
    app.state.on_disconnect = built.settings.on_disconnect
    app.state.metrics_token = built.settings.metrics_token
    app.state.look = built.watch.look
    install_errors(app)
    _add_services(app, built)
    served: ASGIApp = Door(app) if built.chatting else Deadlines(app)
    edge = Edge(
        served,
        allowed_origins=built.settings.allowed_origins,
        limit=built.limit,
        words=words_of(app),
        service=built.name,
    )
    proxies = built.settings.trusted_proxies
    return built.traced.in_front_of(Forwarding(edge, trusted=proxies) if proxies else edge)


def _add_services(app: FastAPI, built: System) -> None:
    parts = built.parts
    if parts.local_auth is not None:
        app.state.auth = parts.local_auth
        app.state.elsewhere = Elsewhere(built.settings, together=app if built.chatting else None)
    if parts.local_accounting is not None:
        app.state.accounting = parts.local_accounting
    if built.chatting is not None:
        assert parts.accounting is not None
        app.state.chat = built.chatting.service
        app.state.supervision = built.chatting.supervision
        app.state.price_of = ShownPrices(parts.accounting).of
        built.traced.offer(app)


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
        exempt=WATCHED_PATHS,  # who watches a deployment must not be turned down when it is busy
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
