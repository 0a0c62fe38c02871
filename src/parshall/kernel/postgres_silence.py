"""A connection to PostgreSQL that gives up on a server that has gone silent, not on a statement that is slow."""

# TCP tells of a peer that no longer acknowledges (see CONNECTION_OPTIONS in postgres.py). It tells nothing of a server
# that hangs, or of a proxy before it that does: those acknowledge every byte and never answer.

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

T = TypeVar("T")

SILENCE_SECONDS_MAX = 4.0
"""After so long without an answer the server is asked, on another connection, whether it still takes any."""
PROBE_SECONDS_MAX = 3
_WAKE_SECONDS = 0.1
"""How often a wait looks at the time: what psycopg itself takes."""
_SPOKEN = "FATAL"
"""Of a refusal that the server itself has uttered: it lives, and has perhaps too many connections."""


class ServerSilent(psycopg.OperationalError):
    """The server neither answers nor takes connections; the connection is closed."""


class AttentiveConnection(psycopg.Connection[Any]):
    """Every wait for the server ends: with its answer, or with ServerSilent."""

    def wait(self, gen: PQGen[T], interval: float = _WAKE_SECONDS, timeout: float | None = None) -> T:
        """As psycopg's. Raises ServerSilent."""
        return super().wait(self._watched(gen), interval, timeout)

    def _watched(self, gen: PQGen[T]) -> Generator[Any, Any, T]:
        """The same waiting. Nothing has come where the state sent in is 0, as it is every `interval`."""
        try:
            wanted = next(gen)
            looked = time.monotonic()
            while True:
                ready = yield wanted
                if ready:
                    looked = time.monotonic()
                elif time.monotonic() - looked > SILENCE_SECONDS_MAX:
                    self._check_server()
                    looked = time.monotonic()
                wanted = gen.send(ready)
        except StopIteration as done:
            result: T = done.value
            return result

    def _check_server(self) -> None:
        parameters: dict[str, Any] = self.info.get_parameters()
        if password := self.info.password:
            parameters["password"] = password
        try:
            psycopg.connect(**parameters | {"connect_timeout": PROBE_SECONDS_MAX}).close()
        except psycopg.OperationalError as error:
            if _SPOKEN in str(error):
                return
            self.pgconn.finish()
            raise ServerSilent("the server does not answer") from error
