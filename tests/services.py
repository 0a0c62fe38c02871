"""Auth, accounting and chat as three `parshall serve`, which find each other through a network that can be broken."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faultproxy import FaultProxy
from tests.serving import Server, upstream

SCOPES = {"accounting": ("auth:read",), "chat": ("auth:read", "accounting:settle")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The three, and the ways between them."""

    auth: Server
    accounting: Server
    chat: Server
    to_auth: FaultProxy
    to_accounting: FaultProxy
    model: str
    """The base URL of the scripted model."""

    @property
    def all(self) -> tuple[Server, Server, Server]:
        """In the order in which they start."""
        return self.auth, self.accounting, self.chat


@contextlib.contextmanager
def services(home: Path, **settings: str) -> Iterator[Services]:
    """All three, running; killed at the end if they still run. Clients reach them directly."""
    found: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(upstream())
        to = {name: stack.enter_context(FaultProxy(_port_of(found, name)).running()) for name in ("auth", "accounting")}
        shared = {f"{name.upper()}_URL": f"http://127.0.0.1:{proxy.port}" for name, proxy in to.items()}
        shared |= {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": model, "OPENAI_MODELS": "fake,*"} | settings
        made = {}
        for name in ("auth", "accounting", "chat"):
            server = Server(home=home, settings=dict(shared), service=name, split=False, services=found)
            if name in SCOPES:
                server.settings["SERVICE_SECRET"] = _secret(made["auth"], name)
            made[name] = server.start()
            stack.callback(_end, server)
        yield Services(**made, to_auth=to["auth"], to_accounting=to["accounting"], model=model)


def _port_of(found: dict[str, str], name: str) -> Callable[[], list[int]]:
    return lambda: [int(found[name].rpartition(":")[2])] if name in found else []


def _secret(auth: Server, name: str) -> str:
    scopes = [word for scope in SCOPES[name] for word in ("--scope", scope)]
    return auth.run("services", "add", name, *scopes).strip()


def _end(server: Server) -> None:
    for caller in server.callers:
        caller.close()
    if server.process is not None and server.process.poll() is None:
        server.kill()
