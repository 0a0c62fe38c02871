"""How organisations, memberships and what a member may draw look to clients."""

from collections.abc import Mapping
from typing import Any

from parshall.accounting.organisation import Member, Organisation, Standing
from parshall.kernel.clock import rfc3339
from parshall.kernel.credits import wire


def organisation_wire(organisation: Organisation) -> dict[str, Any]:
    """One organisation."""
    return {
        "id": organisation.id,
        "name": organisation.name,
        "createdAt": rfc3339(organisation.created_at),
        "createdBy": organisation.created_by,
    }


def member_wire(member: Member) -> dict[str, Any]:
    """One membership; null is no limit. Its counts are those of the instant to which it was rolled."""
    return {
        "userId": member.user_id,
        "organisationId": member.organisation_id,
        "role": member.role.value,
        "limitPerDay": _wire(member.limit_day),
        "limitPerMonth": _wire(member.limit_month),
        "limitTotal": _wire(member.limit_total),
        "usedToday": wire(member.day_used),
        "usedThisMonth": wire(member.month_used),
        "usedTotal": wire(member.total_used),
        "limitLeft": _wire(member.left(at=0)),
        "joinedAt": rfc3339(member.joined_at),
    }


def standing_wire(standing: Standing) -> dict[str, Any]:
    """What an organisation gives a user, as a part of the user's balance."""
    return {
        "id": standing.organisation.id,
        "name": standing.organisation.name,
        "role": standing.member.role.value,
        "availableCredits": wire(standing.drawable),
        "limitLeft": _wire(standing.member.left(at=0)),
    }


def membership_wire(standing: Standing) -> dict[str, Any]:
    """One's own membership."""
    return {
        "organisation": organisation_wire(standing.organisation),
        **member_wire(standing.member),
        "availableCredits": wire(standing.drawable),
    }


def of_group(body: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of an account, where an organisation holds it."""
    return {"organisationId" if name == "userId" else name: value for name, value in body.items()}


def _wire(amount: int | None) -> int | float | None:
    return None if amount is None else wire(amount)
