"""Laws of API keys, on both engines: what is kept of them, what they open, and when they cease to."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from tests.identities import HERE, ISSUER, PASSWORD, Hands, alice, opened, verifier
from tests.postgres import Engine

from parshall.auth import apikey, keys, model, store
from parshall.auth.apikey import ApiKeyRefused
from parshall.auth.service import Auth
from parshall.kernel.clock import DAY, SECOND, rfc3339
from parshall.kernel.errors import NotFound, TooManyRequests, Unauthenticated
from parshall.kernel.ids import UserId
from parshall.kernel.tokens import API_KEY_REMEMBERED_SECONDS, KEY_SCOPES, Role, TokenVerifier

AT = 1_800_000_000 * SECOND
ANN = UserId("a" * 32)


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest_asyncio.fixture
async def auth(engine: Engine, clock: Hands) -> AsyncIterator[Auth]:
    made = await opened(engine, clock)
    yield made
    await made.close()


# ── Rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_names_itself_by_its_prefix_and_hides_its_text() -> None:
    made = apikey.new_key(ANN, "ci", KEY_SCOPES, at=AT, expires_at=None)
    assert made.text.startswith(made.key.prefix)
    assert apikey.claimed_id(made.text) == apikey.listed_id(made.key.prefix) == made.key.id
    assert made.text.removeprefix(made.key.prefix) not in repr(made)


@given(st.text())
def test_any_other_text_claims_to_be_no_key(text: str) -> None:
    for wrong in (text, f"parshall_{text}", f"parshall_{'0' * 16}_{text}"):
        assert apikey.claimed_id(wrong) == "" or len(wrong) == 69


@pytest.mark.parametrize("name", ["", " ", " ci", "x" * 101, "a\nb", "a\x00b", "\ud800", "a\u202eb"])
def test_a_name_that_does_not_show_as_it_is_is_refused(name: str) -> None:
    with pytest.raises(apikey.MalformedKeyName):
        apikey.new_key(ANN, name, KEY_SCOPES, at=AT, expires_at=None)


@pytest.mark.parametrize("expires_at", [-1, 0, AT, AT + 3660 * DAY + 1, 2**63])
def test_a_key_expires_in_the_future_and_within_ten_years(expires_at: int) -> None:
    with pytest.raises(apikey.UnfitExpiry):
        apikey.new_key(ANN, "ci", KEY_SCOPES, at=AT, expires_at=expires_at)


@pytest.mark.parametrize("scopes", [[], ["admin"], ["chat", "accounting:settle"], ["chat credits:read"]])
def test_a_key_has_scopes_and_only_those_that_there_are(scopes: list[str]) -> None:
    with pytest.raises(apikey.UnknownScope):
        apikey.new_key(ANN, "ci", frozenset(scopes), at=AT, expires_at=None)


# ── Use ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_calls_in_its_users_name_within_its_scopes_and_never_above_an_enduser(
    auth: Auth, clock: Hands
) -> None:
    user = await alice(auth, Role.ADMIN)
    made = await auth.api_keys.create(user.id, "ci", scopes=frozenset({"chat"}))
    exchanged = await auth.api_keys.exchange(made.text, HERE)
    assert (exchanged.expires_in, exchanged.scopes) == (apikey.TOKEN_SECONDS, {"chat"})
    for token in (made.text, exchanged.access_token):
        principal = await verifier(auth, clock).verify(token, HERE)
        assert (principal.user_id, principal.username, principal.role) == (user.id, "alice", Role.ENDUSER)
        assert (principal.is_limited, principal.is_service, principal.scopes) == (True, False, {"chat"})
        assert await auth.present(principal.user_id, principal.session_id) == user


async def test_a_login_is_not_limited(auth: Auth, clock: Hands) -> None:
    await alice(auth)
    session = await auth.login("alice", PASSWORD, HERE)
    assert not (await verifier(auth, clock).verify(session.access_token)).is_limited


async def test_a_service_without_an_exchange_takes_no_key(auth: Auth, clock: Hands) -> None:
    made = await auth.api_keys.create((await alice(auth)).id, "ci")
    with pytest.raises(Unauthenticated):
        await TokenVerifier(auth.key_set, issuer=ISSUER, clock=clock).verify(made.text)


async def test_a_token_can_have_fewer_scopes_than_its_key_and_never_more(auth: Auth, clock: Hands) -> None:
    both = frozenset({"chat", "credits:read"})
    made = await auth.api_keys.create((await alice(auth)).id, "ci", scopes=both)
    narrow = await auth.api_keys.exchange(made.text, HERE, "credits:read")
    assert (await verifier(auth, clock).verify(narrow.access_token)).scopes == {"credits:read"}
    with pytest.raises(model.InvalidScope):
        await auth.api_keys.exchange(made.text, HERE, "chat profile:read")


async def test_nothing_that_is_kept_is_enough_to_call_with(auth: Auth) -> None:
    made = await auth.api_keys.create((await alice(auth)).id, "ci")
    kept = await auth._database.read(lambda c: repr(c.exec_driver_sql("SELECT * FROM api_keys").all()))
    assert made.key.id in kept
    assert made.text.rpartition(made.key.prefix)[2].strip("_") not in kept


async def test_wrong_unknown_expired_and_revoked_keys_get_the_same_words(auth: Auth, clock: Hands) -> None:
    user = await alice(auth)
    short = await auth.api_keys.create(user.id, "short", expires_at=clock() + SECOND)
    revoked = await auth.api_keys.create(user.id, "revoked")
    right = await auth.api_keys.create(user.id, "right")
    await auth.api_keys.revoke(user.id, revoked.key.prefix)
    clock.turn(1)
    wrong = f"{right.key.prefix}_{'A' * 43}"
    unknown = f"parshall_{'0' * 16}_{'A' * 43}"
    said = set()
    for text in (short.text, revoked.text, wrong, unknown, "", "parshall_", "\ud800", "\x00", "x" * 10_000):
        with pytest.raises(ApiKeyRefused) as refusal:
            await auth.api_keys.exchange(text, "192.0.2.7" if len(said) else HERE)
        said.add((refusal.value.detail, refusal.value.code, str(refusal.value.headers), str(refusal.value.extra)))
    assert len(said) == 1
    assert await auth.api_keys.exchange(right.text, HERE)


async def test_wrong_keys_are_throttled_by_address_and_right_ones_never(auth: Auth) -> None:
    made = await auth.api_keys.create((await alice(auth)).id, "ci")
    wrong = f"{made.key.prefix}_{'A' * 43}"
    outcomes = [await refused_as(auth, wrong, HERE) for _ in range(12)]
    assert outcomes == [ApiKeyRefused] * 10 + [TooManyRequests] * 2
    assert await auth.api_keys.exchange(made.text, HERE)
    assert await refused_as(auth, wrong, "192.0.2.2") is ApiKeyRefused


async def refused_as(auth: Auth, text: str, address: str) -> type[Exception]:
    with pytest.raises((ApiKeyRefused, TooManyRequests)) as refusal:
        await auth.api_keys.exchange(text, address)
    return refusal.type


async def test_the_day_of_the_last_use_is_known(auth: Auth, clock: Hands) -> None:
    user = await alice(auth)
    made = await auth.api_keys.create(user.id, "ci")
    assert [key.used_day for key in await auth.api_keys.keys_of(user.id)] == [None]
    days = []
    for seconds in (0, 1, DAY // SECOND):
        clock.turn(seconds)
        await auth.api_keys.exchange(made.text, HERE)
        (kept,) = await auth.api_keys.keys_of(user.id)
        assert kept.used_day is not None
        days.append(rfc3339(kept.used_day * DAY)[:10])
    assert days == ["2027-01-15", "2027-01-15", "2027-01-16"]


# ── Ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_revoked_key_ends_at_once_in_auth_and_within_half_a_minute_elsewhere(auth: Auth, clock: Hands) -> None:
    user = await alice(auth)
    made = await auth.api_keys.create(user.id, "ci")
    elsewhere = verifier(auth, clock)
    principal = await elsewhere.verify(made.text)
    token = await auth.api_keys.access_token(made.text, HERE)
    await auth.api_keys.revoke(user.id, made.key.id)
    with pytest.raises(ApiKeyRefused):
        await auth.api_keys.exchange(made.text, HERE)
    with pytest.raises(model.SessionOver):
        await auth.present(user.id, principal.session_id)
    clock.turn(API_KEY_REMEMBERED_SECONDS - 0.001)
    assert await elsewhere.verify(made.text) == principal
    clock.turn(0.001)
    with pytest.raises(Unauthenticated):
        await elsewhere.verify(made.text)
    assert await elsewhere.verify(token), "a token of its own lives to its end"
    clock.turn(apikey.TOKEN_SECONDS)
    with pytest.raises(Unauthenticated):
        await elsewhere.verify(token)


async def test_a_token_never_outlives_the_key_that_it_was_got_for(auth: Auth, clock: Hands) -> None:
    user = await alice(auth)
    made = await auth.api_keys.create(user.id, "ci", expires_at=clock() + 100 * SECOND)
    assert (await auth.api_keys.exchange(made.text, HERE)).expires_in == 100
    clock.turn(99.5)
    assert (await auth.api_keys.exchange(made.text, HERE)).expires_in == 0
    clock.turn(0.5)
    with pytest.raises(ApiKeyRefused):
        await auth.api_keys.exchange(made.text, HERE)


@pytest.mark.parametrize(("cause", "ends"), [("change", False), ("logout", False), ("reset", True), ("delete", True)])
async def test_keys_end_with_whoever_may_have_lost_the_account(auth: Auth, cause: str, ends: bool) -> None:
    user = await alice(auth)
    made = await auth.api_keys.create(user.id, "ci")
    other = await auth.api_keys.create((await auth.create_user("bob", "b@example.org", PASSWORD)).id, "ci")
    if cause == "change":
        await auth.change_password(user.id, PASSWORD, "battery staple", HERE)
    elif cause == "logout":
        await auth.logout_all(user.id)
    elif cause == "reset":
        await auth.set_password("alice", "battery staple")
    else:
        await auth.delete_user("alice")
    assert await auth.api_keys.exchange(other.text, HERE)
    if ends:
        assert await refused_as(auth, made.text, HERE) is ApiKeyRefused
    else:
        assert await auth.api_keys.exchange(made.text, HERE)


async def test_nobody_revokes_or_lists_anothers_key(auth: Auth) -> None:
    user = await alice(auth)
    bob = await auth.create_user("bob", "b@example.org", PASSWORD)
    made = await auth.api_keys.create(user.id, "ci")
    for key_id in (made.key.id, made.key.prefix, "", "0" * 16, "\x00", "\ud800", made.text):
        with pytest.raises(NotFound):
            await auth.api_keys.revoke(bob.id, key_id)
    assert await auth.api_keys.keys_of(bob.id) == []
    assert await auth.api_keys.keys_of(user.id) == [made.key]


async def test_a_name_is_the_users_own_and_free_again_once_revoked(auth: Auth) -> None:
    user = await alice(auth)
    bob = await auth.create_user("bob", "b@example.org", PASSWORD)
    made = await auth.api_keys.create(user.id, "ci")
    await auth.api_keys.create(bob.id, "ci")
    with pytest.raises(apikey.KeyNameTaken):
        await auth.api_keys.create(user.id, "ci")
    await auth.api_keys.revoke(user.id, made.key.id)
    assert await auth.api_keys.create(user.id, "ci")


async def test_nobody_gets_more_keys_than_there_may_be_however_many_are_asked_for_at_once(
    auth: Auth, engine: Engine, clock: Hands
) -> None:
    user, other = await alice(auth), await opened(engine, clock)
    for number in range(apikey.PER_USER_MAX - 2):
        await auth.api_keys.create(user.id, f"key {number}")
    wanted = (each.api_keys.create(user.id, f"{place}") for place, each in enumerate((auth, other) * 4))
    outcomes = await asyncio.gather(*wanted, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(apikey.TooManyKeys) == 6
    assert len(await auth.api_keys.keys_of(user.id)) == apikey.PER_USER_MAX
    await other.close()


async def test_somebody_who_is_gone_gets_no_key(auth: Auth) -> None:
    with pytest.raises(model.UserGone):
        await auth.api_keys.create(ANN, "ci")


async def test_a_token_for_a_key_is_limited_even_where_it_has_no_scope(auth: Auth, clock: Hands) -> None:
    user = await alice(auth, Role.ADMIN)
    claims = keys.limited_claims(user, frozenset(), issuer=ISSUER, at=clock(), seconds=9, key_id="0" * 16)
    token = keys.sign((await auth._database.read(store.list_keys))[0], claims)
    principal = await verifier(auth, clock).verify(token)
    assert (principal.is_limited, principal.scopes, principal.role) == (True, frozenset(), Role.ENDUSER)
