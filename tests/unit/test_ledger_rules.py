"""Laws of the ledger's rules: which grant pays first, what goes back, and which transfers can exist."""

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.accounting.books import Books, HeldAccount, HeldGrant, by_rank, joined
from parshall.accounting.chain import GENESIS, link
from parshall.accounting.ended import pay
from parshall.accounting.model import FLOWS, Grant, Kind
from parshall.kernel.credits import Credits
from parshall.kernel.ids import StreamId

STREAM = StreamId("stream-1800000000-a1b2c3d4")


def unused(_name: str) -> Any:
    raise AssertionError("no price is asked for")


def books_of(*grants: Grant) -> tuple[Books, HeldAccount]:
    """A working set of one account, filled by the postings that a grant makes."""
    books = Books(cast(Any, None), at=50, versions=unused)
    account = books.account("ann")
    for each in grants:
        held = books.add_grant(account, each)
        if each.amount:
            books.post(account, Kind.GRANT, each.amount, grant=held)
    return books, account


def grant(name: str, *, amount: int = 10, priority: int = 0, expires_at: int = 100, created_at: int = 1) -> Grant:
    return Grant(name, "ann", Credits(amount), Credits(amount), expires_at, priority, created_at, "root", "")


def taken(amount: int, *grants: Grant) -> list[tuple[str, int]]:
    books, account = books_of(*grants)
    return books.take(account, Kind.RESERVE, amount, reservation_id=STREAM)


def test_the_lower_priority_number_pays_before_the_sooner_expiry() -> None:
    later_but_first = grant("a", priority=0, expires_at=900)
    sooner_but_second = grant("b", priority=1, expires_at=100)
    assert taken(12, sooner_but_second, later_but_first) == [("a", 10), ("b", 2)]


def test_of_equal_priority_the_soonest_expiring_pays_first() -> None:
    assert taken(5, grant("a", expires_at=200), grant("b", expires_at=100)) == [("b", 5)]


def test_of_equal_expiry_the_oldest_pays_first() -> None:
    assert taken(5, grant("a", created_at=2), grant("b", created_at=1)) == [("b", 5)]


def test_an_empty_grant_gives_no_part() -> None:
    assert taken(5, grant("a", amount=0), grant("b", expires_at=200)) == [("b", 5)]


def test_taking_more_than_the_grants_hold_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError):
        taken(11, grant("a"))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(60, 65), st.integers(0, 50)), max_size=8), st.data())
def test_taking_gives_exactly_the_amount_and_leaves_later_grants_alone(
    rows: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    grants = [grant(f"g{i}", priority=p, expires_at=e, amount=r) for i, (p, e, r) in enumerate(rows)]
    amount = data.draw(st.integers(0, sum(each.amount for each in grants)))
    parts = taken(amount, *grants)
    assert sum(given for _, given in parts) == amount
    ranked = [each for each in sorted(grants, key=lambda each: each.rank) if each.amount]
    assert [name for name, _ in parts] == [each.id for each in ranked][: len(parts)]
    assert all(given == each.amount for (_, given), each in zip(parts[:-1], ranked, strict=False))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
def test_a_charge_takes_from_what_was_taken_first_and_returns_each_rest_to_its_grant(
    amounts: list[int], data: st.DataObject
) -> None:
    books, account = books_of(*(grant(f"g{i}", amount=each, created_at=i) for i, each in enumerate(amounts)))
    parts = books.take(account, Kind.RESERVE, data.draw(st.integers(1, sum(amounts))), reservation_id=STREAM)
    held = sum(given for _, given in parts)
    charge = data.draw(st.integers(0, held))
    pay(books, account, STREAM, parts, charge)
    assert (account.available, account.reserved) == (sum(amounts) - charge, 0)
    missing = charge
    for number, amount in enumerate(amounts):
        paid = min(missing, amount)
        missing -= paid
        assert books.grants[f"g{number}"].remaining == amount - paid


def test_a_charge_beyond_what_is_held_is_a_broken_invariant() -> None:
    books, account = books_of(grant("a"))
    parts = books.take(account, Kind.RESERVE, 3, reservation_id=STREAM)
    with pytest.raises(AssertionError):
        pay(books, account, STREAM, parts, 4)


def test_a_grant_that_gives_again_stays_one_part_and_another_one_does_not() -> None:
    assert joined([("a", 1), ("b", 2)], [("b", 3), ("c", 4)]) == [("a", 1), ("b", 5), ("c", 4)]
    assert joined([("a", 1), ("b", 2)], [("a", 3)]) == [("a", 1), ("b", 2), ("a", 3)]
    assert joined([], [("a", 3)]) == [("a", 3)]


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.GRANT, Kind.UNCOLLECTED)])
def test_nothing_takes_what_is_not_there(kind: Kind) -> None:
    books, account = books_of(grant("a", amount=5))
    held = books.grants["a"]
    with pytest.raises(AssertionError):
        books.post(account, kind, 6, grant=held)


@pytest.mark.parametrize("amount", [0, -1])
def test_a_transfer_of_nothing_or_less_cannot_be_made(amount: int) -> None:
    books, account = books_of(grant("a"))
    with pytest.raises(AssertionError):
        books.post(account, Kind.RESERVE, amount, grant=books.grants["a"])


def test_a_grant_never_holds_more_than_was_issued() -> None:
    books, account = books_of(grant("a"), grant("b"))
    books.take(account, Kind.RESERVE, 15, reservation_id=STREAM)
    with pytest.raises(AssertionError):
        books.post(account, Kind.RELEASE, 11, grant=books.grants["a"], reservation_id=STREAM)


def test_every_kind_moves_between_two_different_books_and_no_two_alike() -> None:
    assert set(FLOWS) == set(Kind)
    assert all(debit is not credit for debit, credit in FLOWS.values())
    assert len(set(FLOWS.values())) == len(FLOWS)


def test_the_chain_is_the_documented_hash_of_the_documented_text() -> None:
    """So that any program can redo it: `printf '["ann",1,"grant",…]' | sha256sum`, then with the digest in front."""
    first = link(GENESIS, ("ann", 1, "grant", 10, "g", None, 50, 10, "für ‘dich’"))
    assert first == "b94360c7cb1868e73cda1c3e9bdb876f2eb778f0acaadf226f259a912b259fb5"
    assert link(first, ("ann", 2, "reserve", 1, "g", "s", 51, 9, "")) != link(
        GENESIS, ("ann", 2, "reserve", 1, "g", "s", 51, 9, "")
    )


def test_a_held_grant_ranks_as_its_grant() -> None:
    each = grant("a")
    assert by_rank(HeldGrant(grant=each, remaining=3)) == each.rank
