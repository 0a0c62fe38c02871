"""Passwords: hashed and verified beside the event loop, a few at once, and how often one may be guessed."""

import asyncio
import base64
import hashlib
import math
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from pwdlib.hashers.argon2 import Argon2Hasher

from parshall.auth.model import UnfitPassword, password_bytes
from parshall.kernel.addresses import network_of
from parshall.kernel.errors import TooManyRequests, Unavailable

T = TypeVar("T")

AT_ONCE = 2
"""Hashes computed at the same time; each takes a core and 64 MiB for about 0.2 s."""
WAITING_MAX = 512
FAILURE_WINDOW_SECONDS = 900
FAILURES_PER_LOGIN_MAX = 10
FAILURES_PER_ADDRESS_MAX = 50
FAILURES_PER_SWEEP = 1024
LETTERS_PER_EMAIL_MAX = 3
LETTERS_PER_ADDRESS_MAX = 20


class PasswordHasher:
    """Argon2id (RFC 9106) in threads of its own. The defaults are the RFC's second choice, at 64 MiB."""

    def __init__(self, *, passes: int = 3, memory_kib: int = 65_536, lanes: int = 4) -> None:
        """Smaller numbers are for tests."""
        self._argon2 = Argon2Hasher(time_cost=passes, memory_cost=memory_kib, parallelism=lanes)
        salt, digest = (_b64(secrets.token_bytes(size)) for size in (16, 32))
        self._nobody = f"$argon2id$v=19$m={memory_kib},t={passes},p={lanes}${salt}${digest}"
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="argon2")
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """The hash to keep. Raises UnfitPassword, or Unavailable when too many are waiting."""
        secret = password_bytes(password)
        return await self._run(lambda: self._argon2.hash(secret))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the password has this hash. For None (no such user) it is False, and takes as long to say so."""
        try:
            secret = password_bytes(password)
        except UnfitPassword:
            secret, password_hash = b"", None
        against = password_hash or self._nobody
        matches = await self._run(lambda: self._argon2.verify(secret, against))
        return matches and password_hash is not None

    async def close(self) -> None:
        """Wait for the hashes under way."""
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= WAITING_MAX:
            raise Unavailable("Too many logins are waiting; try again in a few seconds.", retry_after=5)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


class LoginThrottle:
    """Counts failed logins of the last quarter of an hour, per login name and address, and per address."""

    counted = "failed logins"

    def __init__(self, per_login: int = FAILURES_PER_LOGIN_MAX, per_address: int = FAILURES_PER_ADDRESS_MAX) -> None:
        """How many there may be."""
        self._storage = MemoryStorage()
        self._window = MovingWindowRateLimiter(self._storage)
        self._per_login = RateLimitItemPerSecond(per_login, FAILURE_WINDOW_SECONDS, namespace="login")
        self._per_address = RateLimitItemPerSecond(per_address, FAILURE_WINDOW_SECONDS, namespace="address")
        self._failures = 0

    def check(self, name: str, address: str) -> None:
        """Raises TooManyRequests, with the seconds until the oldest failure is forgotten."""
        for item, key in self._counters(name, address):
            if not self._window.test(item, key):
                reset = self._window.get_window_stats(item, key).reset_time
                seconds = max(1, math.ceil(reset - time.time()))
                raise TooManyRequests(
                    f"Too many {self.counted}; try again in {math.ceil(seconds / 60)} min.", retry_after=seconds
                )

    def failed(self, name: str, address: str) -> None:
        """Count one."""
        for item, key in self._counters(name, address):
            self._window.hit(item, key)
        self._failures += 1
        if self._failures % FAILURES_PER_SWEEP == 0:
            self._sweep()

    def succeeded(self, name: str, address: str) -> None:
        """Forget the failures of this name from this address.

        Those of the address stay, else an attacker's own login would reset it.
        """
        item, key = self._counters(name, address)[0]
        self._window.clear(item, key)

    def _counters(self, name: str, address: str) -> list[tuple[RateLimitItem, str]]:
        """Names are digested: an attacker chooses their length."""
        network = network_of(address)
        return [(self._per_login, _digest(f"{network} {name.lower()}")), (self._per_address, network)]

    def _sweep(self) -> None:
        """Drop counters that have run empty: the storage forgets what they count, and keeps their names."""
        for key in [key for key, entries in self._storage.events.items() if not entries]:
            self._storage.clear(key)


class SignupThrottle(LoginThrottle):
    """Counts sign-ups that were refused because somebody has the name or address: each tells that there is one."""

    counted = "names and addresses that are taken"

    def __init__(self) -> None:
        super().__init__(FAILURES_PER_ADDRESS_MAX, FAILURES_PER_ADDRESS_MAX)


class MailThrottle(LoginThrottle):
    """Counts letters: those to one e-mail address, whoever asks, and those that one network address asks for."""

    counted = "messages"

    def __init__(self) -> None:
        super().__init__(LETTERS_PER_EMAIL_MAX, LETTERS_PER_ADDRESS_MAX)

    def _counters(self, name: str, address: str) -> list[tuple[RateLimitItem, str]]:
        return [(self._per_login, _digest(name.lower())), (self._per_address, network_of(address))]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")
