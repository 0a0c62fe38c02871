"""Where the engine of the shared log is: the URL that the configuration takes, and nothing of it that is not meant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

PLAIN = ("valkey", "redis")
TLS = ("valkeys", "rediss")
SCHEMES = tuple(f"{scheme}://" for scheme in (*PLAIN, *TLS))
PORT = 6379
FILES = {"ca": "ssl_ca_certs", "certificate": "ssl_certfile", "key": "ssl_keyfile"}
"""Parameters that name files of TLS, and the client's names for them. The server's certificate is always verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A server, and how to be let in."""

    host: str
    port: int
    database: int
    username: str | None
    password: str | None
    tls: bool
    files: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str) -> "Address":
        """The address that a URL names. Raises ValueError with a sentence that does not repeat the URL."""
        parts = urlsplit(url)
        if parts.scheme not in (*PLAIN, *TLS) or not parts.hostname:
            raise ValueError("give valkey://user:password@host:port/database, or valkeys:// for TLS")
        try:
            port = parts.port or PORT
        except ValueError as error:  # its own words would repeat what stands there, perhaps a password
            raise ValueError("what follows the host and a colon is the number of a port") from error
        path = parts.path.strip("/")
        if path and not (path.isascii() and path.isdigit()):
            raise ValueError("what follows the host is the number of a database")
        return cls(
            host=parts.hostname,
            port=port,
            database=int(path or 0),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            tls=parts.scheme in TLS,
            files=_files(parts.query, tls=parts.scheme in TLS),
        )

    def __str__(self) -> str:
        """The server as it may be shown: without the password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def options(self) -> dict[str, Any]:
        """What the client wants to know of it, besides host and port."""
        return {"db": self.database, "username": self.username, "password": self.password, **dict(self.files)}


def _files(query: str, *, tls: bool) -> tuple[tuple[str, str], ...]:
    given = parse_qsl(query, keep_blank_values=True)
    if any(name not in FILES for name, _ in given):
        raise ValueError(f"its parameters are {', '.join(FILES)}, each the path of a file")
    if given and not tls:
        raise ValueError("files of TLS belong to a URL that begins with valkeys:// or rediss://")
    if any(not Path(path).is_file() for _, path in given):
        raise ValueError("a file that it names cannot be read")
    return tuple((FILES[name], path) for name, path in given)
