"""Organisations' use cases: found and rename them, see to their members, and look at who stands how."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import Connection

from parshall.accounting import membership
from parshall.accounting import queries_organisations as queries
from parshall.accounting.books import Books
from parshall.accounting.combine import Combiner, Operation
from parshall.accounting.membership import Change
from parshall.accounting.organisation import (
    Member,
    NotMember,
    Organisation,
    OrganisationExists,
    Standing,
    UnknownOrganisation,
)
from parshall.kernel.database import Database
from parshall.kernel.ids import UserId, new_id

T = TypeVar("T")

ORGANISATIONS_PER_PAGE_MAX = 500
MEMBERS_PER_PAGE_MAX = 500


class Organisations:
    """The organisations of one deployment.

    Where a method takes `by`, that is the user who asks and must have the rank that it names; None is a supervisor.
    Changes come as operations, which `Accounting.answer_once` runs behind an idempotency key, and `run` without one.
    """

    def __init__(self, database: Database, combiner: Combiner) -> None:
        """Read from `database`; change through `combiner`."""
        self._database = database
        self._combiner = combiner

    async def run(self, operation: Operation[T]) -> T:
        """The operation, done."""
        return await self._combiner.run(operation)

    # ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def founding(self, name: str, *, created_by: str) -> Operation[Organisation]:
        """Make an organisation and its account. Raises OrganisationExists."""
        made = new_id()

        def apply(books: Books) -> Organisation:
            if queries.is_taken(books.connection, name, besides=made):
                raise OrganisationExists
            organisation = Organisation(id=made, name=name, created_at=books.at, created_by=created_by)
            queries.add_organisation(books.connection, organisation)
            books.open_account(made)
            return organisation

        return Operation(apply, account_id=made)

    def renaming(self, organisation_id: str, name: str) -> Operation[Organisation]:
        """Give an organisation another name. Raises UnknownOrganisation, OrganisationExists."""

        def apply(books: Books) -> Organisation:
            if queries.is_taken(books.connection, name, besides=organisation_id):
                raise OrganisationExists
            queries.rename_organisation(books.connection, organisation_id, name)
            return queries.find_organisation(books.connection, organisation_id)

        return self.of(organisation_id, Operation(apply, account_id=organisation_id))

    def of(self, organisation_id: str, operation: Operation[T]) -> Operation[T]:
        """An operation on the account of an organisation that there must be. Raises UnknownOrganisation."""
        apply = operation.apply

        def checked(books: Books) -> T:
            queries.find_organisation(books.connection, organisation_id)
            return apply(books)

        return replace(operation, apply=checked)

    def putting(
        self, organisation_id: str, user_id: UserId, change: Change, *, by: UserId | None = None
    ) -> Operation[Member]:
        """Let a user join, or change the membership, as a manager or supervisor may.

        Raises UnknownOrganisation, Forbidden, AlreadyMember.
        """
        return self._seeing(
            organisation_id,
            user_id,
            lambda books: membership.put(books, organisation_id, user_id, change, by=by),
            by=by,
        )

    def removing(self, organisation_id: str, user_id: UserId, *, by: UserId | None = None) -> Operation[Member]:
        """End a membership, as a manager or supervisor may. Raises UnknownOrganisation, Forbidden, NotMember."""
        return self._seeing(
            organisation_id, user_id, lambda books: membership.remove(books, organisation_id, user_id, by=by), by=by
        )

    def _seeing(
        self, organisation_id: str, user_id: UserId, apply: Callable[[Books], Member], *, by: UserId | None
    ) -> Operation[Member]:
        memberships = (user_id,) if by is None else (user_id, by)

        def seen(books: Books) -> Member:
            return replace(apply(books))  # a copy: later batches go on changing the one that they hold

        return self.of(organisation_id, Operation(seen, account_id=organisation_id, memberships=memberships))

    # ── Looks ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def resolve(self, named: str) -> Organisation:
        """The organisation of that id or name. Raises UnknownOrganisation."""
        found = await self._database.read(lambda c: queries.named_organisation(c, named))
        if found is None:
            raise UnknownOrganisation
        return found

    async def find(self, organisation_id: str, *, by: UserId | None = None) -> Organisation:
        """The organisation, for its members. Raises UnknownOrganisation."""

        def work(connection: Connection) -> Organisation:
            member = queries.find_member(connection, by) if by is not None else None
            if by is not None and (member is None or member.organisation_id != organisation_id):
                raise UnknownOrganisation
            return queries.find_organisation(connection, organisation_id)

        return await self._database.read(work)

    async def managed(self, organisation_id: str, *, by: UserId | None = None) -> Organisation:
        """The organisation, for its managers. Raises UnknownOrganisation, Forbidden."""

        def work(connection: Connection) -> Organisation:
            member = queries.find_member(connection, by) if by is not None else None
            membership.check_manager(member, organisation_id, by=by)
            return queries.find_organisation(connection, organisation_id)

        return await self._database.read(work)

    async def all(self, *, after: str = "", limit: int = ORGANISATIONS_PER_PAGE_MAX) -> list[Organisation]:
        """Organisations in the order of their names, behind the name `after`."""
        assert 0 < limit <= ORGANISATIONS_PER_PAGE_MAX
        return await self._database.read(lambda c: queries.all_organisations(c, after=after, limit=limit))

    async def members(
        self, organisation_id: str, *, after: str = "", limit: int = MEMBERS_PER_PAGE_MAX
    ) -> list[Member]:
        """Members in the order of their ids, behind `after`, with what has been used as of now."""
        assert 0 < limit <= MEMBERS_PER_PAGE_MAX
        database = self._database
        return await database.read(
            lambda c: queries.members_of(c, organisation_id, after=after, limit=limit, at=database.instant(c))
        )

    async def standing(self, user_id: UserId) -> Standing:
        """The user's organisation, membership, and what the user may draw now. Raises NotMember."""
        database = self._database
        found = await database.read(lambda c: queries.standing(c, user_id, at=database.instant(c)))
        if found is None:
            raise NotMember("You do not belong to an organisation; ask a supervisor or a manager to put you into one.")
        return found
