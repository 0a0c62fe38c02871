"""Laws of the auth service, on its real database: users, sessions, roles, keys and services."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, delete, func, select
from tests.identities import HERE, ISSUER, PASSWORD, Hands, alice, opened, verifier
from tests.postgres import Engine

from parshall.auth import model, store, tables
from parshall.auth.model import NewUser
from parshall.auth.service import REFRESH_SECONDS, Auth
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.errors import NotFound, TooManyRequests, Unauthenticated
from parshall.kernel.tokens import Role, TokenVerifier


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest_asyncio.fixture
async def auth(engine: Engine, clock: Hands) -> AsyncIterator[Auth]:
    made = await opened(engine, clock)
    yield made
    await made.close()


async def rows(auth: Auth, table: Any) -> int:
    return await auth._database.read(lambda c: c.execute(select(func.count()).select_from(table)).scalar_one())


def everything(connection: Connection) -> str:
    """All rows of all tables."""
    found = MetaData()
    found.reflect(connection)
    return repr([connection.execute(select(table)).all() for table in found.sorted_tables])


# ── Users ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_migrations_leave_the_tables_that_the_statements_expect(auth: Auth) -> None:
    def differences(connection: Any) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"version_table": "auth_version", "compare_type": True})
        return list(compare_metadata(context, tables.metadata))

    assert await auth._database.read(differences) == []


async def test_a_user_is_found_by_id_username_and_address_in_any_case(auth: Auth) -> None:
    user = await alice(auth)
    for who in (user.id, "alice", "ALICE", "alice@EXAMPLE.org"):
        assert await auth.resolve(who) == user.id


@pytest.mark.parametrize(
    "who", ["", "bob", "f" * 32, "b@example.org", "alice\x00", "\ud800", "x" * 100_000, "%", "_____"]
)
async def test_nobody_is_found_by_any_other_name(auth: Auth, who: str) -> None:
    await alice(auth)
    with pytest.raises(NotFound):
        await auth.find_user(who)


async def test_names_and_addresses_are_taken_in_any_case(auth: Auth) -> None:
    await alice(auth)
    with pytest.raises(model.UsernameTaken):
        await auth.create_user("ALICE", "other@example.org", PASSWORD)
    with pytest.raises(model.EmailTaken):
        await auth.create_user("other", "alice@EXAMPLE.ORG", PASSWORD)


async def test_of_many_who_want_a_name_at_once_one_gets_it(auth: Auth) -> None:
    wanted = (auth.create_user("alice", f"a{number}@example.org", PASSWORD) for number in range(8))
    outcomes = await asyncio.gather(*wanted, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["User"] + ["UsernameTaken"] * 7


async def test_a_batch_makes_who_can_be_made_and_says_why_not_of_the_others(auth: Auth) -> None:
    batch = [
        NewUser(username="bob", email="b@example.org", password=PASSWORD, role=Role.SUPERVISOR),
        NewUser(username="Bob", email="c@example.org", password=PASSWORD),
        NewUser(username="dora", email="nowhere", password=PASSWORD),
        NewUser(username="erin", email="e@example.org", password="short"),
        NewUser(username="fred", email="B@example.org", password=PASSWORD),
        NewUser(username="gina", email="g@example.org", password=PASSWORD),
    ]
    outcomes = await auth.create_users(batch)
    assert [type(outcome) for outcome in outcomes] == [
        model.User,
        model.UsernameTaken,
        model.MalformedEmail,
        model.UnfitPassword,
        model.EmailTaken,
        model.User,
    ]
    assert {user.username: user.role for user in await auth.users()} == {"bob": Role.SUPERVISOR, "gina": Role.ENDUSER}


async def test_users_are_listed_by_page_and_by_what_their_names_contain(auth: Auth, clock: Hands) -> None:
    for number in range(5):
        clock.turn(1)
        await auth.create_user(f"user_{number}", f"u{number}@example.org", PASSWORD)
    page, total = await auth.users_page(page=2, limit=2)
    assert ([user.username for user in page], total) == (["user_2", "user_3"], 5)
    assert [user.username for user in (await auth.users_page(query="USER_4"))[0]] == ["user_4"]
    assert (await auth.users_page(query="%"))[1] == 0
    assert (await auth.users_page(query="userx"))[1] == 0


async def test_a_profile_keeps_what_is_not_changed(auth: Auth) -> None:
    user = await alice(auth)
    renamed = await auth.update_profile(user.id, username="alicia", email=None)
    assert (renamed.username, renamed.email) == ("alicia", user.email)
    moved = await auth.update_profile(user.id, username=None, email="new@example.org")
    assert (moved.username, moved.email) == ("alicia", "new@example.org")
    assert await auth.update_profile(user.id, username="ALICIA", email=None)


async def test_a_profile_cannot_take_the_name_or_address_of_another(auth: Auth) -> None:
    user = await alice(auth)
    await auth.create_user("bob", "b@example.org", PASSWORD)
    with pytest.raises(model.UsernameTaken):
        await auth.update_profile(user.id, username="BOB", email=None)
    with pytest.raises(model.EmailTaken):
        await auth.update_profile(user.id, username=None, email="B@example.org")
    assert await auth.find_user(user.id) == user


async def test_a_new_address_is_not_verified_and_the_same_one_stays_so(auth: Auth) -> None:
    await auth.ensure_admin("first")
    admin = await auth.find_user("admin")
    assert admin.is_verified
    assert (await auth.update_profile(admin.id, username="root", email="ADMIN@localhost")).is_verified
    assert not (await auth.update_profile(admin.id, username=None, email="r@example.org")).is_verified


async def test_the_first_start_makes_one_admin_with_the_password_as_given(auth: Auth) -> None:
    assert await auth.ensure_admin("tiny") is None
    session = await auth.login("admin", "tiny", HERE)
    assert session.user.role is Role.ADMIN
    assert await auth.ensure_admin("other") is None
    assert len(await auth.users()) == 1


async def test_without_a_password_one_is_made_and_told(auth: Auth) -> None:
    password = await auth.ensure_admin(None)
    assert password
    assert len(password) >= 16
    assert (await auth.login("admin@localhost", password, HERE)).user.username == "admin"
    assert await auth.ensure_admin(None) is None


async def test_where_there_are_users_no_admin_is_made(auth: Auth) -> None:
    await alice(auth)
    assert await auth.ensure_admin(None) is None
    assert [user.username for user in await auth.users()] == ["alice"]


async def test_of_two_processes_that_start_together_one_makes_the_admin(
    auth: Auth, engine: Engine, clock: Hands
) -> None:
    other = await opened(engine, clock)
    told = await asyncio.gather(*(each.ensure_admin(None) for each in (auth, other, auth, other)))
    await other.close()
    assert len([password for password in told if password]) == 1
    assert len(await auth.users()) == 1


async def test_the_last_admin_is_neither_demoted_nor_removed(auth: Auth) -> None:
    admin = await alice(auth, Role.ADMIN)
    with pytest.raises(model.LastAdmin):
        await auth.set_role(admin.id, Role.SUPERVISOR)
    with pytest.raises(model.LastAdmin):
        await auth.delete_user(admin.id)
    await auth.create_user("bob", "b@example.org", PASSWORD, Role.ADMIN)
    assert (await auth.set_role("alice", Role.SUPERVISOR)).role is Role.SUPERVISOR
    await auth.delete_user("alice")
    assert [user.username for user in await auth.users()] == ["bob"]


async def test_of_two_admins_who_demote_each_other_one_stays(auth: Auth) -> None:
    await alice(auth, Role.ADMIN)
    await auth.create_user("bob", "b@example.org", PASSWORD, Role.ADMIN)
    demoted = (auth.set_role(who, Role.ENDUSER) for who in ("alice", "bob"))
    outcomes = await asyncio.gather(*demoted, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(model.LastAdmin) == 1


async def test_nobody_deletes_their_own_account(auth: Auth) -> None:
    user = await alice(auth, Role.ADMIN)
    await auth.create_user("bob", "b@example.org", PASSWORD, Role.ADMIN)
    with pytest.raises(model.OwnAccount):
        await auth.delete_user("ALICE", by=user.id)


# ── Sessions ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_login_gives_a_token_that_names_the_user(auth: Auth, clock: Hands) -> None:
    user = await alice(auth, Role.SUPERVISOR)
    session = await auth.login("Alice", PASSWORD, HERE)
    principal = await verifier(auth, clock).verify(session.access_token)
    assert (principal.user_id, principal.username, principal.role) == (user.id, "alice", Role.SUPERVISOR)
    assert (session.user, session.expires_in) == (user, 900)


async def test_an_unknown_user_and_a_wrong_password_get_the_same_words(auth: Auth) -> None:
    await alice(auth)
    refusals = []
    for name, password in (("alice", "wrong horse"), ("nobody", PASSWORD), ("\ud800", PASSWORD), ("alice", "\ud800")):
        with pytest.raises(model.WrongCredentials) as refusal:
            await auth.login(name, password, HERE)
        refusals.append((refusal.value.detail, refusal.value.code, refusal.value.extra))
    assert len(refusals) == 4
    assert all(refusal == refusals[0] for refusal in refusals)


async def test_a_refresh_rotates_the_token_and_shows_the_user_as_they_are_now(auth: Auth, clock: Hands) -> None:
    await alice(auth)
    first = await auth.login("alice", PASSWORD, HERE)
    await auth.set_role("alice", Role.SUPERVISOR)
    second = await auth.refresh(first.refresh_token)
    assert second.refresh_token != first.refresh_token
    assert (await verifier(auth, clock).verify(second.access_token)).role is Role.SUPERVISOR
    assert await auth.refresh(second.refresh_token)


async def test_a_replayed_refresh_token_ends_its_family_and_no_other(auth: Auth) -> None:
    await alice(auth)
    first, elsewhere = [await auth.login("alice", PASSWORD, HERE) for _ in range(2)]
    second = await auth.refresh(first.refresh_token)
    for token in (first.refresh_token, second.refresh_token):
        with pytest.raises(model.RefreshRefused):
            await auth.refresh(token)
    assert await auth.refresh(elsewhere.refresh_token)


async def test_of_many_concurrent_refreshes_exactly_one_wins(auth: Auth) -> None:
    await alice(auth)
    session = await auth.login("alice", PASSWORD, HERE)
    attempts = (auth.refresh(session.refresh_token) for _ in range(8))
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["RefreshRefused"] * 7 + ["Session"]


async def test_two_processes_never_both_use_a_refresh_token(auth: Auth, engine: Engine, clock: Hands) -> None:
    await alice(auth)
    other = await opened(engine, clock)
    for _ in range(10):
        session = await auth.login("alice", PASSWORD, HERE)
        attempts = (each.refresh(session.refresh_token) for each in (auth, other))
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["RefreshRefused", "Session"]
    await other.close()


@pytest.mark.parametrize("token", ["", "unknown", "\ud800", "\x00", "x" * 100_000])
async def test_an_unknown_refresh_token_is_refused(auth: Auth, token: str) -> None:
    with pytest.raises(model.RefreshRefused):
        await auth.refresh(token)


async def test_a_refresh_token_lives_thirty_days_from_its_own_making(auth: Auth, clock: Hands) -> None:
    await alice(auth)
    first = await auth.login("alice", PASSWORD, HERE)
    clock.turn(REFRESH_SECONDS - 1)
    second = await auth.refresh(first.refresh_token)
    clock.turn(REFRESH_SECONDS - 1)
    third = await auth.refresh(second.refresh_token)
    clock.turn(REFRESH_SECONDS)
    with pytest.raises(model.RefreshRefused):
        await auth.refresh(third.refresh_token)


async def test_only_digests_of_refresh_tokens_and_secrets_are_kept(auth: Auth, engine: Engine) -> None:
    await alice(auth)
    session = await auth.login("alice", PASSWORD, HERE)
    secret = await auth.add_service("chat")
    kept = engine.look("parshall.auth", everything)
    assert "alice" in kept
    for hidden in (session.refresh_token, session.access_token, secret, PASSWORD):
        assert hidden not in kept


async def test_what_has_run_out_is_forgotten(auth: Auth, clock: Hands) -> None:
    await alice(auth)
    session = await auth.login("alice", PASSWORD, HERE)
    for _ in range(3):
        clock.turn(REFRESH_SECONDS - 1)
        session = await auth.refresh(session.refresh_token)
    assert await rows(auth, tables.refresh_tokens) == 2
    clock.turn(REFRESH_SECONDS)
    await auth.login("alice", PASSWORD, HERE)
    assert await rows(auth, tables.refresh_families) == await rows(auth, tables.refresh_tokens) == 1


async def test_a_logout_ends_its_own_session_only(auth: Auth) -> None:
    await alice(auth)
    here, there = [await auth.login("alice", PASSWORD, HERE) for _ in range(2)]
    await auth.logout(here.refresh_token)
    await auth.logout("unknown")
    with pytest.raises(model.RefreshRefused):
        await auth.refresh(here.refresh_token)
    assert await auth.refresh(there.refresh_token)


async def test_an_access_token_is_enough_to_end_its_session(auth: Auth, clock: Hands) -> None:
    await alice(auth)
    here, there = [await auth.login("alice", PASSWORD, HERE) for _ in range(2)]
    await auth.logout_session((await verifier(auth, clock).verify(here.access_token)).session_id)
    with pytest.raises(model.RefreshRefused):
        await auth.refresh(here.refresh_token)
    assert await auth.refresh(there.refresh_token)


@pytest.mark.parametrize("cause", ["logout-all", "change", "reset", "delete"])
async def test_every_session_of_the_user_ends_with(auth: Auth, clock: Hands, cause: str) -> None:
    user = await alice(auth)
    await auth.create_user("bob", "b@example.org", PASSWORD)
    sessions = [await auth.login("alice", PASSWORD, HERE) for _ in range(2)]
    other = await auth.login("bob", PASSWORD, HERE)
    if cause == "logout-all":
        await auth.logout_all(user.id)
    elif cause == "change":
        await auth.change_password(user.id, PASSWORD, "battery staple", HERE)
    elif cause == "reset":
        await auth.set_password("alice", "battery staple")
    else:
        await auth.delete_user("alice")
    for session in sessions:
        with pytest.raises(model.RefreshRefused):
            await auth.refresh(session.refresh_token)
        named = await verifier(auth, clock).verify(session.access_token)
        with pytest.raises(model.UserGone if cause == "delete" else model.SessionOver):
            await auth.present(named.user_id, named.session_id)
    assert await auth.refresh(other.refresh_token)


async def test_a_session_is_over_for_whoever_it_does_not_belong_to(auth: Auth, clock: Hands) -> None:
    user = await alice(auth)
    bob = await auth.create_user("bob", "b@example.org", PASSWORD)
    session = await auth.login("alice", PASSWORD, HERE)
    named = await verifier(auth, clock).verify(session.access_token)
    assert await auth.present(user.id, named.session_id) == user
    for user_id, session_id in ((bob.id, named.session_id), (user.id, "")):
        with pytest.raises(model.SessionOver):
            await auth.present(user_id, session_id)


async def test_a_changed_password_replaces_the_old_and_opens_a_session(auth: Auth) -> None:
    user = await alice(auth)
    with pytest.raises(model.WrongPassword):
        await auth.change_password(user.id, "wrong horse", "battery staple", HERE)
    session = await auth.change_password(user.id, PASSWORD, "battery staple", HERE)
    assert await auth.refresh(session.refresh_token)
    with pytest.raises(model.WrongCredentials):
        await auth.login("alice", PASSWORD, HERE)
    assert await auth.login("alice", "battery staple", HERE)


async def test_who_leaves_with_a_password_that_is_being_replaced_stays(auth: Auth) -> None:
    user = await alice(auth)
    verify = auth._hasher.verify

    async def overtaken(password: str, against: str | None) -> bool:
        matches = await verify(password, against)
        await auth.set_password(user.id, "battery staple")
        return matches

    auth._hasher.verify = overtaken  # type: ignore[method-assign]
    with pytest.raises(model.WrongPassword):
        await auth.delete_own(user.id, "", PASSWORD, HERE)
    assert await auth.find_user(user.id) == user


async def test_a_login_that_a_change_of_password_overtakes_gets_no_session(auth: Auth) -> None:
    user = await alice(auth)
    credential = await auth._database.read(lambda connection: store.find_credential(connection, user.id))
    assert credential
    await auth.set_password(user.id, "battery staple")
    assert await auth._open(user.id, credential.password_hash) is None
    assert await rows(auth, tables.refresh_families) == 0


async def test_of_two_concurrent_changes_of_password_one_wins(auth: Auth) -> None:
    user = await alice(auth)
    wanted = ("battery staple", "purple monkey")
    changes = (auth.change_password(user.id, PASSWORD, password, HERE) for password in wanted)
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds.count(model.WrongPassword) == 1
    winner = next(new for new, kind in zip(wanted, kinds, strict=True) if kind is model.Session)
    assert await auth.login("alice", winner, HERE)


async def test_ten_failures_shut_even_the_right_password_out_from_that_address(auth: Auth) -> None:
    await alice(auth)
    for _ in range(10):
        with pytest.raises(model.WrongCredentials):
            await auth.login("alice", "wrong horse", HERE)
    with pytest.raises(TooManyRequests):
        await auth.login("alice", PASSWORD, HERE)
    assert await auth.login("alice", PASSWORD, "192.0.2.2")


async def test_a_burst_of_guesses_gets_no_more_of_them_than_one_by_one(auth: Auth) -> None:
    await alice(auth)
    guesses = (auth.login("alice", f"wrong horse {number}", HERE) for number in range(40))
    outcomes = await asyncio.gather(*guesses, return_exceptions=True)
    tried = [outcome for outcome in outcomes if isinstance(outcome, model.WrongCredentials)]
    assert 10 <= len(tried) <= 11
    assert len(tried) + sum(isinstance(outcome, TooManyRequests) for outcome in outcomes) == 40


async def test_guessing_the_current_password_is_throttled_too(auth: Auth) -> None:
    user = await alice(auth)
    for _ in range(10):
        with pytest.raises(model.WrongPassword):
            await auth.change_password(user.id, "wrong horse", "battery staple", HERE)
    with pytest.raises(TooManyRequests):
        await auth.change_password(user.id, PASSWORD, "battery staple", HERE)


# ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_keys_and_users_outlive_a_restart(engine: Engine, clock: Hands) -> None:
    before = await opened(engine, clock)
    await alice(before)
    session = await before.login("alice", PASSWORD, HERE)
    await before.close()
    after = await opened(engine, clock)
    assert (await verifier(after, clock).verify(session.access_token)).username == "alice"
    assert await after.refresh(session.refresh_token)
    assert await rows(after, tables.signing_keys) == 1
    await after.close()


async def test_of_processes_that_start_together_one_makes_the_signing_key(engine: Engine, clock: Hands) -> None:
    together = await asyncio.gather(*(opened(engine, clock) for _ in range(4)))
    for _ in range(20):
        await together[0]._database.write(lambda c: c.execute(delete(tables.signing_keys)))
        await asyncio.gather(*(each.start() for each in together))
        assert await rows(together[0], tables.signing_keys) == 1
    for each in together:
        await each.close()


async def test_a_rotation_refuses_no_token_on_its_way(auth: Auth, clock: Hands) -> None:
    await alice(auth)
    checked = verifier(auth, clock)
    old = await auth.login("alice", PASSWORD, HERE)
    await checked.verify(old.access_token)
    clock.turn(1)
    kid = await auth.rotate()
    for seconds in (0, 1, 30, 30, 1):
        clock.turn(seconds)
        session = await auth.login("alice", PASSWORD, HERE)
        assert (await checked.verify(session.access_token)).username == "alice"
    assert len((await auth.key_set()).keys) == 2
    await TokenVerifier(auth.key_set, issuer=ISSUER, clock=clock).verify(old.access_token)
    clock.turn(DAY // SECOND)
    assert [key.kid for key in (await auth.key_set()).keys] == [kid]


# ── Services ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_service_gets_a_token_for_its_secret_with_its_scopes(auth: Auth, clock: Hands) -> None:
    secret = await auth.add_service("chat")
    token = await auth.service_token("chat", secret)
    principal = await verifier(auth, clock).verify(token.access_token)
    assert (principal.is_service, principal.user_id, principal.scopes) == (True, "chat", model.SCOPES)
    assert token.expires_in == 300
    narrow = await auth.service_token("chat", secret, "auth:read")
    assert (await verifier(auth, clock).verify(narrow.access_token)).scopes == {"auth:read"}


async def test_a_service_cannot_exceed_its_scopes(auth: Auth) -> None:
    secret = await auth.add_service("reader", ["auth:read"])
    with pytest.raises(model.InvalidScope):
        await auth.service_token("reader", secret, "accounting:settle")
    with pytest.raises(model.InvalidScope):
        await auth.add_service("other", ["everything"])


@pytest.mark.parametrize("client_id", ["chat", "nobody", "", "\x00", "\ud800", "x" * 10_000])
async def test_no_token_comes_of_a_wrong_secret(auth: Auth, client_id: str) -> None:
    await auth.add_service("chat")
    for secret in ("", "wrong", "\ud800"):
        with pytest.raises(model.InvalidClient):
            await auth.service_token(client_id, secret)


async def test_a_revoked_service_gets_no_token_until_it_is_added_again(auth: Auth) -> None:
    old = await auth.add_service("chat")
    with pytest.raises(model.ServiceExists):
        await auth.add_service("chat")
    await auth.revoke_service("chat")
    with pytest.raises(Unauthenticated):
        await auth.service_token("chat", old)
    with pytest.raises(NotFound):
        await auth.revoke_service("chat")
    assert await auth.service_token("chat", await auth.add_service("chat"))
    assert [service.name for service in await auth.services()] == ["chat"]


async def test_a_service_is_kept_by_the_secret_it_is_given_however_often(auth: Auth) -> None:
    first, second = "1" * 32, "2" * 32
    assert await auth.keep_service("chat", {"auth:read"}, secret=first)
    assert not await auth.keep_service("chat", {"auth:read"}, secret=first), "nothing to do"
    assert await auth.service_token("chat", first, "auth:read")
    assert await auth.keep_service("chat", {"auth:read"}, secret=second)
    with pytest.raises(model.InvalidClient):
        await auth.service_token("chat", first)
    assert await auth.keep_service("chat", secret=second), "more scopes"
    assert await auth.service_token("chat", second, "accounting:settle")


@pytest.mark.parametrize("secret", ["", "x" * 31, "x" * 201, "x" * 16 + " " + "x" * 16, "ä" * 40, "x" * 40 + "\n"])
async def test_a_secret_that_could_be_guessed_or_not_sent_is_refused(auth: Auth, secret: str) -> None:
    with pytest.raises(model.WeakSecret):
        await auth.keep_service("chat", secret=secret)
    assert await auth.services() == []
