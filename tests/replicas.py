"""Several real `parshall up` on one PostgreSQL and one Valkey, behind a balancer that knows who is well."""

#     with replicas(3, tmp_path, postgres_url, valkey, LEASE_SECONDS="1.5") as world:
#         alice = world.customer("alice")                  # by way of the balancer: each connection to the next replica
#         also_alice = world.user("alice", replica=2)      # to one replica
#         … world.kill(0); world.pause(1); world.resume(1); world.start(0); …
#         world.check(seen={stream_id: events})
#
# Proxies of tests/faultproxy.py stand between a replica and its stores by `each=lambda i: {"STREAM_LOG_URL": …}`.

import contextlib
import http.client
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, select, text
from tests.faultproxy import FaultProxy
from tests.ledgers import check_ledger
from tests.serving import ADMIN_PASSWORD, PARSHALL, Caller, Server, text_of, tokens_of, upstream
from tests.valkey import Valkey

from parshall.chat.store import messages, streams
from parshall.kernel.sse import Event

WHOLE = "replicas share a database, where those of --split would each take the others' secrets: they are whole"
"""Why a test of them says nothing of services apart."""
CHECK_SECONDS = 0.2
"""Between two looks of the balancer at a replica."""
CHECK_SECONDS_MAX = 1.0
"""A replica that takes longer to say how it is counts as ill."""
QUIET_SECONDS_MAX = 30.0
"""Until every stream has ended, settled and closed its log, once nobody asks any more."""


@dataclass
class Balancer:
    """Each new connection to the next replica that is well; open ones stay where they are."""

    servers: Sequence[Server]
    well: set[int] = field(default_factory=set)
    """The replicas that said so when they were last asked."""
    pinned: int | None = None
    _turn: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)

    def pin(self, replica: int | None) -> None:
        """Send every new connection to one replica, well or not; None: to all again."""
        self.pinned = replica

    def targets(self) -> list[int]:
        """Ports, the next one first; of nobody where nobody is well."""
        if self.pinned is not None:
            return [self.servers[self.pinned].port]
        self._turn += 1
        count = len(self.servers)
        order = [(self._turn + step) % count for step in range(count)]
        return [self.servers[each].port for each in order if each in self.well]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every replica now, and then until the block ends."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(self._look, range(len(self.servers))))
            for replica in range(len(self.servers)):
                pool.submit(self._watch, replica)
            try:
                yield
            finally:
                self._stopping.set()

    def _watch(self, replica: int) -> None:
        while not self._stopping.wait(CHECK_SECONDS):
            self._look(replica)

    def _look(self, replica: int) -> None:
        if is_well(self.servers[replica]):
            self.well.add(replica)
        else:
            self.well.discard(replica)


@dataclass
class Replicas:
    """The replicas and what they share. Numbers of replicas begin at 0."""

    servers: list[Server]
    balancer: Balancer
    front: FaultProxy
    """What clients of the balancer go through, and so another place for faults."""
    postgres_url: str
    callers: list[Caller] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The balancer's."""
        return f"http://127.0.0.1:{self.front.port}"

    def user(self, name: str = "admin", password: str = "", *, replica: int | None = None) -> Caller:
        """A logged-in caller of one replica, or by way of the balancer. Each request is a connection: one that was kept
        may be closed by a busy server at the very moment of its use."""
        url = self.url if replica is None else self.servers[replica].url
        caller = Caller(url, keep_alive=False)
        self.callers.append(caller)
        caller.login(name, password or (ADMIN_PASSWORD if name == "admin" else f"{name}-password"))
        return caller

    def customer(self, name: str, *, credits: float = 100, replica: int | None = None) -> Caller:
        """A new user with credits, logged in likewise."""
        admin = self.user(replica=replica)
        admin.add_customer(name, credits=credits)
        return self.user(name, replica=replica)

    def start(self, replica: int) -> None:
        """Start it (again) on its folder and port, and wait until the balancer sends it connections."""
        self.servers[replica].start()
        self.until_well(replica)

    def until_well(self, *replicas: int, seconds: float = 30) -> None:
        """Wait until the balancer takes these for well; none: all."""
        wanted = set(replicas or range(len(self.servers)))
        self.until(lambda: wanted <= self.balancer.well, seconds)

    def until(self, what: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until it holds."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"well are {self.balancer.well}"
            time.sleep(0.02)

    def kill(self, replica: int) -> None:
        """kill -9."""
        self.servers[replica].kill()

    def stop(self, replica: int) -> tuple[int, float]:
        """SIGTERM; its exit code and the seconds it took."""
        return self.servers[replica].stop()

    def pause(self, replica: int) -> None:
        """SIGSTOP: it holds its connections and does nothing."""
        self._signal(replica, signal.SIGSTOP)

    def resume(self, replica: int) -> None:
        """SIGCONT."""
        self._signal(replica, signal.SIGCONT)

    def rolling_restart(self) -> list[tuple[int, float]]:
        """Stop and start one after the other; the exit codes and seconds of the stops."""
        stops = []
        for replica in range(len(self.servers)):
            stops.append(self.stop(replica))
            self.start(replica)
        return stops

    def check(self, seen: Mapping[str, Sequence[Event]] | None = None, *, replica: int | None = None) -> list[str]:
        """`check_world` as an administrator of one replica or of the balancer; no replica may have complained."""
        ids = check_world(self.postgres_url, self.user(replica=replica), seen=seen)
        check_quiet(self.servers)
        return ids

    def _signal(self, replica: int, number: int) -> None:
        process = self.servers[replica].process
        assert process is not None and process.poll() is None
        process.send_signal(number)


@contextlib.contextmanager
def replicas(
    count: int,
    folder: Path,
    postgres_url: str,
    valkey: Valkey,
    *,
    each: Callable[[int], Mapping[str, str]] = lambda _replica: {},
    program: tuple[str, ...] = (str(PARSHALL),),
    **settings: str,
) -> Iterator[Replicas]:
    """Running replicas, well; killed at the end where they still run. `each` gives the settings of one alone."""
    with contextlib.ExitStack() as stack:
        if "OPENAI_BASE_URL" not in settings:
            settings["OPENAI_BASE_URL"] = stack.enter_context(upstream())
        shared = {
            "DATABASE_URL": postgres_url,
            "STREAM_LOG_URL": valkey.url,
            "EMBEDDED_MODEL": "off",
            "OPENAI_MODELS": "fake,*",
            **settings,
        }
        servers = [
            Server(home=folder / f"replica-{i}", settings=shared | dict(each(i)), program=program, split=False)
            for i in range(count)
        ]
        stack.callback(_end, servers)
        servers[0].start()  # alone: it makes the tables and the first administrator
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(Server.start, servers[1:]))
        balancer = Balancer(servers)
        stack.enter_context(balancer.watching())
        front = stack.enter_context(FaultProxy(balancer.targets).running())
        world = Replicas(servers, balancer, front, postgres_url)
        stack.callback(lambda: [caller.close() for caller in world.callers])
        world.until_well()
        yield world


def _end(servers: Sequence[Server]) -> None:
    for server in servers:
        if server.process is not None and server.process.poll() is None:
            server.kill()


def is_well(server: Server) -> bool:
    """Whether a load balancer would send it connections."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=CHECK_SECONDS_MAX)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def check_quiet(servers: Sequence[Server]) -> None:
    """No server has written a traceback."""
    for server in servers:
        assert not [line for line in server.output if "Traceback" in line], "".join(server.output[-60:])


# ── The world at its end ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Kept:
    """All that the databases of chat and accounting hold about streams."""

    streams: dict[str, Any]
    answers: dict[str, str]
    questions: list[str]
    """The streams of the users' messages, one a message."""
    reservations: dict[str, Any]

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is under way: everything has ended, settled and closed."""
        ended = all(row.closed_at is not None and row.settlement is not None for row in self.streams.values())
        return ended and all(row.state != "active" for row in self.reservations.values())


def check_world(
    postgres_url: str,
    supervisor: Caller,
    *,
    seen: Mapping[str, Sequence[Event]] | None = None,
    seconds: float = QUIET_SECONDS_MAX,
) -> list[str]:
    """M1-M8 and S1-S4 once everything is at rest, which takes `seconds` at most; the ids of all streams.

    Nothing is held; every stream has one terminal event, one stored answer that is the text of its log, and one charge
    that is its receipt's. `seen` is what clients were shown: its streams are kept (M8) with these events (S1, S2).
    """
    kept = _at_rest(postgres_url, seconds)
    check_ledger(postgres_url)
    for name in kept.streams:
        check_stream(kept, name, supervisor, (seen or {}).get(name, ()))
    unknown = set(seen or {}) - set(kept.streams)
    assert not unknown, f"M8: clients know of streams that are kept nowhere: {unknown}"
    charged = {name for name, row in kept.reservations.items() if row.charged}
    assert charged <= set(kept.streams), "nobody pays for a stream that is kept nowhere"
    assert sorted(kept.questions) == sorted(kept.streams), "one question a stream"
    return list(kept.streams)


def check_stream(kept: Kept, name: str, supervisor: Caller, seen: Sequence[Event]) -> None:
    """One stream: its log, its answer, its receipt and its charge say the same."""
    events = supervisor.resume(name)
    assert [event.id for event in events] == [str(offset + 1) for offset in range(len(events))], name
    ends = [event.event for event in events if event.event in ("done", "error")]
    assert events[0].event == "session" and len(ends) == 1 and events[-1].event == ends[0], f"S3: {name} {ends}"
    for event in seen:
        assert event.id is not None and events[int(event.id) - 1] == event, f"S1, S2: {name} {event}"
    assert text_of(events) == kept.answers.get(name, ""), f"{name}: the stored answer is the text of the log"
    receipt = supervisor.state(name)["receipt"]
    told = events[-1].json()["receipt"]
    assert receipt["settlement"] == "settled"
    assert told == receipt or (told["settlement"] == "pending" and told["outcome"] == receipt["outcome"]), name
    if receipt["usageSource"] != "provider":
        assert receipt["outputTokens"] == tokens_of(events), f"S4: {name}"
    reservation = kept.reservations[name]
    assert (reservation.state, reservation.charged) == ("settled", round(receipt["chargedCredits"] * 1_000_000)), name


def _at_rest(postgres_url: str, seconds: float) -> Kept:
    engine = create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    deadline = time.monotonic() + seconds
    try:
        while True:
            with engine.connect() as connection:
                kept = _kept(connection)
            if kept.is_at_rest:
                return kept
            assert time.monotonic() < deadline, f"still under way: {kept}"
            time.sleep(0.1)
    finally:
        engine.dispose()


def _kept(connection: Connection) -> Kept:
    said = connection.execute(select(messages)).all()
    answers = [row for row in said if row.role == "assistant"]
    assert len({row.stream_id for row in answers}) == len(answers), "one answer a stream"
    reservations = connection.execute(text("SELECT * FROM reservations")).all()
    return Kept(
        streams={row.id: row for row in connection.execute(select(streams)).all()},
        answers={row.stream_id: row.content for row in answers},
        questions=[row.stream_id for row in said if row.role == "user"],
        reservations={row.id: row for row in reservations},
    )
