"""What an audit can find: each rule with the law it holds, the sentence for people, and what to do about a breach."""

from collections import Counter
from dataclasses import dataclass

from parshall.kernel.credits import text

FINDINGS_KEPT_MAX = 1000
FINDINGS_PER_RULE_MAX = 3
"""Kept of one rule in one account, further ones are counted only: an early change can contradict all that follows."""

_TAMPERED = (
    "The database was changed by something other than Parshall: find out what, "
    "and compare this account with the newest backup that audits clean."
)
_KEPT = (
    "Where nothing is said against an account's transfers, they are the record and this value derives from them: "
    "find out what changed it, stop the servers, and set it to what was expected. Elsewhere see to the transfers first."
)
_ANCHOR = (
    "The past was rewritten after the anchor was saved: restore the newest backup that agrees with the anchor, "
    "or explain the change before you save a new one."
)
_FAULT = "Parshall never books this: unless the database was changed by hand it is a fault of ours, so report it."


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that must hold. `sentence` is filled in with the facts of a breach."""

    name: str
    law: str
    sentence: str
    advice: str


ALTERED = Rule(
    "transfer_altered",
    "M5",
    "Transfer {number} is not what it was when it was recorded: its hash does not fit its content behind the "
    "transfer before it.",
    _TAMPERED,
)
MISSING = Rule(
    "transfer_missing",
    "M5",
    "Where transfer {expected} belongs there is transfer {found}: what should stand between them was removed.",
    _TAMPERED,
)
NUMBER = Rule(
    "account_number",
    "M5",
    "The account counts {found} transfers, but its last one is number {expected}: transfers were added or removed "
    "at the end.",
    _TAMPERED,
)
HEAD = Rule(
    "account_head",
    "M5",
    "The account ends in another hash than its last transfer: transfers were added, removed or rewritten.",
    _TAMPERED,
)
NO_ACCOUNT = Rule(
    "account_missing",
    "M5",
    "There are records of this account, but not the account itself.",
    _TAMPERED,
)
UNKNOWN_KIND = Rule(
    "transfer_kind",
    "M5",
    "Transfer {number} is of a kind that does not exist: {found}.",
    _TAMPERED,
)
AMOUNT = Rule(
    "transfer_amount",
    "M5",
    "Transfer {number} moves {found}; a transfer moves more than nothing.",
    _TAMPERED,
)
RUNNING = Rule(
    "running_balance",
    "M5",
    "Transfer {number} says that {found} were available behind it, but the transfers up to it come to {expected}.",
    _TAMPERED,
)
OVERDRAWN = Rule(
    "overdrawn",
    "M2",
    "With transfer {number} what is {book} of the account falls below zero, to {found}.",
    _FAULT,
)
AVAILABLE = Rule(
    "account_available",
    "M1",
    "The account says that {found} are available; its transfers come to {expected}.",
    _KEPT,
)
RESERVED = Rule(
    "account_reserved",
    "M1",
    "The account says that {found} are reserved; its transfers come to {expected}.",
    _KEPT,
)
SUM = Rule(
    "sum",
    "M1",
    "All books together come to {found} instead of nothing: credits appeared or vanished.",
    _KEPT,
)
NO_GRANT = Rule(
    "grant_missing",
    "M6",
    "Transfer {number} names the grant {found}, which this account does not have.",
    _TAMPERED,
)
GRANT_AMOUNT = Rule(
    "grant_amount",
    "M5",
    "The grant {grant} says that {found} were granted; its transfers granted {expected}.",
    _TAMPERED,
)
GRANT_REMAINING = Rule(
    "grant_remaining",
    "M5",
    "Of the grant {grant} {found} are said to remain; its transfers leave {expected}.",
    _KEPT,
)
GRANT_OVERDRAWN = Rule(
    "grant_overdrawn",
    "M2",
    "Transfer {number} takes more from the grant {grant} than it has: {found} would remain.",
    _FAULT,
)
ORDER = Rule(
    "grant_order",
    "M6",
    "Transfer {number} takes from the grant {found} although the grant {expected}, which is to be used first, still "
    "has credits.",
    _FAULT,
)
EXPIRED_USED = Rule(
    "grant_expired_used",
    "M6",
    "At transfer {number} the grant {grant} still holds credits after its expiry; those must expire before anything "
    "else moves.",
    _FAULT,
)
EXPIRED_EARLY = Rule(
    "grant_expired_early",
    "M6",
    "Transfer {number} expires the grant {grant} before its time.",
    _FAULT,
)
WRONG_GRANT = Rule(
    "returned_elsewhere",
    "M6",
    "Transfer {number} charges or returns {found} of the grant {grant} for the stream {stream}, which holds {expected} "
    "of it.",
    _FAULT,
)
NO_RESERVATION = Rule(
    "reservation_missing",
    "M3",
    "Transfers name the stream {stream}, but this account has no such reservation, or it had ended before them.",
    _TAMPERED,
)
NO_STREAM = Rule(
    "transfer_without_stream",
    "M3",
    "Transfer {number} moves reserved credits and names no stream.",
    _TAMPERED,
)
NO_PRICE = Rule(
    "price_missing",
    "M7",
    "The reservation {stream} was priced by the version {found}, which is not there.",
    _TAMPERED,
)
COST = Rule(
    "reservation_cost",
    "M7",
    "The usage of the stream {stream} comes to {expected} at its price; charged and written off are {found}.",
    _TAMPERED,
)
STATE = Rule(
    "reservation_state",
    "M3",
    "The reservation {stream} is in a state that does not exist: {found}.",
    _TAMPERED,
)
STILL_HELD = Rule(
    "reservation_held",
    "M3",
    "The reservation {stream} has ended, but its transfers still hold {found} for it.",
    _TAMPERED,
)
ENDED_TWICE = Rule(
    "reservation_ended_twice",
    "M3",
    "Credits of the reservation {stream} were charged or returned outside of its settlement: {found}.",
    _TAMPERED,
)
ENDED_HOW = Rule(
    "reservation_end",
    "M3",
    "The reservation {stream} is {expected}, but its record of how it ended says otherwise ({found}).",
    _TAMPERED,
)
HELD = Rule(
    "reservation_reserved",
    "M7",
    "The reservation {stream} says that it held {found}; its transfers reserved {expected}.",
    _KEPT,
)
CHARGED = Rule(
    "reservation_charged",
    "M7",
    "The reservation {stream} says {found} charged; its transfers charged {expected}.",
    _KEPT,
)
UNCOLLECTED = Rule(
    "reservation_uncollected",
    "M7",
    "The reservation {stream} says {found} uncollected; its transfers say {expected}.",
    _KEPT,
)
PARTS = Rule(
    "reservation_parts",
    "M6",
    "The reservation {stream} does not hold of its grants what its transfers took from them.",
    _KEPT,
)
SPAN = Rule(
    "settlement_span",
    "M3",
    "The reservation {stream} claims transfer {number} for its settlement, which is about something else.",
    _TAMPERED,
)
BALANCE_AFTER = Rule(
    "settlement_balance",
    "M5",
    "The receipt of the stream {stream} says that {found} were available behind it; the transfers come to {expected}.",
    _KEPT,
)
MEMBER_USED = Rule(
    "member_used",
    "M5",
    "Of this organisation {user} has used {found} in the {span}, the membership says; its streams come to {expected}.",
    _KEPT,
)
UNREADABLE = Rule(
    "unreadable",
    "M5",
    "A record of this account cannot be understood: {found}.",
    _TAMPERED,
)
ANCHOR_CHANGED = Rule(
    "anchor_changed",
    "M5",
    "Transfer {number} is another one than when the anchor was saved.",
    _ANCHOR,
)
ANCHOR_CUT = Rule(
    "anchor_cut",
    "M5",
    "When the anchor was saved the account had {expected} transfers; now it has {found}.",
    _ANCHOR,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A breach: which rule, in which account ("" where it is about the whole), what was expected and what is there."""

    rule: Rule
    account_id: str
    facts: dict[str, object]

    @property
    def sentence(self) -> str:
        """What is wrong, for people."""
        return self.rule.sentence.format(**self.facts)

    def wire(self) -> dict[str, object]:
        """For programs."""
        facts = {name: value if isinstance(value, int) else str(value) for name, value in self.facts.items()}
        rule = self.rule
        words = {
            "law": rule.law,
            "rule": rule.name,
            "account": self.account_id or None,
            "sentence": self.sentence,
        }
        return {**words, "advice": rule.advice, "facts": facts}


def shown(amount: object) -> str:
    """An amount for people; what is no amount as it is."""
    return f"{text(amount)} credits" if isinstance(amount, int) else repr(amount)


class Findings:
    """All breaches of one audit: counted, and the first ones kept."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.kept: list[Finding] = []
        self.count = 0
        self._account = ""
        self._of_account: Counter[str] = Counter()

    def add(self, rule: Rule, account_id: str, **facts: object) -> None:
        """Note a breach."""
        self.count += 1
        if account_id != self._account:
            self._account = account_id
            self._of_account.clear()
        self._of_account[rule.name] += 1
        if self._of_account[rule.name] <= FINDINGS_PER_RULE_MAX and len(self.kept) < FINDINGS_KEPT_MAX:
            self.kept.append(Finding(rule=rule, account_id=account_id, facts=facts))
