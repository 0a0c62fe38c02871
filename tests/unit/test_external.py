"""Laws of external issuers, on both engines: whose tokens are believed, who they make of somebody, and for how long."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OKPKey, RSAKey
from pydantic import ValidationError
from tests.identities import HERE, PASSWORD, Hands, alice, opened, verifier
from tests.oidc import AUDIENCE, CLIENT, LEFT_OUT, OpenIdProvider, provider, without
from tests.postgres import Engine
from typer.testing import CliRunner

from parshall.app.config import Settings
from parshall.app.oidc import OidcIssuer
from parshall.auth import external, model
from parshall.auth.external import ExternalIssuer, ExternalTokenRefused, ExternalUser, FreshLoginNeeded, IssuerAway
from parshall.auth.external_issuer import (
    KEYS_KEPT_SECONDS_MAX,
    KEYS_PAUSE_SECONDS,
    KEYS_REFRESH_SECONDS,
    WAIT_SECONDS_MAX,
)
from parshall.auth.externals import TOKEN_SECONDS
from parshall.auth.service import FRESH_SECONDS, Auth
from parshall.cli.main import app
from parshall.kernel.clock import SECOND
from parshall.kernel.errors import TokenRefused
from parshall.kernel.tokens import LEEWAY_SECONDS, Principal, Role, TokenVerifier

ONE_ENGINE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
"""For what says nothing of the records."""
ROLES = {"bosses": Role.ADMIN, "leads": Role.SUPERVISOR}


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def corp(clock: Hands) -> Iterator[OpenIdProvider]:
    """The issuer that most tests trust."""
    with provider(now=lambda: clock.at / SECOND) as made:
        yield made


@pytest.fixture
def other(clock: Hands) -> Iterator[OpenIdProvider]:
    """Another one that is trusted as well."""
    with provider(algorithm="ES256", now=lambda: clock.at / SECOND) as made:
        yield made


def trusted(name: str, by: OpenIdProvider, **more: Any) -> ExternalIssuer:
    return ExternalIssuer(name=name, issuer=by.url, audience=AUDIENCE, roles=ROLES, roles_claim="groups", **more)


@pytest_asyncio.fixture
async def auth(engine: Engine, clock: Hands, corp: OpenIdProvider, other: OpenIdProvider) -> AsyncIterator[Auth]:
    made = await opened(engine, clock, issuers=[trusted("corp", corp), trusted("other", other)])
    yield made
    await made.close()


@pytest.fixture
def verify(auth: Auth, clock: Hands) -> Callable[[str], Any]:
    """What every service does with a token; each time anew."""
    return lambda token: verifier(auth, clock).verify(token, HERE)


Verify = Callable[[str], Any]

# ── Whose tokens are believed ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_right_token_is_a_user_of_ours(auth: Auth, verify: Verify, corp: OpenIdProvider) -> None:
    token = corp.token("anna", preferred_username="anna.berg@corp.example", email="a@b.example", email_verified=True)
    principal: Principal = await verify(token)
    user = await auth.present(principal.user_id, principal.session_id)
    assert (principal.username, principal.email, principal.role) == ("anna-berg", "a@b.example", Role.ENDUSER)
    assert (user.id, user.is_verified) == (principal.user_id, True)
    assert not principal.is_limited
    assert (await verify(corp.token("anna"))).user_id == principal.user_id


@ONE_ENGINE
async def test_what_a_header_says_beside_the_usual_is_neither_followed_nor_minded(verify: Verify, corp: Any) -> None:
    own = {"nonce": "x", "jku": "https://evil.example/keys", "x5t": "abc", "tenant": {"a": 1}}
    assert await verify(raw(corp.token("anna"), own, lambda text: key_sign(corp.keys[corp.kid], text)))
    assert "/evil" not in " ".join(corp.asked)


async def test_the_same_subject_at_two_issuers_is_two_people(verify: Verify, corp: Any, other: Any) -> None:
    one, two = [await verify(by.token("anna", preferred_username="anna")) for by in (corp, other)]
    assert one.user_id != two.user_id
    assert one.username == "anna"
    assert two.username.startswith("anna-")


def forged(by: OpenIdProvider, other: OpenIdProvider) -> Iterator[tuple[str, str]]:
    """Tokens that are each wrong in one way, with what it is."""
    now, key = int(by.now()), by.keys[by.kid]
    stranger = RSAKey.generate_key(2048)
    yield "another issuer", by.token("anna", iss="https://evil.example")
    yield "a slash more", by.token("anna", iss=f"{by.url}/")
    yield "another issuer's name", other.token("anna", iss=by.url)
    yield "another issuer's name and kid", raw(other.token("anna", iss=by.url), {"kid": by.kid}, lambda _: b"0" * 64)
    yield "its name on the other's token", by.token("anna", iss=other.url)
    for wrong in ("https://elsewhere.example", LEFT_OUT, None, [], [[AUDIENCE]], {"a": AUDIENCE}, CLIENT):
        yield f"aud {wrong!r}", spoilt(by, aud=wrong)
    for typ in ("JWT", "id_token+jwt", LEFT_OUT, None, 7, ["at+jwt"], "logout+jwt", ""):
        yield f"typ {typ!r}", spoilt(by, {"typ": typ})
    yield "expired", by.token("anna", exp=now - LEEWAY_SECONDS - 1)
    yield "not yet", by.token("anna", nbf=now + 1000)
    yield "issued in the future", by.token("anna", iat=now + 1000)
    for name in ("exp", "iat"):
        for wrong in (LEFT_OUT, "soon", True, None, -1, 1e300):
            yield f"{name} {wrong!r}", spoilt(by, **{name: wrong})
    for wrong in (LEFT_OUT, "", None, 7, ["anna"], "a" * 256, "a\x00b", "\ud800", "a\u202eb"):
        yield f"sub {wrong!r}", spoilt(by, sub=wrong)
    yield "a program's", by.token("some-app")
    for more in ({"crit": ["exp"]}, {"b64": False, "crit": ["b64"]}, {"kid": LEFT_OUT}, {"kid": "no-such"}):
        yield f"header {more!r}", raw(by.token("anna"), more, lambda text: key_sign(key, text))
    yield "none", raw(by.token("anna"), {"alg": "none"}, lambda _: b"")
    yield "none with the signature", raw(by.token("anna"), {"alg": "none"}, lambda text: key_sign(key, text))
    secret = key.as_pem(private=False)
    for name in ("HS256", "HS384", "HS512"):
        spoiled = raw(by.token("anna"), {"alg": name}, lambda text: hmac.digest(secret, text, "sha256"))
        yield f"{name} with the public key", spoiled
    yield (
        "an algorithm that is not allowed",
        raw(by.token("anna"), {"alg": "RS512"}, lambda text: key_sign(key, text, 512)),
    )
    yield "another's key", raw(by.token("anna"), {}, lambda text: key_sign(stranger, text))
    yield (
        "a key of its own",
        raw(by.token("anna"), {"jwk": stranger.as_dict(private=False)}, lambda text: key_sign(stranger, text)),
    )
    head, body, signature = by.token("anna").split(".")
    richer = b64(json.dumps({**json.loads(unb64(body)), "groups": ["bosses"]}).encode())
    yield "other claims", f"{head}.{richer}.{signature}"
    twice = b64(unb64(body)[:-1] + b', "groups": ["bosses"]}')
    yield "claims without their signature", f"{head}.{twice}."


def spoilt(by: OpenIdProvider, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token with the issuer's signature that its own library would not write."""
    head, said, _ = by.token("anna").split(".")
    text = b64(json.dumps(without({**json.loads(unb64(said)), **claims})).encode())
    return raw(f"{head}.{text}.", header or {}, lambda octets: key_sign(by.keys[by.kid], octets))


def key_sign(key: Any, text: bytes, bits: int = 256) -> bytes:
    """A signature in PKCS #1 v1.5."""
    signed: bytes = key.raw_value.sign(text, PKCS1v15(), hashes.SHA256() if bits == 256 else hashes.SHA512())
    return signed


def raw(token: str, header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """The token with another header, signed anew."""
    head, body, _ = token.split(".")
    members = without({**json.loads(unb64(head)), **header})
    text = f"{b64(json.dumps(members).encode())}.{body}"
    return f"{text}.{b64(sign(text.encode()))}"


def b64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "==")


@ONE_ENGINE
async def test_a_token_that_is_wrong_in_any_way_is_refused(
    auth: Auth, clock: Hands, corp: OpenIdProvider, other: OpenIdProvider
) -> None:
    service, taken = verifier(auth, clock), []
    for name, token in forged(corp, other):
        clock.turn(KEYS_PAUSE_SECONDS)
        try:
            await service.verify(token, HERE)
        except TokenRefused as error:
            assert error.status == 401
        else:
            taken.append(name)
    assert taken == []
    assert (await auth.users_page())[1] == 0, "a refused token makes nobody"
    assert (await service.verify(corp.token("anna"), HERE)).username, "and a right one is taken all the same"


@ONE_ENGINE
async def test_no_key_of_an_issuer_makes_a_token_of_ours(auth: Auth, verify: Verify, corp: OpenIdProvider) -> None:
    ours = (await auth.key_set()).as_dict(private=False)["keys"][0]
    corp.listed = [ours]
    taken = await verify(corp.token("anna"))
    claims = {"sub": taken.user_id, "sid": taken.session_id, "type": "access", "role": "admin", "client_id": "parshall"}
    with pytest.raises(TokenRefused):
        await verify(
            corp.token(iss=auth.issuer, subject="x", header={"kid": ours["kid"]}, **claims | {"aud": "parshall"})
        )


@ONE_ENGINE
async def test_a_published_secret_verifies_nothing(verify: Verify, corp: OpenIdProvider) -> None:
    corp.listed = [{"kty": "oct", "kid": "shared", "k": b64(b"k" * 32)}, {"kty": "RSA", "kid": "broken"}, {"a": 1}]
    signed = raw(
        corp.token("anna"), {"alg": "HS256", "kid": "shared"}, lambda text: hmac.digest(b"k" * 32, text, "sha256")
    )
    with pytest.raises(ExternalTokenRefused):
        await verify(signed)
    assert await verify(corp.token("anna"))


@ONE_ENGINE
@pytest.mark.filterwarnings("ignore:Key size")
async def test_a_weak_key_verifies_nothing(verify: Verify, corp: OpenIdProvider) -> None:
    weak = RSAKey.import_key(
        rsa.generate_private_key(65537, 1024).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    corp.keys = {"weak": weak}
    with pytest.raises(ExternalTokenRefused):
        await verify(raw(corp_token(corp), {"kid": "weak"}, lambda text: key_sign(weak, text)))


def corp_token(corp: OpenIdProvider) -> str:
    """A token of the issuer, whatever key it publishes."""
    kept, corp.keys = corp.keys, {"strong": RSAKey.generate_key(2048)}
    token = corp.token("anna")
    corp.keys = kept
    return token


# ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@ONE_ENGINE
async def test_a_rotated_key_is_taken_at_its_first_token(verify: Verify, corp: OpenIdProvider) -> None:
    assert await verify(corp.token("anna"))
    for _ in range(2):
        corp.rotate()
        assert await verify(corp.token("anna"))


@ONE_ENGINE
async def test_unknown_kids_ask_the_issuer_no_more_than_once_in_a_while(
    auth: Auth, clock: Hands, corp: OpenIdProvider
) -> None:
    verify = verifier(auth, clock).verify
    assert await verify(corp.token("anna"))
    asked = len(corp.asked)
    made_up = (corp.token("anna", header={"kid": f"made-up-{number}"}) for number in range(20))
    refused = await asyncio.gather(*map(verify, made_up), return_exceptions=True)
    assert all(isinstance(each, ExternalTokenRefused) for each in refused)
    assert len(corp.asked) == asked + 2, "its metadata and its keys, once for all"


@ONE_ENGINE
async def test_without_its_issuer_a_known_key_goes_on_for_a_day(
    verify: Verify, clock: Hands, corp: Any, other: Any
) -> None:
    assert await verify(corp.token("anna"))
    corp.down.set()
    other.down.set()
    for seconds in (0, KEYS_REFRESH_SECONDS + 1, KEYS_KEPT_SECONDS_MAX - KEYS_REFRESH_SECONDS - 2):
        clock.turn(seconds)
        assert await verify(corp.token("anna"))
    with pytest.raises(IssuerAway):
        await verify(other.token("bert"))
    with pytest.raises(IssuerAway):
        await verify(corp.token("anna", header={"kid": "may-be-new"}))
    clock.turn(2)
    with pytest.raises(IssuerAway):
        await verify(corp.token("anna"))
    corp.down.clear()
    clock.turn(KEYS_PAUSE_SECONDS)
    assert await verify(corp.token("anna"))


@ONE_ENGINE
async def test_a_slow_issuer_keeps_nobody_for_long_and_is_heard_in_the_end(
    verify: Verify, corp: OpenIdProvider
) -> None:
    corp.pause = 0.8
    began = time.monotonic()
    with pytest.raises(IssuerAway):
        await verify(corp.token("anna"))
    assert time.monotonic() - began < WAIT_SECONDS_MAX + 0.5
    await asyncio.sleep(corp.pause)
    assert await verify(corp.token("anna")), "what was begun went on"


@ONE_ENGINE
async def test_a_key_that_is_taken_back_ends(verify: Verify, clock: Hands, corp: OpenIdProvider) -> None:
    stolen = corp.token("anna")
    assert await verify(stolen)
    corp.rotate()
    clock.turn(KEYS_PAUSE_SECONDS)
    assert await verify(corp.token("anna"))
    with pytest.raises(ExternalTokenRefused):
        await verify(stolen)


@ONE_ENGINE
@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "https://evil.example"},
        {"issuer": LEFT_OUT},
        {"jwks_uri": "http://evil.example/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": 7},
        {"padding": "x" * 300_000},
    ],
    ids=str,
)
async def test_metadata_that_is_not_the_issuers_own_is_not_followed(
    verify: Verify, corp: Any, wrong: dict[str, Any]
) -> None:
    corp.documents = wrong
    with pytest.raises(IssuerAway):
        await verify(corp.token("anna"))
    assert "/keys" not in corp.asked


# ── Who they are here ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_address_opens_no_account_that_is_there(auth: Auth, verify: Verify, corp: OpenIdProvider) -> None:
    local = await alice(auth)
    claims = {"preferred_username": "ALICE", "email": local.email.upper(), "email_verified": True}
    taken = await verify(corp.token("eve", **claims))
    assert taken.user_id != local.id
    assert taken.username.lower().startswith("alice-")
    assert taken.email.endswith("@external.invalid")
    assert (await auth.find_user(local.email)).id == local.id
    assert await auth.login("alice", PASSWORD, HERE)


@ONE_ENGINE
@pytest.mark.parametrize("verified", [False, "true", 1, None, LEFT_OUT], ids=str)
async def test_an_address_that_is_not_verified_is_not_taken(verify: Verify, corp: Any, verified: Any) -> None:
    taken = await verify(corp.token("anna", email="ceo@corp.example", email_verified=verified))
    assert taken.email.endswith("@external.invalid")


async def test_the_newest_token_decides_on_the_role(
    auth: Auth, verify: Verify, clock: Hands, corp: OpenIdProvider
) -> None:
    old = corp.token("anna", groups=["x", "leads", "bosses"])
    assert (await verify(old)).role is Role.ADMIN
    clock.turn(1)
    assert (await verify(corp.token("anna", groups="leads"))).role is Role.SUPERVISOR
    assert (await verify(old)).role is Role.SUPERVISOR, "an older token gives no role back"
    clock.turn(1)
    taken = await verify(corp.token("anna", groups={"bosses": 1}))
    assert taken.role is (await auth.find_user(taken.user_id)).role is Role.ENDUSER


async def test_nobody_here_decides_on_role_and_password_of_an_issuers_user(
    auth: Auth, verify: Verify, corp: Any
) -> None:
    taken = await verify(corp.token("anna", preferred_username="anna", email="a@b.example", email_verified=True))
    with pytest.raises(ExternalUser):
        await auth.set_role("anna", Role.ADMIN)
    with pytest.raises(ExternalUser):
        await auth.set_password("anna", PASSWORD)
    for password in (PASSWORD, "", external.NO_PASSWORD):
        with pytest.raises(model.WrongCredentials):
            await auth.login("anna", password, HERE)
        with pytest.raises(model.WrongPassword):
            await auth.change_password(taken.user_id, password, PASSWORD, HERE)


async def test_an_issuers_admin_is_not_the_one_that_must_be_left(auth: Auth, verify: Verify, corp: Any) -> None:
    await auth.ensure_admin(PASSWORD)
    boss = await verify(corp.token("boss", groups=["bosses"]))
    with pytest.raises(model.LastAdmin):
        await auth.delete_user("admin", by=boss.user_id)
    with pytest.raises(model.LastAdmin):
        await auth.set_role("admin", Role.ENDUSER)
    await auth.delete_user(boss.user_id)


async def test_who_was_removed_stays_out_until_let_in(
    auth: Auth, verify: Verify, clock: Hands, corp: OpenIdProvider
) -> None:
    taken = await verify(corp.token("anna"))
    await auth.delete_user(taken.user_id)
    for _ in range(2):
        with pytest.raises(ExternalTokenRefused):
            await verify(corp.token("anna"))
    with pytest.raises(model.UserGone):
        await auth.present(taken.user_id, taken.session_id)
    await auth.let_in(corp.url, "anna")
    assert (await verify(corp.token("anna"))).user_id != taken.user_id


async def test_to_be_removed_without_a_password_takes_a_fresh_login(
    auth: Auth, verify: Verify, clock: Hands, corp: Any
) -> None:
    taken = await verify(corp.token("anna"))
    with pytest.raises(FreshLoginNeeded):
        await auth.delete_own(taken.user_id, taken.session_id, "", HERE)
    session = await auth._open(taken.user_id, external.NO_PASSWORD, lasting=3600)
    assert session is not None
    fresh = await verify(session.access_token)
    clock.turn(FRESH_SECONDS + 1)
    with pytest.raises(FreshLoginNeeded):
        await auth.delete_own(taken.user_id, fresh.session_id, "", HERE)
    clock.turn(-FRESH_SECONDS)
    await auth.delete_own(taken.user_id, fresh.session_id, "", HERE)


async def test_a_session_from_an_issuer_ends_however_often_it_is_refreshed(
    auth: Auth, verify: Verify, clock: Hands, corp: Any
) -> None:
    taken = await verify(corp.token("anna"))
    session = await auth._open(taken.user_id, external.NO_PASSWORD, lasting=3600)
    for _ in range(3):
        assert session is not None
        session = await auth.refresh(session.refresh_token)
        clock.turn(1100)
    clock.turn(301)
    assert session is not None
    with pytest.raises(model.RefreshRefused):
        await auth.refresh(session.refresh_token)


@ONE_ENGINE
async def test_what_is_exchanged_ends_with_the_token(auth: Auth, clock: Hands, corp: OpenIdProvider) -> None:
    assert (await auth.externals.exchange(corp.token("anna"))).expires_in == TOKEN_SECONDS
    short = corp.token("anna", exp=int(corp.now()) + 20)
    assert (await auth.externals.exchange(short)).expires_in == 20


async def test_many_first_tokens_at_once_make_one_user(
    auth: Auth, engine: Engine, clock: Hands, corp: OpenIdProvider
) -> None:
    replica = await opened(engine, clock, issuers=[trusted("corp", corp)])
    try:
        tokens = [corp.token("anna", preferred_username="anna", jti=str(number)) for number in range(12)]
        taken = await asyncio.gather(
            *(verifier((auth, replica)[number % 2], clock).verify(token, HERE) for number, token in enumerate(tokens))
        )
    finally:
        await replica.close()
    assert len({each.user_id for each in taken}) == 1
    assert (await auth.users_page())[1] == 1


@ONE_ENGINE
async def test_a_key_of_another_kind_is_of_no_use_to_the_algorithm(engine: Engine, clock: Hands) -> None:
    with provider(algorithm="Ed25519", now=lambda: clock.at / SECOND) as edward:
        made = await opened(engine, clock, issuers=[trusted("edward", edward)])
        service = TokenVerifier(made.key_set, issuer=made.issuer, clock=clock, external=made.externals.access_token)
        try:
            assert await service.verify(edward.token("anna"))
            for wrong in ("RS256", "ES256", "PS256"):
                with pytest.raises(ExternalTokenRefused):
                    await service.verify(
                        raw(edward.token("anna"), {"alg": wrong}, lambda text: hashlib.sha256(text).digest())
                    )
        finally:
            await made.close()
        assert isinstance(edward.keys[edward.kid], OKPKey)


# ── Rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text())
def test_whatever_an_issuer_calls_somebody_it_makes_a_username(claimed: str) -> None:
    name = external.username_of(claimed)
    model.check_username(name)
    model.check_username(external.username_like(name, "abc123"))


@pytest.mark.parametrize(
    "path",
    [
        *("", "x", "//evil.example", "///evil.example", "/\\evil.example", "\\/evil.example", "https://evil.example"),
        *(
            "/\t/evil.example",
            "/\n/evil.example",
            "javascript:alert(1)",
            " /x",
            "/x y",
            "/x\r\nSet-Cookie: a=b",
            "/\u2028",
        ),
        *("/" + "x" * 2048, "/a\\b"),
    ],
)
def test_no_return_address_leads_elsewhere(path: str) -> None:
    with pytest.raises(external.UnfitReturn):
        external.check_return(path)


@pytest.mark.parametrize("path", ["/", "/chat", "/chat?a=b#c", "/a//b", "/?next=https://evil.example"])
def test_a_path_of_this_site_is_one(path: str) -> None:
    external.check_return(path)


# ── Settings ────────────────────────────────────────────────────────────────────────────────────────────────────────

FINE: dict[str, Any] = {"name": "corp", "issuer": "https://login.corp.example", "audience": "parshall-api"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Corp"},
        {"name": ""},
        {"issuer": "http://login.corp.example"},
        {"issuer": "https://login.corp.example?x"},
        {"audience": ""},
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": []},
        {"tokenTypes": ["id_token+jwt"]},
        {"tokenTypes": ["JWT"], "clientId": "parshall-api"},
        {"roles": {"x": "root"}},
        {"clientId": "x", "scopes": "profile"},
        {"sessionHours": 0},
        {"misspelt": 1},
    ],
    ids=str,
)
def test_an_issuer_that_could_not_be_told_apart_is_refused_at_the_start(wrong: dict[str, Any]) -> None:
    assert OidcIssuer(**FINE)
    with pytest.raises(ValidationError):
        OidcIssuer(**FINE | wrong)


def test_the_secret_of_a_client_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**FINE, "clientId": "parshall", "clientSecret": "hush-hush"}
    monkeypatch.setenv("PARSHALL_OIDC_ISSUERS", json.dumps([given]))
    monkeypatch.setenv("PARSHALL_PUBLIC_URL", "https://chat.example.org")
    shown = CliRunner().invoke(app, ["config", "--json"]).output
    assert FINE["issuer"] in shown
    assert "hush-hush" not in shown
    assert "hush-hush" not in repr(Settings()) + repr(Settings().oidc_issuers[0].external())


def test_issuers_are_read_from_the_environment_and_do_not_stand_in_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARSHALL_OIDC_ISSUERS", json.dumps([{**FINE, "roles": {"admins": "admin"}, "clientId": "x"}]))
    with pytest.raises(ValidationError, match="PUBLIC_URL"):
        Settings()
    monkeypatch.setenv("PARSHALL_PUBLIC_URL", "https://chat.example.org")
    assert Settings().oidc_issuers[0].external().roles == {"admins": Role.ADMIN}
    for twice in ([FINE, FINE], [FINE, {**FINE, "name": "two"}], [{**FINE, "issuer": "https://us.example"}]):
        monkeypatch.setenv("PARSHALL_OIDC_ISSUERS", json.dumps(twice))
        with pytest.raises(ValidationError):
            Settings(issuer="https://us.example")
