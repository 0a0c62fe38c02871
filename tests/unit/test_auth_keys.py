"""Laws of signing keys and access tokens: RFC 9068 for what is signed, RFC 8725 for what is refused."""

import base64
import hmac
import json
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet, OKPKey
from joserfc.jws import JWSRegistry

from parshall.auth import keys
from parshall.auth.model import SigningKey, User
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.errors import Unauthenticated
from parshall.kernel.ids import UserId
from parshall.kernel.tokens import Role, TokenVerifier

ISSUER = "https://auth.example.org"
AT = 1_800_000_000 * SECOND
KEY = keys.new_signing_key(at=0)
USER = User(
    id=UserId("0" * 32), username="alice", email="a@example.org", role=Role.SUPERVISOR, is_verified=True, created_at=0
)


def claims(**changes: Any) -> dict[str, Any]:
    made = keys.user_claims(USER, issuer=ISSUER, at=AT, seconds=900, family_id="f" * 32)
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def verifier(*signing: SigningKey, at: int = AT) -> TokenVerifier:
    async def published() -> KeySet:
        return keys.public_keys(signing or (KEY,))

    return TokenVerifier(published, issuer=ISSUER, clock=lambda: at)


def signed(header: dict[str, Any], payload: dict[str, Any], key: SigningKey = KEY) -> str:
    full = {"typ": "at+jwt", "alg": "Ed25519", "kid": key.kid, **header}
    kept = {name: value for name, value in full.items() if value is not None}
    registry = JWSRegistry(algorithms=["Ed25519"], strict_check_header=False)
    return jwt.encode(kept, payload, OKPKey.import_key(key.private_pem), registry=registry)


def part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def public_pem() -> bytes:
    return OKPKey.import_key(KEY.private_pem).as_pem(private=False)


def public_point() -> bytes:
    x = str(OKPKey.import_key(KEY.private_pem).as_dict(private=False)["x"])
    return base64.urlsafe_b64decode(x + "=")


def hmac_signed(secret: bytes) -> str:
    text = f"{part({'alg': 'HS256', 'typ': 'at+jwt', 'kid': KEY.kid})}.{part(claims())}"
    mac = hmac.digest(secret, text.encode(), "sha256")
    return f"{text}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


async def test_a_token_says_who_the_caller_is() -> None:
    principal = await verifier().verify(keys.sign(KEY, claims()))
    assert (principal.user_id, principal.username, principal.email) == (USER.id, "alice", "a@example.org")
    assert principal.role is Role.SUPERVISOR
    assert not principal.is_service


async def test_a_service_token_says_which_service_and_what_it_may_do() -> None:
    made = keys.service_claims("chat", frozenset({"auth:read", "accounting:settle"}), issuer=ISSUER, at=AT)
    principal = await verifier().verify(keys.sign(KEY, made))
    assert principal.is_service
    assert principal.user_id == "chat"
    assert principal.scopes == {"auth:read", "accounting:settle"}
    assert made["exp"] - made["iat"] == 300


def test_header_and_claims_are_those_of_rfc_9068() -> None:
    token = jwt.decode(keys.sign(KEY, claims()), keys.public_keys([KEY]), algorithms=["Ed25519"])
    assert token.header == {"typ": "at+jwt", "alg": "Ed25519", "kid": KEY.kid}
    required = {"iss", "exp", "aud", "sub", "client_id", "iat", "jti"}
    assert required | {"username", "email", "role", "type", "sid"} == set(token.claims)
    assert token.claims["type"] == "access"
    assert token.claims["exp"] - token.claims["iat"] == 900


def test_no_two_tokens_have_the_same_jti() -> None:
    assert claims()["jti"] != claims()["jti"]


def test_the_kid_is_the_thumbprint_and_nothing_private_is_published() -> None:
    published = keys.public_keys([KEY])
    assert not any(key.is_private for key in published)
    (key,) = published.as_dict()["keys"]
    assert set(key) == {"kty", "crv", "x", "kid", "alg", "use"}
    assert OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": key["x"]}).thumbprint() == key["kid"]


REFUSED = {
    "no algorithm": f"{part({'alg': 'none', 'typ': 'at+jwt', 'kid': KEY.kid})}.{part(claims())}.",
    "the public key as an HMAC secret": hmac_signed(public_pem()),
    "the public point as an HMAC secret": hmac_signed(public_point()),
    "a JWT of another type": signed({"typ": "JWT"}, claims()),
    "no type": signed({"typ": None}, claims()),
    "another audience": signed({}, claims(aud="elsewhere")),
    "no audience": signed({}, claims(aud=None)),
    "another issuer": signed({}, claims(iss="https://evil.example")),
    "expired beyond the leeway": signed({}, claims(exp=AT // SECOND - 31)),
    "no expiry": signed({}, claims(exp=None)),
    "issued in the future": signed({}, claims(iat=AT // SECOND + 31)),
    "a refresh token's type": signed({}, claims(type="refresh")),
    "an unknown role": signed({}, claims(role="root")),
    "no subject": signed({}, claims(sub="")),
    "a changed payload": ".".join(
        [signed({}, claims()).split(".")[0], part(claims(role="admin")), signed({}, claims()).split(".")[2]]
    ),
    "no signature": signed({}, claims()).rpartition(".")[0] + ".",
    "not a token": "garbage",
    "nothing": "..",
}


@pytest.mark.parametrize("token", REFUSED.values(), ids=REFUSED.keys())
async def test_a_token_is_refused_for(token: str) -> None:
    with pytest.raises(Unauthenticated):
        await verifier().verify(token)


async def test_a_token_of_a_foreign_key_is_refused_whatever_kid_it_claims() -> None:
    foreign = keys.new_signing_key(at=0)
    for kid in (foreign.kid, KEY.kid):
        with pytest.raises(Unauthenticated):
            await verifier().verify(signed({"kid": kid}, claims(), foreign))


async def test_a_key_that_comes_inside_the_token_is_not_believed() -> None:
    foreign = keys.new_signing_key(at=0)
    embedded = OKPKey.import_key(foreign.private_pem).as_dict(private=False)
    for kid in (foreign.kid, KEY.kid, None):
        with pytest.raises(Unauthenticated):
            await verifier().verify(signed({"jwk": embedded, "kid": kid}, claims(), foreign))


async def test_an_expired_token_is_taken_within_the_leeway_and_never_after() -> None:
    token = signed({}, claims(exp=AT // SECOND))
    await verifier(at=AT + 29 * SECOND).verify(token)
    with pytest.raises(Unauthenticated) as refusal:
        await verifier(at=AT + 30 * SECOND).verify(token)
    assert refusal.value.extra == {"reason": "token_expired"}


async def test_tokens_of_every_published_key_verify() -> None:
    newer = keys.new_signing_key(at=AT)
    for key in (KEY, newer):
        assert (await verifier(newer, KEY).verify(keys.sign(key, claims()))).username == "alice"


def test_a_new_key_signs_only_after_it_was_published_long_enough() -> None:
    older, newer = SigningKey(kid="a", private_pem="", created_at=0), SigningKey(kid="b", private_pem="", created_at=AT)
    known = [newer, older]
    assert keys.signing_key(known, at=AT).kid == "a"
    assert keys.signing_key(known, at=AT + 59 * SECOND).kid == "a"
    assert keys.signing_key(known, at=AT + 60 * SECOND).kid == "b"


def test_the_very_first_key_signs_at_once() -> None:
    assert keys.signing_key([KEY], at=0) is KEY


def test_a_replaced_key_stays_published_for_a_day() -> None:
    made = [SigningKey(kid=kid, private_pem="", created_at=at) for kid, at in (("c", 2 * DAY), ("b", DAY), ("a", 0))]
    assert [key.kid for key in keys.in_force(made, at=2 * DAY - 1)] == ["c", "b", "a"]
    assert [key.kid for key in keys.in_force(made, at=2 * DAY)] == ["c", "b"]
    assert [key.kid for key in keys.in_force(made, at=99 * DAY)] == ["c"]


@pytest.mark.parametrize("at", [AT, AT + 59 * SECOND, AT + 60 * SECOND, AT + DAY - 1])
def test_the_key_that_signs_is_always_published(at: int) -> None:
    known = [SigningKey(kid=kid, private_pem="", created_at=made) for kid, made in (("b", AT), ("a", 0))]
    assert keys.signing_key(known, at=at) in keys.in_force(known, at=at)
