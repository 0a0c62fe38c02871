"""Laws of rotating signing keys, on both engines: nobody is refused on the way; what is taken back opens nothing."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from joserfc.jwk import KeySet
from tests.identities import HERE, ISSUER, PASSWORD, Hands, alice, opened, verifier
from tests.postgres import Engine

from parshall.auth import keys
from parshall.auth.service import Auth
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.errors import Unauthenticated, Unavailable
from parshall.kernel.tokens import KEYS_REFRESH_SECONDS_MAX, KeySource, TokenVerifier

STEPS = 60
CALLERS = 4
TOKENS_KEPT = 6


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest_asyncio.fixture
async def auth(engine: Engine, clock: Hands) -> AsyncIterator[Auth]:
    made = await opened(engine, clock)
    yield made
    await made.close()


def cached(source: KeySource, clock: Hands) -> KeySource:
    """The published keys behind a cache that keeps them for as long as their header permits."""
    kept: dict[str, tuple[KeySet, int]] = {}

    async def get() -> KeySet:
        if "keys" not in kept or kept["keys"][1] + keys.KEYS_CACHED_SECONDS * SECOND <= clock():
            kept["keys"] = (await source(), clock())
        return kept["keys"][0]

    return get


@pytest.mark.parametrize("seed", range(3))
async def test_however_often_keys_are_rotated_under_load_no_token_is_refused_before_it_expires(
    auth: Auth, engine: Engine, clock: Hands, seed: int
) -> None:
    chance, other = random.Random(seed), await opened(engine, clock)
    await alice(auth)
    sessions = [await auth.login("alice", PASSWORD, HERE) for _ in range(CALLERS)]
    services = [
        verifier(auth, clock),
        verifier(other, clock),
        TokenVerifier(cached(auth.key_set, clock), issuer=ISSUER, clock=clock),
    ]
    held: list[tuple[str, int]] = []
    signed_by = set()

    async def call(place: int) -> None:
        session = sessions[place] = await chance.choice((auth, other)).refresh(sessions[place].refresh_token)
        held.append((session.access_token, clock() + session.expires_in * SECOND))
        signed_by.add(session.access_token.partition(".")[0])
        tokens = [session.access_token, *(token for token, until in chance.sample(held, len(held)) if until > clock())]
        for token in tokens[:TOKENS_KEPT]:
            assert (await chance.choice(services).verify(token)).username == "alice"

    for _ in range(STEPS):
        clock.turn(chance.choice((0.5, 1, 9, 31, 61, 400)))
        if chance.random() < 0.3:
            await chance.choice((auth, other)).rotate()
        await asyncio.gather(*(call(place) for place in range(CALLERS)))
    assert len(signed_by) > 3, "keys were rotated and signed"
    await other.close()


async def test_a_rotation_forgets_keys_that_nothing_valid_bears_any_more(auth: Auth, clock: Hands) -> None:
    first = (await auth.keys_in_force())[0].kid
    clock.turn(1)
    second = await auth.rotate()
    clock.turn(DAY // SECOND - 1)
    third = await auth.rotate()
    assert [key.kid for key in await auth.keys_in_force()] == [third, second, first]
    clock.turn(1)
    fourth = await auth.rotate()
    kept = await auth._database.read(lambda c: c.exec_driver_sql("SELECT kid FROM signing_keys").scalars().all())
    assert {*kept} == {second, third, fourth}


async def test_what_a_key_signed_that_was_thrown_away_is_refused_within_half_a_minute(auth: Auth, clock: Hands) -> None:
    await alice(auth)
    service = verifier(auth, clock)
    old = await auth.login("alice", PASSWORD, HERE)
    await service.verify(old.access_token)
    clock.turn(11)
    kid = await auth.replace_keys()
    new = await auth.refresh(old.refresh_token)
    assert [key.kid for key in (await auth.key_set()).keys] == [kid]
    await service.verify(new.access_token)
    with pytest.raises(Unauthenticated):
        await service.verify(old.access_token)


async def test_a_service_that_meets_no_new_token_notices_too(auth: Auth, clock: Hands) -> None:
    await alice(auth)
    service = verifier(auth, clock)
    remembered, fresh = [(await auth.login("alice", PASSWORD, HERE)).access_token for _ in range(2)]
    await service.verify(remembered)
    await auth.replace_keys()
    await service.verify(remembered)
    clock.turn(KEYS_REFRESH_SECONDS_MAX)
    for token in (remembered, fresh):
        with pytest.raises(Unauthenticated):
            await service.verify(token)


async def test_while_auth_is_away_known_keys_go_on_to_verify_and_unknown_ones_have_to_wait(
    auth: Auth, clock: Hands
) -> None:
    await alice(auth)
    away = False

    async def source() -> KeySet:
        if away:
            raise Unavailable
        return await auth.key_set()

    service = TokenVerifier(source, issuer=ISSUER, clock=clock)
    tokens = [(await auth.login("alice", PASSWORD, HERE)).access_token for _ in range(2)]
    await service.verify(tokens[0])
    clock.turn(1)
    await auth.rotate()
    for _ in range(2):  # as a service that is used asks again
        clock.turn(KEYS_REFRESH_SECONDS_MAX)
        await service.verify(tokens[0])
    by_new_key = (await auth.login("alice", PASSWORD, HERE)).access_token
    assert by_new_key.partition(".")[0] != tokens[0].partition(".")[0]
    away = True
    clock.turn(KEYS_REFRESH_SECONDS_MAX)
    for token in (tokens[1], by_new_key):
        assert (await service.verify(token)).username == "alice"
    await auth.replace_keys()
    unknown = (await auth.login("alice", PASSWORD, HERE)).access_token
    with pytest.raises(Unavailable):  # not 401: whoever bears it would throw a good login away
        await service.verify(unknown)
    for garbage in ("none", unknown.partition(".")[2], tokens[1][:-6] + "AAAAAA"):
        with pytest.raises(Unauthenticated):
            await service.verify(garbage)
    away = False
    clock.turn(KEYS_REFRESH_SECONDS_MAX)
    assert (await service.verify(unknown)).username == "alice"
    away = True
    with pytest.raises(Unavailable):
        await TokenVerifier(source, issuer=ISSUER, clock=clock).verify(tokens[0])
