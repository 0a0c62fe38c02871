"""Laws of the limit on requests: who is counted as whom, and what the fields of the response say."""

import asyncio
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import KeySet
from starlette.requests import Request

from parshall.auth import keys
from parshall.auth.model import User
from parshall.kernel.clock import SECOND
from parshall.kernel.headers import EXPOSED
from parshall.kernel.ids import UserId
from parshall.kernel.ratelimit import Admission, RateLimit
from parshall.kernel.tokens import Role, TokenVerifier
from parshall.kernel.windows import LocalWindows

ISSUER = "parshall"
AT = 1_800_000_000 * SECOND
KEY = keys.new_signing_key(at=0)
POLICY = re.compile(r'"(user|address)";q=(\d+);w=60')
STANDING = re.compile(r'"(user|address)";r=(\d+);t=(\d+)')
GARBAGE = ("Bearer nonsense", "Bearer", "Basic YTpi", "Bearer a.b.c")


def user_token(name: str = "alice") -> str:
    user = User(
        id=UserId(name.ljust(32, "0")),
        username=name,
        email=f"{name}@example.org",
        role=Role.ENDUSER,
        is_verified=True,
        created_at=0,
    )
    return keys.sign(KEY, keys.user_claims(user, issuer=ISSUER, at=AT, seconds=900, family_id="f" * 32))


def limit_of(*, per_user: int = 3, per_address: int = 2, exempt: Iterable[str] = ("/health",)) -> RateLimit:
    async def published() -> KeySet:
        return keys.public_keys((KEY,))

    verifier = TokenVerifier(published, issuer=ISSUER, clock=lambda: AT)
    return RateLimit(
        LocalWindows(), verifier=verifier, per_user=per_user, per_address=per_address, exempt=frozenset(exempt)
    )


def request(
    path: str = "/api/models", *, method: str = "GET", address: str | None = "192.0.2.1", **headers: str
) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    client = (address, 1234) if address else None
    return Request({"type": "http", "method": method, "path": path, "headers": raw, "client": client})


def bearer(token: str) -> str:
    return f"Bearer {token}"


async def admitted(limit: RateLimit, *requests: Request) -> list[bool]:
    return [(await limit.admit(each)).refusal is None for each in requests]


def policy_of(admission: Admission) -> str:
    found = POLICY.fullmatch(dict(admission.fields)["RateLimit-Policy"])
    assert found
    return found[1]


async def test_a_user_is_counted_by_id_whatever_the_address_and_the_token() -> None:
    limit = limit_of()
    tokens = [user_token(), user_token(), user_token(), user_token()]
    asked = [request(authorization=bearer(t), address=f"192.0.2.{n}") for n, t in enumerate(tokens)]
    assert await admitted(limit, *asked) == [True, True, True, False]
    assert await admitted(limit, request(authorization=bearer(user_token("bob")))) == [True]


async def test_a_cookie_names_the_user_where_it_counts_as_a_token() -> None:
    limit, cookie = limit_of(), f"accessToken={user_token()}"
    assert policy_of(await limit.admit(request(cookie=cookie))) == "user"
    assert policy_of(await limit.admit(request(cookie=cookie, method="POST"))) == "address"


@pytest.mark.parametrize("authorization", GARBAGE)
async def test_who_has_no_valid_token_is_counted_by_address(authorization: str) -> None:
    limit = limit_of()
    asked = [request(), request(authorization=authorization), request(authorization=authorization)]
    assert await admitted(limit, *asked) == [True, True, False]
    assert await admitted(limit, request(address="192.0.2.2")) == [True]
    assert await admitted(limit, request(authorization=bearer(user_token()))) == [True]


async def test_the_addresses_of_one_ipv6_network_count_as_one() -> None:
    asked = [request(address=f"2001:db8::{n}") for n in range(1, 4)]
    assert await admitted(limit_of(), *asked) == [True, True, False]


async def test_a_request_without_an_address_is_counted_too() -> None:
    assert await admitted(limit_of(), *[request(address=None)] * 3) == [True, True, False]


async def test_services_are_not_counted() -> None:
    token = keys.sign(KEY, keys.service_claims("chat", frozenset({"auth:read"}), issuer=ISSUER, at=AT))
    limit = limit_of(per_user=1, per_address=1)
    for _ in range(5):
        assert await limit.admit(request(authorization=bearer(token))) == Admission()


async def test_exempt_paths_are_neither_counted_nor_refused() -> None:
    limit = limit_of(per_address=1)
    for _ in range(3):
        assert await limit.admit(request("/health")) == Admission()
    assert await admitted(limit, request(), request(), request("/health")) == [True, False, True]


async def test_zero_means_any_number() -> None:
    limit = limit_of(per_user=0, per_address=0)
    for _ in range(5):
        assert await limit.admit(request()) == Admission()
        assert await limit.admit(request(authorization=bearer(user_token()))) == Admission()


@given(most=st.integers(1, 6))
def test_the_fields_count_down_and_a_refusal_says_when_to_come_back(most: int) -> None:
    limit = limit_of(per_address=most)
    answers = [asyncio.run(limit.admit(request())) for _ in range(most + 2)]
    for number, answer in enumerate(answers, start=1):
        fields = dict(answer.fields)
        assert fields.keys() <= {*EXPOSED}
        policy, standing = POLICY.fullmatch(fields["RateLimit-Policy"]), STANDING.fullmatch(fields["RateLimit"])
        assert policy and standing
        assert (policy[1], int(policy[2])) == (standing[1], most) == ("address", most)
        assert int(standing[2]) == max(0, most - number)
        assert 1 <= int(standing[3]) <= 60
        assert (answer.refusal is not None) == (number > most)
        if answer.refusal is not None:
            assert (answer.refusal.status, answer.refusal.code) == (429, "rate_limited")
            assert answer.refusal.headers == {"Retry-After": standing[3]}
