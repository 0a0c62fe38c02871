"""Laws of the audit: what is right audits clean, and whatever is tampered with is found and named."""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bench.history import build
from sqlalchemy import Connection, select
from tests.histories import FEW, PACKAGE, PEOPLE, Deed, History, everything, rehash, tamper, tampered
from tests.ledgers import check_books, read_books
from tests.postgres import Engine

from parshall.accounting.audit import AnchorUnreadable, Report, audit, find_account_id
from parshall.accounting.chain import GENESIS, link
from parshall.accounting.model import Book
from parshall.accounting.tables import accounts
from parshall.kernel.errors import InsufficientCredits

WHOLE = ""
"""The account that a finding about all accounts together names."""


def numbered(which: str, kind: str = "%") -> str:
    """The first or last transfer of ann's (`min`, `max`) of a kind, as a condition."""
    found = f"SELECT {which}(number) FROM transfers WHERE account_id = 'ann' AND kind LIKE '{kind}'"
    return f"account_id = 'ann' AND number = ({found})"


def stream(state: str, condition: str = "1 = 1") -> str:
    """The first of ann's reservations in a state, as a condition."""
    return f"id = (SELECT min(id) FROM reservations WHERE account_id = 'ann' AND state = '{state}' AND {condition})"


def granted(condition: str) -> str:
    """The first of ann's grants of which that holds, as a condition."""
    return f"id = (SELECT min(id) FROM grants WHERE account_id = 'ann' AND {condition})"


def rules(report: Report) -> set[str]:
    return {finding.rule.name for finding in report.findings.kept}


async def test_whatever_happens_to_credits_in_order_audits_clean(engine: Engine) -> None:
    history = await everything(engine)
    report = await history.audit()
    assert report.findings.kept == []
    assert report.clean
    assert report.accounts == len(PEOPLE)
    assert sum(report.books.values()) == 0
    assert report.granted == sum(report.books[book] for book in (Book.AVAILABLE, Book.RESERVED, Book.EXPIRED)) + (
        report.charged
    )
    await history.close()


async def test_an_empty_database_audits_clean(engine: Engine) -> None:
    history = History(engine)
    report = await history.audit()
    assert (report.clean, report.accounts, report.transfers) == (True, 0, 0)
    await history.close()


# ── Tampering ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """What is done to the records, the rules that must notice it, and the words that must be said."""

    name: str
    deeds: tuple[Deed, ...]
    noticed: set[str]
    said: str
    others: frozenset[str] = frozenset()


_COPY = "account_id, number + 1, kind, amount, grant_id, reservation_id, at, available_after, note, hash"
_COLUMNS = "account_id, number, kind, amount, grant_id, reservation_id, at, available_after, note, hash"

CASES = [
    Case(
        "an amount is changed",
        (f"UPDATE transfers SET amount = amount + 1 WHERE {numbered('min', 'deduct')}",),
        {"transfer_altered", "running_balance", "account_available"},
        "is not what it was when it was recorded",
    ),
    Case(
        "a note is changed",
        (f"UPDATE transfers SET note = 'another image' WHERE {numbered('min', 'deduct')}",),
        {"transfer_altered"},
        "is not what it was when it was recorded",
    ),
    Case(
        "an instant is changed",
        (f"UPDATE transfers SET at = at - 1 WHERE {numbered('min', 'release')}",),
        {"transfer_altered"},
        "is not what it was when it was recorded",
    ),
    Case(
        "a hash is changed",
        (f"UPDATE transfers SET hash = '{'0' * 64}' WHERE {numbered('min', 'deduct')}",),
        {"transfer_altered"},
        "its hash does not fit",
    ),
    Case(
        "a kind is changed",
        (f"UPDATE transfers SET kind = 'release' WHERE {numbered('min', 'charge')}",),
        {"transfer_altered", "account_available", "reservation_charged"},
        "charged; its transfers charged",
    ),
    Case(
        "a kind is made up",
        (f"UPDATE transfers SET kind = 'present' WHERE {numbered('min', 'deduct')}",),
        {"transfer_altered", "transfer_kind"},
        "is of a kind that does not exist: 'present'",
    ),
    Case(
        "a transfer in the middle is deleted",
        (f"DELETE FROM transfers WHERE {numbered('min', 'deduct')}",),
        {"transfer_missing", "running_balance", "account_available"},
        "what should stand between them was removed",
    ),
    Case(
        "the first transfer is deleted",
        ("DELETE FROM transfers WHERE account_id = 'ann' AND number = 1",),
        {"transfer_missing", "grant_amount"},
        "Where transfer 1 belongs there is transfer 2",
    ),
    Case(
        "the last transfer is deleted",
        (f"DELETE FROM transfers WHERE {numbered('max')}",),
        {"account_number", "account_head"},
        "transfers were added or removed at the end",
    ),
    Case(
        "a transfer is added at the end",
        (f"INSERT INTO transfers ({_COLUMNS}) SELECT {_COPY} FROM transfers WHERE {numbered('max')}",),
        {"account_number", "transfer_altered"},
        "transfers were added or removed at the end",
    ),
    Case(
        "two transfers are swapped",
        (
            "UPDATE transfers SET number = -1 WHERE account_id = 'ann' AND number = 4",
            "UPDATE transfers SET number = 4 WHERE account_id = 'ann' AND number = 5",
            "UPDATE transfers SET number = 5 WHERE account_id = 'ann' AND number = -1",
        ),
        {"transfer_altered"},
        "Transfer 4 is not what it was",
    ),
    Case(
        "a transfer is moved to another account",
        (
            "UPDATE transfers SET account_id = 'Bob', number = (SELECT number + 1 FROM accounts WHERE id = 'Bob') "
            f"WHERE {numbered('max')}",
        ),
        {"transfer_altered", "account_number", "account_head", "grant_missing"},
        "which this account does not have",
        frozenset({"Bob"}),
    ),
    Case(
        "a transfer is moved to an account that does not exist",
        (f"UPDATE transfers SET account_id = 'nobody' WHERE {numbered('max')}",),
        {"account_missing", "account_number"},
        "but not the account itself",
        frozenset({"nobody"}),
    ),
    Case(
        "what remains of a grant is changed",
        (f"UPDATE grants SET remaining = remaining - 1 WHERE {granted('remaining > 0')}",),
        {"grant_remaining"},
        "are said to remain; its transfers leave",
    ),
    Case(
        "the amount of a grant is changed",
        (f"UPDATE grants SET amount = amount + 5 WHERE {granted('amount = 300')}",),
        {"grant_amount"},
        "0.000305 credits were granted; its transfers granted 0.0003 credits",
    ),
    Case(
        "a grant is given to another account",
        (f"UPDATE grants SET account_id = 'Bob' WHERE {granted('amount = 300')}",),
        {"grant_missing", "grant_amount"},
        "which this account does not have",
        frozenset({"Bob"}),
    ),
    Case(
        "a grant's expiry is put forward",
        (f"UPDATE grants SET expires_at = created_at + 1 WHERE {granted('amount = 300')}",),
        {"grant_expired_used"},
        "still holds credits after its expiry",
    ),
    Case(
        "a grant's expiry is put off",
        (f"UPDATE grants SET expires_at = expires_at + 1000000000000 WHERE {granted('amount = 90')}",),
        {"grant_expired_early"},
        "before its time",
    ),
    Case(
        "a grant's priority is changed",
        (f"UPDATE grants SET priority = 2 WHERE {granted('amount = 300')}",),
        {"grant_order"},
        "which is to be used first, still has credits",
    ),
    Case(
        "what is available is changed",
        ("UPDATE accounts SET available = available + 1000000 WHERE id = 'ann'",),
        {"account_available", "sum"},
        "The account says that 1.0003 credits are available; its transfers come to 0.0003 credits.",
    ),
    Case(
        "what is reserved is changed",
        ("UPDATE accounts SET reserved = reserved + 1 WHERE id = 'ann'",),
        {"account_reserved", "sum"},
        "are reserved; its transfers come to 0.0001 credits",
    ),
    Case(
        "the head is changed",
        (f"UPDATE accounts SET head = '{'f' * 64}' WHERE id = 'ann'",),
        {"account_head"},
        "ends in another hash than its last transfer",
    ),
    Case(
        "the number is changed",
        ("UPDATE accounts SET number = number + 1 WHERE id = 'ann'",),
        {"account_number"},
        "transfers were added or removed at the end",
    ),
    Case(
        "the account is deleted",
        ("DELETE FROM accounts WHERE id = 'ann'",),
        {"account_missing", "sum"},
        "but not the account itself",
    ),
    Case(
        "a charge is made smaller in the receipt",
        (f"UPDATE reservations SET charged = charged - 1 WHERE {stream('settled')}",),
        {"reservation_charged", "reservation_cost"},
        "says 0.000024 credits charged; its transfers charged 0.000025 credits",
    ),
    Case(
        "usage is made smaller in the receipt",
        (f"UPDATE reservations SET used_output_tokens = used_output_tokens - 1 WHERE {stream('settled')}",),
        {"reservation_cost"},
        "comes to 0.000022 credits at its price; charged and written off are 0.000025 credits",
    ),
    Case(
        "usage is made impossible",
        (f"UPDATE reservations SET used_reasoning_tokens = 1000000 WHERE {stream('settled')}",),
        {"reservation_end"},
        "such usage is impossible",
    ),
    Case(
        "a price is changed",
        ("UPDATE prices SET output = output - 1000000 WHERE set_by = 'test'",),
        {"reservation_cost"},
        "at its price",
        frozenset(FEW),
    ),
    Case(
        "a price is deleted",
        ("DELETE FROM prices WHERE set_by = 'test'",),
        {"price_missing"},
        "which is not there",
        frozenset(FEW),
    ),
    Case(
        "what was uncollected is forgotten",
        (f"UPDATE reservations SET uncollected = 0 WHERE {stream('settled', 'uncollected > 0')}",),
        {"reservation_uncollected", "reservation_cost"},
        "says 0 credits uncollected",
    ),
    Case(
        "what a stream held is changed",
        (f"UPDATE reservations SET reserved = reserved + 1 WHERE {stream('active')}",),
        {"reservation_reserved"},
        "says that it held 0.000101 credits; its transfers reserved 0.0001 credits",
    ),
    Case(
        "an ended reservation is made to run again",
        (f"UPDATE reservations SET state = 'active' WHERE {stream('settled')}",),
        {"reservation_end"},
        "there is a settlement",
    ),
    Case(
        "a running reservation is called voided",
        (f"UPDATE reservations SET state = 'voided' WHERE {stream('active')}",),
        {"reservation_held", "reservation_end"},
        "has ended, but its transfers still hold 0.0001 credits for it",
    ),
    Case(
        "a voided reservation is called settled",
        (f"UPDATE reservations SET state = 'settled' WHERE {stream('voided')}",),
        {"reservation_end"},
        "usage is missing",
    ),
    Case(
        "a state is made up",
        (f"UPDATE reservations SET state = 'gone' WHERE {stream('settled')}",),
        {"reservation_state"},
        "is in a state that does not exist: gone",
    ),
    Case(
        "the parts of a reservation are changed",
        (f"UPDATE reservations SET parts = '[]' WHERE {stream('active')}",),
        {"reservation_parts"},
        "does not hold of its grants what its transfers took from them",
    ),
    Case(
        "the parts of a reservation are no parts",
        (f"UPDATE reservations SET parts = 'all' WHERE {stream('active')}",),
        {"reservation_parts"},
        "does not hold of its grants what its transfers took from them",
    ),
    Case(
        "a settlement claims more transfers",
        (f"UPDATE reservations SET transfers_to = transfers_to + 1 WHERE {stream('settled')}",),
        {"settlement_span"},
        "which is about something else",
    ),
    Case(
        "a settlement claims fewer transfers",
        (f"UPDATE reservations SET transfers_from = transfers_from + 1 WHERE {stream('settled')}",),
        {"reservation_ended_twice"},
        "outside of its settlement",
    ),
    Case(
        "the balance in a receipt is changed",
        (f"UPDATE reservations SET balance_after = balance_after + 1 WHERE {stream('settled')}",),
        {"settlement_balance"},
        "were available behind it; the transfers come to",
    ),
    Case(
        "a reservation is deleted",
        (f"DELETE FROM reservations WHERE {stream('settled')}",),
        {"reservation_missing"},
        "this account has no such reservation",
    ),
    Case(
        "a reservation is given to another account",
        (f"UPDATE reservations SET account_id = 'Bob' WHERE {stream('settled')}",),
        {"reservation_missing", "reservation_charged"},
        "this account has no such reservation",
        frozenset({"Bob"}),
    ),
    Case(
        "an amount is changed and the chain made anew",
        (f"UPDATE transfers SET amount = amount - 1 WHERE {numbered('min', 'deduct')}", rehash("ann")),
        {"running_balance", "account_available", "grant_remaining"},
        "but the transfers up to it come to",
    ),
    Case(
        "a transfer is deleted and the chain made anew",
        (f"DELETE FROM transfers WHERE {numbered('min', 'release')}", rehash("ann")),
        {"running_balance", "account_available", "account_reserved", "reservation_held"},
        "but its transfers still hold",
    ),
    Case(
        "a release is given to another grant and the chain made anew",
        (
            "UPDATE transfers SET grant_id = (SELECT id FROM grants WHERE account_id = 'ann' AND amount = 40) "
            f"WHERE {numbered('min', 'release')}",
            rehash("ann"),
        ),
        {"returned_elsewhere", "grant_remaining"},
        "which holds 0 credits of it",
    ),
    Case(
        "a charge is made twice and the chain made anew",
        (
            "UPDATE transfers SET number = -number WHERE account_id = 'ann' AND number = "
            f"(SELECT max(number) FROM transfers WHERE {numbered('min', 'charge')})",
            "INSERT INTO transfers SELECT account_id, -number, kind, amount, grant_id, reservation_id, at, "
            "available_after, note, hash FROM transfers WHERE account_id = 'ann' AND number < 0",
            "UPDATE transfers SET number = 1000000 WHERE account_id = 'ann' AND number < 0",
            rehash("ann"),
        ),
        {"account_reserved", "returned_elsewhere", "reservation_missing"},
        "or it had ended before them",
    ),
]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Records of ann and Bob in which everything has happened, on both engines; tests undo what they do to them."""
    server = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    engine = Engine(request.param, tmp_path_factory.mktemp("recorded"), server)
    asyncio.run(_record(engine))
    yield engine
    asyncio.run(engine.renew())


async def _record(engine: Engine) -> None:
    history = await everything(engine, FEW)
    await history.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tampering_is_found_and_named(recorded: Engine, case: Case) -> None:
    report = tampered(recorded, *case.deeds)
    assert case.noticed <= rules(report)
    assert any(case.said in finding.sentence for finding in report.findings.kept)
    assert {finding.account_id for finding in report.findings.kept} <= {"ann", WHOLE, *case.others}
    assert tampered(recorded).clean, "the test undoes what it does"


def test_a_word_where_a_number_belongs_is_a_finding_and_the_rest_is_still_audited(recorded: Engine) -> None:
    if recorded.name != "sqlite":
        pytest.skip("PostgreSQL keeps no such thing")
    report = tampered(
        recorded,
        f"UPDATE transfers SET amount = 'much' WHERE {numbered('min', 'deduct')}",
        "UPDATE accounts SET available = available + 1 WHERE id = 'Bob'",
    )
    assert {(finding.account_id, finding.rule.name) for finding in report.findings.kept} >= {
        ("ann", "unreadable"),
        ("Bob", "account_available"),
        (WHOLE, "sum"),
    }


async def test_one_account_is_audited_alone(engine: Engine) -> None:
    history = await everything(engine)
    tamper(engine, "UPDATE accounts SET available = available + 1 WHERE id = 'Bob'")
    assert (await history.audit(account_id="ann")).clean
    report = await history.audit(account_id="Bob")
    assert rules(report) == {"account_available"}
    assert report.accounts == 1
    await history.close()


async def test_the_account_of_an_organisation_is_found_by_its_name(engine: Engine) -> None:
    history = await everything(engine, FEW)
    tamper(engine, "INSERT INTO organisations VALUES ('Bob', 'Bob & Sons', 0, 'root')")
    for who, account in (("ann", "ann"), ("Bob & Sons", "Bob"), ("nobody", None)):
        assert await history.database.read(lambda c, who=who: find_account_id(c, who)) == account
    await history.close()


async def test_nothing_is_written(engine: Engine) -> None:
    history = await everything(engine)

    def audited_as_read_only(connection: Connection) -> Report:
        if engine.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA query_only").scalar_one() == 1
        else:
            assert connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on"
        return audit(connection)

    assert (await history.database.read(audited_as_read_only)).clean
    await history.close()


# ── Anchors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_past_that_was_rewritten_whole_contradicts_the_anchor(engine: Engine, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor"
    history = History(engine)
    await history.begin()
    await history.grant("ann", 100)
    await history.grant("Bob", 100)
    saved = await history.audit(save=anchor)
    await history.grant("ann", 5)
    assert (await history.audit(against=anchor)).clean, "a chain that has grown still holds the anchor"
    tamper(
        engine,
        "UPDATE transfers SET amount = 90, available_after = 90 WHERE account_id = 'ann' AND number = 1",
        "UPDATE transfers SET available_after = 95 WHERE account_id = 'ann' AND number = 2",
        f"UPDATE grants SET amount = 90, remaining = 90 WHERE {granted('amount = 100')}",
        "UPDATE accounts SET available = 95 WHERE id = 'ann'",
        rehash("ann"),
    )
    assert (await history.audit()).clean, "whoever rewrites everything is not found by the records alone"
    report = await history.audit(against=anchor)
    assert [(each.account_id, each.rule.name) for each in report.findings.kept] == [("ann", "anchor_changed")]
    assert report.against == saved.anchor
    await history.close()


async def test_a_past_that_was_cut_off_contradicts_the_anchor(engine: Engine, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor"
    history = History(engine)
    await history.begin()
    await history.grant("ann", 100)
    await history.grant("ann", 50)
    await history.grant("Bob", 100)
    await history.audit(save=anchor)
    tamper(
        engine,
        "DELETE FROM transfers WHERE account_id = 'ann' AND number = 2",
        f"DELETE FROM grants WHERE {granted('amount = 50')}",
        "UPDATE accounts SET available = 100 WHERE id = 'ann'",
        rehash("ann"),
        "DELETE FROM transfers WHERE account_id = 'Bob'",
        "DELETE FROM grants WHERE account_id = 'Bob'",
        "DELETE FROM accounts WHERE id = 'Bob'",
    )
    assert (await history.audit()).clean
    found = (await history.audit(against=anchor)).findings.kept
    assert {(each.account_id, each.rule.name) for each in found} >= {("ann", "anchor_cut"), ("Bob", "anchor_cut")}
    await history.close()


async def test_an_audit_with_findings_leaves_the_last_anchor_alone(engine: Engine, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor"
    history = await everything(engine)
    report = await history.audit(save=anchor)
    before = anchor.read_bytes()
    assert report.anchor is not None
    assert len(before.splitlines()) == len(PEOPLE)
    tamper(engine, "UPDATE accounts SET available = available + 1 WHERE id = 'ann'")
    assert not (await history.audit(save=anchor)).clean
    assert anchor.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("anchor")] == ["anchor"]
    await history.close()


async def test_an_audit_that_is_stopped_leaves_no_anchor(engine: Engine, tmp_path: Path) -> None:
    history = await everything(engine, FEW)
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await history.audit(save=tmp_path / "anchor", progress=stop)
    (_, total), (done, _) = told
    assert done == total > 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("anchor")]
    await history.close()


@pytest.mark.parametrize("content", [b"nonsense\n", b'["b",1,"x"]\n["a",1,"x"]\n', b'["a",0,"x"]\n', b'["a",1,"x"]'])
async def test_what_is_no_anchor_is_refused(tmp_path: Path, engine: Engine, content: bytes) -> None:
    (tmp_path / "anchor").write_bytes(content)
    history = History(engine)
    with pytest.raises(AnchorUnreadable):
        await history.audit(against=tmp_path / "anchor")
    await history.close()


def test_the_chain_is_what_the_guide_for_operators_says_it_is() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
    found = re.search(r"```json\n(\[.*\])\n```\s+has the hash `([0-9a-f]{64})`", guide)
    assert found
    assert hashlib.sha256(found[1].encode()).hexdigest() == found[2]
    assert link(GENESIS, tuple(json.loads(found[1]))) == found[2]


@pytest.mark.parametrize("note", ['"', "\\", "/", "\x00", "\b\t\n\f\r", "\x1f\x7f", "é\u2028\U0001f600", "<&>"])
def test_a_note_of_any_letters_is_hashed_as_the_guide_says(note: str) -> None:
    entry = ("ann", 1, "grant", 5, "g", None, 7, 5, note)
    written = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
    assert link(GENESIS, entry) == hashlib.sha256(written.encode()).hexdigest()


# ── A long history ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hot", [False, True])
def test_the_history_that_benchmarks_build_is_one_that_the_rules_allow(engine: Engine, hot: bool) -> None:
    owner = build(engine.url(PACKAGE), 3000, hot=hot)
    owned = engine.look(PACKAGE, lambda c: c.execute(select(accounts.c.number).where(accounts.c.id == owner)).scalar())
    assert 0.45 < owned / 3000 < 0.55 if hot else owned < 600
    check_books(engine.look(PACKAGE, read_books))
    report = tampered(engine)
    assert report.findings.kept == []
    assert report.transfers >= 3000


# ── Beside a server ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_beside_a_busy_server_nothing_false_is_found(engine: Engine) -> None:
    history = await everything(engine)
    going = True

    async def serve(who: str) -> None:
        while going:
            try:
                await history.settle(await history.reserve(who), written=1)
            except InsufficientCredits:
                await history.grant(who, 400)

    servers = [asyncio.create_task(serve(who)) for who in PEOPLE]
    seen: list[int] = []
    for _ in range(5):
        report = await history.audit()
        assert report.findings.kept == []
        seen.append(report.transfers)
        await asyncio.sleep(0.02)
    going = False
    await asyncio.gather(*servers)
    assert seen == sorted(seen)
    assert seen[0] < seen[-1], "the writers were at work"
    await history.close()
