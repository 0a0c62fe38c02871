"""What is read and written of organisations outside the working set of a batch: names, lists, a user's standing."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from parshall.accounting import queries
from parshall.accounting.organisation import Member, Organisation, Standing, UnknownOrganisation, member_of_row
from parshall.accounting.tables import members, organisations
from parshall.kernel.ids import UserId

# What every look at a balance runs is built once: building a statement costs more than running it.
_ORGANISATION = select(organisations).where(organisations.c.id == bindparam("organisation"))
_MEMBER = select(members).where(members.c.user_id == bindparam("user"))


def find_organisation(connection: Connection, organisation_id: str) -> Organisation:
    """The organisation. Raises UnknownOrganisation."""
    row = connection.execute(_ORGANISATION, {"organisation": organisation_id}).one_or_none()
    if row is None:
        raise UnknownOrganisation
    return _organisation(row)


def named_organisation(connection: Connection, named: str) -> Organisation | None:
    """The organisation of that id or name; an id wins over a name that looks like it."""
    query = select(organisations).where(or_(organisations.c.id == named, organisations.c.name == named))
    found = [_organisation(row) for row in connection.execute(query)]
    return min(found, key=lambda each: each.id != named, default=None)


def is_taken(connection: Connection, name: str, *, besides: str) -> bool:
    """Whether an organisation other than the one of that id bears the name."""
    query = select(organisations.c.id).where(organisations.c.name == name, organisations.c.id != besides)
    return connection.execute(query).one_or_none() is not None


def add_organisation(connection: Connection, organisation: Organisation) -> None:
    """Keep a new organisation, whose name is free."""
    row = {name: getattr(organisation, name) for name in Organisation.__slots__}
    connection.execute(insert(organisations).values(row))


def rename_organisation(connection: Connection, organisation_id: str, name: str) -> None:
    """Give an organisation another name, which is free."""
    connection.execute(update(organisations).where(organisations.c.id == organisation_id).values(name=name))


def all_organisations(connection: Connection, *, after: str, limit: int) -> list[Organisation]:
    """Organisations in the order of their names, behind the name `after`, at most `limit`."""
    query = select(organisations).where(organisations.c.name > after).order_by(organisations.c.name).limit(limit)
    return [_organisation(row) for row in connection.execute(query)]


def find_member(connection: Connection, user_id: str) -> Member | None:
    """The user's membership, if there is one, as it was last written."""
    row = connection.execute(_MEMBER, {"user": user_id}).one_or_none()
    return None if row is None else member_of_row(row)


def members_of(connection: Connection, organisation_id: str, *, after: str, limit: int, at: int) -> list[Member]:
    """Members of an organisation in the order of their ids, behind `after`, counted as of that instant."""
    query = (
        select(members)
        .where(members.c.organisation_id == organisation_id, members.c.user_id > after)
        .order_by(members.c.user_id)
        .limit(limit)
    )
    found = [member_of_row(row) for row in connection.execute(query)]
    for member in found:
        member.roll(at=at)
    return found


def standing(connection: Connection, user_id: UserId, *, at: int) -> Standing | None:
    """The user's organisation and what the user may draw of it at that instant; None where there is none."""
    member = find_member(connection, user_id)
    if member is None:
        return None
    available = queries.balance(connection, member.organisation_id, at=at).available
    return Standing(
        organisation=find_organisation(connection, member.organisation_id),
        member=member,
        drawable=member.drawable(available, at=at),
    )


def _organisation(row: Sequence[Any]) -> Organisation:
    identity, name, created_at, created_by = row
    return Organisation(id=identity, name=name, created_at=created_at, created_by=created_by)
