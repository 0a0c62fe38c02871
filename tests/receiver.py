"""A webhook receiver over real HTTP, in threads of its own: it misbehaves by plan, and keeps all that it was sent."""

import base64
import contextlib
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG = "hang"
CUT = "cut"
FLOOD = "flood"
Step = int | str | tuple[int, Mapping[str, str]]
"""A status, one with headers, or HANG (never answer), CUT (close without a word), FLOOD (200 and an endless body)."""


@dataclass(frozen=True)
class Sent:
    """One request as it arrived."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> Any:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """What it was sent; `plan` says how it answers the next requests, and behind its end it answers `then`."""

    url: str = ""
    plan: list[Step] = field(default_factory=list)
    then: Step = 204
    sent: list[Sent] = field(default_factory=list)
    accepted: list[Sent] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    leaving: threading.Event = field(default_factory=threading.Event)

    def step(self, sent: Sent) -> Step:
        with self.changed:
            step = self.plan.pop(0) if self.plan else self.then
            self.sent.append(sent)
            if step == FLOOD or (isinstance(step, int) and step < 300):
                self.accepted.append(sent)
            self.changed.notify_all()
            return step

    def expect(self, count: int, *, seconds: float = 20, accepted: bool = True) -> list[Sent]:
        """Wait for so many requests, of those that were accepted or of all; they."""
        found = self.accepted if accepted else self.sent
        with self.changed:
            came = self.changed.wait_for(lambda: len(found) >= count, seconds)
            assert came, f"{len(found)} of {count} came"
            return list(found)

    def types(self) -> list[str]:
        return sorted(each.event["type"] for each in self.accepted)


def verified(sent: Sent, secret: bytes, *, place: int = 0) -> bool:
    """The signature worked out once more, apart from the code under test."""
    signed = f"{sent.headers['webhook-id']}.{sent.headers['webhook-timestamp']}.{sent.body.decode()}"
    digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return sent.headers["webhook-signature"].split(" ")[place] == "v1," + base64.b64encode(digest).decode()


@contextlib.contextmanager
def receiving(*plan: Step, then: Step = 204) -> Iterator[Receiver]:
    """A receiver on a free port of loopback."""
    receiver = Receiver(plan=list(plan), then=then)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent = Sent({name.lower(): value for name, value in self.headers.items()}, body)
            _answer(self, receiver, receiver.step(sent))

        def do_GET(self) -> None:
            receiver.step(Sent({}, b'"a redirect was followed"'))

        def log_message(self, *_arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # the default of 5 drops what arrives together
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.leaving.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(handler: BaseHTTPRequestHandler, receiver: Receiver, step: Step) -> None:
    if step == HANG:
        receiver.leaving.wait()
    if step in (HANG, CUT):
        handler.close_connection = True
        return
    status, headers = step if isinstance(step, tuple) else (200 if step == FLOOD else step, {})
    handler.send_response(int(status))
    for name, value in headers.items():
        handler.send_header(name, value)
    if step != FLOOD:
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        while not receiver.leaving.is_set():
            handler.wfile.write(b"x" * 65536)
            time.sleep(0.001)
