"""The reservations of one account: what its transfers hold, charge and return for each, against what each says."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from parshall.accounting.audit import findings as rules
from parshall.accounting.audit.findings import Findings, Rule, shown
from parshall.accounting.audit.rows import Row
from parshall.accounting.books import Parts, joined, read_parts
from parshall.accounting.model import State
from parshall.accounting.pricing import Price
from parshall.kernel.metering import Usage

NEVER = 1 << 63
_STATES = frozenset(state.value for state in State)


class _Kept(NamedTuple):
    """A reservation's row."""

    account_id: str
    id: str
    state: str
    reserved: int
    parts: str
    charged: int | None
    uncollected: int | None
    balance_after: int | None
    transfers_from: int | None
    transfers_to: int | None
    ended_at: int | None
    outcome: str | None
    price_version: str
    usage_source: str | None
    used_input_tokens: int | None
    used_cached_input_tokens: int | None
    used_output_tokens: int | None
    used_reasoning_tokens: int | None

    @property
    def has_place(self) -> bool:
        """Whether the transfers of its settlement are known; version 0.1 kept no place where there were none."""
        return bool(self.transfers_from)

    @property
    def contradiction(self) -> str | None:
        """What of its record of the end does not go with its state."""
        place = (self.transfers_from, self.transfers_to)
        end = (self.charged, self.balance_after, *place, self.ended_at, self.outcome)
        if self.state == State.ACTIVE:
            return None if {*end, self.usage_source, self.uncollected} == {None} else "there is a settlement"
        if None in end:
            return "a part of the settlement is missing"
        if self.state == State.SETTLED:
            return "usage is missing" if self.usage_source is None else None
        if self.state == State.VOIDED and self.usage_source is not None:
            return "usage was reported"
        return "something was charged without usage" if self.charged and self.usage_source is None else None


class _Moved:
    """What the transfers for one stream have moved. `extra` and those `outside` tell what lies where."""

    __slots__ = (
        "charged",
        "charged_outside",
        "extra",
        "held",
        "parts",
        "returned_outside",
        "taken",
        "uncollected",
    )

    def __init__(self) -> None:
        self.taken = self.charged = self.uncollected = 0
        self.charged_outside = self.returned_outside = 0
        self.held: dict[str, int] = {}
        self.parts: Parts = []
        self.extra: Parts = []  # taken by the settlement itself


class Reservations:
    """Follows an account's transfers; rows come in the order of their settlements, running ones last."""

    def __init__(self, account_id: str, findings: Findings, rows: Iterator[Row], prices: Mapping[str, Price]) -> None:
        """Only reservations that have begun and not ended are held in memory."""
        self.count = 0
        self._account_id = account_id
        self._findings = findings
        self._rows = rows
        self._prices = prices
        self._inside = False  # whether the transfer that was reached belongs to the settlement that is under way
        self._open: dict[str, _Moved] = {}
        self._advance()

    def reach(self, number: int, kind: str, stream: str | None, *, at: int, recorded: int) -> None:
        """The transfer `number` comes next, and so much was on record as available before it: check what has ended.

        What came back to a grant that had expired meanwhile expires behind the settlement, which counts it in.
        """
        self._inside = False
        while number >= self._stop:
            kept = self._ending
            assert kept is not None, "only a reservation that ends has a place where it does"
            if kind == "expire" and at == kept.ended_at and kept.balance_after != recorded:
                return
            self._check(kept, recorded)
            self._advance()
        if number >= self._start and self._ending is not None:
            self._inside = self._ending.id == stream
            if not self._inside:
                self._add(rules.SPAN, stream=self._ending.id, number=number)

    def move(self, number: int, kind: str, amount: int, grant_id: str | None, stream: str) -> None:
        """Apply a transfer that names a stream."""
        inside = self._inside
        moved = self._open.get(stream)
        if moved is None:
            moved = self._open[stream] = _Moved()
        grant = grant_id or ""
        if kind == "reserve":
            moved.taken += amount
            moved.held[grant] = moved.held.get(grant, 0) + amount
            if inside:
                moved.extra.append((grant, amount))
            else:
                moved.parts = joined(moved.parts, [(grant, amount)])
        elif kind == "charge" or kind == "release":
            self._give_up(moved, number, amount, grant, stream)
            if kind == "charge":
                moved.charged += amount
                moved.charged_outside += 0 if inside else amount
            else:
                moved.returned_outside += 0 if inside else amount
        elif kind == "uncollected":
            moved.uncollected += amount
            moved.charged_outside += 0 if inside else amount

    def close(self, *, recorded: int) -> None:
        """Check what is left: the last settlements, those without a place, running ones, and transfers of none."""
        while (kept := self._ending) is not None:
            self._check(kept, recorded)
            self._advance()
        for stream in self._open:
            self._add(rules.NO_RESERVATION, stream=stream)

    def _advance(self) -> None:
        row = next(self._rows, None)
        self._start, self._stop = NEVER, NEVER
        self._ending = None
        if row is not None:
            self.count += 1
            self._ending = kept = _Kept(*row)
            if kept.has_place:
                self._start, self._stop = (
                    kept.transfers_from or 0,
                    kept.transfers_to or 0,
                )

    def _give_up(self, moved: _Moved, number: int, amount: int, grant: str, stream: str) -> None:
        """What is charged or returned leaves the grant that it was taken from."""
        held = moved.held.get(grant, 0)
        if held == amount:
            moved.held.pop(grant, None)
            return
        if held < amount:
            amounts = {"expected": shown(held), "found": shown(amount)}
            self._add(rules.WRONG_GRANT, stream=stream, number=number, grant=grant, **amounts)
        moved.held[grant] = held - amount

    def _check(self, kept: _Kept, available: int) -> None:
        moved = self._open.pop(kept.id, None) or _Moved()
        stream = kept.id
        if kept.state not in _STATES:
            self._add(rules.STATE, stream=stream, found=kept.state)
        elif wrong := kept.contradiction:
            self._add(rules.ENDED_HOW, stream=stream, expected=kept.state, found=wrong)
        holds = sum(moved.held.values())
        if kept.state != State.ACTIVE and holds:
            self._add(rules.STILL_HELD, stream=stream, found=shown(holds))
        self._check_cost(kept)
        self._compare(rules.HELD, stream, moved.taken, kept.reserved)
        self._compare(rules.CHARGED, stream, moved.charged, kept.charged or 0)
        self._compare(rules.UNCOLLECTED, stream, moved.uncollected, kept.uncollected or 0)
        self._check_place(kept, moved, available)
        if not _agree(kept.parts, moved):
            self._add(rules.PARTS, stream=stream)

    def _check_cost(self, kept: _Kept) -> None:
        """What usage costs was charged, or written off where it could not be."""
        if kept.usage_source is None:
            return
        price = self._prices.get(kept.price_version)
        if price is None:
            self._add(rules.NO_PRICE, stream=kept.id, found=kept.price_version)
            return
        cost = _cost(price, kept)
        if cost is None:
            self._add(rules.ENDED_HOW, stream=kept.id, expected=kept.state, found="such usage is impossible")
            return
        self._compare(rules.COST, kept.id, cost, (kept.charged or 0) + (kept.uncollected or 0))

    def _check_place(self, kept: _Kept, moved: _Moved, available: int) -> None:
        """All was charged and returned by the settlement; an expired one had returned everything before it."""
        expired_first = kept.state == State.EXPIRED and (kept.usage_source is not None or not kept.has_place)
        outside = moved.charged_outside + (0 if expired_first else moved.returned_outside)
        if outside:
            self._add(rules.ENDED_TWICE, stream=kept.id, found=shown(outside))
        if kept.has_place:
            self._compare(rules.BALANCE_AFTER, kept.id, available, kept.balance_after)

    def _compare(self, rule: Rule, stream: str, expected: int, found: int | None) -> None:
        if expected != found:
            self._add(rule, stream=stream, expected=shown(expected), found=shown(found))

    def _add(self, rule: Rule, **facts: object) -> None:
        self._findings.add(rule, self._account_id, **facts)


def _cost(price: Price, kept: _Kept) -> int | None:
    """What the usage costs; None for counts that nothing can have."""
    read, cached = kept.used_input_tokens or 0, kept.used_cached_input_tokens or 0
    written, thought = kept.used_output_tokens or 0, kept.used_reasoning_tokens or 0
    if not (0 <= cached <= read and 0 <= thought <= written):
        return None
    return price.cost(
        Usage(input_tokens=read, cached_input_tokens=cached, output_tokens=written, reasoning_tokens=thought)
    )


def _agree(kept: str, moved: _Moved) -> bool:
    """Whether parts say what was taken before the settlement; version 0.1 added what the settlement itself took."""
    try:
        parts = read_parts(kept)
    except (msgspec.MsgspecError, TypeError):
        return False
    return parts == moved.parts or (bool(moved.extra) and parts == joined(moved.parts, moved.extra))
