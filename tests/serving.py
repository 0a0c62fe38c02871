"""Real processes for system tests: `parshall up`, whole or split, on free ports, and a scripted upstream beside it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
from tests import quick, topology
from tests.quick import PARSHALL

from parshall.kernel.sse import Event, EventParser

ROOT = Path(__file__).parent.parent
ADMIN_PASSWORD = "admin-password"
START_SECONDS_MAX = 120
PATHS = {
    "auth": (
        *("/api/auth", "/api/profile", "/api/change-password", "/api/admin", "/.well-known"),
        "/api/debug/headers/token",
    ),
    "accounting": ("/api/credits", "/api/streaming-sessions", "/api/usage", "/api/prices", "/api/organisations"),
}
"""Which service answers what where they are apart; all else is chat's."""


@dataclass(kw_only=True)
class Server:
    """One `parshall up`, of which `split` makes three processes. The same folder again is the next start."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    port: int = 0
    process: quick.Popen | None = None
    url: str = ""
    program: tuple[str, ...] = (str(PARSHALL),)
    service: str = ""
    """The one service to serve, if not all of them."""
    split: bool = field(default_factory=lambda: topology.is_split)
    services: dict[str, str] = field(default_factory=dict)
    """Where each service answers, if they are apart; `url` is chat's then."""
    output: list[str] = field(default_factory=list)
    callers: "list[Caller]" = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """The variables of the process: none of PARSHALL_* of whoever runs the tests."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("PARSHALL_")}
        return own | {
            "PARSHALL_HOME_DIR": str(self.home),
            "PARSHALL_PORT": str(self.port),
            **{f"PARSHALL_{name}_PORT": self._port(name) for name in ("AUTH", "ACCOUNTING", "CHAT")},
            "PARSHALL_ADMIN_PASSWORD": ADMIN_PASSWORD,
            "PARSHALL_REQUESTS_PER_MINUTE": "0",  # tests poll faster than any caller may
            "PARSHALL_ANONYMOUS_REQUESTS_PER_MINUTE": "0",
            **{f"PARSHALL_{name}": value for name, value in self.settings.items()},
        }

    def start(self) -> "Server":
        """Start and wait until it answers; the port stays the same over restarts."""
        what = ("serve", self.service) if self.service else ("up", *(["--split"] if self.split else []))
        command = [*self.program, *what, *self.arguments]
        self.process = quick.Popen(
            command, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        listening = threading.Event()
        threading.Thread(target=self._read, args=(self.process, listening), daemon=True).start()
        if not listening.wait(START_SECONDS_MAX):
            self.kill()
            raise AssertionError("did not start: " + "".join(self.output))
        self.port = int(self.url.rpartition(":")[2])
        return self

    def _read(self, process: subprocess.Popen[str], listening: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output.append(line)
            if found := re.search(r"Parshall (?:(\w+) )?listens on (http://\S+)", line):
                if found[1]:
                    self.services[found[1]] = found[2]
                if found[1] == (self.service or None):
                    self.url = found[2]
                    listening.set()
        process.stdout.close()

    def _port(self, service: str) -> str:
        return self.services.get(service.lower(), ":0").rpartition(":")[2]

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the services answer, each address once."""
        return tuple(self.services.values()) or (self.url,)

    def at(self, path: str) -> str:
        """The whole URL of a path, at the service whose it is."""
        return self.services.get(service_of(path), self.url) + path

    @property
    def elsewhere(self) -> dict[str, str]:
        """What the Python client is told beside `url`, where services are apart."""
        return {f"{name}_url": url for name, url in self.services.items() if name != "chat"}

    def child(self, service: str) -> psutil.Process:
        """The process of a service: its own where it is served apart, else that of all."""
        assert self.process is not None
        if not self.split:
            return psutil.Process(self.process.pid)
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            for found in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if found.cmdline()[-2:] == ["serve", service]:
                        return found
            time.sleep(0.02)
        raise AssertionError(f"no process serves {service}")

    def kill(self) -> None:
        """kill -9 of every process, without a word."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                child.kill()
        self.process.kill()
        self.process.wait(10)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Ask it to stop; its exit code and how many seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(30), time.monotonic() - began

    def run(self, *arguments: str) -> str:
        """What a command says that is run on the data folder and with the settings of this server."""
        command = [str(PARSHALL), *arguments]
        return quick.run(command, env=self.environment(), capture_output=True, text=True, check=True).stdout

    def caller(self, token: str = "") -> "Caller":
        """A caller with that token, or with none."""
        caller = Caller(self.url, services=self.services)
        caller.token = token
        self.callers.append(caller)
        return caller

    def user(self, name: str = "admin", password: str = ADMIN_PASSWORD) -> "Caller":
        """A logged-in caller."""
        caller = self.caller()
        caller.login(name, password)
        return caller

    def customer(self, name: str, *, credits: float = 100) -> "Caller":
        """A new user with credits, logged in."""
        admin = self.user()
        admin.add_customer(name, credits=credits)
        admin.close()
        return self.user(name, f"{name}-password")


def service_of(path: str) -> str:
    """The service that answers a path where they are apart."""
    return next((name for name, paths in PATHS.items() if path.startswith(paths)), "chat")


class Caller:
    """An HTTP client that says what it expects."""

    def __init__(self, url: str, *, keep_alive: bool = True, services: Mapping[str, str] | None = None) -> None:
        self.url = url
        self.services = services or {}
        self.token = ""
        limits = httpx2.Limits(max_keepalive_connections=None if keep_alive else 0)
        self.http = httpx2.Client(base_url=url, timeout=60, limits=limits)

    def login(self, name: str, password: str) -> None:
        self.token = ""
        answer = self.post("/api/auth/login", {"username": name, "password": password})
        self.token = answer["accessToken"]

    def headers(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        own = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return own | dict(more or {})

    def request(
        self, method: str, path: str, body: Any = None, *, expect: int = 200, headers: Mapping[str, str] | None = None
    ) -> Any:
        answer = self.http.request(method, self.at(path), json=body, headers=self.headers(headers))
        assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def at(self, path: str) -> str:
        """Where a path is asked for; at chat's, or all's, if it is left out."""
        return self.services.get(service_of(path), self.url) + path

    def get(self, path: str, *, expect: int = 200, headers: Mapping[str, str] | None = None) -> Any:
        return self.request("GET", path, expect=expect, headers=headers)

    def post(self, path: str, body: Any = None, *, expect: int = 200, headers: Mapping[str, str] | None = None) -> Any:
        return self.request("POST", path, body, expect=expect, headers=headers)

    def session(self, **body: Any) -> str:
        made: str = self.post("/api/chat/sessions", body, expect=201)["sessionId"]
        return made

    @contextlib.contextmanager
    def streaming(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[tuple[httpx2.Response, Iterator[Event]]]:
        """An open stream: the response and its events as they come."""
        with self.http.stream(method, path, json=body, headers=self.headers(headers)) as response:
            if response.status_code != 200:
                response.read()
            assert response.status_code == 200, response.text
            parser = EventParser()
            yield response, (event for chunk in response.iter_raw() for event in parser.feed(chunk))

    def ask(self, session: str, message: str, **more: Any) -> list[Event]:
        """All events of an answer."""
        path, headers = f"/api/chat/sessions/{session}/stream", more.pop("headers", None)
        with self.streaming("POST", path, {"message": message, **more}, headers) as (_, events):
            return list(events)

    def resume(self, stream_id: str, after: int = 0) -> list[Event]:
        """All events after an offset."""
        headers = {"Last-Event-ID": str(after)}
        with self.streaming("GET", f"/api/chat/streams/{stream_id}", None, headers) as (_, events):
            return list(events)

    def state(self, stream_id: str) -> Any:
        return self.get(f"/api/chat/streams/{stream_id}", headers={"Accept": "application/json"})

    def ended(self, stream_id: str, seconds: float = 30) -> Any:
        """The state of a stream once it has ended and settled."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            state = self.state(stream_id)
            if state["receipt"] and state["receipt"]["settlement"] == "settled":
                return state
            time.sleep(0.02)
        raise AssertionError(f"{stream_id} did not end: {state}")

    def add_customer(self, name: str, *, credits: float) -> None:
        """Make a user with credits, as an administrator."""
        body = {"username": name, "email": f"{name}@example.org", "password": f"{name}-password"}
        self.post("/api/admin/users", body, expect=201)
        if credits:
            self.post("/api/credits/allocate", {"userId": name, "credits": credits}, expect=201)

    def balance(self) -> Any:
        return self.get("/api/credits/balance")

    def close(self) -> None:
        self.http.close()


@contextlib.contextmanager
def serving(home: Path, *arguments: str, split: bool | None = None, **settings: str) -> Iterator[Server]:
    """A running server; killed at the end if it still runs. Without `split` it is as the topology of the tests says."""
    server = Server(home=home, settings=settings, arguments=arguments)
    server.split = server.split if split is None else split
    server.start()
    try:
        yield server
    finally:
        for caller in server.callers:
            caller.close()
        if server.process is not None and server.process.poll() is None:
            server.kill()


@contextlib.contextmanager
def upstream(port: int = 0) -> Iterator[str]:
    """The base URL of a scripted OpenAI-compatible server in a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "upstream.py"), "--port", str(port)]
    process = quick.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the upstream names its address first"
        yield found[0]
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def text_of(events: list[Event]) -> str:
    """The answer that the chunks spell."""
    return "".join(event.json()["text"] for event in events if event.event == "chunk")


def tokens_of(events: list[Event]) -> int:
    """The output tokens that the chunks show."""
    return sum(event.json()["tokens"] for event in events if event.event in ("chunk", "reasoning"))


def stream_id_of(events: list[Event]) -> str:
    """The id that the first event carries."""
    assert events[0].event == "session"
    found: str = json.loads(events[0].data)["streamingSessionId"]
    return found
