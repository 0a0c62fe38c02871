"""Where the books of one measurement are kept: an empty database, or a copy of one, on SQLite or on PostgreSQL.

Either commits as Parshall requires of it: a commit waits for the disk.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from bench.history import SQLITE
from tests.postgres import Server


class Engine(Protocol):
    """Gives out addresses in the form that the configuration takes."""

    name: str

    def empty(self) -> AbstractContextManager[str]:
        """A database without a table, which is removed with the block."""
        ...

    def copy(self, url: str) -> AbstractContextManager[str]:
        """The same records once more, all of them on the disk; removed with the block."""
        ...


class Files:
    """SQLite in throwaway folders."""

    name = "sqlite"

    @contextmanager
    def empty(self) -> Iterator[str]:
        """A file to be."""
        with tempfile.TemporaryDirectory(prefix="parshall-bench-") as folder:
            yield f"{SQLITE}{Path(folder) / 'accounting.db'}"

    @contextmanager
    def copy(self, url: str) -> Iterator[str]:
        """A copy of the file."""
        with self.empty() as new:
            shutil.copyfile(url.removeprefix(SQLITE), new.removeprefix(SQLITE))
            os.sync()  # else the first commits would wait for pages of the copy
            yield new


class Databases:
    """PostgreSQL: databases of one server, which has nothing else to do."""

    name = "postgres"

    def __init__(self, server: Server) -> None:
        """The server is somebody else's to start, with fsync, and to stop."""
        self._server = server

    def empty(self) -> AbstractContextManager[str]:
        """A database of template1."""
        return self._made("template1")

    def copy(self, url: str) -> AbstractContextManager[str]:
        """A copy of the database, to which nobody may be connected."""
        return self._made(url.rpartition("/")[2])

    @contextmanager
    def _made(self, template: str) -> Iterator[str]:
        name = f"bench_{uuid4().hex[:12]}"
        self._server.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        try:
            os.sync()
            self._server.execute("CHECKPOINT")  # what was written before is not this measurement's to pay for
            yield self._server.url(name)
        finally:
            self._server.drop(name)
