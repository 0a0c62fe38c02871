"""Worlds from one seed: users, lost packets, crashes and clock jumps around the real ledger, checked at each step."""

import os
import random
import time
from pathlib import Path
from unittest import mock

import pytest
from tests.postgres import Engine, Server
from tests.simulation.accidents import accidents
from tests.simulation.drained import drain
from tests.simulation.steps import numbered_steps
from tests.simulation.world import World

from parshall.accounting import changes

STEPS_QUICK = 100
STEPS_FEW = 60
STEPS_LONG = 600
MINUTES = 10
SEEDS_QUICK = (5, 7, None)
"""None is a new one each time."""
SEED_MAX = 10**9
TRACE_LINES_MAX = 60


def given(name: str, otherwise: int) -> int:
    return int(os.environ.get(name, otherwise))


def any_seed() -> int:
    return given("SEED", random.SystemRandom().randrange(SEED_MAX))


async def simulate(engine: Engine, seed: int, steps: int, *, calm: bool = False) -> World:
    """A world from its beginning to its end. What fails names the seed and shows what led to it."""
    print(f"SEED={seed} STEPS={steps} on {engine.name}")  # noqa: T201 - what a replay needs
    ids = random.Random(seed)  # of grants: drawn by the seed too, so that a run can be compared to the last hash
    with numbered_steps(), mock.patch.object(changes, "new_id", lambda: f"{ids.getrandbits(128):032x}"):
        world = World(engine, seed, calm=calm)
        await world.open()
        try:
            for _ in range(steps):
                await world.step(accidents(world))
            await drain(world)
        except Exception as error:
            raise AssertionError(report(world, engine, seed, steps, error)) from error
        finally:
            await world.close()
            await engine.renew()
    return world


def report(world: World, engine: Engine, seed: int, steps: int, error: Exception) -> str:
    lines = "\n".join(world.trace[-TRACE_LINES_MAX:])
    replay = f"SEED={seed} STEPS={steps} make test ARGS='tests/simulation -k \"laws_hold and {engine.name}\"'"
    return f"{type(error).__name__}: {error}\n\n{lines}\n\nin step {world.tick}; replay: {replay}"


@pytest.mark.parametrize("seed", [any_seed()] if "SEED" in os.environ else SEEDS_QUICK)
async def test_whatever_happens_the_laws_hold(engine: Engine, seed: int | None) -> None:
    await simulate(engine, any_seed() if seed is None else seed, given("STEPS", STEPS_QUICK))


@pytest.mark.soak
@pytest.mark.timeout(0)  # for as long as asked
async def test_the_laws_hold_in_one_world_after_the_other(engine: Engine) -> None:
    latest = time.monotonic() + given("MINUTES", MINUTES) * 60
    first, worlds = any_seed(), 0
    while worlds == 0 or time.monotonic() < latest:
        await simulate(engine, first + worlds, given("STEPS", STEPS_LONG))
        worlds += 1
    print(f"{worlds} worlds from SEED={first} on")  # noqa: T201 - what was asked for


async def test_the_same_seed_makes_the_same_world(tmp_path: Path) -> None:
    engine = Engine("sqlite", tmp_path, None)
    first, again, other = [await simulate(engine, seed, STEPS_FEW) for seed in (11, 11, 12)]
    assert first.trace == again.trace
    assert first.digest() == again.digest()
    assert other.trace != first.trace and other.digest() != first.digest()


async def test_both_engines_keep_the_same_books(tmp_path: Path, postgres_server: Server) -> None:
    """Without accidents: where a process dies depends on the number of an engine's statements."""
    here, there = Engine("sqlite", tmp_path, None), Engine("postgres", tmp_path, postgres_server)
    one, two = [await simulate(engine, 13, STEPS_FEW, calm=True) for engine in (here, there)]
    assert one.trace == two.trace
    assert one.digest() == two.digest()
