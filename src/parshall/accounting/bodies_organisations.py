"""What clients may send about organisations: a name, a membership, and credits for the group's account."""

from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from parshall.accounting.bodies import Amount, AmountOrZero, Notes, OnTerms, SignedAmount, printable
from parshall.accounting.membership import Change, Limit
from parshall.accounting.organisation import NAME_CHARACTERS_MAX, MemberRole
from parshall.kernel.http import WireModel

Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=NAME_CHARACTERS_MAX),
    AfterValidator(printable),
]

_LIMITS: dict[str, Limit] = {
    "limit_per_day": "limit_day",
    "limit_per_month": "limit_month",
    "limit_total": "limit_total",
}


class OrganisationBody(WireModel):
    """Call it so."""

    name: Name


class MemberBody(WireModel):
    """What a membership shall be. What is left out stays as it is; null lifts a limit."""

    role: MemberRole | None = None
    limit_per_day: AmountOrZero | None = None
    limit_per_month: AmountOrZero | None = None
    limit_total: AmountOrZero | None = None

    def change(self) -> Change:
        """As the rules take it."""
        given = {name: getattr(self, name) for name in _LIMITS if name in self.model_fields_set}
        return Change(role=self.role, limits={_LIMITS[name]: amount for name, amount in given.items()})


class GroupAllocateBody(OnTerms):
    """Grant the group so much."""

    credits: Amount


class GroupSetBody(OnTerms):
    """Make it so much."""

    credits: AmountOrZero


class GroupAdjustBody(OnTerms):
    """Add so much, or take it where negative."""

    adjustment: SignedAmount


class GroupRemoveBody(WireModel):
    """Take so much back."""

    credits: Amount
    notes: Notes = ""
