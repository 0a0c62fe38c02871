"""What a batch leaves in memory for the next one, for as long as nobody else writes."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from parshall.accounting.books import Books, HeldAccount
from parshall.accounting.model import Reservation, State
from parshall.accounting.organisation import Member
from parshall.kernel.ids import StreamId, UserId

KEPT_MAX = 4096
"""Reservations and people each; of more, those first met go."""
GRANTS_KEPT_MAX = 65_536
"""Accounts and grants of theirs: an account may hold a thousand."""


@dataclass(slots=True)
class Kept:
    """Accounts with their grants, memberships and running reservations as they are at a `version` of the records.

    They are the very objects that batches change in place. So a batch takes them away, and they come back once it is
    durable: one that is undone leaves none. Whoever is in `members` as None belongs to no organisation.
    """

    version: Hashable = None
    accounts: dict[str, HeldAccount] = field(default_factory=dict)
    members: dict[UserId, Member | None] = field(default_factory=dict)
    running: dict[StreamId, Reservation] = field(default_factory=dict)
    met: int = 0
    """Accounts and grants that were kept since there were none, those met again counted again."""

    def at(self, version: Hashable) -> "Kept":
        """What is still so."""
        return self if version is not None and version == self.version else Kept()

    def after(self, books: Books, *, people: Iterable[UserId], version: Hashable) -> "Kept":
        """What is kept behind a batch that was all saved, and that knew of all these `people` where they belong."""
        if version is None:
            return Kept()
        for account in books.accounts.values():
            if account.fresh and account.id not in books.changed_accounts:
                continue  # somebody asked for it, and nobody has opened it
            account.fresh = False
            account.grants = [held for held in account.grants if held.remaining]
            self.accounts[account.id] = account
            self.met += 1 + len(account.grants)
        for held in books.changed_grants.values():
            held.fresh = False
        self.members.update(dict.fromkeys(people))
        self.members.update(books.members)
        for stream_id, reservation in books.reservations.items():
            if reservation.state is State.ACTIVE:
                self.running[stream_id] = reservation
            else:
                self.running.pop(stream_id, None)
        if self.met > GRANTS_KEPT_MAX:  # seldom enough that reading them anew costs nothing
            self.accounts, self.met = {}, 0
        _bound(self.members)
        _bound(self.running)
        self.version = version
        return self


def _bound(kept: dict[Any, Any]) -> None:
    while len(kept) > KEPT_MAX:
        del kept[next(iter(kept))]
