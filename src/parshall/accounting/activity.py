"""The values of usage as it is reported and recorded: spans of days, records, sums by what they have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parshall.kernel.clock import DAY
from parshall.kernel.errors import Invalid
from parshall.kernel.ids import UserId

SPAN_DAYS_MAX = 366
SPAN_DAYS_DEFAULT = 30
GROUPS_MAX = 100
"""Services, models and users that a report names, those of the most credits; the rest is one sum."""
RECENT_MAX = 20
"""Newest records that a report lists."""
AHEAD_SECONDS_MAX = 300
"""How far a recorded use may lie in the future: clocks differ."""

CHAT = "chat"
"""The service that ended reservations count for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The instants (microseconds) from `since` up to, not including, `until`."""

    since: int
    until: int

    @classmethod
    def of(cls, since: int | None, until: int | None, *, at: int) -> "Span":
        """What was asked for; without an end until now, without a start the last SPAN_DAYS_DEFAULT days of it.

        Raises Invalid for a span that is empty or longer than SPAN_DAYS_MAX.
        """
        last = at + 1 if until is None else until
        first = max(last - SPAN_DAYS_DEFAULT * DAY, 0) if since is None else since
        if first >= last:
            raise Invalid("startDate must lie before endDate (and before now where endDate is left out).")
        if last - first > SPAN_DAYS_MAX * DAY:
            raise Invalid(f"A report covers at most {SPAN_DAYS_MAX} days; ask for a shorter span.")
        return cls(since=first, until=last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One use: an ended reservation (its id is the streaming session id), or what a service recorded beside streams."""

    id: str
    user_id: UserId
    service: str
    operation: str
    model_id: str | None
    input_tokens: int
    output_tokens: int
    credits: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A record as a service reports it, with what it says about it besides."""

    record: Record
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sum:
    """Records added up; credits in microcredits."""

    records: int
    credits: int
    input_tokens: int
    output_tokens: int

    def __sub__(self, other: "Sum") -> "Sum":
        """What is left of this sum without the other."""
        return Sum(
            self.records - other.records,
            self.credits - other.credits,
            self.input_tokens - other.input_tokens,
            self.output_tokens - other.output_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Sums by one thing that records have in common; `rest` adds up those that are not named, if there are any."""

    named: Mapping[str, Sum]
    rest: Sum | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was used within a span, by one user or by everybody (who is then told apart in `by_user`)."""

    span: Span
    total: Sum
    by_service: Groups
    by_day: Groups
    by_model: Groups
    by_user: Groups | None
    recent: Sequence[Record]
