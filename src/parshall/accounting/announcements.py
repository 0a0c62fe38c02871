"""What the operator's webhook is told: which facts of a batch are announced, and what each of them says."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from parshall.accounting.books import Books, HeldAccount
from parshall.accounting.model import Reservation
from parshall.accounting.wire import receipt_wire
from parshall.kernel.clock import rfc3339
from parshall.kernel.credits import wire


class Topic(StrEnum):
    """What an announcement is about; its CloudEvents type without the prefix."""

    BALANCE_LOW = "balance.low"
    GRANT_EXPIRING = "grant.expiring"
    STREAM_SETTLED = "stream.settled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A fact for the webhook: its topic, the id of what it is about, and what to know of that, as plain JSON."""

    topic: Topic
    subject: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a deployment announces.

    A balance is low below `low_balance` microcredits (none is where that is 0); a grant is announced once it expires
    within `notice` microseconds.
    """

    topics: frozenset[Topic]
    low_balance: int
    notice: int

    def of(self, books: Books) -> list[Announcement]:
        """What a batch has brought about; the work is that of its changes, not of all that it holds."""
        found: list[Announcement] = []
        if Topic.STREAM_SETTLED in self.topics:
            found += [_settled(each) for each in books.ended.values() if _was_charged(each)]
        if Topic.BALANCE_LOW in self.topics:
            fell = (each for each in books.changed_accounts.values() if self._fell(each))
            found += [low(each, self.low_balance) for each in fell]
        return found

    def _fell(self, account: HeldAccount) -> bool:
        """Whether the batch took it over the threshold: one that was below it before was announced by then."""
        return account.available < self.low_balance <= account.before


def _was_charged(reservation: Reservation) -> bool:
    """Whether the batch, which ended a stream, charged it by its report, were it nothing.

    One that was voided or expired used nothing as far as anybody said: there is no usage to tell.
    """
    return reservation.usage_source is not None


def _settled(reservation: Reservation) -> Announcement:
    data = {"userId": reservation.user_id, **receipt_wire(reservation)}
    return Announcement(topic=Topic.STREAM_SETTLED, subject=reservation.id, data=data)


def low(account: HeldAccount, threshold: int) -> Announcement:
    """An account that fell below the threshold."""
    data = {
        "accountId": account.id,
        "availableCredits": wire(account.available),
        "reservedCredits": wire(account.reserved),
        "thresholdCredits": wire(threshold),
    }
    return Announcement(topic=Topic.BALANCE_LOW, subject=account.id, data=data)


def expiring(grant_id: str, account_id: str, *, amount: int, remaining: int, expires_at: int) -> Announcement:
    """A grant that will expire soon and still holds credits."""
    data = {
        "allocationId": grant_id,
        "accountId": account_id,
        "totalCredits": wire(amount),
        "remainingCredits": wire(remaining),
        "expiresAt": rfc3339(expires_at),
    }
    return Announcement(topic=Topic.GRANT_EXPIRING, subject=grant_id, data=data)
