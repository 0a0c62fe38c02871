"""A chat service in the test's own process: real ledger, real log, real databases; only the model is scripted."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.postgres import Engine
from tests.scripted import ScriptedProvider

from parshall.accounting.service import Accounting
from parshall.chat.catalog import Catalog
from parshall.chat.model import Ask, Stream, receipt
from parshall.chat.openings import Limits
from parshall.chat.peers import NoPeers, Peers
from parshall.chat.ports import Ledger, StreamLog
from parshall.chat.service import Chat
from parshall.chat.streaming import Streaming
from parshall.chat.streams.local import LocalStreamLog
from parshall.kernel import clock, sse
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.errors import NotFound
from parshall.kernel.ids import SessionId, StreamId, UserId
from parshall.kernel.tokens import Principal, Role

USER = UserId("u" * 32)
ALICE = Principal(user_id=USER, username="alice", email="alice@example.org", role=Role.ENDUSER)
LIMITS = Limits(
    output_tokens_max=1000,
    slice_tokens=50,
    stream_seconds_max=20,
    lease_seconds=5,
    grace_seconds=0.1,
    streams_per_user_max=100,
    streams_max=1000,
)


class People:
    """A directory in which everybody is known by their id."""

    async def resolve(self, who: str) -> UserId:
        if len(who) != 32:
            raise NotFound
        return UserId(who)


@dataclass(kw_only=True)
class Rig:
    """What a test of turns works with."""

    chat: Chat
    streaming: Streaming
    accounting: Accounting
    provider: ScriptedProvider
    log: StreamLog

    async def session(self, user_id: UserId = USER) -> SessionId:
        made = await self.chat.create(user_id=user_id, title=None, first=None, model_id=None, source=None)
        return made.id

    async def grant(self, credits: float, user_id: UserId = USER) -> None:
        await self.accounting.allocate(
            user_id,
            Credits(round(credits * MICRO)),
            expires_at=clock.now() + clock.DAY,
            priority=0,
            notes="",
            granted_by="test",
        )

    async def ask(self, session_id: SessionId, message: str, *, proposed: str | None = None, **more: Any) -> StreamId:
        given = StreamId(proposed) if proposed else None
        return await self.streaming.ask(
            Ask(message=message, **more), user_id=USER, session_id=session_id, proposed=given
        )

    async def read(self, stream_id: StreamId, *, after: int = 0) -> list[sse.Event]:
        """Every event after an offset, to the end of the stream."""
        reader = await self.streaming.attach(stream_id, after=after)
        try:
            async with asyncio.timeout(20):
                return [event async for chunk in reader for event in sse.parse([chunk])]
        finally:
            reader.leave()

    async def ended(self, stream_id: StreamId) -> Stream:
        await self.streaming.producers.ended(stream_id)
        stream = await self.streaming.records.find(stream_id)
        assert stream is not None and stream.ending is not None
        return stream

    async def receipt(self, stream_id: StreamId) -> dict[str, Any]:
        return receipt(await self.ended(stream_id))


@asynccontextmanager
async def rig(
    folder: Path,
    engine: Engine,
    *,
    ledger: Ledger | None = None,
    limits: Limits = LIMITS,
    fallbacks: Sequence[str] = (),
    stream_log: StreamLog | None = None,
    peers: Peers | None = None,
    owner: str = "",
) -> AsyncIterator[Rig]:
    """Everything on the folder and the engine; the same ones again are the next start of the process."""
    accounting = Accounting(
        engine.open("parshall.accounting"),
        directory=People(),
        clock=clock.now,
        reservation_seconds=60,
    )
    await accounting.start()
    database = engine.open("parshall.chat")
    provider = ScriptedProvider()
    log = stream_log or LocalStreamLog(folder / "streams.db", clock=clock.now)
    catalog = Catalog([provider], fallbacks=fallbacks)
    streaming = Streaming(
        database=database,
        stream_log=log,
        peers=peers or NoPeers(),
        owner=owner or uuid.uuid4().hex,
        ledger=ledger or accounting,
        catalog=catalog,
        clock=clock.now,
        limits=limits,
    )
    chat = Chat(database, streaming=streaming, catalog=catalog, clock=clock.now)
    try:
        yield Rig(chat=chat, streaming=streaming, accounting=accounting, provider=provider, log=log)
    finally:
        await streaming.close(drain_seconds=0)
        await database.close()
        await accounting.close()


def text_of(events: list[sse.Event]) -> str:
    """The answer that the chunks spell."""
    return "".join(event.json()["text"] for event in events if event.event == "chunk")


def tokens_of(events: list[sse.Event]) -> int:
    """The output tokens that the events show."""
    return sum(event.json()["tokens"] for event in events if event.event in ("chunk", "reasoning"))
