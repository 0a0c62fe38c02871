"""The stores of the compose file, as real servers with its options, users and rights: enough for us, and no more."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from tests.contracts.streamlogs import STREAM, Time, frames, next_of, opened, take
from tests.deployment import DEPLOY, compose
from tests.postgres import Server
from tests.valkey import program, unused_port

from parshall.kernel.postgres import PostgresDatabase
from parshall.kernel.windows import SharedWindows

SERVICES = ("auth", "accounting", "chat")
START_SECONDS_MAX = 20


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(DEPLOY / "compose" / "secrets.sh", folder)
    subprocess.run(["sh", str(folder / "secrets.sh")], check=True, capture_output=True)
    return folder / "secrets"


# ── Valkey ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def port(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Valkey that was started with the words of the compose file, but for its places on this machine."""
    found, home = unused_port(), tmp_path_factory.mktemp("valkey")
    _, *words = compose()["services"]["valkey"]["command"]
    places = {"/data": str(home), "/run/secrets/valkey_users": str(secrets / "valkey_users")}
    command = [str(program()), *(places.get(word, word) for word in words), "--port", str(found)]
    with (home / "log").open("wb") as log, subprocess.Popen([*command, "--bind", "127.0.0.1"], stdout=log) as process:
        try:
            deadline = time.monotonic() + START_SECONDS_MAX
            while not is_well(found):
                assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
                time.sleep(0.02)
            yield found
        finally:
            process.kill()


def is_well(port: int) -> bool:
    """What the container's own check finds out."""
    with Redis(port=port, username="health", password="health", protocol=2) as client:
        try:
            return bool(client.execute_command("PING"))
        except RedisError:
            return False


@pytest.fixture
def url(secrets: Path, port: int) -> str:
    return (secrets / "stream_log_url").read_text(encoding="utf-8").replace("valkey:6379", f"127.0.0.1:{port}")


async def test_the_user_of_the_compose_file_may_do_what_a_stream_log_needs(url: str, time: Time) -> None:
    async with opened(url, time) as log:
        lease = await take(log, time=time)
        tail = await log.tail(STREAM, after=0, silence_seconds=60)
        await log.append(lease, frames(1, 1), first_offset=1)
        assert await next_of(tail) == frames(1, 1)


async def test_and_what_counting_requests_needs(url: str) -> None:
    windows = SharedWindows(url)
    first, second = [await windows.hit("address:203.0.113.1", 10) for _ in range(2)]
    await windows.close()
    assert first is not None and second is not None and (first.left, second.left) == (9, 8)


def test_nobody_gets_in_without_a_password_and_who_looks_after_its_health_may_look(port: int) -> None:
    with Redis(port=port, protocol=2) as stranger, pytest.raises(AuthenticationError):
        stranger.get("parshall:x")
    health = Redis(port=port, username="health", password="health", protocol=2)
    with health, pytest.raises(NoPermissionError):
        health.get("parshall:x")


def test_it_forgets_nothing_and_evicts_nothing(url: str, port: int) -> None:
    with Redis.from_url(url.replace("valkey", "redis", 1), protocol=2) as client:
        assert client.info("persistence")["aof_enabled"] == 1
        assert client.info("memory")["maxmemory_policy"] == "noeviction"


# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def made(postgres_server: Server, secrets: Path) -> Iterator[Server]:
    """The session's PostgreSQL after the script of the compose file."""
    admin = f"postgresql://postgres@127.0.0.1:{postgres_server.port}/postgres"
    own = os.environ | {"PGHOST": "127.0.0.1", "PGPORT": str(postgres_server.port), "SECRETS": str(secrets)}
    own["PATH"] = f"{postgres_server.programs}:{own['PATH']}"
    ran = subprocess.run(["sh", str(DEPLOY / "compose" / "databases.sh")], env=own, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    yield postgres_server
    with psycopg.connect(admin, autocommit=True) as connection:
        for service in SERVICES:
            connection.execute(f"DROP DATABASE {service} WITH (FORCE)")
            connection.execute(f"DROP ROLE {service}")


async def test_each_service_can_make_its_tables_and_no_other_may_see_them(made: Server, secrets: Path) -> None:
    for service in SERVICES:
        url = (secrets / f"{service}_database_url").read_text(encoding="utf-8")
        database = PostgresDatabase(
            url.replace("@postgres/", f"@127.0.0.1:{made.port}/"), package=f"parshall.{service}", connections=2
        )
        await database.close()
        with psycopg.connect(f"postgresql://{service}@127.0.0.1:{made.port}/{service}") as connection:
            for other in SERVICES:
                (may,) = connection.execute(f"SELECT has_database_privilege('{other}', 'CONNECT')").fetchone() or (
                    None,
                )
                assert may is (other == service)
    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{made.port}/postgres") as connection:
        found = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = ANY(%s)", [list(SERVICES)])
        assert all(password.startswith("SCRAM-SHA-256$") for (password,) in found.fetchall())
