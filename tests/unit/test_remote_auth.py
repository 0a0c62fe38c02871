"""Auth over HTTP: tokens renewed ahead and once, keys that outlast an outage, people, and API keys."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import migrated
from tests.apart import Wire, served
from tests.identities import PASSWORD

from parshall.auth import remote as remote_module
from parshall.auth.http import router, wellknown
from parshall.auth.model import READ_SCOPE, User
from parshall.auth.passwords import PasswordHasher
from parshall.auth.remote import RemoteAuth
from parshall.auth.service import Auth
from parshall.kernel import clock
from parshall.kernel.errors import NotFound, Unauthenticated, Unavailable
from parshall.kernel.tokens import Role, TokenVerifier

ISSUER = "http://127.0.0.1:3000"


@dataclass
class World:
    """Auth, the same over HTTP for the service `chat`, and the wire between."""

    auth: Auth
    remote: RemoteAuth
    wire: Wire
    url: str
    alice: User

    def verifier(self) -> TokenVerifier:
        """What the service verifies its own callers with."""
        return TokenVerifier(self.remote.key_set, issuer=ISSUER, clock=clock.now, exchange=self.remote.access_token)

    async def login(self) -> str:
        return (await self.auth.login("alice", PASSWORD, "192.0.2.1")).access_token


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = migrated.opened(tmp_path / "auth.db", "parshall.auth", synchronous="NORMAL")
    auth = Auth(database, issuer=ISSUER, clock=clock.now, hasher=PasswordHasher(passes=1, memory_kib=8, lanes=1))
    await auth.start()
    alice = await auth.create_user("alice", "Alice@example.org", PASSWORD)
    secret = await auth.add_service("chat", [READ_SCOPE])
    async with AsyncExitStack() as stack:
        verifier = TokenVerifier(auth.key_set, issuer=ISSUER, clock=clock.now)
        wire = Wire(await stack.enter_async_context(served(router, wellknown, auth=auth, verifier=verifier)))
        url = await stack.enter_async_context(wire)
        remote = RemoteAuth(url, name="chat", secret=secret)
        stack.push_async_callback(remote.close)
        yield World(auth=auth, remote=remote, wire=wire, url=url, alice=alice)
    await auth.close()


# ── The own token ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_many_at_once_get_one_token_by_one_request(world: World) -> None:
    tokens = await asyncio.gather(*(world.remote.tokens.token() for _ in range(50)))
    assert len(set(tokens)) == 1 and world.wire.requests == 1
    principal = await world.verifier().verify(tokens[0])
    assert (principal.is_service, principal.user_id, principal.scopes) == (True, "chat", {READ_SCOPE})


async def test_a_token_is_renewed_ahead_while_the_old_one_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "TOKEN_SPENT", 0)
    first = await world.remote.tokens.token()
    world.wire.delay_seconds = 0.2
    assert await world.remote.tokens.token() == first, "nobody waits for the next one"
    await asyncio.sleep(0.4)
    assert await world.remote.tokens.token() != first


async def test_a_token_outlasts_an_outage_of_auth_until_it_expires(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "TOKEN_SPENT", 0)
    first = await world.remote.tokens.token()
    world.wire.cut()
    for _ in range(20):
        assert await world.remote.tokens.token() == first
        await asyncio.sleep(0.01)
    monkeypatch.setattr(world.remote.tokens, "_until", 0)
    with pytest.raises(Unavailable):
        await world.remote.tokens.token()


async def test_a_wrong_secret_is_unavailable_and_says_nothing_to_users(world: World) -> None:
    other = RemoteAuth(world.url, name="chat", secret="wrong")
    with pytest.raises(Unavailable) as refused:
        await other.find_user("alice")
    assert "secret" not in refused.value.detail
    await other.close()


# ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_tokens_go_on_while_auth_is_away_and_new_keys_are_fetched_when_it_is_back(world: World) -> None:
    verifier, token = world.verifier(), await world.login()
    assert (await verifier.verify(token)).username == "alice"
    world.wire.cut()
    again = await world.login()
    assert (await verifier.verify(again)).username == "alice", "a token it has never seen, by a key that it knows"
    with pytest.raises(Unavailable):
        await world.verifier().verify(token)


async def test_an_unknown_key_is_asked_for_once_in_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = world.verifier()
    await verifier.verify(await world.login())
    await world.auth.replace_keys()
    token, asked = await world.login(), world.wire.requests
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await verifier.verify(token)
    assert world.wire.requests == asked, "fetched less than KEYS_REFRESH_SECONDS_MIN ago"
    monkeypatch.setattr(verifier, "_fetched_at", 0)
    assert (await verifier.verify(token)).username == "alice"
    assert world.wire.requests == asked + 1


# ── People and API keys ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_user_is_found_by_id_name_or_address_and_remembered(world: World) -> None:
    for who in (world.alice.id, "alice", "ALICE", "alice@example.org"):
        assert await world.remote.find_user(who) == world.alice
        assert await world.remote.resolve(who) == world.alice.id
    asked = world.wire.requests
    assert await world.remote.resolve("alice") == world.alice.id
    assert world.wire.requests == asked


@pytest.mark.parametrize("who", ["bob", "0" * 32, "bob@example.org", "", "..", "a/b", "x" * 400, "by-email", "é"])
async def test_nobody_else_is_found(world: World, who: str) -> None:
    with pytest.raises(NotFound):
        await world.remote.find_user(who)


async def test_a_role_is_that_of_now_and_a_name_that_of_a_while_ago(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.remote.find_user("alice")
    await world.remote.resolve("alice")
    await world.auth.set_role("alice", Role.SUPERVISOR)
    assert (await world.remote.find_user("alice")).role is Role.SUPERVISOR
    await world.auth.update_profile(world.alice.id, username="alicia", email=None)
    assert await world.remote.resolve("alice") == world.alice.id
    monkeypatch.setattr(world.remote, "_people", OrderedDict(alice=(world.alice.id, 0.0)))
    with pytest.raises(NotFound):
        await world.remote.resolve("alice")


async def test_an_api_key_is_exchanged_and_a_wrong_one_refused(world: World) -> None:
    made = await world.auth.api_keys.create(world.alice.id, "script")
    principal = await world.verifier().verify(made.text, "192.0.2.1")
    assert principal.is_limited and principal.user_id == world.alice.id
    asked = world.wire.requests
    with pytest.raises(Unauthenticated):
        await world.verifier().verify(made.text[:-1] + ("a" if made.text[-1] != "a" else "b"), "192.0.2.1")
    assert world.wire.requests <= asked + 2, "a wrong key is no reason to ask for another service token"


async def test_a_service_without_the_scope_looks_nobody_up(world: World) -> None:
    secret = await world.auth.add_service("billing", ["accounting:settle"])
    other = RemoteAuth(world.url, name="billing", secret=secret)
    with pytest.raises(Unavailable):
        await other.find_user("alice")
    await other.close()
