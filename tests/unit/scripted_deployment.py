"""A scripted, misbehaving deployment for tests of the client and of `parshall chat`: one act per stream request."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from parshall.kernel.sse import frame

RECEIPT = {"streamingSessionId": "stream-1620847252-a1b2c3d4", "outcome": "completed", "chargedCredits": 0.000123}
ANY_ID = "stream-1620847252-" + 32 * "0"
"""Stands in the first event for the id of the stream, and is as long as one."""
DATA: list[tuple[str, dict[str, Any]]] = [
    ("session", {"streamingSessionId": ANY_ID}),
    ("model", {"model": "m"}),
    *[("chunk", {"text": f"t{n} é\u2028", "tokens": 1, "totalTokens": n}) for n in range(1, 6)],
    ("done", {"status": "complete", "receipt": RECEIPT}),
]
FRAMES = [b"retry: 1\n" * (n == 1) + frame(n, name, data) for n, (name, data) in enumerate(DATA, start=1)]


@dataclass
class Deployment:
    """A server that keeps one stream per id and follows a script of misbehaviour, one act per stream request."""

    script: list[Callable[["Exchange"], None]] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    others: dict[str, Callable[["Exchange"], None]] = field(default_factory=dict)
    frames: list[bytes] = field(default_factory=lambda: list(FRAMES))
    url: str = ""

    def seen(self) -> list[str]:
        return [f"{method} {path.rpartition('/')[2]}".split("?")[0] for method, path, _ in self.requests]


class Exchange(BaseHTTPRequestHandler):
    """One request to the scripted deployment."""

    protocol_version = "HTTP/1.1"
    deployment: Deployment

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.deployment.requests.append((self.command, self.path, headers))
        self.close_connection = True
        for suffix, act in self.deployment.others.items():
            if self.path.endswith(suffix):
                return act(self)
        act = self.deployment.script.pop(0) if self.deployment.script else serve()
        return act(self)

    def begin(self) -> bool:
        """Take the stream on, or answer 404: what the real server does first."""
        if self.command == "POST":
            self.deployment.started.append(self.headers["X-Streaming-Session-Id"])
            return True
        if self.path.rpartition("/")[2] in self.deployment.started:
            return True
        problem(404, "not_found")(self)
        return False

    def stream_id(self) -> str:
        """The stream that the request is about."""
        return self.headers["X-Streaming-Session-Id"] or self.path.rpartition("/")[2]

    def log_message(self, *args: Any) -> None:
        pass


def serve(
    *, cut_bytes: int | None = None, again: int = 0, chunked: bool = True, before: bytes = b""
) -> Callable[[Exchange], None]:
    """Events after Last-Event-ID (and `again` older ones), cut after that many bytes."""

    def act(exchange: Exchange) -> None:
        if not exchange.begin():
            return
        after = int(exchange.headers.get("Last-Event-ID", "0"))
        payload = before + b"".join(exchange.deployment.frames[max(0, after - again) :])
        payload = payload.replace(ANY_ID.encode(), exchange.stream_id().encode())
        send_stream(exchange, payload if cut_bytes is None else payload[:cut_bytes], chunked, cut_bytes is None)

    return act


def send_stream(exchange: Exchange, payload: bytes, chunked: bool, whole: bool) -> None:
    exchange.send_response(200)
    exchange.send_header("Content-Type", "text/event-stream")
    exchange.send_header("Connection", "close")
    if chunked:
        exchange.send_header("Transfer-Encoding", "chunked")
    exchange.end_headers()
    for part in filter(None, (payload[:50], payload[50:])):
        exchange.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
    if chunked and whole:
        exchange.wfile.write(b"0\r\n\r\n")


def problem(status: int, code: str, **headers: str) -> Callable[[Exchange], None]:
    document = {"status": status, "code": code, "message": f"{code}, really.", "requestId": "r1"}
    return reply(status, json.dumps(document).encode(), "application/problem+json", **headers)


def reply(status: int, body: bytes, kind: str = "application/json", **headers: str) -> Callable[[Exchange], None]:
    def act(exchange: Exchange) -> None:
        exchange.send_response(status)
        exchange.send_header("Content-Type", kind)
        exchange.send_header("Content-Length", str(len(body)))
        exchange.send_header("Connection", "close")
        for name, value in headers.items():
            exchange.send_header(name.replace("_", "-"), value)
        exchange.end_headers()
        exchange.wfile.write(body)

    return act


def vanish(exchange: Exchange) -> None:
    """The connection breaks before the request reached anything."""
    exchange.connection.shutdown(socket.SHUT_RDWR)


def vanish_after_starting(exchange: Exchange) -> None:
    """The stream has started and not a byte of the answer comes through."""
    exchange.begin()
    vanish(exchange)


@contextmanager
def listening() -> Iterator[Deployment]:
    """The deployment on a free port, until the context ends."""
    shared = Deployment()
    handler = type("Handler", (Exchange,), {"deployment": shared})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    shared.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield shared
    server.shutdown()
    thread.join()
    server.server_close()
