"""The use cases of header traces: switch them on and off, read them, each on record; and the task that keeps them."""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection

from parshall.chat import store, trace_store
from parshall.chat.observations import Observation, add_observation
from parshall.chat.supervision import People
from parshall.chat.trace_store import KEPT_MICROSECONDS, SWITCHES_MAX, Switch
from parshall.kernel.clock import MINUTE, Clock, rfc3339
from parshall.kernel.database import Database
from parshall.kernel.errors import Conflict, NotFound
from parshall.kernel.exchange import Document
from parshall.kernel.headertrace import Mode, Switched, Tracing
from parshall.kernel.ids import StreamId, UserId, new_id, parse_stream_id
from parshall.kernel.recording import unharmed
from parshall.kernel.telemetry import log

SWITCH_MINUTES = 15
SWITCH_MINUTES_MAX = 24 * 60
RECENT_MAX = 50
LOOK_SECONDS = 1.0
"""Between two looks at the switches: within so long every process follows one that another has set."""
FORGET_SECONDS = 60.0
FORGET_AFTER = 500
"""Traces; so many more than trace_store.TRACES_MAX may be there for a moment."""
CLOSE_SECONDS_MAX = 2.0
WAITING_MAX = 512
"""Traces that wait to be kept; further ones are dropped and counted."""
BATCH_MAX = 64

_logger = log("headers")


@dataclass(frozen=True, slots=True, kw_only=True)
class By:
    """Who switches or reads."""

    id: str
    name: str


class TooManySwitches(Conflict):
    """More users and streams would be traced at once than may."""

    code = "too_many_switches"
    title = "Too many switches"
    default = f"At most {SWITCHES_MAX} users and streams are traced at once; turn some off."


class Traces:
    """What administrators do with traces, on chat's own records."""

    def __init__(self, database: Database, *, people: People | None, clock: Clock) -> None:
        """`people` tells who a name is; without it users are named by their ids."""
        self._database = database
        self._people = people
        self._clock = clock

    async def switch_on(self, *, user: str | None, stream_id: str | None, minutes: int, by: By) -> Switch:
        """Trace the requests of a user, or about a stream, which need not exist yet.

        Raises NotFound, MalformedStreamId, TooManySwitches.
        """
        assert (user is None) != (stream_id is None)
        assert 0 < minutes <= SWITCH_MINUTES_MAX
        at = self._clock()
        switch = Switch(
            id=new_id(),
            user_id=None if user is None else await self._id_of(user),
            stream_id=None if stream_id is None else parse_stream_id(stream_id),
            set_by=by.name,
            set_at=at,
            until=at + minutes * MINUTE,
        )

        def work(connection: Connection) -> None:
            if len(trace_store.switches_in_force(connection, now=at)) >= SWITCHES_MAX:
                raise TooManySwitches
            trace_store.add_switch(connection, switch)

        await self._database.write(work)
        told = {"user": switch.user_id, "stream": switch.stream_id, "until": rfc3339(switch.until)}
        _logger.info("header_trace_on", by=by.id, switch=switch.id, **told)
        return switch

    async def switch_off(self, named: str | None, *, by: By) -> list[Switch]:
        """Turn off a switch by its id, those of a user or a stream by theirs, or all. Raises NotFound for none."""
        at = self._clock()
        gone = await self._database.write(lambda c: trace_store.remove_switches(c, named, now=at))
        if not gone and named is not None:
            raise NotFound("Nothing is switched on by that id; GET /api/debug/headers lists what is.")
        _logger.info("header_trace_off", by=by.id, switches=[each.id for each in gone])
        return gone

    async def switches(self) -> list[Switch]:
        """Those that are on, eldest first."""
        at = self._clock()
        return await self._database.read(lambda c: trace_store.switches_in_force(c, now=at))

    async def recent(self) -> list[Document]:
        """The newest requests that were traced."""
        since = self._clock() - KEPT_MICROSECONDS
        return await self._database.read(lambda c: trace_store.recent_traces(c, since=since, limit=RECENT_MAX))

    async def read(self, named: str, *, by: By) -> list[Document]:
        """What was traced of a stream, or of one request by its id; the audit log keeps the look. Raises NotFound."""
        at = self._clock()

        def work(connection: Connection) -> list[Document]:
            found = trace_store.list_traces(connection, named, since=at - KEPT_MICROSECONDS)
            if found and (stream := store.find_stream(connection, StreamId(named))) is not None:
                look = Observation(
                    id=new_id(),
                    kind="headers",
                    session_id=stream.session_id,
                    stream_id=stream.id,
                    user_id=stream.user_id,
                    observer_id=UserId(by.id),
                    observer_name=by.name,
                    began_at=at,
                    shown_after=0,
                    ended_at=at,
                )
                add_observation(connection, look)
            return found

        found = await self._database.write(work)
        if not found:
            raise NotFound("No headers were traced by that id; POST /api/debug/headers has them traced.")
        _logger.info("header_trace_read", by=by.id, named=named)
        return found

    async def _id_of(self, user: str) -> str:
        if self._people is None:
            return user
        person = await self._people.find(user)
        if person is None:
            raise NotFound("There is no such user; give an id, a username or an e-mail address.")
        return person.id


class TraceKeeper:
    """Keeps what a process traces, behind the responses, and follows the switches that any process sets."""

    def __init__(self, database: Database, *, tracing: Tracing, clock: Clock) -> None:
        """`tracing` gives what it records to this from now on."""
        self._database = database
        self._tracing = tracing
        self._clock = clock
        self._waiting: deque[Document] = deque()
        self._dropped = 0
        self._kept = 0
        self._wakened = asyncio.Event()
        tracing.sink = self.keep

    def keep(self, document: Document) -> None:
        """Have a trace kept soon; one too many is dropped."""
        if len(self._waiting) >= WAITING_MAX:
            self._dropped += 1
            return
        self._waiting.append(document)
        self._wakened.set()

    async def run(self) -> None:
        """Write, look and forget until cancelled."""
        loop = asyncio.get_running_loop()
        look_at = forget_at = loop.time()
        while True:
            await self._wait(look_at - loop.time())
            await self.flush()
            if loop.time() >= look_at:
                look_at = loop.time() + LOOK_SECONDS
                with unharmed("look"):
                    await self.look()
            if loop.time() >= forget_at or self._kept >= FORGET_AFTER:
                forget_at = loop.time() + FORGET_SECONDS
                with unharmed("forget"):
                    await self._forget()

    async def close(self) -> None:
        """Keep what still waits, unless that takes too long: nobody's end waits for a trace."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self.flush()

    async def flush(self) -> None:
        """Keep all that waits; what cannot be kept is dropped."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            with unharmed("write"):
                await self._database.write(partial(trace_store.add_traces, documents=batch))
                self._kept += len(batch)
        if self._dropped:
            _logger.warning("header_traces_dropped", count=self._dropped)
            self._dropped = 0

    async def _forget(self) -> None:
        now, self._kept = self._clock(), 0
        await self._database.write(lambda c: trace_store.forget_traces(c, now=now))

    async def look(self) -> None:
        """Follow the switches as they are now. With tracing on for everything they say nothing more."""
        if self._tracing.mode is not Mode.OFF:
            return
        at = self._clock()
        found = await self._database.read(lambda c: trace_store.switches_in_force(c, now=at))
        self._tracing.switched = Switched(
            users=frozenset(each.user_id for each in found if each.user_id is not None),
            streams=frozenset(each.stream_id for each in found if each.stream_id is not None),
        )

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._wakened.wait()
        except TimeoutError:
            return
        self._wakened.clear()
