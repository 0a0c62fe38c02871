"""PostgreSQL killed with -9 under a serving process: nothing acknowledged is lost, and it serves again by itself."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import create_engine, text
from tests import postgres, quick
from tests.ledgers import check_ledger
from tests.serving import PARSHALL, Caller, Server, serving, upstream

BACK_SECONDS_MAX = 5.0
"""What is promised: from the moment that the database accepts connections."""
ANSWER_SECONDS_MAX = 15.0
"""No answer takes longer, whatever is down."""
DOWN_SECONDS = 1.5


@dataclass
class Load:
    """Calls that never give up: what was not acknowledged is asked again, under the same key or id."""

    server: Server
    admin: str
    service: str
    stopping: threading.Event = field(default_factory=threading.Event)
    granted: set[str] = field(default_factory=set)
    reserved: set[str] = field(default_factory=set)
    settled: dict[str, float] = field(default_factory=dict)
    read: list[float] = field(default_factory=list)
    refused: int = 0
    complaints: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, step: Callable[[httpx2.Client, int], None]) -> None:
        with httpx2.Client(timeout=2 * ANSWER_SECONDS_MAX) as http:
            while not self.stopping.is_set():
                try:
                    step(http, next(self.numbers))
                except Exception as error:
                    self.complaints.append(repr(error))
                    raise

    def ask(self, http: httpx2.Client, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The acknowledged answer; None when the load ends first."""
        while not self.stopping.is_set():
            began = time.monotonic()
            answer = http.request(method, self.server.at(path), json=body, headers=headers)
            if time.monotonic() - began > ANSWER_SECONDS_MAX:
                self.complaints.append(f"{path} took {time.monotonic() - began:.1f} s")
            if answer.is_success:
                return answer.json()
            if answer.status_code != 503 or "retry-after" not in answer.headers:
                self.complaints.append(f"{path}: {answer.status_code} {answer.text}")
            self.refused += 1
            time.sleep(0.02)
        return None

    def grant(self, http: httpx2.Client, number: int) -> None:
        body = {"userId": ("alice", "bob", "admin")[number % 3], "credits": 0.5}  # few for each, who holds many grants
        key = {"Authorization": self.admin, "Idempotency-Key": f"grant-{number}"}
        answer = self.ask(http, "POST", "/api/credits/allocate", body, **key)
        if answer is not None:
            self.granted.add(answer["id"])
        time.sleep(0.05)

    def settle(self, http: httpx2.Client, number: int) -> None:
        name, known = f"stream-1620847252-{number:016x}", {"Authorization": self.service, "X-User-ID": "alice"}
        opened = {"sessionId": name, "modelId": "fake", "estimatedTokens": 50}
        if self.ask(http, "POST", "/api/streaming-sessions/initialize", opened, **known) is not None:
            self.reserved.add(name)
            ended = {"sessionId": name, "actualTokens": 1 + number % 50}
            answer = self.ask(http, "POST", "/api/streaming-sessions/finalize", ended, **known)
            if answer is not None:
                self.settled[name] = answer["receipt"]["chargedCredits"]

    def look(self, http: httpx2.Client, _number: int) -> None:
        answer = self.ask(http, "GET", "/api/credits/balance", Authorization=self.admin)
        if answer is not None:
            self.read.append(time.monotonic())

    @property
    def progress(self) -> tuple[int, ...]:
        return len(self.granted), len(self.reserved), len(self.settled), len(self.read)

    def goes_on(self, seconds: float, *, by: int = 3) -> float:
        """Wait until every kind of call was acknowledged again; how long that took."""
        began, before = time.monotonic(), self.progress
        while not all(now >= was + by for now, was in zip(self.progress, before, strict=True)):
            assert not self.complaints, self.complaints[:3]
            assert time.monotonic() < began + seconds, (before, self.progress, self.complaints[:3])
            time.sleep(0.01)
        return time.monotonic() - began


@contextmanager
def under_load(server: Server) -> Iterator[Load]:
    admin = server.user()
    command = [PARSHALL, "services", "add", "biller", "--scope", "accounting:settle"]
    secret = quick.run(command, env=server.environment(), capture_output=True, text=True, check=True).stdout
    form = {"grant_type": "client_credentials", "client_id": "biller", "client_secret": secret.strip()}
    token = admin.http.post(server.at("/api/auth/token"), data=form).json()["access_token"]
    load = Load(server=server, admin=f"Bearer {admin.token}", service=f"Bearer {token}")
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(load.run, step) for step in (load.grant, load.settle, load.settle, load.look)]
        try:
            yield load
        finally:
            load.stopping.set()
    for each in running:
        each.result()


def answers(caller: Caller, pool: ThreadPoolExecutor, turn: int) -> dict[str, "Future[None]"]:
    """Streams that are read until they end, by their ids: some end while the database is down, some afterwards."""

    def follow(session: str, name: str, words: int) -> None:
        path, body = f"/api/chat/sessions/{session}/stream", {"message": f"fake-n{words}-ms20"}
        headers = caller.headers({"X-Streaming-Session-Id": name})
        url = f"{caller.url}{path}"
        with httpx2.stream("POST", url, json=body, headers=headers, timeout=30) as response:
            assert response.status_code == 200
            begun.release()
            for _ in response.iter_raw():
                pass

    begun = threading.Semaphore(0)
    made: dict[str, Future[None]] = {}
    for number, words in enumerate((30, 50, 150, 200)):
        name = f"stream-1620847253-{turn:08x}{number:08x}"
        made[name] = pool.submit(follow, caller.session(), name, words)
    for _ in made:
        assert begun.acquire(timeout=20)
    return made


def check_kept(url: str, load: Load) -> None:
    """Every acknowledged answer is in the books."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        grants = set(connection.execute(text("SELECT id FROM grants")).scalars())
        kept = {row.id: row for row in connection.execute(text("SELECT id, state, charged FROM reservations"))}
    engine.dispose()
    assert load.granted <= grants
    assert load.reserved <= set(kept)
    for name, charged in load.settled.items():
        assert (kept[name].state, kept[name].charged) == ("settled", round(charged * 1_000_000))


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_after_kill_9_of_postgres_nothing_acknowledged_is_lost_and_service_is_back_within_5_seconds(
    tmp_path: Path, rounds: int
) -> None:
    options = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*", "DISCONNECT_GRACE_SECONDS": "60"}
    with postgres.Server.start(fsync=True) as database, upstream() as model, ThreadPoolExecutor(8) as pool:
        url = database.url(database.create())
        with serving(tmp_path, DATABASE_URL=url, OPENAI_BASE_URL=model, **options) as server:
            bob = server.customer("bob", credits=1000)
            server.customer("alice", credits=1000).close()
            names: list[str] = []
            with under_load(server) as load:
                for turn in range(rounds):
                    load.goes_on(30)
                    streams = answers(bob, pool, turn)
                    names += streams
                    database.kill()
                    refused = load.refused
                    time.sleep(DOWN_SECONDS)
                    assert load.refused > refused, "while it is down, calls are answered and told to come back"
                    database.restart()
                    assert load.goes_on(30) < BACK_SECONDS_MAX
                    for each in streams.values():
                        each.result(60)
            assert load.complaints == []
            for name in names:
                ended = bob.ended(name)
                assert ended["outcome"] == "completed", (ended, [line for line in server.output if "extension" in line])
            assert bob.balance()["reservedCredits"] == 0
            assert server.process is not None and server.process.poll() is None
            server.stop()
        check_kept(url, load)
        check_ledger(url)
    assert not [line for line in server.output if "Traceback" in line]
