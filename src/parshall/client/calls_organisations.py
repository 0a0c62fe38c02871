"""Calls to accounting about organisations: groups with credits of their own, on which members draw within limits."""

from typing import Any, Literal

from parshall.client import records
from parshall.client.addresses import segment
from parshall.client.asked import Asks, asked
from parshall.client.core import Ask, Members
from parshall.client.model import Balance
from parshall.client.records import Amount, Changed, Entry, Grant, Member, Organisation, Page, Unlimited
from parshall.client.steps import Steps

Limit = Amount | Unlimited | None
"""Credits; None leaves the limit as it is, and UNLIMITED lifts it."""
PATH = "/organisations"


class OrganisationCalls(Asks):
    """What supervisors, managers and members ask. An organisation is named by its id, a member as any user is."""

    @asked
    def found_organisation(self, name: str, *, idempotency_key: str | None = None) -> Steps[Organisation]:
        """Make an organisation. For supervisors."""
        return self._change("POST", PATH, {"name": name}, idempotency_key, records.of(Organisation))

    @asked
    def organisations(self, *, after: str | None = None, limit: int = 100) -> Steps[Page[Organisation]]:
        """Every organisation by name, from behind the name `after`. For supervisors."""
        ask = Ask(method="GET", path=PATH, query={"after": after, "limit": limit})
        return self._core.call(ask, records.page("organisations", Organisation))

    @asked
    def organisation(self, organisation_id: str) -> Steps[Organisation]:
        """That organisation. For its members and supervisors."""
        return self._core.call(Ask(method="GET", path=_at(organisation_id)), records.of(Organisation))

    @asked
    def my_organisation(self) -> Steps[Member]:
        """The own membership. Raises ApiError (404) without one."""
        return self._core.call(Ask(method="GET", path=f"{PATH}/mine"), records.of(Member))

    @asked
    def rename_organisation(
        self, organisation_id: str, name: str, *, idempotency_key: str | None = None
    ) -> Steps[Organisation]:
        """Give an organisation another name. For supervisors."""
        path = _at(organisation_id)
        return self._change("PATCH", path, {"name": name}, idempotency_key, records.of(Organisation))

    @asked
    def organisation_balance(self, organisation_id: str) -> Steps[Balance]:
        """What the organisation holds. For its managers and supervisors."""
        return self._core.call(Ask(method="GET", path=_at(organisation_id, "balance")), Balance.read)

    @asked
    def organisation_statement(self, organisation_id: str, *, after: int = 0, limit: int = 100) -> Steps[Page[Entry]]:
        """The entries of its account, oldest first. For its managers and supervisors."""
        path, query = _at(organisation_id, "statement"), {"after": after, "limit": limit}
        return self._core.call(Ask(method="GET", path=path, query={**query}), records.page("entries", Entry))

    @asked
    def allocate_to_organisation(
        self,
        organisation_id: str,
        credits: Amount,
        *,
        expiry_days: int | None = None,
        notes: str | None = None,
        idempotency_key: str | None = None,
    ) -> Steps[Grant]:
        """Grant credits to an organisation, whose id is the grant's `user_id`. For supervisors."""
        body = {"credits": credits, "expiryDays": expiry_days, "notes": notes}
        return self._change("POST", _at(organisation_id, "allocate"), body, idempotency_key, _of_group(Grant))

    @asked
    def adjust_organisation(
        self,
        organisation_id: str,
        credits: Amount,
        *,
        notes: str | None = None,
        idempotency_key: str | None = None,
    ) -> Steps[Changed]:
        """Add credits to its account, or take them where negative. For supervisors."""
        body = {"adjustment": credits, "notes": notes}
        return self._change("PUT", _at(organisation_id, "adjust"), body, idempotency_key, _of_group(Changed))

    @asked
    def members(self, organisation_id: str, *, after: str | None = None, limit: int = 100) -> Steps[Page[Member]]:
        """Its members by user id. For its managers and supervisors."""
        path, query = _at(organisation_id, "members"), {"after": after, "limit": limit}
        return self._core.call(Ask(method="GET", path=path, query={**query}), records.page("members", Member))

    @asked
    def set_member(
        self,
        organisation_id: str,
        user: str,
        *,
        role: Literal["member", "manager"] | None = None,
        limit_per_day: Limit = None,
        limit_per_month: Limit = None,
        limit_total: Limit = None,
        idempotency_key: str | None = None,
    ) -> Steps[Member]:
        """Make a user a member, or change the membership. For its managers and supervisors."""
        limits = {"limitPerDay": limit_per_day, "limitPerMonth": limit_per_month, "limitTotal": limit_total}
        path = _at(organisation_id, "members", user)
        return self._change("PUT", path, {"role": role, **limits}, idempotency_key, records.of(Member))

    @asked
    def remove_member(self, organisation_id: str, user: str, *, idempotency_key: str | None = None) -> Steps[None]:
        """End a membership. For its managers and supervisors."""
        yield from self._change("DELETE", _at(organisation_id, "members", user), {}, idempotency_key, dict)


def _at(*parts: str) -> str:
    return "/".join([PATH, *map(segment, parts)])


def _of_group(kind: type[Any]) -> Any:
    """Reads what is said of a user's account where an organisation holds it."""

    def read(answer: Members) -> Any:
        return records.of(kind)({"userId": answer.get("organisationId"), **answer})

    return read
