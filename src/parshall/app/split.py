"""`parshall up --split`: every service as a process of its own on this machine, with secrets made for this run."""

import asyncio
import contextlib
import socket
import sys

from parshall.app import config
from parshall.app.apart import ServiceName, port_of
from parshall.app.config import PREFIX, Settings
from parshall.app.local import Parts, local, only_one_of, prepare_home
from parshall.app.server import FINISH_SECONDS_MAX, check_demo, demo_user, first_users, shown
from parshall.app.supervise import Child, parshall, supervise
from parshall.auth.model import READ_SCOPE, SETTLE_SCOPE
from parshall.kernel import telemetry
from parshall.kernel.errors import NotFound

SCOPES = {ServiceName.ACCOUNTING: (READ_SCOPE,), ServiceName.CHAT: (READ_SCOPE, SETTLE_SCOPE)}
"""What each service may do as itself: look users up, and for chat move credits."""
STAGES = ((ServiceName.AUTH, ServiceName.ACCOUNTING), (ServiceName.CHAT,))
"""Chat starts last and ends first: its streams settle while accounting still answers."""
STOP_MARGIN_SECONDS = 10.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where one listens everywhere, it is found here
"""Addresses that only listen, and those under which the services then find each other."""


def run(settings: Settings, *, demo: bool) -> int:
    """Serve until SIGINT or SIGTERM; the exit code. Raises StartupError when it cannot start."""
    check_demo(settings, demo=demo)
    telemetry.configure(level=settings.log_level, json=_json(settings))
    prepare_home(settings.home_dir)
    with only_one_of(settings.home_dir, "split"):  # another's services would lose their secrets
        return asyncio.run(_run(settings, demo=demo))


async def _run(settings: Settings, *, demo: bool) -> int:
    ports = {service: port_of(settings, service) or _free_port(settings.host) for service in ServiceName}
    async with local(settings) as parts:
        lines = await first_users(parts.auth, settings)
        lines += await demo_user(parts.auth, parts.accounting) if demo else []
        secrets = {service: await _secret(parts, service) for service in SCOPES}
    lines += [f"{name} is not an option of this version and has no effect" for name in config.unknown_variables()]
    children = {service: _child(service, settings, ports, secrets.get(service)) for service in ServiceName}
    address = shown(settings.host)
    lines = [f"Parshall listens on http://{address}:{ports[ServiceName.CHAT]} (chat)", *lines]
    lines += [f"{service.value.capitalize()} listens on http://{address}:{ports[service]}" for service in STAGES[0]]
    return await supervise(
        [[children[service] for service in stage] for stage in STAGES],
        stop_seconds=settings.drain_seconds + FINISH_SECONDS_MAX + STOP_MARGIN_SECONDS,
        on_ready=lambda: print("\n".join(lines), flush=True),  # noqa: T201 - what the operator is waiting for
    )


async def _secret(parts: Parts, service: ServiceName) -> str:
    """A new secret for a service of this run; the one before works no more."""
    name = _client(service)
    with contextlib.suppress(NotFound):
        await parts.auth.revoke_service(name)
    return await parts.auth.add_service(name, SCOPES[service])


def _client(service: ServiceName) -> str:
    """The service's name at auth; not that of one that an operator has added and runs elsewhere."""
    return f"split-{service}"


def _child(service: ServiceName, settings: Settings, ports: dict[ServiceName, int], secret: str | None) -> Child:
    """The process of a service. A secret goes in its environment: anybody may read a command line."""
    found = shown(ANYWHERE.get(settings.host, settings.host))
    options = {
        "HOST": settings.host,
        f"{service.upper()}_PORT": str(ports[service]),
        "AUTH_URL": f"http://{found}:{ports[ServiceName.AUTH]}",
        "ACCOUNTING_URL": f"http://{found}:{ports[ServiceName.ACCOUNTING]}",
        "CHAT_URL": f"http://{found}:{ports[ServiceName.CHAT]}",
        "LOG_FORMAT": "json" if _json(settings) else "text",
        **({} if secret is None else {"SERVICE_NAME": _client(service), "SERVICE_SECRET": secret}),
    }
    return Child(
        name=service.value,
        command=parshall("serve", service.value),
        ready=f"Parshall {service} listens on",
        environment={PREFIX + option: value for option, value in options.items()},
    )


def _json(settings: Settings) -> bool:
    """Children write to a pipe, so it is the terminal of this process that counts."""
    return settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())


def _free_port(host: str) -> int:
    """A port that nobody listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
