"""Removed users, on both engines: nobody is missed, nothing is done by halves, and nothing is left to spend."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.identities import HERE, PASSWORD, Hands, alice, opened, verifier
from tests.ledgers import check_books, read_books
from tests.postgres import Engine

from parshall.accounting.membership import Change
from parshall.accounting.pricing import Price
from parshall.accounting.service import Accounting
from parshall.auth.service import Auth
from parshall.kernel.clock import DAY
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.errors import InsufficientCredits, TokenRefused, Unavailable
from parshall.kernel.ids import UserId, new_stream_id
from parshall.kernel.metering import Usage, UsageSource
from parshall.kernel.removals import TOKEN_SECONDS_MAX, Removal, Removals

PACKAGE = "parshall.accounting"
ANN = UserId("a" * 32)


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


class Feed:
    """Auth, as far as it is asked."""

    def __init__(self, *removed: UserId, at: int) -> None:
        self.list = [Removal(number=at + each, user_id=who, removed_at=at) for each, who in enumerate(removed)]
        self.away = False

    async def removals(self, *, after: int, limit: int = 2) -> list[Removal]:
        if self.away:
            raise Unavailable
        return [each for each in self.list if each.number > after][:limit]


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest_asyncio.fixture
async def auth(engine: Engine, clock: Hands) -> AsyncIterator[Auth]:
    made = await opened(engine, clock)
    yield made
    await made.close()


def ledger(engine: Engine, clock: Hands) -> Accounting:
    """Accounting by the test's clock."""
    database = engine.open(PACKAGE, clock=clock)
    return Accounting(database, directory=Nobody(), clock=clock, reservation_seconds=600)


# ── Who was removed ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_removals_are_told_in_order_and_none_is_missed_while_two_processes_remove(
    engine: Engine, auth: Auth, clock: Hands
) -> None:
    replica = await opened(engine, clock)
    await auth.ensure_admin(PASSWORD)
    made = [await auth.create_user(f"user{number}", f"u{number}@example.org", PASSWORD) for number in range(12)]
    removing = asyncio.gather(*((auth, replica)[n % 2].delete_user(user.id) for n, user in enumerate(made)))
    heard: list[Removal] = []
    while not removing.done() or await auth.removals(after=heard[-1].number if heard else 0):
        heard += await replica.removals(after=heard[-1].number if heard else 0)
        await asyncio.sleep(0)
    await removing
    assert {each.user_id for each in heard} == {user.id for user in made}
    assert len(heard) == len(made)
    await replica.close()


async def test_numbers_rise_beyond_those_that_a_lost_database_has_given(auth: Auth, clock: Hands) -> None:
    user = await alice(auth)
    await auth.delete_user(user.id)
    assert (await auth.removals(after=clock.at - 1))[0].number == clock.at, "as high as the instant"


async def test_a_removed_users_token_is_refused_however_long_it_lives(auth: Auth, clock: Hands) -> None:
    user = await alice(auth)
    service, session = verifier(auth, clock), await auth.login("alice", PASSWORD, HERE)
    assert (await service.verify(session.access_token)).user_id == user.id
    service.shut_out(frozenset({user.id}))
    with pytest.raises(TokenRefused, match="removed"):
        await service.verify(session.access_token)


# ── What is done about it ───────────────────────────────────────────────────────────────────────────────────────────


async def test_what_cannot_be_erased_is_tried_again_and_hinders_nobody(engine: Engine, clock: Hands) -> None:
    accounting, asked = ledger(engine, clock), []
    broken = {"b" * 32}

    async def erase(user_id: UserId) -> bool:
        asked.append(user_id[0])
        if user_id in broken:
            raise RuntimeError("a fault of ours")
        return user_id[0] != "c"

    people = [UserId(letter * 32) for letter in "bcd"]
    feed, table = Feed(*people, at=clock.at), accounting.removals._table
    removals = Removals(accounting._database, table, clock=clock, erase=erase)
    await removals.hear(feed)
    await removals.carry_out()
    assert sorted(asked) == ["b", "c", "d"]
    assert await removals.recent() == set(people)
    broken.clear()
    clock.turn(3)
    asked.clear()
    feed.away = True
    with pytest.raises(Unavailable):
        await removals.hear(feed)
    again = Removals(accounting._database, table, clock=clock, erase=erase)  # another process, after a crash
    await again.carry_out()
    assert sorted(asked) == ["b", "c"]
    clock.turn(TOKEN_SECONDS_MAX)
    asked.clear()
    await again.carry_out()
    clock.turn(10)
    await again.carry_out()
    assert sorted(asked) == ["b", "c", "c", "d"], (
        "once more when no token can be about, and then only what is not clean"
    )
    assert await again.recent() == frozenset()
    await accounting.close()


async def test_hearing_the_same_twice_at_once_keeps_it_once(engine: Engine, clock: Hands) -> None:
    one, two = ledger(engine, clock), ledger(engine, clock)
    feed = Feed(*(UserId(f"{number:032x}") for number in range(9)), at=clock.at)
    await asyncio.gather(one.removals.hear(feed), two.removals.hear(feed), return_exceptions=True)
    await one.removals.hear(feed)
    assert await two.removals.recent() == {each.user_id for each in feed.list}
    await one.close()
    await two.close()


# ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_closed_account_has_nothing_to_reserve_and_what_comes_back_goes_too(
    engine: Engine, clock: Hands
) -> None:
    accounting = ledger(engine, clock)
    await accounting.start()
    await accounting.prices.put("m", Price(input=MICRO, cached_input=MICRO, output=MICRO, reasoning=MICRO), set_by="")
    groups = accounting.organisations
    group = await groups.run(groups.founding("group", created_by="root"))
    for account in (ANN, group.id):
        await accounting.allocate(account, Credits(1000), expires_at=clock.at + DAY, granted_by="root")
    running = new_stream_id(at=clock.at)
    asked = {"user_id": ANN, "model_id": "m", "input_tokens": 10, "output_tokens_max": 90, "slice_tokens": 90}
    await accounting.reserve(stream_id=running, **asked)
    await groups.run(groups.putting(group.id, ANN, Change()))
    assert not await accounting.close_account(ANN), "a stream still runs"
    with pytest.raises(InsufficientCredits):
        await accounting.reserve(stream_id=new_stream_id(at=clock.at), **asked)
    usage = Usage(input_tokens=10, output_tokens=30)
    await accounting.settle(stream_id=running, usage=usage, source=UsageSource.COUNTED, outcome="stopped")
    assert (await accounting.balance(ANN)).available == 60
    for _ in range(2):
        assert await accounting.close_account(ANN)
    held = await accounting.balance(ANN)
    assert (held.available, held.reserved) == (0, 0)
    with pytest.raises(InsufficientCredits):
        await accounting.reserve(stream_id=new_stream_id(at=clock.at), **asked)
    assert (await accounting.balance(group.id)).available == 1000
    statement = await accounting.statement(ANN, after=0, limit=100)
    assert statement[-1].note == "the user was removed", "the transfers stay"
    await accounting.close()
    engine.look(PACKAGE, lambda connection: check_books(read_books(connection)))
