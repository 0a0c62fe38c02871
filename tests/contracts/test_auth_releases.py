"""Who could log in to a released version still can, on either engine: users, sessions, tokens, services and keys."""

import json
import sqlite3
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, create_engine, insert
from tests.postgres import open_url

from parshall.auth import model
from parshall.auth.passwords import PasswordHasher
from parshall.auth.service import Auth
from parshall.kernel.clock import SECOND
from parshall.kernel.tokens import Role, TokenVerifier

PACKAGE = "parshall.auth"
RELEASES = Path(__file__).with_name("releases")
SAID: dict[str, Any] = json.loads((RELEASES / "auth-0.1.0.json").read_text())
LATER = SAID["at"] + 60 * SECOND


def restored(path: Path) -> str:
    """The database of the release as a file; its address."""
    database = sqlite3.connect(path)
    database.executescript((RELEASES / "auth-0.1.0.sql").read_text())
    database.close()
    return f"sqlite:///{path}"


def at_first_revision(connection: Connection) -> None:
    script = ScriptDirectory(str(files(PACKAGE) / "migrations"))
    opts = {"version_table": "auth_version", "fn": lambda revision, _: script._upgrade_revs("0001", revision)}
    context = MigrationContext.configure(connection, opts=opts)
    with Operations.context(context):
        context.run_migrations()


def copied(source: str, target: str) -> None:
    """The same records on the other engine, for which that revision exists too."""
    tables = MetaData()
    old, new = create_engine(source), create_engine(target.replace("postgresql://", "postgresql+psycopg://"))
    with old.connect() as reading, new.begin() as writing:
        at_first_revision(writing)
        tables.reflect(writing)
        for table in tables.sorted_tables:
            rows = reading.execute(table.select()).mappings().all()
            if rows and table.name != "auth_version":
                writing.execute(insert(table), [dict(row) for row in rows])
    old.dispose()
    new.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the records of the release are."""
    made = restored(tmp_path / "auth.db")
    if request.param == "sqlite":
        return made
    target: str = request.getfixturevalue("postgres_url")
    copied(made, target)
    return target


@pytest.fixture
async def auth(url: str) -> AsyncIterator[Auth]:
    """The auth of today on those records."""
    hasher = PasswordHasher(passes=1, memory_kib=8, lanes=1)
    made = Auth(open_url(url, PACKAGE), issuer=SAID["issuer"], clock=lambda: LATER, hasher=hasher)
    await made.start()
    yield made
    await made.close()


async def test_users_log_in_with_their_passwords_and_are_who_they_were(auth: Auth) -> None:
    session = await auth.login("ANN@example.org", SAID["password"], "192.0.2.1")
    assert (session.user.id, session.user.role) == (SAID["ann"], Role.SUPERVISOR)
    assert (await auth.login("admin", "tiny", "192.0.2.1")).user.role is Role.ADMIN
    assert await auth.ensure_admin(None) is None


async def test_tokens_on_their_way_are_taken(auth: Auth) -> None:
    verifier = TokenVerifier(auth.key_set, issuer=SAID["issuer"], clock=lambda: LATER)
    principal = await verifier.verify(SAID["access_token"])
    assert not principal.is_limited
    assert (await auth.present(principal.user_id, principal.session_id)).username == "ann"


async def test_sessions_go_on_and_a_replay_ends_them(auth: Auth) -> None:
    session = await auth.refresh(SAID["refresh_token"])
    with pytest.raises(model.RefreshRefused):
        await auth.refresh(SAID["used_refresh_token"])
    with pytest.raises(model.RefreshRefused):
        await auth.refresh(session.refresh_token)


async def test_services_keep_their_secrets(auth: Auth) -> None:
    assert (await auth.service_token("chat", SAID["service_secret"])).scopes == model.SCOPES


async def test_what_is_new_works_on_what_is_old(auth: Auth) -> None:
    made = await auth.api_keys.create(SAID["ann"], "ci")
    assert (await auth.api_keys.exchange(made.text, "192.0.2.1")).access_token
