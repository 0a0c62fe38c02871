"""One process that serves every service, or one of them, on one port; starts with clear words and ends in order."""

import asyncio
import contextlib
import errno
import gc
import signal
import socket
from collections.abc import AsyncIterator, Generator

import uvicorn
import uvloop

from parshall.accounting.delivery import Deliverer
from parshall.accounting.service import Accounting
from parshall.app import compose, config
from parshall.app.apart import ALL, ServiceName, port_of
from parshall.app.config import Settings
from parshall.app.connection import connections
from parshall.app.front import connections_max, raise_descriptor_limit
from parshall.app.local import webhook
from parshall.app.metering import metering
from parshall.app.removing import Remover
from parshall.app.supervise import end_with_parent
from parshall.app.sweeper import Sweeper
from parshall.app.tracing import tracing
from parshall.auth.service import Auth
from parshall.kernel import clock, telemetry
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.errors import NotFound, StartupError
from parshall.kernel.removals import Removals
from parshall.kernel.requests import HEALTH_PATHS
from parshall.kernel.tokens import Role

FINISH_SECONDS_MAX = 2.0
"""After the drain time: what interrupting, settling and telling the readers may take."""
LISTEN_BACKLOG = 2048
ANNOUNCEMENT = "listens on"
"""What stands in the line that is printed once a process answers."""

DEMO_USER = "demo"
DEMO_PASSWORD = "demo-password"  # noqa: S105 - printed on purpose, on loopback only
DEMO_CREDITS = Credits(100 * MICRO)
DEMO_DAYS = 30
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run(
    settings: Settings, *, service: ServiceName | None = None, demo: bool = False, descriptor: int | None = None
) -> int:
    """Serve all, or one service, until SIGINT or SIGTERM; the exit code. Raises StartupError when it cannot start.

    `descriptor` is an open socket to listen on, in place of the settings' address.
    """
    json = None if settings.log_format == "auto" else settings.log_format == "json"
    telemetry.configure(level=settings.log_level, json=json, service=service)
    check_demo(settings, demo=demo)
    raise_descriptor_limit()
    services = ALL if service is None else frozenset({service})
    name = "parshall" if service is None else f"parshall-{service}"
    with (
        contextlib.closing(_listening(settings, service, descriptor)) as bound,
        tracing(name),
        metering(name),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(settings, services, bound, demo=demo))
    return 0


def check_demo(settings: Settings, *, demo: bool) -> None:
    """Raises StartupError where the demo's user, whose password is known, could be reached from elsewhere."""
    if demo and settings.host not in LOOPBACK:
        raise StartupError("--demo makes a user with a known password, so it listens on 127.0.0.1 only.")


class Server(uvicorn.Server):
    """uvicorn that ends its streams itself: uvicorn alone waits for them without limit, or cuts them."""

    def __init__(self, config: uvicorn.Config, built: compose.System, announcement: str) -> None:
        """`announcement` is printed once the server answers."""
        super().__init__(config)
        self._system = built
        self._announcement = announcement

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take SIGINT and SIGTERM as the wish to stop; unlike uvicorn's, do not raise them again afterwards."""
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        end_with_parent(lambda: self.handle_exit(signal.SIGTERM, None))
        gc.collect()
        gc.freeze()  # what is here now stays: looking through all of it again and again took a fiftieth of all CPU time
        print(self._announcement, flush=True)  # noqa: T201 - what the operator is waiting for

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new streams, let running ones finish for a while, settle the rest, then let the connections go."""
        ending = asyncio.create_task(self._end_streams())
        await super().shutdown(sockets)
        await ending

    async def _end_streams(self) -> None:
        if self._system.chatting is None:
            return
        streaming = self._system.chatting.service.streaming
        streaming.drain()
        await streaming.end_producers(drain_seconds=self._system.settings.drain_seconds)
        await asyncio.sleep(0)
        for reader in tuple(self._system.readers):
            reader.interrupt()


async def _serve(settings: Settings, services: frozenset[ServiceName], bound: socket.socket, *, demo: bool) -> None:
    async with compose.system(settings, services) as built:
        announcement = await _prepare(built, bound, demo=demo)
        async with _own_tasks(built):
            await Server(_config(built), built, announcement).serve([bound])


@contextlib.asynccontextmanager
async def _own_tasks(built: compose.System) -> AsyncIterator[None]:
    """The sweeper, and what serves a mail server or a webhook where there is one; cancelled and awaited on leaving."""
    settings, auth, accounting = built.settings, built.parts.local_auth, built.parts.local_accounting
    hook = None if accounting is None else webhook(settings)
    sweeper = Sweeper(
        streaming=None if built.chatting is None else built.chatting.service.streaming,
        accounting=accounting,
        clock=clock.now,
        lease_seconds=settings.lease_seconds,
        retention_seconds=settings.stream_retention_hours * 3600,
        on_pass=built.watch.swept,
    )
    tasks = [asyncio.create_task(sweeper.run(), name="sweeper"), asyncio.create_task(built.watch.run(), name="watch")]
    if built.traced.keeper is not None:
        tasks.append(asyncio.create_task(built.traced.keeper.run(), name="header traces"))
    if removals := _removals(built):
        remover = Remover(built.parts.auth, verifier=built.verifier, services=removals)
        tasks.append(asyncio.create_task(remover.run(), name="remover"))
    if auth is not None and auth.correspondence.is_on:
        tasks.append(asyncio.create_task(auth.correspondence.run(), name="correspondence"))
    if hook is not None and accounting is not None:
        tasks.append(asyncio.create_task(Deliverer(accounting.outbox, hook).run(), name="deliverer"))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if built.traced.keeper is not None:
            await built.traced.keeper.close()
        if hook is not None:
            await hook.close()


def _removals(built: compose.System) -> list[Removals]:
    """What the services of this process do about removed users; auth has removed its own."""
    chatting, accounting = built.chatting, built.parts.local_accounting
    chat = [] if chatting is None else [chatting.service.removals]
    return chat if accounting is None else [*chat, accounting.removals]


def _config(built: compose.System) -> uvicorn.Config:
    return uvicorn.Config(
        compose.application(built),
        http=connections(
            stall_seconds=built.settings.reader_stall_seconds,
            buffer_bytes=built.settings.reader_buffer_bytes,
            head_seconds=built.settings.request_head_seconds,
            body_seconds=built.settings.request_body_seconds,
            connections_max=connections_max(built.settings),
            spared=HEALTH_PATHS,
            names_as_sent=built.settings.header_trace != "off",
        ),
        ws="none",
        interface="asgi3",  # what it is, it does not show: a plain function keeps it out of the way
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,  # the edge adds it behind the id header, which must come first (H1)
        proxy_headers=False,  # kernel/forwarding.py reads them, and no word of them that it does not understand
        backlog=LISTEN_BACKLOG,
        timeout_graceful_shutdown=int(built.settings.drain_seconds + FINISH_SECONDS_MAX),
    )


async def _prepare(built: compose.System, bound: socket.socket, *, demo: bool) -> str:
    """Make the first users where they are missing; what to tell the operator."""
    auth, accounting = built.parts.local_auth, built.parts.local_accounting
    name = "Parshall" if built.name == "parshall" else f"Parshall {built.name}"
    lines = [f"{name} {ANNOUNCEMENT} {url_of(bound)}"]
    lines += [f"{name} is not an option of this version and has no effect" for name in config.unknown_variables()]
    if auth is not None:
        lines += await first_users(auth, built.settings)
        if accounting is not None and demo:
            lines += await demo_user(auth, accounting)
    return "\n".join(lines)


async def first_users(auth: Auth, settings: Settings) -> list[str]:
    """Make the administrator where there is no user yet; what to tell the operator."""
    given = settings.admin_password
    generated = await auth.ensure_admin(given.get_secret_value() if given else None)
    if generated is None:
        return []
    return [f"First start: log in as admin with the password {generated} (shown only now)"]


async def demo_user(auth: Auth, accounting: Accounting) -> list[str]:
    """A user with credits, once; a demo account that exists keeps what it has. What to tell the operator."""
    try:
        await auth.find_user(DEMO_USER)
    except NotFound:
        user = await auth.create_user(DEMO_USER, "demo@localhost", DEMO_PASSWORD, Role.ENDUSER)
        await accounting.allocate(
            user.id, DEMO_CREDITS, expires_at=clock.now() + DEMO_DAYS * clock.DAY, notes="demo", granted_by="demo"
        )
    return [f"Demo: the user is {DEMO_USER}, the password is {DEMO_PASSWORD}; do not expose this server"]


def shown(host: str) -> str:
    """The address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def url_of(bound: socket.socket) -> str:
    """Where that socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://{shown(host)}:{port}"


def _listening(settings: Settings, service: ServiceName | None, descriptor: int | None) -> socket.socket:
    if descriptor is not None:
        return socket.socket(fileno=descriptor)
    if service is None:
        return bind(settings.host, settings.port, option="PORT")
    return bind(settings.host, port_of(settings, service), option=f"{service.upper()}_PORT")


def bind(host: str, port: int, *, option: str) -> socket.socket:
    """A bound socket, before anything else is set up: a busy port must not cost a model load. Raises StartupError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartupError(
            f"Cannot listen on {host}: {error.strerror}; set PARSHALL_HOST to an address of this machine."
        ) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise StartupError(
                f"Port {port} of {host} is in use; stop the other program or set PARSHALL_{option}."
            ) from error
        raise StartupError(
            f"Cannot listen on {host}:{port}: {error.strerror}; set PARSHALL_HOST or PARSHALL_{option}."
        ) from error
    return bound
