"""What hostile tests share: where the three services are, what each offers by its own document, and raw connections."""

import contextlib
import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from tests.serving import Server, serving, upstream

METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path, as the document of the service at `url` has it."""

    url: str
    method: str
    path: str
    described: dict[str, Any]
    document: dict[str, Any]

    @property
    def name(self) -> str:
        """How tests speak of it."""
        return f"{self.method} {self.path}"

    @property
    def needs_token(self) -> bool:
        """Whether the document says that a caller is asked for."""
        return bool(self.described.get("security"))

    def parameters(self, place: str) -> list[str]:
        """The names of its parameters in `path`, `query` or `header`."""
        return [each["name"] for each in self.described.get("parameters", ()) if each["in"] == place]

    def body(self) -> dict[str, Any] | None:
        """The schema of its JSON body, references followed; None without one."""
        content = self.described.get("requestBody", {}).get("content", {})
        return self.resolved(content["application/json"]["schema"]) if "application/json" in content else None

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema that is meant; of several, the first that is not null."""
        if "$ref" in schema:
            return self.resolved(self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self.resolved(next(each for each in schema[several] if each.get("type") != "null"))
        return schema

    def example(self, schema: dict[str, Any]) -> Any:
        """A value that fits a schema, in all likelihood."""
        schema = self.resolved(schema)
        if "enum" in schema:
            return schema["enum"][0]
        match schema.get("type"):
            case "object":
                return {name: self.example(each) for name, each in schema.get("properties", {}).items()}
            case "array":
                return [self.example(schema["items"])]
            case "integer" | "number":
                return schema.get("minimum", 1) or 1
            case "boolean":
                return True
        if schema.get("format") == "date-time":
            return "2030-01-01T00:00:00Z"
        return "a-good-text@example.org" if "@" in schema.get("pattern", "") else "a-good-text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The base URLs of the services, the same where one process serves all; and the folder of auth's database."""

    auth: str
    accounting: str
    chat: str
    home: Path

    @property
    def urls(self) -> tuple[str, ...]:
        """Each URL once."""
        return tuple(dict.fromkeys((self.auth, self.accounting, self.chat)))

    def operations(self) -> list[Operation]:
        """All that is offered."""
        return [each for url in self.urls for each in operations(url)]

    def signing_key(self) -> tuple[str, str]:
        """The key that signs tokens: its kid and its private half as PEM. What an attacker must not have."""
        with contextlib.closing(sqlite3.connect(self.home / "auth.db")) as database:
            found = database.execute("SELECT kid, private_pem FROM signing_keys ORDER BY created_at").fetchone()
        return str(found[0]), str(found[1])


def operations(url: str) -> list[Operation]:
    """What the document of one process lists."""
    document = httpx2.get(f"{url}/openapi.json").json()
    return [
        Operation(url=url, method=method.upper(), path=path, described=described, document=document)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
        if method in METHODS
    ]


@contextlib.contextmanager
def deployed(home: Path, *, split: bool | None = None, **settings: str) -> Iterator[tuple[Server, Deployment]]:
    """The three services, together or apart as the topology of the tests says, and a scripted model behind them."""
    options = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake"} | settings
    with upstream() as url, serving(home, split=split, OPENAI_BASE_URL=url, **options) as server:
        auth, accounting, chat = (server.services.get(name, server.url) for name in ("auth", "accounting", "chat"))
        yield server, Deployment(auth=auth, accounting=accounting, chat=chat, home=home)


class Line:
    """A connection on which anything can be said."""

    def __init__(self, url: str, seconds: float = 10) -> None:
        """`seconds` is how long an answer, or the end, is waited for."""
        parts = urlsplit(url)
        self.own = socket.create_connection((parts.hostname, parts.port), timeout=seconds)
        self.heard = b""
        self.ended = False

    def say(self, raw: bytes) -> bool:
        """Send; False where nobody takes it any more."""
        try:
            self.own.sendall(raw)
        except OSError:
            self.ended = True
        return not self.ended

    def hear(self) -> bool:
        """Take what comes; False at the end. Raises TimeoutError."""
        try:
            came = self.own.recv(65536)
        except ConnectionError:
            came = b""
        self.heard += came
        self.ended = not came
        return bool(came)

    def to_end(self) -> bytes:
        """All there is until the other side closes. Raises TimeoutError."""
        while self.hear():
            pass
        return self.heard

    def answers(self, count: int) -> list["Heard"]:
        """So many responses, or those until the end."""
        while len(found := responses(self.heard)) < count and self.hear():
            pass
        return found

    def has_ended(self) -> bool:
        """Whether the other side has closed, without waiting for it."""
        self.own.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while not self.ended:
                self.hear()
        return self.ended

    def close(self) -> None:
        """Hang up."""
        self.own.close()


@dataclass(frozen=True, slots=True)
class Heard:
    """One response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body)


def responses(raw: bytes) -> list[Heard]:
    """The whole responses in what came, by their Content-Length or their chunks."""
    found = []
    while b"\r\n\r\n" in raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        assert lines[0].startswith("HTTP/1.1 "), lines[0]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        taken = _chunks(rest) if "chunked" in headers.get("transfer-encoding", "") else _counted(rest, headers)
        if taken is None:
            break
        body, raw = taken
        found.append(Heard(int(lines[0].split()[1]), headers, body))
    return found


def _counted(rest: bytes, headers: dict[str, str]) -> tuple[bytes, bytes] | None:
    length = int(headers.get("content-length", 0))
    return (rest[:length], rest[length:]) if len(rest) >= length else None


def _chunks(rest: bytes) -> tuple[bytes, bytes] | None:
    body = b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if len(rest) < length + 2:
            return None
        body, rest = body + rest[:length], rest[length + 2 :]
        if length == 0:
            return body, rest
    return None


def wait_until(condition: Any, seconds: float) -> float:
    """Wait until it holds; how long that took. Raises AssertionError after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - began
