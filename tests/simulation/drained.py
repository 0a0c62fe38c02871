"""The end of a simulated run: every request is answered, every term is over, and every credit is accounted for."""

from collections import Counter

from tests.simulation.clients import RESERVATION_SECONDS, Sent
from tests.simulation.world import World

from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.metering import Settlement

TURNS_MAX = 5000
TOGETHER = 20


async def drain(world: World) -> None:
    """Bring the world to rest. Accidents end here; what was lost before is asked again until it is known."""
    world.calm = world.network.calm = True
    await answer_everything(world)
    await expire_streams(world)
    await settle_the_deserted(world)
    await repeat_everything(world)
    await expire_grants(world)
    account_for_everything(world)


async def answer_everything(world: World) -> None:
    for _ in range(TURNS_MAX):
        world.tick += 100
        world.at += SECOND
        world.ask_again()
        arrived = world.network.arrived(tick=world.tick, most=TOGETHER)
        if arrived:
            await world.handle(world.someone(), arrived)
        elif not world.outstanding and not world.asleep:
            return
    raise AssertionError(f"never answered: {[str(sent.request) for sent in world.outstanding]}")


async def expire_streams(world: World) -> None:
    """Nobody extends any more: every hold outlives its stream by no more than its time and a sweep."""
    world.at = max([world.at, *(row.expires_at for row in world.auditor.records.streams.values())])
    await world.sweep()
    assert world.auditor.records.reserved() == 0, "a hold survived its stream"
    assert all(row.state != "active" for row in world.auditor.records.streams.values())


async def settle_the_deserted(world: World) -> None:
    """A report that comes after the expiry has one answer: charged to what is there now, the rest uncollected."""
    for stream in world.deserted:
        row = world.auditor.records.streams[stream.id]
        request = stream.settle()
        if row.state != "expired" or row.usage_source is not None:
            continue
        account = world.auditor.records.books.accounts[row.account_id]
        members = {each.id: each for each in world.auditor.records.members.values()}
        world.auditor.asking(request)
        await world.handle(world.someone(), [Sent(request)])
        answer = world.auditor.first[request.stored()][1]
        now = world.auditor.records.streams[stream.id]
        assert isinstance(answer, Settlement) and now.state == "expired"
        spendable = account.available - expired_now(world, row.account_id)
        if row.member_id:
            spendable = min(spendable, members[row.member_id].limit_total - members[row.member_id].total_used)
        cost = answer.charged + answer.uncollected
        assert answer.charged == min(spendable, cost), "a late report is charged to what is there"
        assert now.reserved == row.reserved + answer.charged, "and reserves that first (M7)"


def expired_now(world: World, account_id: str) -> int:
    """What the last step booked as expired of an account."""
    rows = world.auditor.new_transfers()
    return sum(row.amount for row in rows if row.account_id == account_id and row.kind == "expire")


async def repeat_everything(world: World) -> None:
    """M3 and M4, for everything that was ever answered, on both replicas and after restarts."""
    for replica in world.replicas:
        await world.restart(replica, "is told to stop")
    known = [request for request, _ in world.auditor.first.values()]
    before = world.auditor.records.balances()
    for start in range(0, len(known), TOGETHER):
        some = known[start : start + TOGETHER]
        await world.handle(world.someone(), [Sent(request) for request in some])
        await world.must_refuse(some)
    assert world.auditor.records.balances() == before, "a replay changed a balance"


async def expire_grants(world: World) -> None:
    world.at += 2 * DAY + RESERVATION_SECONDS * SECOND
    await world.sweep()
    assert await world.replicas[0].ledger.expire_due() == 0


def account_for_everything(world: World) -> None:
    """Nothing is held, nothing is left, and what was granted was charged, has expired or was taken back."""
    records = world.auditor.records
    assert all(balance == (0, 0) for balance in records.balances().values())
    sums: Counter[str] = Counter()
    for row in records.books.transfers:
        sums[row.kind] += row.amount
    assert sums["grant"] == sums["charge"] + sums["deduct"] + sums["expire"] + sums["revoke"]
    assert sums["reserve"] == sums["charge"] + sums["release"]
    assert sums["charge"] == sum(row.charged or 0 for row in records.streams.values())
    assert sums["uncollected"] == sum(row.uncollected or 0 for row in records.streams.values())
    acknowledged = [a for _, a in world.auditor.first.values() if isinstance(a, Settlement)]
    assert sum(answer.charged for answer in acknowledged) == sums["charge"], "every charge was made known to somebody"
