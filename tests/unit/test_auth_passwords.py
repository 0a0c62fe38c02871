"""Laws of password hashing and of the login throttle."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from parshall.auth import passwords
from parshall.auth.model import UnfitPassword
from parshall.auth.passwords import LoginThrottle, PasswordHasher
from parshall.kernel.errors import TooManyRequests, Unavailable


@pytest_asyncio.fixture
async def hasher() -> AsyncIterator[PasswordHasher]:
    made = PasswordHasher(passes=1, memory_kib=8, lanes=1)
    yield made
    await made.close()


async def test_a_password_matches_its_own_hash_only(hasher: PasswordHasher) -> None:
    kept = await hasher.hash("correct horse")
    assert kept.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert await hasher.verify("correct horse", kept)
    assert not await hasher.verify("correct horsf", kept)


async def test_equal_passwords_have_different_hashes(hasher: PasswordHasher) -> None:
    assert await hasher.hash("correct horse") != await hasher.hash("correct horse")


async def test_composed_and_decomposed_letters_are_the_same_password(hasher: PasswordHasher) -> None:
    assert await hasher.verify("cafe\u0301 noir", await hasher.hash("caf\u00e9 noir"))


async def test_nothing_matches_the_hash_of_nobody(hasher: PasswordHasher) -> None:
    assert not await hasher.verify("", None)
    assert not await hasher.verify("correct horse", None)


async def test_the_hash_of_nobody_costs_what_a_real_one_costs(hasher: PasswordHasher) -> None:
    real = await hasher.hash("correct horse")
    assert real.split("$")[:4] == hasher._nobody.split("$")[:4]
    assert [len(part) for part in real.split("$")] == [len(part) for part in hasher._nobody.split("$")]


@pytest.mark.parametrize("password", ["x" * 1025, "é" * 513, "half \ud800"])
async def test_what_cannot_be_hashed_is_refused_and_matches_nothing(hasher: PasswordHasher, password: str) -> None:
    with pytest.raises(UnfitPassword):
        await hasher.hash(password)
    assert not await hasher.verify(password, await hasher.hash("x" * 1024))


async def test_the_defaults_are_argon2id_with_64_mib() -> None:
    careful = PasswordHasher()
    kept = await careful.hash("correct horse")
    await careful.close()
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


async def test_a_queue_that_is_full_turns_callers_away(hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "WAITING_MAX", 3)
    outcomes = await asyncio.gather(*(hasher.hash("correct horse") for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [str, str, str, Unavailable, Unavailable]
    assert await hasher.hash("correct horse")


def test_ten_failures_lock_a_name_from_that_address_only() -> None:
    throttle = LoginThrottle()
    for _ in range(10):
        throttle.check("Alice", "192.0.2.1")
        throttle.failed("Alice", "192.0.2.1")
    with pytest.raises(TooManyRequests) as refusal:
        throttle.check("alice", "192.0.2.1")
    assert 890 <= int(refusal.value.headers["Retry-After"]) <= 900
    throttle.check("alice", "192.0.2.2")
    throttle.check("bob", "192.0.2.1")


def test_fifty_failures_lock_an_address_for_every_name() -> None:
    throttle = LoginThrottle()
    for number in range(50):
        throttle.check("bob", "192.0.2.1")
        throttle.failed(f"user{number}", "192.0.2.1")
    with pytest.raises(TooManyRequests):
        throttle.check("bob", "192.0.2.1")
    throttle.check("bob", "192.0.2.2")


def test_success_forgets_the_failures_of_the_name_but_not_of_the_address() -> None:
    throttle = LoginThrottle()
    for _ in range(5):
        for _ in range(9):
            throttle.failed("alice", "192.0.2.1")
        throttle.succeeded("alice", "192.0.2.1")
        throttle.check("alice", "192.0.2.1")
    for _ in range(5):
        throttle.failed("alice", "192.0.2.1")
    with pytest.raises(TooManyRequests):
        throttle.check("bob", "192.0.2.1")


def test_the_addresses_of_one_ipv6_network_count_as_one() -> None:
    throttle = LoginThrottle()
    for number in range(10):
        throttle.failed("alice", f"2001:db8::{number:x}")
    with pytest.raises(TooManyRequests):
        throttle.check("alice", "2001:db8::ffff")
    throttle.check("alice", "2001:db8:0:1::1")


def test_an_address_counts_the_same_mapped_into_ipv6() -> None:
    throttle = LoginThrottle()
    for _ in range(10):
        throttle.failed("alice", "::ffff:192.0.2.1")
    with pytest.raises(TooManyRequests):
        throttle.check("alice", "192.0.2.1")


def test_counters_that_have_run_empty_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    throttle = LoginThrottle()
    throttle.failed("alice", "192.0.2.1")
    assert len(throttle._storage.events) == 2
    for entries in throttle._storage.events.values():
        entries.clear()
    throttle._sweep()
    assert len(throttle._storage.events) == 0
