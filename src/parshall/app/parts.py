"""Where a process finds each service: local if it is served here, remote otherwise, decided in this file alone."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from parshall.accounting.remote import RemoteAccounting
from parshall.accounting.service import Accounting
from parshall.app.apart import ServiceName
from parshall.app.config import PREFIX, Settings
from parshall.app.local import local_accounting, local_auth
from parshall.auth.remote import RemoteAuth
from parshall.auth.service import Auth
from parshall.kernel import clock
from parshall.kernel.errors import StartupError
from parshall.kernel.peer import Peer
from parshall.kernel.tokens import Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The services that chat needs, as this process has them. Auth alone needs no accounting."""

    auth: Auth | RemoteAuth
    accounting: Accounting | RemoteAccounting | None

    @property
    def local_auth(self) -> Auth | None:
        """Auth, where this process serves it."""
        return self.auth if isinstance(self.auth, Auth) else None

    @property
    def local_accounting(self) -> Accounting | None:
        """Accounting, where this process serves it."""
        return self.accounting if isinstance(self.accounting, Accounting) else None

    @property
    def external(self) -> Exchange:
        """What gives one for the token of an external issuer."""
        return self.auth.externals.access_token if isinstance(self.auth, Auth) else self.auth.external_token

    @property
    def exchange(self) -> Exchange:
        """What gives an access token for an API key."""
        return self.auth.api_keys.access_token if isinstance(self.auth, Auth) else self.auth.access_token


@asynccontextmanager
async def parts_of(settings: Settings, services: frozenset[ServiceName]) -> AsyncIterator[Parts]:
    """What a process that serves these services works with. Raises StartupError."""
    async with AsyncExitStack() as stack:
        auth: Auth | RemoteAuth
        accounting: Accounting | RemoteAccounting | None = None
        if ServiceName.AUTH in services:
            auth = await stack.enter_async_context(local_auth(settings))
        else:
            auth = _remote_auth(settings, services)
            stack.push_async_callback(auth.close)
        if ServiceName.ACCOUNTING in services:
            accounting = await stack.enter_async_context(local_accounting(settings, directory=auth))
        elif ServiceName.CHAT in services:
            assert isinstance(auth, RemoteAuth), "chat is served with all, or alone"
            accounting = RemoteAccounting(
                Peer("accounting", settings.accounting_url, tokens=auth.tokens), clock=clock.now
            )
            stack.push_async_callback(accounting.close)
        yield Parts(auth=auth, accounting=accounting)


def _remote_auth(settings: Settings, services: frozenset[ServiceName]) -> RemoteAuth:
    name = settings.service_name or min(services).value
    if settings.service_secret is None:
        raise StartupError(
            f"Apart from auth, {name} needs {PREFIX}SERVICE_SECRET: `parshall services add {name}` prints one where "
            "auth is served."
        )
    return RemoteAuth(settings.auth_url, name=name, secret=settings.service_secret.get_secret_value())
