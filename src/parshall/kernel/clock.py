"""Time: integer microseconds since the Unix epoch (UTC) inside, RFC 3339 on the wire."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], int]
"""Gives the present instant in microseconds since the epoch. Rules take the instant; only edges hold a Clock."""

SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 86_400 * SECOND
INSTANT_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999, beyond which RFC 3339 has no form."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> int:
    """The system clock, in microseconds since the epoch."""
    return time.time_ns() // 1000


def rfc3339(at: int) -> str:
    """The instant `at` (microseconds since the epoch) as `2026-11-22T18:24:00.000000Z`."""
    moment = _EPOCH + timedelta(microseconds=at)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def instant(moment: datetime) -> int:
    """Microseconds since the epoch of an aware datetime (a naive one is taken as UTC)."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def calendar_month(at: int) -> int:
    """The calendar month (UTC) of the instant `at`, counted from the year 0."""
    moment = _EPOCH + timedelta(microseconds=at)
    return moment.year * 12 + moment.month - 1
