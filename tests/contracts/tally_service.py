"""A service of one table that stands in for any: its migrations, written as a package where a test wants it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import BigInteger, Column, Connection, MetaData, String, Table, insert, select, update

T = TypeVar("T")
WAIT_SECONDS = 30

tallies = Table("tallies", MetaData(), Column("name", String, primary_key=True), Column("count", BigInteger))

FIRST = """
import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "tallies",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
    )
"""
SECOND = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table("labels", sa.Column("text", sa.String, primary_key=True))
"""
BROKEN = SECOND + '    op.execute("this is not SQL")\n'


def write_package(root: Path, *migrations: str) -> str:
    """A service named `tally` with these migrations; the versions of it differ in their parent package."""
    versions = root / "tally" / "migrations" / "versions"
    versions.mkdir(parents=True)
    for folder in (root, root / "tally"):
        (folder / "__init__.py").touch()
    for number, text in enumerate(migrations, start=1):
        (versions / f"{number:04}_step.py").write_text(text)
    return f"{root.name}.tally"


def put(name: str) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        connection.execute(insert(tallies).values(name=name, count=1))
        return name

    return work


def count_of(name: str) -> Callable[[Connection], int | None]:
    return lambda c: c.execute(select(tallies.c.count).where(tallies.c.name == name)).scalar()


def add(name: str, amount: int = 1) -> Callable[[Connection], int]:
    statement = update(tallies).where(tallies.c.name == name).values(count=tallies.c.count + amount)
    return lambda c: c.execute(statement.returning(tallies.c.count)).scalar_one()


async def within(awaitable: Awaitable[T]) -> T:
    """A caller that is never answered fails here instead of hanging the run."""
    return await asyncio.wait_for(awaitable, WAIT_SECONDS)
