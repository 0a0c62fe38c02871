"""A small world around a ledger: clients, a network, replicas, a clock and accidents, all driven by one seed."""

# What is deterministic: which requests are made, what the network does to them, which of them meet in one batch on
# which replica, where a replica dies, and what the clock shows. On SQLite that makes the whole run a function of the
# seed. On PostgreSQL two replicas also interleave within their transactions, at a statement that the seed chooses: one
# is held there with its locks while the other runs until it is done or waits for them. What is left to the server is in
# which order it gives rows that tie, and who wins where both go on at once after that.

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection, insert
from tests.postgres import Engine, open_url
from tests.simulation.auditor import UNKNOWN, Auditor
from tests.simulation.clients import (
    RESERVATION_SECONDS,
    TRIES_MAX,
    Network,
    Sent,
    Stream,
    answers_of,
    change,
    price,
    shown,
)
from tests.simulation.records import Outside
from tests.simulation.requested import RESERVES, Request, perform
from tests.simulation.steps import Crash, Death, MortalDatabase

from parshall.accounting.service import Accounting
from parshall.accounting.tables import members
from parshall.kernel.clock import DAY, MINUTE, SECOND, calendar_month
from parshall.kernel.credits import MICRO
from parshall.kernel.errors import KeyReused, ParshallError
from parshall.kernel.ids import UserId

PACKAGE = "parshall.accounting"
START = 1_800_000_000 * SECOND
USERS = ("ann", "bob", "cid", "dan", "eve")
USERS_MIN = 2
TEAM = "team"
"""The organisation that the first user belongs to."""
TEAM_LIMIT = 400
BATCH_MAX = 6
STEP_MAX = 13
"""The last step of a unit of work at which a death is planned; one that lies behind its commit is the commit's."""
UNANSWERED = object()
ANSWER_SECONDS_MAX = 30
HOURS_MAX = 20
"""No run takes longer by its own clock: an idempotency key holds for a day."""

Act = tuple[int, Callable[[], Awaitable[None]]]
"""With its weight among the others."""


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


class Replica:
    """A process that serves the ledger: it may die, and starts again with nothing but the records."""

    def __init__(self, name: str, url: str, clock: Callable[[], int]) -> None:
        self.name = name
        self._url = url
        self._clock = clock
        self.lives = 0

    def __str__(self) -> str:
        return f"{self.name}{self.lives}"

    async def start(self) -> None:
        self.lives += 1
        self.database = MortalDatabase(open_url(self._url, PACKAGE, self._clock))
        self.ledger = Accounting(
            self.database, directory=Nobody(), clock=self._clock, reservation_seconds=RESERVATION_SECONDS
        )
        await self.ledger.start()

    async def stop(self) -> None:
        await self.ledger.close()

    async def answer(self, requests: list[Request]) -> list[Any]:
        """Take requests in one turn of the loop, so that they share a batch in this order."""
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return list(await asyncio.gather(*(self._one(perform(self.ledger, request)) for request in requests)))

    async def _one(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except ParshallError as refusal:
            return refusal
        except Crash:
            return UNANSWERED


class World:
    """One run. `calm` leaves out every accident; then both engines must do the same."""

    def __init__(self, engine: Engine, seed: int, *, calm: bool = False) -> None:
        self.at = START
        self.tick = 0
        self.trace: list[str] = []
        self.calm = calm
        self.chance = random.Random(seed)
        self.network = Network(self.chance, calm=calm)
        self.outstanding: list[Sent] = []
        self.asleep: list[tuple[Stream, Request]] = []
        self.deserted: list[Stream] = []
        self.users = USERS[: self.chance.randint(USERS_MIN, len(USERS))]
        self._numbers = 0
        self.engine = engine.name
        self._url = engine.url(PACKAGE)
        self.replicas = [Replica(name, self._url, lambda: self.at) for name in ("A", "B")]

    # ── Life ──

    async def open(self) -> None:
        for replica in self.replicas:
            await replica.start()
        await self.replicas[0].database.write(self._found_team)
        self.outside = Outside(self._url)
        self.auditor = Auditor(self.outside.records(), reservation_seconds=RESERVATION_SECONDS)
        price = {"input": MICRO, "cached_input": MICRO // 2, "output": 3 * MICRO, "reasoning": 4 * MICRO}
        self._send(Request(kind="price", id=self._key(), arguments={"model_id": "*"} | price))
        for account in (*self.users, TEAM):
            grant = {"account": account, "amount": 300, "expires_at": self.at + 3600 * SECOND, "priority": 0}
            self._send(Request(kind="allocate", id=self._key(), arguments=grant))

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.stop()
        self.outside.close()

    def _found_team(self, connection: Connection) -> None:
        day, month = self.at // DAY, calendar_month(self.at)
        row = {
            "id": "0" * 32,
            "user_id": USERS[0],
            "organisation_id": TEAM,
            "role": "member",
            "limit_total": TEAM_LIMIT,
        }
        row |= {"day": day, "day_used": 0, "month": month, "month_used": 0, "total_used": 0, "joined_at": self.at}
        connection.execute(insert(members).values(**row))

    def note(self, text: str) -> None:
        seconds, rest = divmod(self.at - START, SECOND)
        self.trace.append(f"{self.tick:5} +{seconds}.{rest // 1000:03}s  {text}")

    def digest(self) -> str:
        """One hash over every account's chain: two runs with the same one made the same transfers."""
        heads = sorted((name, row.head) for name, row in self.auditor.records.books.accounts.items())
        return hashlib.sha256(repr(heads).encode()).hexdigest()

    # ── One step ──

    async def step(self, accidents: list[Act]) -> None:
        self.tick += 1
        self.at += self.chance.randint(0, 1500) * (SECOND // 1000)
        self.ask_again()
        acts: list[Act] = [
            (14, self._begin_stream),
            (9, self._begin_change),
            (50, self._deliver),
            (6, self._read),
            (5, self.sweep),
            (8, self._jump),
            (6, self._replay),
        ]
        if not self.calm:
            acts += accidents
        act = self.chance.choices([each for _, each in acts], [weight for weight, _ in acts])[0]
        await act()

    def ask_again(self) -> None:
        """Clients that have waited long enough send the same once more; chat gives a reservation up and voids it."""
        for sent in [each for each in self.outstanding if each.again_at_tick <= self.tick]:
            if sent.tries >= TRIES_MAX and sent.request.kind in RESERVES and sent.follow is not None:
                self.outstanding.remove(sent)
                self._send(sent.follow.void(), sent.follow)
            else:
                self.network.send(sent, tick=self.tick)
        for stream, request in [each for each in self.asleep if each[0].wakes_at <= self.at]:
            self.asleep.remove((stream, request))
            self._send(request, stream)

    def _send(self, request: Request, follow: Stream | None = None) -> None:
        self.auditor.asking(request)
        sent = Sent(request, follow)
        self.outstanding.append(sent)
        self.network.send(sent, tick=self.tick)

    async def _begin_stream(self) -> None:
        stream = self.new_stream()
        self._send(stream.first(), stream)

    def new_stream(self) -> Stream:
        return Stream(self.chance, self._number(), self.chance.choice(self.users))

    async def _begin_change(self) -> None:
        if self.chance.random() < 0.1:
            self._send(price(self.chance, self._number()))
        else:
            account = self.chance.choice((*self.users, TEAM))
            self._send(change(self.chance, self._number(), account, at=self.at))

    async def _deliver(self) -> None:
        if arrived := self.arrived(most=self.chance.randint(1, BATCH_MAX)):
            await self.handle(self.someone(), arrived)

    def arrived(self, *, most: int) -> list[Sent]:
        """Some of what the network delivers next."""
        self.tick = max(self.tick, self.network.next_tick())
        return self.network.arrived(tick=self.tick, most=most)

    async def sweep(self) -> None:
        await self.handle(self.someone(), [Sent(Request(kind="sweep", id="all", arguments={}))])

    async def _jump(self) -> None:
        seconds = self.chance.choices((1, 11, 31, 50, 4000, 20_000, -1, -4), (8, 8, 6, 4, 2, 1, 3, 2))[0]
        if self.at + seconds * SECOND > START + HOURS_MAX * 60 * MINUTE:
            seconds = 1
        self.at += seconds * SECOND
        self.note(f"the clock jumps by {seconds} s")

    async def _replay(self) -> None:
        """Something answered long ago is asked again (M3), and its id with another body (M4)."""
        if self.auditor.first:
            known = self.auditor.first[self.chance.choice(sorted(self.auditor.first))][0]
            await self.handle(self.someone(), [Sent(known)])
            await self.must_refuse([known])

    def someone(self) -> Replica:
        return self.chance.choice(self.replicas)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _key(self) -> str:
        return f"key-{self._number()}"

    # ── Answers and accidents ──

    async def handle(self, replica: Replica, arrived: list[Sent]) -> None:
        """Have a replica answer; it may die over it."""
        death = None
        if not self.calm and self.chance.random() < 0.15:
            death = Death(self.chance.randint(0, STEP_MAX), unit=self.chance.choice((0, 0, 0, 1)))
        replica.database.plan = death
        answers = await replica.answer([sent.request for sent in arrived])
        replica.database.plan = None
        pairs = list(zip(arrived, answers, strict=True))
        if known := answers_of((sent, answer) for sent, answer in pairs if answer is not UNANSWERED):
            self.note(f"{replica} {known}")
        if replica.database.dead:
            assert death is not None
            lost = ", ".join(str(sent.request) for sent, answer in pairs if answer is UNANSWERED)
            await self.restart(replica, f"dies {death.where}; no answer to {lost}")
        before = self.auditor.records
        self.observe()
        if death is not None and death.where and not death.committed and arrived[0].request.kind != "sweep":
            assert self.auditor.records == before, "M8: a unit of work that was not committed has left something"
        self.take_in(pairs)

    def observe(self) -> None:
        """Hold the laws against the records as they are now."""
        self.auditor.observe(self.outside.records(), at=self.at)

    async def restart(self, replica: Replica, why: str) -> None:
        self.note(f"{replica} {why}")
        await replica.stop()
        await replica.start()

    def take_in(self, pairs: list[tuple[Sent, Any]]) -> None:
        """Hold every answer against the records; those that the network does not lose reach their clients."""
        for sent, answer in pairs:
            if answer is UNANSWERED:
                continue
            self.auditor.answered(sent.request, answer)
            if isinstance(answer, UNKNOWN) or self.network.loses() or sent not in self.outstanding:
                continue
            self.outstanding.remove(sent)
            stream = sent.follow
            following = None if stream is None else stream.after(sent, answer, at=self.at)
            if following is not None and stream is not None and stream.wakes_at > self.at:
                self.asleep.append((stream, following))
            elif following is not None:
                self._send(following, stream)
            elif stream is not None and stream.ending == "vanish" and stream.granted:
                self.deserted.append(stream)

    async def must_refuse(self, known: list[Request]) -> None:
        """M4: the id of an answered request with another body is refused, and nothing happens."""
        others = [other for other in (request.other() for request in known) if other is not None]
        before = self.auditor.records
        for other, answer in zip(others, await self.someone().answer(others), strict=True):
            refused = isinstance(answer, KeyReused)
            assert refused, f"M4: {other} with another body was not refused: {shown(answer)}"
        self.observe()
        kinds = {row.kind for row in self.auditor.new_transfers()}
        assert kinds <= {"expire"} and self.auditor.records.keys == before.keys, "M4: what was refused left something"

    # ── Reads ──

    async def _read(self) -> None:
        """What a replica shows is what the records hold."""
        ledger, records = self.someone().ledger, self.auditor.records
        for name in (*self.users, TEAM):
            await self._read_account(ledger, UserId(name))
        for stream_id in self.chance.sample(sorted(records.streams), min(3, len(records.streams))):
            found, row = await ledger.receipt(stream_id), records.streams[stream_id]
            assert [getattr(found, column) for column in row._fields] == list(row), "a receipt shows its reservation"

    async def _read_account(self, ledger: Accounting, name: UserId) -> None:
        records = self.auditor.records
        account = records.books.accounts.get(name)
        live = [g for g in records.grants.values() if g.account_id == name and g.remaining and g.expires_at > self.at]
        balance = await ledger.balance(name)
        assert balance.available == sum(grant.remaining for grant in live), "what is shown is what may be spent"
        assert balance.reserved == (0 if account is None else account.reserved)
        statement = await ledger.statement(name, after=0, limit=500)
        rows = [row for row in records.books.transfers if row.account_id == name][:500]
        assert [(e.number, e.kind, e.amount, e.hash) for e in statement] == [
            (row.number, row.kind, row.amount, row.hash) for row in rows
        ]
        running = {each.id for each in await ledger.active(name)}
        assert running == {row.id for row in records.streams.values() if row.user_id == name and row.state == "active"}
