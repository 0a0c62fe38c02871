"""The services that work on records alone, on this machine's data folder: for commands, beside a running server."""

import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from parshall.accounting.announcements import Policy, Topic
from parshall.accounting.service import Accounting, Directory
from parshall.accounting.signing import read_secrets
from parshall.accounting.webhook import Webhook, source_of
from parshall.app.config import POSTGRES_URLS, SQLITE_URL, Settings
from parshall.auth.mail import Post, post_of
from parshall.auth.passwords import PasswordHasher
from parshall.auth.service import Auth
from parshall.kernel import clock
from parshall.kernel.clock import SECOND
from parshall.kernel.credits import parse_credits
from parshall.kernel.database import Database
from parshall.kernel.errors import StartupError
from parshall.kernel.postgres import PostgresDatabase
from parshall.kernel.sqlite import SqliteDatabase

RESERVATION_MARGIN_SECONDS = 60
"""A reservation outlives the longest stream by this much, so that it never expires under a live one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The services that work on records alone."""

    auth: Auth
    accounting: Accounting


@asynccontextmanager
async def local(settings: Settings) -> AsyncIterator[Parts]:
    """Auth and accounting on this machine's data folder. Raises StartupError."""
    prepare_home(settings.home_dir)
    async with local_auth(settings) as auth, local_accounting(settings, directory=auth) as accounting:
        yield Parts(auth=auth, accounting=accounting)


@asynccontextmanager
async def local_auth(settings: Settings) -> AsyncIterator[Auth]:
    """Auth on its database. Raises StartupError."""
    auth = Auth(
        open_database(settings, "auth"),
        issuer=settings.issuer,
        clock=clock.now,
        hasher=PasswordHasher(),
        access_seconds=settings.access_token_seconds,
        signup_open=settings.signup,
        post=_post(settings),
        pages=settings.pages_url,
        issuers=[each.external() for each in settings.oidc_issuers],
        public_url=settings.public_url,
    )
    try:
        await auth.start()
        yield auth
    finally:
        await auth.close()


@asynccontextmanager
async def local_accounting(settings: Settings, *, directory: Directory) -> AsyncIterator[Accounting]:
    """Accounting on its database. Raises StartupError."""
    accounting = Accounting(
        open_database(settings, "accounting"),
        directory=directory,
        clock=clock.now,
        reservation_seconds=int(settings.stream_timeout) + RESERVATION_MARGIN_SECONDS,
        policy=_policy(settings),
    )
    try:
        await accounting.start()
        yield accounting
    finally:
        await accounting.close()


def webhook(settings: Settings) -> Webhook | None:
    """Where events are posted, if anywhere."""
    if settings.webhook_url is None:
        return None
    assert settings.webhook_secret is not None, "the settings have been validated"
    keys = read_secrets(settings.webhook_secret.get_secret_value())
    return Webhook(settings.webhook_url, keys=keys, source=source_of(settings.issuer), clock=clock.now)


def _post(settings: Settings) -> Post | None:
    """What takes letters, if anything; a command sends none, for that is a task of the serving process."""
    if settings.mail_url is None:
        return None
    return post_of(settings.mail_url.get_secret_value(), sender=settings.mail_from, home=settings.home_dir)


def _policy(settings: Settings) -> Policy | None:
    """What is announced; commands announce what they change as the server does."""
    if settings.webhook_url is None:
        return None
    return Policy(
        topics=frozenset(map(Topic, settings.webhook_events)),
        low_balance=parse_credits(settings.low_balance_credits, allow_zero=True),
        notice=int(settings.expiry_notice_hours * 3600 * SECOND),
    )


def prepare_home(home: Path) -> None:
    """Make the data folder, for its owner alone. Raises StartupError when it cannot be written."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = home / f".write-{os.getpid()}"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        raise StartupError(
            f"The data folder {home} cannot be written ({error.strerror}); set PARSHALL_HOME_DIR to one that can."
        ) from error


@contextmanager
def only_one_of(home: Path, what: str) -> Iterator[None]:
    """Hold a data folder for one process of a kind: the local stream log has one producing process by design.

    The lock goes with the process, however it ends. Raises StartupError while another holds it.
    """
    with (home / f"{what}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartupError(
                f"Another Parshall already serves the data folder {home}; stop it or set PARSHALL_HOME_DIR."
            ) from error
        yield


def open_database(settings: Settings, service: str) -> Database:
    """The database of a service, brought forward. Raises StartupError."""
    where = _place(settings, service)
    package = f"parshall.{service}"
    if isinstance(where, str):
        return PostgresDatabase(where, package=package, connections=settings.database_connections)
    return SqliteDatabase(where, package=package)


@asynccontextmanager
async def existing_database(settings: Settings, service: str) -> AsyncIterator[Database]:
    """The database of a service for whoever only reads it. Raises StartupError, also where there is none yet."""
    where = _place(settings, service)
    if isinstance(where, Path) and not where.is_file():
        raise StartupError(f"There is no database {where}; set PARSHALL_HOME_DIR to the data folder of a server.")
    database = open_database(settings, service)
    try:
        yield database
    finally:
        await database.close()


def _place(settings: Settings, service: str) -> str | Path:
    """The URL of a service's PostgreSQL, or the file of its SQLite."""
    url: str | None = getattr(settings, f"{service}_database_url") or settings.database_url
    if url is not None and url.startswith(POSTGRES_URLS):
        return url
    return settings.home_dir / f"{service}.db" if url is None else Path(url.removeprefix(SQLITE_URL))
