"""The rules of an organisation's members: what each may still spend of its account, by day, by month and in all."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from parshall.kernel.clock import DAY, calendar_month
from parshall.kernel.errors import Conflict, NotFound
from parshall.kernel.ids import UserId

NAME_CHARACTERS_MAX = 100


class UnknownOrganisation(NotFound):
    """No organisation bears that id, or none that the caller may know of."""

    default = "There is no such organisation, or you do not belong to it."


class NotMember(NotFound):
    """The user has no membership."""

    default = "This user does not belong to the organisation; put a membership first."


class OrganisationExists(Conflict):
    """Another organisation bears the name."""

    code = "organisation_exists"
    title = "Organisation exists"
    default = "Another organisation bears this name; choose another one."


class AlreadyMember(Conflict):
    """The user belongs to another organisation."""

    code = "already_member"
    title = "Already a member"
    default = "This user belongs to another organisation; end that membership first."


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

    A stream counts whole, with what it holds while it runs and with what it cost once it has ended, on the day (UTC) on
    which it last reserved. The fields stand in the order of the table's columns; not frozen, because the working set
    changes it in place.
    """

    user_id: UserId
    id: str
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

    def drawable(self, available: int, *, at: int, held: int = 0, on: int = 0) -> int:
        """What of the organisation's `available` a stream may take that holds `held`, counted on the day `on`."""
        left = self.left(at=at, held=held, on=on)
        return available if left is None else min(available, left)

    def left(self, *, at: int, held: int = 0, on: int = 0) -> int | None:
        """The least that any limit leaves at the instant `at`; None where there is no limit.

        What the stream that asks holds from an earlier day would count anew with what it takes now.
        """
        self.roll(at=at)
        limits = (
            (self.limit_day, self.day_used + (held if on != self.day else 0)),
            (self.limit_month, self.month_used + (held if month_of(on) != self.month else 0)),
            (self.limit_total, self.total_used),
        )
        # A limit may have been lowered below what is used.
        return min((max(limit - used, 0) for limit, used in limits if limit is not None), default=None)

    def count(self, *, was: int, now: int, on: int, at: int) -> int:
        """Count a stream with `now` that counted with `was` on the day `on`; the day on which it counts from here on.

        A stream that takes more counts on the present day, one that gives back stays where it was.
        """
        self.roll(at=at)
        self._add(-was, on=on)
        day = self.day if now > was else on
        self._add(now, on=day)
        assert min(self.day_used, self.month_used, self.total_used) >= 0
        return day

    def roll(self, *, at: int) -> None:
        """Begin a new day or month where one has begun; a clock that runs backward begins none."""
        if at // DAY > self.day:
            self.day, self.day_used = at // DAY, 0
        if calendar_month(at) > self.month:
            self.month, self.month_used = calendar_month(at), 0

    def _add(self, amount: int, *, on: int) -> None:
        if on == self.day:
            self.day_used += amount
        if month_of(on) == self.month:
            self.month_used += amount
        self.total_used += amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A user's organisation, membership, and what the user may draw of the organisation's account now (`drawable`)."""

    organisation: Organisation
    member: Member
    drawable: int


def joining(user_id: UserId, organisation_id: str, *, member_id: str, at: int) -> Member:
    """A new membership, without limits and with nothing used."""
    day, month = at // DAY, calendar_month(at)
    return Member(user_id, member_id, organisation_id, MemberRole.MEMBER, None, None, None, day, 0, month, 0, 0, at)


def member_of_row(row: Sequence[Any]) -> Member:
    """A membership as its table's row has it."""
    member = Member(*row)
    member.role = MemberRole(member.role)
    return member


def month_of(day: int) -> int:
    """The calendar month (as clock.calendar_month) of a day since the epoch."""
    return calendar_month(day * DAY)
