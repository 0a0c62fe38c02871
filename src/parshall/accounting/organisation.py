"""The rules of an organisation's members: what each may still spend of its account, by day, by month and in all."""

from dataclasses import dataclass
from enum import StrEnum

from parshall.kernel.clock import DAY, calendar_month
from parshall.kernel.ids import UserId


class MemberRole(StrEnum):
    """What a member may do: managers also see the account, grant nothing, and set the limits of members."""

    MEMBER = "member"
    MANAGER = "manager"


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """A group with an account of its own, which has the same id."""

    id: str
    name: str
    created_at: int
    created_by: str


@dataclass(slots=True)
class Member:
    """A user's place in an organisation. Limits and counts are microcredits; a limit of None does not bind.

    A stream counts toward the day and the month (UTC) in which it was reserved, with what it holds while it runs and
    with what it cost once it has ended. The fields stand in the order of the table's columns; not frozen, because the
    working set changes the counts in place.
    """

    user_id: UserId
    organisation_id: str
    role: MemberRole
    limit_day: int | None
    limit_month: int | None
    limit_total: int | None
    day: int
    day_used: int
    month: int
    month_used: int
    total_used: int
    joined_at: int

    def left(self, *, at: int) -> int | None:
        """The least that any limit leaves at the instant `at`; None where there is no limit."""
        self.roll(at=at)
        limits = (
            (self.limit_day, self.day_used),
            (self.limit_month, self.month_used),
            (self.limit_total, self.total_used),
        )
        return min((max(limit - used, 0) for limit, used in limits if limit is not None), default=None)

    def count(self, change: int, *, since: int, at: int) -> None:
        """Count `change` microcredits of a stream that was reserved at the instant `since`.

        Nothing that was reserved before the member joined counts: it was counted for an earlier membership.
        """
        if since < self.joined_at:
            return
        self.roll(at=at)
        if since // DAY == self.day:
            self.day_used += change
        if calendar_month(since) == self.month:
            self.month_used += change
        self.total_used += change
        assert min(self.day_used, self.month_used, self.total_used) >= 0

    def roll(self, *, at: int) -> None:
        """Begin a new day or month where one has begun; a clock that runs backward begins none."""
        if at // DAY > self.day:
            self.day, self.day_used = at // DAY, 0
        if calendar_month(at) > self.month:
            self.month, self.month_used = calendar_month(at), 0
