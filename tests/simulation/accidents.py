"""What happens to a ledger while it works: replicas that race within their transactions, sweeps that are overtaken."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.simulation.clients import Sent, Stream, answers_of
from tests.simulation.requested import Request
from tests.simulation.steps import Late, Pause
from tests.simulation.world import BATCH_MAX, STEP_MAX, UNANSWERED, Replica, World

WAIT_SECONDS_MAX = 20
SWEEP = Request(kind="sweep", id="all", arguments={})


def accidents(world: World) -> list[tuple[int, Callable[[], Awaitable[None]]]]:
    """Each with its weight. Only PostgreSQL lets two transactions run at once."""
    ones: list[tuple[int, Callable[[], Awaitable[None]]]] = [
        (2, lambda: reboot(world)),
        (3, lambda: stray(world)),
        (4, lambda: overtaken_sweep(world)),
    ]
    return ones + ([(14, lambda: race(world))] if world.engine == "postgres" else [])


async def reboot(world: World) -> None:
    await world.restart(world.someone(), "is told to stop")


async def stray(world: World) -> None:
    """Somebody else ends a stream: its user voids it, or whoever adopted it has counted otherwise."""
    if stream := known_stream(world, "active", "expired"):
        await world.handle(world.someone(), [rival(world, stream)])


async def overtaken_sweep(world: World) -> None:
    """A replica has found what is due; before it can end that, another one settles, voids or renews it."""
    stream = known_stream(world, "active")
    if stream is None:
        return
    world.at = max(world.at, world.auditor.records.streams[stream.id].expires_at)
    first, second = world.chance.sample(world.replicas, 2)
    late, sweep, other = Late(), Sent(SWEEP), rival(world, stream)
    first.database.plan = late
    sweeping = asyncio.create_task(first.answer([sweep.request]))
    await until(lambda: late.reached.is_set() or sweeping.done())
    answers = await second.answer([other.request])
    late.resumed.set()
    answers += await sweeping
    await conclude(world, f"{first} sweeps what {second} was quicker with", [other, sweep], answers)


async def race(world: World) -> None:
    """Two replicas at once: one stands in mid-transaction while the other runs until it is done or has to wait.

    Then the first one goes on, or dies where it stands.
    """
    ours, theirs = contest(world)
    first, second = world.chance.sample(world.replicas, 2)
    step = min(world.chance.randint(1, STEP_MAX), world.chance.randint(1, STEP_MAX))
    pause = Pause(step, fatal=world.chance.random() < 0.3)
    answers, waited = await interleaved(world, (first, ours), (second, theirs), pause)
    waits = "waits for it" if waited else "does not wait"
    if first.database.dead:
        world.note(f"no answer to {', '.join(str(sent.request) for sent in ours)}")
    await conclude(world, f"{first} is held at step {step}, {second} {waits}", [*ours, *theirs], answers)
    if first.database.dead:
        await world.restart(first, "dies there")


def contest(world: World) -> tuple[list[Sent], list[Sent]]:
    """What two replicas are asked at once: what has arrived, and two requests that want the same stream."""
    arrived = world.arrived(most=2 * BATCH_MAX)
    half = len(arrived) // 2
    ours, theirs = arrived[:half], arrived[half:]
    if world.chance.random() < 0.3:  # a void that overtakes the reservation
        stream = world.new_stream()
        ours, theirs = [asked(world, stream.void()), *ours], [asked(world, stream.first()), *theirs]
    elif stream := known_stream(world, "active", "expired"):
        ours, theirs = [rival(world, stream), *ours], [rival(world, stream), *theirs]
    return ours, theirs


async def interleaved(
    world: World, first: tuple[Replica, list[Sent]], second: tuple[Replica, list[Sent]], pause: Pause
) -> tuple[list[Any], bool]:
    """The answers to all, and whether the second replica had to wait for the first."""
    first[0].database.plan = pause
    held = asyncio.create_task(first[0].answer([sent.request for sent in first[1]]))
    try:
        await until(lambda: pause.reached.is_set() or held.done())
        racing = asyncio.create_task(second[0].answer([sent.request for sent in second[1]]))
        await until(lambda: racing.done() or world.outside.waiting())
        waited = not racing.done()
    finally:
        pause.resumed.set()
    answers = await held + await racing
    first[0].database.plan = None
    return answers, waited


async def conclude(world: World, what: str, asked: list[Sent], answers: list[Any]) -> None:
    pairs = list(zip(asked, answers, strict=True))
    world.note(f"{what}: {answers_of((sent, answer) for sent, answer in pairs if answer is not UNANSWERED)}")
    world.observe()
    world.take_in(pairs)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not done():
            await asyncio.sleep(0.002)


def known_stream(world: World, *states: str) -> Stream | None:
    """One of the streams in these states, as somebody other than its client knows it."""
    rows = world.auditor.records.streams
    known = sorted(each for each, row in rows.items() if row.state in states)
    if not known:
        return None
    row = rows[world.chance.choice(known)]
    stream = Stream(world.chance, int(row.id.rpartition("-")[2]), row.user_id, granted=row.output_tokens, step=row.step)
    stream.read = row.input_tokens
    return stream


def rival(world: World, stream: Stream) -> Sent:
    """A request about a stream that its client knows nothing of."""
    return asked(world, world.chance.choice((stream.void, stream.settle, stream.extend))())


def asked(world: World, request: Request) -> Sent:
    """On its way, and asked again until it is answered: whoever settles wants to know what was charged."""
    world.auditor.asking(request)
    sent = Sent(request)
    world.outstanding.append(sent)
    return sent
