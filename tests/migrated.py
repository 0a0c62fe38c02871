"""SQLite files in which all tables are made and nothing is kept: made once by the real migrations, then copied.

They are for tests that begin with a service's tables. Whoever tests how those come to be opens a new file.
"""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from parshall.kernel.database import migrate
from parshall.kernel.sqlite import SqliteDatabase


def opened(path: Path, package: str, **options: Any) -> SqliteDatabase:
    """The database of a service in a file, which is such a copy if it is new."""
    return SqliteDatabase(path if path.exists() else copy(package, path), package=package, **options)


def copy(package: str, to: Path) -> Path:
    """A new file with the tables of a service, such as `parshall.auth`."""
    assert not to.exists(), "what is there is kept"
    return shutil.copyfile(_made(package), to)


@cache
def _made(package: str) -> Path:
    path = _folder() / f"{package}.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        migrate(connection, package)
        connection.commit()
    engine.dispose()
    return path


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="parshall-migrated-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
