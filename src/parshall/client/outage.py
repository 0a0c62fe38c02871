"""How long to go on asking a deployment that does not answer, and with what pauses."""

from collections.abc import Callable
from dataclasses import dataclass

CALL_ATTEMPTS_MAX = 3
"""Of one call, the first included; only streams wait out a whole outage."""
RETRIED_STATUSES = frozenset({502, 503, 504})
"""A deployment that restarts or a proxy in front of one: the same request may work in a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How to reconnect: pauses that double between two bounds, until an outage without progress lasts too long."""

    pause_seconds_min: float = 0.2
    pause_seconds_max: float = 5.0
    outage_seconds_max: float = 60.0

    def pause(self, attempt: int, *, at_least: float, chance: float) -> float:
        """Seconds before attempt 1, 2, …; `chance` in [0, 1) spreads clients that were cut at the same moment."""
        doubled = self.pause_seconds_min * 2.0 ** min(attempt - 1, 20)
        return max(min(doubled, self.pause_seconds_max) * (0.5 + chance / 2), at_least * (1 + chance / 4))


class Outage:
    """How often and how long a stream has been cut off since its last event.

    Time while connected does not count: a model may think for minutes between two events.
    """

    def __init__(self, retry: Retry, *, now: Callable[[], float], chance: Callable[[], float]) -> None:
        """`now` gives seconds that never run backwards, `chance` a number in [0, 1)."""
        self.attempts = 0
        """Since the last event."""
        self._retry = retry
        self._now = now
        self._chance = chance
        self._seconds = 0.0
        self._since: float | None = None

    def next_pause(self, *, at_least: float) -> float | None:
        """Seconds to wait before the next attempt; None once the outage has lasted too long."""
        now = self._now()
        if self._since is None:
            self._since = now
        left = self._retry.outage_seconds_max - self._seconds - (now - self._since)
        if left <= 0:
            return None
        self.attempts += 1
        return min(self._retry.pause(self.attempts, at_least=at_least, chance=self._chance()), left)

    def connected(self) -> None:
        """The server answers again; whether it gets further is yet to be seen."""
        if self._since is not None:
            self._seconds += self._now() - self._since
            self._since = None

    def over(self) -> None:
        """An event came."""
        self.attempts, self._seconds, self._since = 0, 0.0, None
