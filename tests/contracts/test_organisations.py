"""Organisations on both engines: who pays, within which limits, what replicas racing each other cannot break."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.histories import tampered
from tests.ledgers import check_books, read_books
from tests.postgres import Engine

from parshall.accounting.audit import audit
from parshall.accounting.changes import Terms
from parshall.accounting.membership import Change
from parshall.accounting.model import State
from parshall.accounting.organisation import (
    AlreadyMember,
    Member,
    MemberRole,
    NotMember,
    OrganisationExists,
    UnknownOrganisation,
)
from parshall.accounting.pricing import Price
from parshall.accounting.service import Accounting
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.errors import Conflict, Forbidden, InsufficientCredits
from parshall.kernel.ids import StreamId, UserId, new_stream_id
from parshall.kernel.metering import Settlement, Slice, Usage, UsageSource

PACKAGE = "parshall.accounting"
ANN, BOB, MAX = UserId("ann"), UserId("bob"), UserId("max")
NOON = 20_454 * DAY + DAY // 2
RESERVATION_SECONDS = 2 * 86_400


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


@dataclass
class World:
    """A ledger with an organisation. A token of input or output costs one microcredit."""

    engine: Engine
    at: int = NOON
    organisation_id: str = ""
    replicas: list[Accounting] = field(default_factory=list)

    @property
    def accounting(self) -> Accounting:
        return self.replicas[0]

    def replica(self) -> Accounting:
        """Another process on the same records."""
        database = self.engine.open(PACKAGE, clock=lambda: self.at)
        made = Accounting(database, directory=Nobody(), clock=lambda: self.at, reservation_seconds=RESERVATION_SECONDS)
        self.replicas.append(made)
        return made

    async def found(self, name: str) -> str:
        made = await self.accounting.organisations.run(self.accounting.organisations.founding(name, created_by="root"))
        return made.id

    async def grant(self, account_id: str, amount: int) -> None:
        until = self.at + 365 * DAY
        await self.accounting.allocate(account_id, Credits(amount), expires_at=until, granted_by="root")

    async def put(self, user_id: UserId, *, to: str = "", by: UserId | None = None, **wanted: Any) -> Member:
        role = wanted.pop("role", None)
        organisations = self.accounting.organisations
        change = Change(role=role, limits={f"limit_{name}": amount for name, amount in wanted.items()})  # type: ignore[misc]
        return await organisations.run(organisations.putting(to or self.organisation_id, user_id, change, by=by))

    async def leave(self, user_id: UserId, *, by: UserId | None = None) -> None:
        organisations = self.accounting.organisations
        await organisations.run(organisations.removing(self.organisation_id, user_id, by=by))

    async def reserve(
        self, user_id: UserId = ANN, *, tokens: int = 10, limit: int = 0, through: Accounting | None = None
    ) -> tuple[StreamId, Slice]:
        stream_id = new_stream_id(at=self.at)
        granted = await (through or self.accounting).reserve(
            stream_id=stream_id,
            user_id=user_id,
            model_id="any",
            input_tokens=0,
            output_tokens_max=limit or tokens,
            slice_tokens=tokens,
        )
        return stream_id, granted

    async def settle(self, stream_id: StreamId, written: int) -> Settlement:
        usage = Usage(output_tokens=written)
        return await self.accounting.settle(
            stream_id=stream_id, usage=usage, source=UsageSource.COUNTED, outcome="completed"
        )

    async def payer(self, stream_id: StreamId) -> str:
        return (await self.accounting.receipt(stream_id)).account_id

    async def available(self, account_id: str = "") -> int:
        return (await self.accounting.balance(account_id or self.organisation_id)).available

    async def drawable(self, user_id: UserId = ANN) -> int:
        return (await self.accounting.organisations.standing(user_id)).drawable

    async def member(self, user_id: UserId = ANN) -> Member:
        return (await self.accounting.organisations.standing(user_id)).member

    def check(self) -> None:
        check_books(self.engine.look(PACKAGE, read_books))
        assert self.engine.look(PACKAGE, audit).findings.kept == []


@pytest.fixture
async def world(engine: Engine) -> AsyncIterator[World]:
    made = World(engine=engine)
    await made.replica().prices.put(
        "*", Price(input=MICRO, cached_input=MICRO, output=MICRO, reasoning=MICRO), set_by=""
    )
    made.organisation_id = await made.found("Physics")
    yield made
    made.check()
    for replica in made.replicas:
        await replica.close()


# ── The audit ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("column", "said"), [("day_used", "in the day"), ("month_used", "in the month"), ("total_used", "in the whole")]
)
async def test_an_audit_finds_what_a_member_is_said_to_have_used_and_has_not(
    world: World, column: str, said: str
) -> None:
    await world.grant(world.organisation_id, 1000)
    await world.put(ANN)
    await world.put(BOB)
    ended, _ = await world.reserve(tokens=10)
    await world.settle(ended, 4)
    world.at += DAY
    await world.reserve(tokens=20)
    world.check()
    assert (await world.member()).total_used == 24
    deed = f"UPDATE members SET {column} = {column} + 1 WHERE user_id = 'ann'"
    (finding,) = tampered(world.engine, deed).findings.kept
    assert (finding.rule.name, finding.account_id) == ("member_used", world.organisation_id)
    assert "ann has used" in finding.sentence and said in finding.sentence


# ── Who pays ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_organisation_pays_first_and_the_user_where_it_cannot(world: World) -> None:
    await world.grant(world.organisation_id, 15)
    await world.grant(ANN, 100)
    await world.put(ANN)
    first, _ = await world.reserve(tokens=15)
    second, _ = await world.reserve(tokens=15)
    assert (await world.payer(first), await world.payer(second)) == (world.organisation_id, ANN)
    assert (await world.available(), await world.available(ANN)) == (0, 85)


async def test_a_limit_that_leaves_nothing_sends_the_user_to_the_own_account(world: World) -> None:
    await world.grant(world.organisation_id, 1000)
    await world.grant(ANN, 100)
    await world.put(ANN, day=10)
    first, _ = await world.reserve(tokens=10)
    second, _ = await world.reserve(tokens=10)
    assert (await world.payer(first), await world.payer(second)) == (world.organisation_id, ANN)


async def test_a_stream_stays_with_the_account_that_began_to_pay(world: World) -> None:
    await world.grant(ANN, 100)
    own, _ = await world.reserve(tokens=10, limit=30)
    await world.grant(world.organisation_id, 100)
    await world.put(ANN, total=15)
    assert (await world.accounting.extend(stream_id=own, step=1, output_tokens=10)).reserved == 20
    assert (await world.available(), await world.available(ANN)) == (100, 80)
    theirs, _ = await world.reserve(tokens=10, limit=30)
    granted = await world.accounting.extend(stream_id=theirs, step=1, output_tokens=10)
    assert (granted.reserved, granted.final) == (15, True)
    with pytest.raises(InsufficientCredits):
        await world.accounting.extend(stream_id=theirs, step=2, output_tokens=10)
    assert await world.available(ANN) == 80


async def test_who_belongs_to_none_pays_alone(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    with pytest.raises(InsufficientCredits) as refused:
        await world.reserve()
    assert refused.value.extra == {"requiredCredits": 0.000001, "availableCredits": 0, "reservedCredits": 0}


async def test_a_refusal_says_what_either_payer_would_cover(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.grant(ANN, 3)
    await world.put(ANN, month=2)
    with pytest.raises(InsufficientCredits) as refused:
        await world.accounting.reserve_whole(
            stream_id=new_stream_id(at=world.at), user_id=ANN, model_id="any", tokens=10
        )
    assert refused.value.extra == {
        "requiredCredits": 0.00001,
        "availableCredits": 0.000003,
        "reservedCredits": 0,
        "organisationCredits": 0.000002,
    }


async def test_what_one_payer_alone_covers_is_enough_and_both_together_are_not(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.grant(ANN, 30)
    await world.put(ANN, day=20)
    assert await world.accounting.check(ANN, 30) == (True, 30)
    assert await world.accounting.check(ANN, 31) == (False, 30)
    await world.put(ANN, day=40)
    assert await world.accounting.check(ANN, 40) == (True, 40)


# ── Limits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_a_stream_returns_can_be_drawn_again(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.put(ANN, day=10, month=20, total=30)
    stream, _ = await world.reserve(tokens=10)
    assert await world.drawable() == 0
    await world.settle(stream, 4)
    assert await world.drawable() == 6
    voided, _ = await world.reserve(tokens=6)
    await world.accounting.void(stream_id=voided)
    assert await world.drawable() == 6


async def test_limits_of_day_month_and_total_each_bind(world: World) -> None:
    await world.grant(world.organisation_id, 1000)
    await world.put(ANN, day=10, month=15, total=18)
    drawn = []
    for _ in range(3):
        with pytest.raises(InsufficientCredits):
            while True:
                stream, granted = await world.reserve(tokens=10)
                await world.settle(stream, granted.output_tokens)
        drawn.append((await world.member()).total_used)
        world.at += DAY if len(drawn) == 1 else 31 * DAY
    assert drawn == [10, 15, 18]


async def test_usage_beyond_a_limit_is_written_off_and_not_drawn(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.put(ANN, day=10)
    stream, _ = await world.reserve(tokens=10)
    settled = await world.settle(stream, 25)
    assert (settled.charged, settled.uncollected) == (10, 15)
    assert (await world.member()).day_used == 10


async def test_a_stream_that_grows_beyond_midnight_is_held_to_the_limit_of_the_new_day(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.put(ANN, day=10)
    stream, _ = await world.reserve(tokens=8, limit=40)
    world.at += DAY
    granted = await world.accounting.extend(stream_id=stream, step=1, output_tokens=20)
    assert (granted.reserved, granted.final) == (10, True)
    assert await world.drawable() == 0
    await world.settle(stream, 1)
    assert await world.drawable() == 9


async def test_another_model_for_a_members_stream_is_held_to_the_limits_too(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.put(ANN, day=25)
    stream, first = await world.reserve(tokens=10, limit=40)
    longer = {"model_id": "any", "output_tokens_max": 40, "slice_tokens": 10}
    with pytest.raises(InsufficientCredits):
        await world.accounting.reprice(stream_id=stream, input_tokens=25, **longer)
    assert (await world.member()).day_used == first.reserved == 10
    granted = await world.accounting.reprice(stream_id=stream, input_tokens=20, **longer)
    assert (granted.reserved, granted.output_tokens) == (25, 5)
    assert ((await world.member()).day_used, await world.drawable()) == (25, 0)
    assert (await world.settle(stream, 2)).charged == (await world.member()).day_used


async def test_a_limit_lowered_under_a_stream_ends_it_at_what_it_holds(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.put(ANN, total=50)
    stream, _ = await world.reserve(tokens=10, limit=40)
    await world.put(ANN, total=5)
    with pytest.raises(InsufficientCredits):
        await world.accounting.extend(stream_id=stream, step=1, output_tokens=10)
    assert (await world.settle(stream, 10)).charged == 10
    assert (await world.member()).total_used == 10


async def test_a_reservation_that_expires_gives_its_share_of_the_limit_back(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.put(ANN, total=10)
    stream, _ = await world.reserve(tokens=10)
    world.at += RESERVATION_SECONDS * SECOND
    await world.accounting.expire_due()
    assert await world.drawable() == 10
    assert (await world.settle(stream, 4)).charged == 4
    assert await world.drawable() == 6


# ── Joining and leaving ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_user_belongs_to_one_organisation(world: World) -> None:
    other = await world.found("Chemistry")
    await world.put(ANN)
    with pytest.raises(AlreadyMember):
        await world.put(ANN, to=other)
    await world.leave(ANN)
    assert (await world.put(ANN, to=other)).organisation_id == other


async def test_what_is_left_out_of_a_change_stays_and_none_lifts_a_limit(world: World) -> None:
    await world.put(ANN, day=1, total=3, role=MemberRole.MANAGER)
    await world.put(ANN, month=2)
    member = await world.put(ANN, day=None)
    assert (member.limit_day, member.limit_month, member.limit_total) == (None, 2, 3)
    assert member.role is MemberRole.MANAGER


async def test_who_left_is_paid_for_to_what_is_held_and_no_further(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.grant(ANN, 100)
    await world.put(ANN)
    stream, _ = await world.reserve(tokens=10, limit=40)
    await world.leave(ANN)
    with pytest.raises(InsufficientCredits):
        await world.accounting.extend(stream_id=stream, step=1, output_tokens=10)
    settled = await world.settle(stream, 12)
    assert (settled.charged, settled.uncollected) == (10, 2)
    assert (await world.available(), await world.available(ANN)) == (90, 100)


async def test_who_joins_again_begins_anew_and_streams_of_before_do_not_count(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.put(ANN, day=10)
    stream, _ = await world.reserve(tokens=10)
    await world.leave(ANN)
    await world.put(ANN, day=10)
    assert await world.drawable() == 10
    await world.settle(stream, 0)
    assert (await world.member()).total_used == 0


async def test_joining_leaving_and_reserving_in_one_batch_are_done_in_their_order(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    organisations = world.accounting.organisations
    steps = await asyncio.gather(
        world.put(ANN, day=5),
        world.reserve(tokens=5),
        world.leave(ANN),
        world.put(ANN, day=7),
        world.reserve(tokens=7),
        return_exceptions=True,
    )
    assert [step for step in steps if isinstance(step, Exception) and not isinstance(step, InsufficientCredits)] == []
    assert (await organisations.standing(ANN)).member.limit_day == 7


async def test_who_leaves_and_joins_again_in_one_batch_begins_anew(world: World) -> None:
    await world.grant(world.organisation_id, 100)
    await world.put(ANN, day=5)
    await asyncio.gather(world.reserve(tokens=5), world.leave(ANN), world.put(ANN, day=7))
    member = await world.member()
    assert (member.limit_day, member.day_used, member.total_used) == (7, 0, 0)


async def test_an_organisation_without_a_credit_leaves_its_members_to_themselves(world: World) -> None:
    await world.put(ANN)
    await world.grant(ANN, 10)
    stream, _ = await world.reserve(tokens=10)
    assert await world.payer(stream) == ANN


async def test_names_are_taken_once_and_can_be_given_up(world: World) -> None:
    organisations = world.accounting.organisations
    with pytest.raises(OrganisationExists):
        await world.found("Physics")
    renamed = await organisations.run(organisations.renaming(world.organisation_id, "Optics"))
    assert (renamed.id, renamed.name) == (world.organisation_id, "Optics")
    await world.found("Physics")
    with pytest.raises(OrganisationExists):
        await organisations.run(organisations.renaming(world.organisation_id, "Physics"))
    assert [each.name for each in await organisations.all()] == ["Optics", "Physics"]
    assert [each.name for each in await organisations.all(after="Optics", limit=1)] == ["Physics"]


async def test_nothing_is_granted_to_an_organisation_that_is_not_there(world: World) -> None:
    organisations, terms = world.accounting.organisations, Terms(expires_at=world.at + DAY, granted_by="root")
    with pytest.raises(UnknownOrganisation):
        await organisations.run(organisations.of("0" * 32, world.accounting.allocating("0" * 32, Credits(1), terms)))
    assert await world.available("0" * 32) == 0


# ── Who may ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_managers_see_to_plain_members_and_to_no_manager_themselves_included(world: World) -> None:
    await world.put(MAX, role=MemberRole.MANAGER, day=10)
    await world.put(BOB, role=MemberRole.MANAGER)
    await world.put(ANN, by=MAX, day=5)
    for forbidden in (
        world.put(MAX, by=MAX, day=None),
        world.put(BOB, by=MAX, day=1),
        world.put(ANN, by=MAX, role=MemberRole.MANAGER),
        world.leave(BOB, by=MAX),
        world.leave(MAX, by=MAX),
        world.put(BOB, by=ANN, day=1),
        world.leave(BOB, by=ANN),
    ):
        with pytest.raises(Forbidden):
            await forbidden
    await world.leave(ANN, by=MAX)
    with pytest.raises(NotMember):
        await world.leave(ANN, by=MAX)


async def test_who_does_not_belong_to_it_learns_of_no_organisation(world: World) -> None:
    organisations, other = world.accounting.organisations, await world.found("Chemistry")
    await world.put(MAX, role=MemberRole.MANAGER)
    for refused in (
        world.put(BOB, to=other, by=MAX),
        organisations.find(other, by=MAX),
        organisations.managed(other, by=MAX),
        organisations.find(world.organisation_id, by=BOB),
    ):
        with pytest.raises(UnknownOrganisation):
            await refused


async def test_a_right_that_was_taken_in_the_same_batch_is_gone(world: World) -> None:
    await world.put(MAX, role=MemberRole.MANAGER)
    demoted, refused = await asyncio.gather(
        world.put(MAX, role=MemberRole.MEMBER), world.put(ANN, by=MAX), return_exceptions=True
    )
    assert isinstance(demoted, Member) and isinstance(refused, Forbidden)


# ── Replicas ────────────────────────────────────────────────────────────────────────────────────────────────────────


def granted_of(answers: list[Any]) -> list[Slice]:
    unexpected = [each for each in answers if isinstance(each, Exception) and not isinstance(each, InsufficientCredits)]
    assert unexpected == []
    return [each[1] for each in answers if not isinstance(each, Exception)]


async def test_two_replicas_racing_for_one_member_never_pass_the_limit(world: World) -> None:
    await world.grant(world.organisation_id, 10_000)
    await world.put(ANN, day=100)
    both = (world.accounting, world.replica())
    asked = (world.reserve(tokens=7, through=both[n % 2]) for n in range(60))
    granted = granted_of(await asyncio.gather(*asked, return_exceptions=True))
    member = await world.member()
    assert sum(each.reserved for each in granted) == member.day_used == 100
    assert await world.available() == 9900


async def test_a_replica_goes_by_who_belongs_where_since_another_changed_it(world: World) -> None:
    second = world.replica()
    await world.grant(world.organisation_id, 1000)
    await world.grant(ANN, 100)
    alone, _ = await world.reserve(through=second)
    await world.put(ANN, total=50)
    member, _ = await world.reserve(through=second)
    await world.put(ANN, total=15)
    last, granted = await world.reserve(tokens=95, through=second)
    assert granted.reserved == 5
    await world.leave(ANN)
    left, _ = await world.reserve(through=second)
    payers = [await world.payer(each) for each in (alone, member, last, left)]
    assert payers == [ANN, world.organisation_id, world.organisation_id, ANN]
    for stream_id in (alone, member, last, left):
        await second.void(stream_id=stream_id)
    assert (await world.available(), await world.available(ANN)) == (1000, 100)


async def test_a_membership_that_was_told_does_not_change_afterwards(world: World) -> None:
    await world.grant(world.organisation_id, 1000)
    told = await world.put(ANN, total=50)
    await world.reserve()
    assert (told.total_used, (await world.put(ANN)).total_used) == (0, 10)


async def test_many_members_racing_on_two_replicas_never_overdraw_their_organisation(world: World) -> None:
    people = [UserId(f"user-{n}") for n in range(8)]
    await world.grant(world.organisation_id, 100)
    for user_id in people:
        await world.put(user_id, day=30)
    both = (world.accounting, world.replica())
    asked = (world.reserve(people[n % 8], tokens=5, through=both[n % 2]) for n in range(96))
    granted = granted_of(await asyncio.gather(*asked, return_exceptions=True))
    assert (sum(each.reserved for each in granted), await world.available()) == (100, 0)
    used = [(await world.member(user_id)).day_used for user_id in people]
    assert (sum(used), max(used) <= 30) == (100, True)


async def test_two_replicas_putting_one_user_into_two_organisations_succeed_once(world: World) -> None:
    other, second = await world.found("Chemistry"), world.replica()
    for n in range(10):
        user_id = UserId(f"user-{n}")
        answers = await asyncio.gather(
            *(
                replica.organisations.run(replica.organisations.putting(organisation_id, user_id, Change()))
                for replica, organisation_id in ((world.accounting, world.organisation_id), (second, other))
            ),
            return_exceptions=True,
        )
        assert {type(each) for each in answers} == {Member, AlreadyMember}


async def test_of_two_replicas_changing_one_membership_neither_undoes_the_other(world: World) -> None:
    """Also while the organisation has no credits: its account is there to be held from the beginning."""
    second = world.replica()
    await world.put(ANN)
    for amount in range(20):
        changes = (
            (world.accounting, Change(limits={"limit_day": amount})),
            (second, Change(limits={"limit_month": amount})),
        )
        await asyncio.gather(
            *(
                replica.organisations.run(replica.organisations.putting(world.organisation_id, ANN, change))
                for replica, change in changes
            )
        )
        member = await world.member()
        assert (member.limit_day, member.limit_month) == (amount, amount)


async def test_two_replicas_founding_one_name_found_one(world: World) -> None:
    both = (world.accounting.organisations, world.replica().organisations)
    for n in range(10):
        made = (each.run(each.founding(f"group {n}", created_by="root")) for each in both)
        answers = await asyncio.gather(*made, return_exceptions=True)
        assert [type(each) for each in answers if isinstance(each, Exception)] == [OrganisationExists]


async def test_whatever_members_managers_and_replicas_do_the_books_and_counts_rebuild(world: World) -> None:
    dice = random.Random(7)
    people, groups = [UserId(f"user-{n}") for n in range(4)], [world.organisation_id, await world.found("Chemistry")]
    world.replica()
    streams: list[StreamId] = []
    for _ in range(40):
        work = [random_step(world, dice, people, groups, streams) for _ in range(6)]
        answers = await asyncio.gather(*work, return_exceptions=True)
        assert all(isinstance(each, EXPECTED) for each in answers if isinstance(each, Exception)), answers
        world.at = max(NOON, world.at + dice.choice([0, SECOND, DAY // 3, DAY, -SECOND, -DAY]))
        world.check()
    assert {(await world.accounting.receipt(each)).state for each in streams} >= {State.ACTIVE, State.SETTLED}
    assert {(await world.accounting.receipt(each)).account_id for each in streams} & set(groups)


EXPECTED = (InsufficientCredits, Conflict, NotMember)
"""Conflict: a stream that has ended, an extension that the other replica made first, a member of the other group."""


async def random_step(
    world: World, dice: random.Random, people: list[UserId], groups: list[str], streams: list[StreamId]
) -> None:
    """One request of anybody, to either replica."""
    replica, user_id, group = dice.choice(world.replicas), dice.choice(people), dice.choice(groups)
    organisations, stream = replica.organisations, dice.choice(streams or [None])
    match dice.choice(["grant", "put", "leave", "reserve", "reserve", "reserve", "extend", "settle", "void", "expire"]):
        case "grant":
            await world.grant(dice.choice([group, user_id]), dice.randint(1, 60))
        case "put":
            change = Change(limits={"limit_day": dice.choice([None, 0, 20]), "limit_total": dice.choice([None, 50])})
            await organisations.run(organisations.putting(group, user_id, change))
        case "leave":
            await organisations.run(organisations.removing(group, user_id))
        case "reserve":
            streams.append((await world.reserve(user_id, tokens=dice.randint(1, 20), limit=60, through=replica))[0])
        case "extend" if stream:
            step = (await replica.receipt(stream)).step + 1
            await replica.extend(stream_id=stream, step=step, output_tokens=10)
        case "settle" if stream and (await replica.receipt(stream)).usage is None:
            await world.settle(stream, 7)
        case "void" if stream:
            await replica.void(stream_id=stream)
        case "expire":
            await replica.expire_due()
