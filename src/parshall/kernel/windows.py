"""Counting requests in a moving window: in this process, or in a Valkey that replicas share."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from parshall.kernel.telemetry import log

WINDOW_SECONDS = 60
CALLERS_MAX = 20_000
"""Beyond so many the caller that has been silent for longest is forgotten."""
STORE_CONNECTIONS_MAX = 16
STORE_SECONDS_MAX = 1.0
"""A store that takes longer is away: no request waits longer for a count."""
STORE_AWAY_SECONDS = 5.0
"""How long a store that was away is left alone before one request asks it again."""
WARNING_SECONDS = 60.0

AWAY = (StorageError, TimeoutError, OSError, RuntimeError)
"""What says that the store is not there; uvloop raises the last for bytes sent after a connection has ended."""

_logger = log("limits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What counting a request came to; `seconds` until the oldest of those counted leaves the window."""

    fits: bool
    left: int
    seconds: float


class Windows(Protocol):
    """Moving windows of WINDOW_SECONDS, one a caller: in none of them does more than the limit fit."""

    async def hit(self, caller: str, most: int) -> Count | None:
        """Count a request where it fits, and say what is left; None where nobody can count now."""

    async def close(self) -> None:
        """Let go of what was opened."""


class LocalWindows:
    """Windows of this process: exact, a constant cost for each request, and no waiting."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self._clock = clock
        self._callers: OrderedDict[str, deque[float]] = OrderedDict()

    async def hit(self, caller: str, most: int) -> Count:
        """Count a request where it fits. Those refused are not counted: who waits as told gets in."""
        now = self._clock()
        since = now - WINDOW_SECONDS
        counted = self._callers.setdefault(caller, deque())
        self._callers.move_to_end(caller)
        while counted and counted[0] <= since:
            counted.popleft()
        if fits := len(counted) < most:
            counted.append(now)
        self._forget(since)
        return Count(fits=fits, left=most - len(counted), seconds=counted[0] - since)

    async def close(self) -> None:
        """Nothing is open."""

    def _forget(self, since: float) -> None:
        """Drop who has been silent for a window, at most two at a time, so that no request pays for many."""
        for _ in range(2):
            caller, counted = next(iter(self._callers.items()))
            if counted[-1] > since and len(self._callers) <= CALLERS_MAX:
                break
            del self._callers[caller]


class SharedWindows:
    """Windows in a Valkey or Redis, for all replicas that name the same one. Their clocks must agree.

    A store that is away counts nothing and refuses nobody: a limit is no reason to turn callers down.
    """

    def __init__(self, url: str) -> None:
        """`url` is valkey://…, redis://…, or either with an s for TLS; the first request connects."""
        url = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url  # the client's word for the same
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=STORE_CONNECTIONS_MAX,
            timeout=STORE_SECONDS_MAX,
            retry=Retry(NoBackoff(), 0),
        )
        storage = RedisStorage(
            "async+redis://",  # the pool knows where, also without a port
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix="parshall",
            connection_pool=self._pool,  # type: ignore[arg-type]  # documented, but not annotated
        )
        self._limiter = MovingWindowRateLimiter(storage)
        self._away_until: float | None = None
        self._warn_at = 0.0

    async def hit(self, caller: str, most: int) -> Count | None:
        """Count a request where it fits; None while the store is away."""
        if not self._is_due():
            return None
        item = RateLimitItemPerSecond(most, WINDOW_SECONDS, namespace="requests")
        try:
            async with asyncio.timeout(STORE_SECONDS_MAX):
                fits = await self._limiter.hit(item, caller)
                window = await self._limiter.get_window_stats(item, caller)
        except AWAY as error:
            self._leave_alone(error)
            return None
        self._away_until = None
        return Count(fits=fits, left=max(0, window.remaining), seconds=max(0.0, window.reset_time - time.time()))

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    def _is_due(self) -> bool:
        """Whether to ask the store; of a store that was away one request finds out, and the others do not wait."""
        if self._away_until is not None:
            now = time.monotonic()
            if now < self._away_until:
                return False
            self._away_until = now + STORE_AWAY_SECONDS
        return True

    def _leave_alone(self, error: Exception) -> None:
        now = time.monotonic()
        self._away_until = now + STORE_AWAY_SECONDS
        if now >= self._warn_at:
            self._warn_at = now + WARNING_SECONDS
            reason = "no answer in time" if isinstance(error, TimeoutError) else type(error.__cause__ or error).__name__
            _logger.warning("limits_store_away", reason=reason)
