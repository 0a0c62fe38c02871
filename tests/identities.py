"""The auth service on a database of a test's own, with cheap hashes and a clock that the test turns."""

from typing import Any

from tests.postgres import Engine

from parshall.auth.model import User
from parshall.auth.passwords import PasswordHasher
from parshall.auth.service import Auth
from parshall.kernel.clock import SECOND
from parshall.kernel.tokens import Role, TokenVerifier

ISSUER = "http://127.0.0.1:8000"
PASSWORD = "correct horse"
HERE = "192.0.2.1"


class Hands:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.at = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.at

    def turn(self, seconds: float) -> None:
        self.at += int(seconds * SECOND)


async def opened(engine: Engine, clock: Hands, **options: Any) -> Auth:
    """Auth on the records of the engine; opened again, a second process on them."""
    database = engine.open("parshall.auth")
    hasher = PasswordHasher(passes=1, memory_kib=8, lanes=1)
    made = Auth(database, issuer=ISSUER, clock=clock, hasher=hasher, **options)
    await made.start()
    return made


async def alice(auth: Auth, role: Role = Role.ENDUSER) -> User:
    """A user."""
    return await auth.create_user("alice", "Alice@example.org", PASSWORD, role)


def verifier(auth: Auth, clock: Hands) -> TokenVerifier:
    """What a service of its own verifies callers with."""
    return TokenVerifier(
        auth.key_set,
        issuer=ISSUER,
        clock=clock,
        exchange=auth.api_keys.access_token,
        external=auth.externals.access_token,
    )
