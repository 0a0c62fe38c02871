"""Changes of a balance that no stream makes, inside one transaction: allocate, set, adjust, remove, deduct."""

from dataclasses import dataclass

from sqlalchemy import Connection

from parshall.accounting import store
from parshall.accounting.metered import enter, refusal
from parshall.accounting.model import (
    BALANCE_MAX,
    GRANTS_PER_ACCOUNT_MAX,
    Account,
    BalanceTooLarge,
    BelowZero,
    Book,
    Changed,
    Grant,
    Kind,
    Movement,
    take,
)
from parshall.kernel.credits import Credits, text
from parshall.kernel.ids import UserId, new_id

_REVOKE = (Kind.REVOKE, Book.AVAILABLE, Book.ISSUED)
_CHARGE = (Kind.CHARGE, Book.AVAILABLE, Book.REVENUE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms credits are granted: until when (microseconds), in which order of use, by whom and why."""

    expires_at: int
    granted_by: str
    priority: int = 0
    notes: str = ""


def allocate(connection: Connection, account_id: UserId, amount: int, terms: Terms, *, at: int) -> Grant:
    """Issue a grant. Raises BalanceTooLarge."""
    return _issue(connection, enter(connection, account_id, at=at), amount, terms, at=at)


def set_balance(connection: Connection, account_id: UserId, total: int, terms: Terms, *, at: int) -> Changed:
    """Make available and reserved together come to `total`. Raises BelowZero, BalanceTooLarge."""
    account = enter(connection, account_id, at=at)
    return _change(connection, account, total - account.posted, terms, at=at)


def adjust(connection: Connection, account_id: UserId, difference: int, terms: Terms, *, at: int) -> Changed:
    """Grant (or, below zero, revoke) `difference`. Raises BelowZero, BalanceTooLarge."""
    return _change(connection, enter(connection, account_id, at=at), difference, terms, at=at)


def deduct(connection: Connection, account_id: UserId, amount: int, *, note: str, at: int) -> Account:
    """Charge the account for something that is not a stream. Raises InsufficientCredits."""
    account = enter(connection, account_id, at=at)
    if amount > account.available:
        raise refusal(account, required=amount)
    parts = take(store.held_grants(connection, account_id), amount)
    store.move_parts(connection, account_id, parts, _CHARGE, at=at, note=note)
    return store.find_account(connection, account_id)


def _change(connection: Connection, account: Account, difference: int, terms: Terms, *, at: int) -> Changed:
    if account.available + difference < 0:
        raise BelowZero(
            f"That would take more than the {text(account.available)} credits that are available "
            f"({text(account.reserved)} are held by running streams); take less."
        )
    grant = None
    if difference > 0:
        grant = _issue(connection, account, difference, terms, at=at)
    elif difference < 0:
        parts = take(store.held_grants(connection, account.id), -difference)
        note = f"{terms.granted_by}: {terms.notes}" if terms.notes else terms.granted_by
        store.move_parts(connection, account.id, parts, _REVOKE, at=at, note=note)
    new = Credits(account.posted + difference)
    return Changed(account_id=account.id, previous=account.posted, new=new, grant=grant)


def _issue(connection: Connection, account: Account, amount: int, terms: Terms, *, at: int) -> Grant:
    full = len(store.held_grants(connection, account.id)) >= GRANTS_PER_ACCOUNT_MAX
    if full or account.posted + amount > BALANCE_MAX:
        raise BalanceTooLarge
    grant = Grant(
        id=new_id(),
        account_id=account.id,
        amount=Credits(amount),
        remaining=Credits(amount),
        expires_at=terms.expires_at,
        priority=terms.priority,
        created_at=at,
        granted_by=terms.granted_by,
        notes=terms.notes,
    )
    store.add_grant(connection, grant)
    issue = Movement(
        kind=Kind.GRANT,
        amount=amount,
        debit=Book.ISSUED,
        credit=Book.AVAILABLE,
        grant_id=grant.id,
        note=terms.notes,
    )
    store.post(connection, account.id, issue, at=at)
    return grant
