"""Changes of a balance that no stream makes, by the rules alone: allocate, set, adjust, remove, deduct."""

from dataclasses import dataclass

from parshall.accounting.books import Books, HeldAccount
from parshall.accounting.metered import refusal
from parshall.accounting.model import (
    BALANCE_MAX,
    GRANTS_PER_ACCOUNT_MAX,
    Account,
    BalanceTooLarge,
    BelowZero,
    Changed,
    Grant,
    Kind,
)
from parshall.kernel.credits import Credits, text
from parshall.kernel.errors import Invalid
from parshall.kernel.ids import UserId, new_id

CLOSED_NOTE = "the user was removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms credits are granted: until when (microseconds), in which order of use, by whom and why."""

    expires_at: int
    granted_by: str
    priority: int = 0
    notes: str = ""


def allocate(books: Books, account_id: str, amount: int, terms: Terms) -> Grant:
    """Issue a grant. Raises BalanceTooLarge, Invalid for one that is due already."""
    return _issue(books, books.account(account_id), amount, terms)


def set_balance(books: Books, account_id: str, total: int, terms: Terms) -> Changed:
    """Make available and reserved together come to `total`. Raises BelowZero, and as `allocate` does."""
    account = books.account(account_id)
    return _change(books, account, total - account.posted, terms)


def adjust(books: Books, account_id: str, difference: int, terms: Terms) -> Changed:
    """Grant (or, below zero, revoke) `difference`. Raises BelowZero, and as `allocate` does."""
    return _change(books, books.account(account_id), difference, terms)


def deduct(books: Books, account_id: str, amount: int, *, note: str) -> Account:
    """Charge the account for something that is not a stream. Raises InsufficientCredits."""
    account = books.account(account_id)
    if amount > account.available:
        raise refusal(account, required=amount)
    books.take(account, Kind.DEDUCT, amount, note=note)
    return Account(id=account.id, available=Credits(account.available), reserved=Credits(account.reserved))


def close(books: Books, user_id: UserId) -> bool:
    """Revoke what a removed user has left, and end the membership; whether no stream of theirs holds credits any more.

    What those hold comes back when they end, and is then revoked in turn. The transfers stay: books are append-only.
    """
    member = books.members.get(user_id)
    if member is not None:
        books.leave(member)
    account = books.account(user_id)
    if account.available > 0:
        books.take(account, Kind.REVOKE, account.available, note=CLOSED_NOTE)
    return account.reserved == 0


def _change(books: Books, account: HeldAccount, difference: int, terms: Terms) -> Changed:
    if account.available + difference < 0:
        raise BelowZero(
            f"That would take more than the {text(account.available)} credits that are available "
            f"({text(account.reserved)} are held by running streams); take less."
        )
    previous = Credits(account.posted)
    grant = None
    if difference > 0:
        grant = _issue(books, account, difference, terms)
    elif difference < 0:
        note = f"{terms.granted_by}: {terms.notes}" if terms.notes else terms.granted_by
        books.take(account, Kind.REVOKE, -difference, note=note)
    return Changed(account_id=account.id, previous=previous, new=Credits(account.posted), grant=grant)


def _issue(books: Books, account: HeldAccount, amount: int, terms: Terms) -> Grant:
    if terms.expires_at <= books.at:  # a request that came late, or a clock that is not the database's
        raise Invalid("This grant would have expired already; give it a later expiry.")
    full = sum(1 for held in account.grants if held.remaining) >= GRANTS_PER_ACCOUNT_MAX
    if full or account.posted + amount > BALANCE_MAX:
        raise BalanceTooLarge
    grant = Grant(
        id=new_id(),
        account_id=account.id,
        amount=Credits(amount),
        remaining=Credits(amount),
        expires_at=terms.expires_at,
        priority=terms.priority,
        created_at=books.at,
        granted_by=terms.granted_by,
        notes=terms.notes,
    )
    books.post(account, Kind.GRANT, amount, grant=books.add_grant(account, grant), note=terms.notes)
    return grant
