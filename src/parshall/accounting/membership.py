"""How users come into an organisation, change there and leave it, by the rules alone; and who may see to that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from parshall.accounting.books import Books
from parshall.accounting.organisation import AlreadyMember, Member, MemberRole, NotMember, UnknownOrganisation, joining
from parshall.kernel.errors import Forbidden
from parshall.kernel.ids import UserId, new_id

Limit = Literal["limit_day", "limit_month", "limit_total"]
_NOT_THEIRS = "A manager sees to plain members only, and makes no managers; ask a supervisor."


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What of a membership shall be otherwise: limits in microcredits, None to lift one. What is left out stays."""

    role: MemberRole | None = None
    limits: Mapping[Limit, int | None] = field(default_factory=dict)


def put(books: Books, organisation_id: str, user_id: UserId, change: Change, *, by: UserId | None) -> Member:
    """Let a user join, or change the membership. `by` is the manager who asks; None: a supervisor, who may do it all.

    Raises UnknownOrganisation, Forbidden, AlreadyMember.
    """
    member = books.members.get(user_id)
    makes_manager = change.role is MemberRole.MANAGER
    check_manager(books.members.get(by) if by else None, organisation_id, by=by)
    if by is not None and (makes_manager or _manages(member, organisation_id)):
        raise Forbidden(_NOT_THEIRS)
    if member is None:
        member = joining(user_id, organisation_id, member_id=new_id(), at=books.at)
        books.join(member)
    elif member.organisation_id != organisation_id:
        raise AlreadyMember
    member.role = change.role or member.role
    for name, amount in change.limits.items():
        setattr(member, name, amount)
    member.roll(at=books.at)
    books.change(member)
    return member


def remove(books: Books, organisation_id: str, user_id: UserId, *, by: UserId | None) -> Member:
    """End a membership; streams that run are paid to what they hold. Raises as `put` does, and NotMember."""
    check_manager(books.members.get(by) if by else None, organisation_id, by=by)
    member = books.members.get(user_id)
    if member is None or member.organisation_id != organisation_id:
        raise NotMember
    if by is not None and _manages(member, organisation_id):
        raise Forbidden(_NOT_THEIRS)
    books.leave(member)
    return member


def check_manager(member: Member | None, organisation_id: str, *, by: UserId | None) -> None:
    """Let supervisors (`by` is None) and managers pass. Raises Forbidden for a member, else UnknownOrganisation."""
    if by is None:
        return
    if member is None or member.organisation_id != organisation_id:
        raise UnknownOrganisation
    if member.role is not MemberRole.MANAGER:
        raise Forbidden("Only managers of the organisation and supervisors may do this; ask one of them.")


def _manages(member: Member | None, organisation_id: str) -> bool:
    return member is not None and member.organisation_id == organisation_id and member.role is MemberRole.MANAGER
