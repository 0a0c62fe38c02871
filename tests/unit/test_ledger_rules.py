"""Laws of the ledger's rules: which grant pays first, what goes back, and which transfers can exist."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.accounting.model import Book, Grant, Kind, Movement, Part, split, take
from parshall.kernel.credits import Credits
from parshall.kernel.ids import UserId


def grant(name: str, *, remaining: int = 10, priority: int = 0, expires_at: int = 100, created_at: int = 1) -> Grant:
    return Grant(
        id=name,
        account_id=UserId("ann"),
        amount=Credits(max(remaining, 1)),
        remaining=Credits(remaining),
        expires_at=expires_at,
        priority=priority,
        created_at=created_at,
        granted_by="root",
        notes="",
    )


def test_the_lower_priority_number_pays_before_the_sooner_expiry() -> None:
    later_but_first = grant("a", priority=0, expires_at=900)
    sooner_but_second = grant("b", priority=1, expires_at=100)
    assert take([sooner_but_second, later_but_first], 12) == (
        Part(grant_id="a", amount=10),
        Part(grant_id="b", amount=2),
    )


def test_of_equal_priority_the_soonest_expiring_pays_first() -> None:
    assert take([grant("a", expires_at=200), grant("b", expires_at=100)], 5) == (Part(grant_id="b", amount=5),)


def test_of_equal_expiry_the_oldest_pays_first() -> None:
    assert take([grant("a", created_at=2), grant("b", created_at=1)], 5) == (Part(grant_id="b", amount=5),)


def test_an_empty_grant_gives_no_part() -> None:
    assert take([grant("a", remaining=0), grant("b", expires_at=200)], 5) == (Part(grant_id="b", amount=5),)


def test_taking_more_than_the_grants_hold_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError):
        take([grant("a")], 11)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 50)), max_size=8), st.data())
def test_taking_gives_exactly_the_amount_and_leaves_later_grants_alone(
    rows: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    grants = [grant(f"g{i}", priority=p, expires_at=e, remaining=r) for i, (p, e, r) in enumerate(rows)]
    amount = data.draw(st.integers(0, sum(each.remaining for each in grants)))
    parts = take(grants, amount)
    assert sum(part.amount for part in parts) == amount
    ranked = [each for each in sorted(grants, key=lambda each: each.rank) if each.remaining]
    assert [part.grant_id for part in parts] == [each.id for each in ranked][: len(parts)]
    assert all(part.amount == each.remaining for part, each in zip(parts[:-1], ranked, strict=False))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=8), st.data())
def test_a_split_charges_first_taken_first_and_returns_each_rest_to_its_grant(
    rows: list[tuple[str, int]], data: st.DataObject
) -> None:
    parts = [Part(grant_id=name, amount=amount) for name, amount in rows]
    held = sum(part.amount for part in parts)
    charge = data.draw(st.integers(0, held))
    paying, returning = split(parts, charge)
    assert sum(part.amount for part in paying) == charge
    for name in "abc":
        both = sum(part.amount for part in (*paying, *returning) if part.grant_id == name)
        assert both == sum(part.amount for part in parts if part.grant_id == name)
    units = [part.grant_id for part in parts for _ in range(part.amount)]
    assert [part.grant_id for part in paying for _ in range(part.amount)] == units[:charge]


def test_a_charge_beyond_what_is_held_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError):
        split([Part(grant_id="a", amount=3)], 4)


@pytest.mark.parametrize(
    ("kind", "debit", "credit", "grant_id", "amount"),
    [
        (Kind.GRANT, Book.REVENUE, Book.AVAILABLE, "a", 1),
        (Kind.CHARGE, Book.REVENUE, Book.RESERVED, "a", 1),
        (Kind.RESERVE, Book.AVAILABLE, Book.RESERVED, None, 1),
        (Kind.UNCOLLECTED, Book.UNCOLLECTED, Book.REVENUE, "a", 1),
        (Kind.RESERVE, Book.AVAILABLE, Book.RESERVED, "a", 0),
        (Kind.RESERVE, Book.AVAILABLE, Book.RESERVED, "a", -1),
    ],
)
def test_a_movement_outside_the_books_cannot_be_made(
    kind: Kind, debit: Book, credit: Book, grant_id: str | None, amount: int
) -> None:
    with pytest.raises(AssertionError):
        Movement(kind=kind, amount=amount, debit=debit, credit=credit, grant_id=grant_id)
