"""Number and chain each account's transfers, fold parts and first slices into reservations, add organisations."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from alembic import op

from parshall.accounting.chain import GENESIS, Entry, link

revision = "0002"
down_revision = "0001"

_ROWS = 500
_BIG = sa.BigInteger


def upgrade() -> None:
    """Rewrite what 0001 kept; then make what is new."""
    _extend_accounts()
    _chain_transfers()
    _fold_reservations()
    op.add_column("grants", sa.Column("announced", sa.Integer, nullable=False, server_default="0"))
    _make_organisations()
    _make_usage()
    _make_outbox()
    _bound_idempotency()
    _forbid_changes_of_transfers()


def _pages(query: str, *, key: Sequence[str], first: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The rows behind `first` by `key` and in its order, a page at a time: a ledger may be larger than the memory."""
    names, marks = ", ".join(key), ", ".join(f":after_{name}" for name in key)
    paged = sa.text(f"{query} WHERE ({names}) > ({marks}) ORDER BY {names} LIMIT {_ROWS}")
    last: Sequence[Any] = first
    while page := _rows(paged, {f"after_{name}": each for name, each in zip(key, last, strict=True)}):
        yield page
        last = [page[-1][name] for name in key]


def _rows(statement: Any, values: dict[str, Any]) -> Sequence[Any]:
    return op.get_bind().execute(statement, values).mappings().all()


def _of(query: str, ids: Sequence[Any]) -> Sequence[Any]:
    """The rows of a query whose `:ids` are these."""
    return _rows(sa.text(query).bindparams(sa.bindparam("ids", expanding=True)), {"ids": ids})


def _extend_accounts() -> None:
    op.add_column("accounts", sa.Column("number", _BIG, nullable=False, server_default="0"))
    op.add_column("accounts", sa.Column("head", sa.String(64), nullable=False, server_default=""))


def _make_transfers() -> sa.Table:
    return op.create_table(
        "chained",
        sa.Column("account_id", sa.String(255), nullable=False),
        sa.Column("number", _BIG, autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("amount", _BIG, nullable=False),
        sa.Column("grant_id", sa.String(32)),
        sa.Column("reservation_id", sa.String(64)),
        sa.Column("at", _BIG, nullable=False),
        sa.Column("available_after", _BIG, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "number", name="transfers_key"),
        sa.CheckConstraint("amount > 0", name="transfers_positive"),
        sqlite_with_rowid=False,
    )


def _chain_transfers() -> None:
    bind = op.get_bind()
    new = _make_transfers()
    bind.execute(sa.text("CREATE TEMPORARY TABLE renumbered (id BIGINT PRIMARY KEY, number BIGINT NOT NULL)"))
    renumber = sa.text("INSERT INTO renumbered (id, number) VALUES (:id, :number)")
    end = sa.text("UPDATE accounts SET number = :number, head = :head WHERE id = :id")
    account, number, head = "", 0, GENESIS
    for page in _pages("SELECT * FROM transfers", key=("account_id", "id"), first=("", 0)):
        ends: dict[str, dict[str, Any]] = {}
        chained, numbers = [], []
        for row in page:
            if row["account_id"] != account:
                account, number, head = row["account_id"], 0, GENESIS
            number += 1
            entry = _entry(row, number)
            head = link(head, entry)
            chained.append(dict(zip(new.columns.keys(), (*entry, head), strict=True)))
            numbers.append({"id": row["id"], "number": number})
            ends[account] = {"id": account, "number": number, "head": head}
        bind.execute(new.insert(), chained)
        bind.execute(renumber, numbers)
        bind.execute(end, list(ends.values()))
    op.drop_table("transfers")
    op.rename_table("chained", "transfers")


def _entry(row: Any, number: int) -> Entry:
    deducted = (row["kind"], row["debit"]) == ("charge", "available")  # 0001 had one word for both
    return (
        *(row["account_id"], number, "deduct" if deducted else row["kind"], row["amount"], row["grant_id"]),
        *(row["reservation_id"], row["at"], row["available_after"], row["note"]),
    )


def _make_reservations() -> sa.Table:
    return op.create_table(
        "folded",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("account_id", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("model_id", sa.String(255), nullable=False),
        sa.Column("price_version", sa.String(320), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reserved", _BIG, nullable=False),
        sa.Column("parts", sa.Text, nullable=False),
        sa.Column("input_tokens", _BIG, nullable=False),
        sa.Column("output_tokens", _BIG, nullable=False),
        sa.Column("output_tokens_max", _BIG, nullable=False),
        sa.Column("slice_tokens", _BIG, nullable=False),
        sa.Column("slice_tokens_min", _BIG, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("created_at", _BIG, nullable=False),
        sa.Column("expires_at", _BIG, nullable=False),
        sa.Column("first_reserved", _BIG, nullable=False),
        sa.Column("first_output_tokens", _BIG, nullable=False),
        sa.Column("first_expires_at", _BIG, nullable=False),
        sa.Column("first_final", sa.Integer, nullable=False),
        sa.Column("member_id", sa.String(32), nullable=False, server_default=""),
        sa.Column("counted_on", sa.Integer, nullable=False, server_default="0"),
        sa.Column("ended_at", _BIG),
        sa.Column("used_input_tokens", _BIG),
        sa.Column("used_cached_input_tokens", _BIG),
        sa.Column("used_output_tokens", _BIG),
        sa.Column("used_reasoning_tokens", _BIG),
        sa.Column("usage_source", sa.String(16)),
        sa.Column("outcome", sa.String(32)),
        sa.Column("charged", _BIG),
        sa.Column("uncollected", _BIG),
        sa.Column("balance_after", _BIG),
        sa.Column("transfers_from", _BIG),
        sa.Column("transfers_to", _BIG),
        sa.PrimaryKeyConstraint("id", name="reservations_key"),
    )


def _make_slices() -> sa.Table:
    """Extensions only, by what they asked for; the first slice is in its reservation."""
    return op.create_table(
        "granted",
        sa.Column("reservation_id", sa.String(64), nullable=False),
        sa.Column("step", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("asked", _BIG, nullable=False),
        sa.Column("reserved", _BIG, nullable=False),
        sa.Column("output_tokens", _BIG, nullable=False),
        sa.Column("expires_at", _BIG, nullable=False),
        sa.Column("final", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("reservation_id", "step", name="slices_key"),
        sqlite_with_rowid=False,
    )


_KEPT = (
    *("id", "account_id", "model_id", "price_version", "state", "reserved", "input_tokens", "output_tokens"),
    *("output_tokens_max", "step", "created_at", "expires_at", "ended_at", "used_input_tokens"),
    *("used_cached_input_tokens", "used_output_tokens", "used_reasoning_tokens", "usage_source"),
)
"""Columns of a reservation that stay as they are."""


def _fold_reservations() -> None:
    """Parts and the first slice become columns; a settlement's JSON becomes columns too."""
    bind = op.get_bind()
    folded, granted = _make_reservations(), _make_slices()
    for page in _pages("SELECT * FROM reservations", key=("id",), first=("",)):
        ids = [row["id"] for row in page]
        parts, slices, numbers = _parts_of(ids), _slices_of(ids), _numbers_of(page)
        bind.execute(folded.insert(), [_folded(row, parts[row["id"]], slices[row["id"]][0], numbers) for row in page])
        extensions = [each for name in ids for each in _extensions(slices[name])]
        if extensions:
            bind.execute(granted.insert(), extensions)
    for table in ("slices", "reservation_parts", "reservations"):
        op.drop_table(table)
    op.rename_table("folded", "reservations")
    op.rename_table("granted", "slices")
    bind.execute(sa.text("DROP TABLE renumbered"))
    active = sa.text("state = 'active'")
    op.create_index("reservations_due", "reservations", ["expires_at"], sqlite_where=active, postgresql_where=active)
    op.create_index("reservations_of", "reservations", ["user_id", "created_at"])
    op.create_index("reservations_created", "reservations", ["created_at"])
    ended = sa.text("ended_at IS NOT NULL")
    op.create_index("reservations_ended", "reservations", ["ended_at"], sqlite_where=ended, postgresql_where=ended)


def _parts_of(ids: Sequence[str]) -> dict[str, list[list[Any]]]:
    parts: defaultdict[str, list[list[Any]]] = defaultdict(list)
    query = "SELECT * FROM reservation_parts WHERE reservation_id IN :ids ORDER BY reservation_id, position"
    for row in _of(query, ids):
        parts[row["reservation_id"]].append([row["grant_id"], row["amount"]])
    return parts


def _slices_of(ids: Sequence[str]) -> dict[str, list[Any]]:
    slices: defaultdict[str, list[Any]] = defaultdict(list)
    for row in _of("SELECT * FROM slices WHERE reservation_id IN :ids ORDER BY reservation_id, step", ids):
        slices[row["reservation_id"]].append(row)
    return slices


def _numbers_of(page: Sequence[Any]) -> dict[int, int]:
    """The new numbers of the transfers that these reservations' settlements name."""
    named = [each for row in page if row["settlement"] for each in json.loads(row["settlement"])["transfers"]]
    numbers: dict[int, int] = {}
    for start in range(0, len(named), _ROWS):
        rows = _of("SELECT id, number FROM renumbered WHERE id IN :ids", named[start : start + _ROWS])
        numbers.update({row["id"]: row["number"] for row in rows})
    return numbers


def _extensions(slices: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """What was asked for is gone but for its digest: where less was granted, a replay meets a 409."""
    for before, row in pairwise(slices):
        kept = {name: row[name] for name in ("reservation_id", "step", "reserved", "output_tokens", "expires_at")}
        yield {**kept, "asked": row["output_tokens"] - before["output_tokens"], "final": row["final"]}


def _least(row: Any, first: Any) -> int:
    """The least output that the reservation would have begun with: all of it, where its digest says so, or one token.

    Other terms than what was granted are gone: a replay of a reservation that was granted less meets a 409.
    """
    granted = first["output_tokens"]
    request = (row["id"], row["account_id"], row["model_id"], row["input_tokens"], row["output_tokens_max"])
    whole = json.dumps(("reserve", *request, granted, granted), sort_keys=True).encode()
    return granted if hashlib.sha256(whole).hexdigest() == first["hash"] else 1


def _folded(row: Any, parts: list[list[Any]], first: Any, numbers: dict[int, int]) -> dict[str, Any]:
    ended = json.loads(row["settlement"]) if row["settlement"] else None
    moved = sorted(numbers[each] for each in ended["transfers"]) if ended else []
    return {
        **{name: row[name] for name in _KEPT},
        "user_id": row["account_id"],
        "parts": json.dumps(parts, separators=(",", ":")),
        "slice_tokens": first["output_tokens"],
        "slice_tokens_min": _least(row, first),
        "first_reserved": first["reserved"],
        "first_output_tokens": first["output_tokens"],
        "first_expires_at": first["expires_at"],
        "first_final": first["final"],
        "outcome": ended["outcome"] if ended else None,
        "charged": ended["charged"] if ended else None,
        "uncollected": ended["uncollected"] if ended else None,
        "balance_after": ended["balance_after"] if ended else None,
        "transfers_from": (moved[0] if moved else 0) if ended else None,
        "transfers_to": (moved[-1] + 1 if moved else 0) if ended else None,
    }


def _make_organisations() -> None:
    op.create_table(
        "organisations",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False, unique=True),
        sa.Column("created_at", _BIG, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
    )
    op.create_table(
        "members",
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("organisation_id", sa.String(32), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("limit_day", _BIG),
        sa.Column("limit_month", _BIG),
        sa.Column("limit_total", _BIG),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("day_used", _BIG, nullable=False),
        sa.Column("month", sa.Integer, nullable=False),
        sa.Column("month_used", _BIG, nullable=False),
        sa.Column("total_used", _BIG, nullable=False),
        sa.Column("joined_at", _BIG, nullable=False),
        sa.CheckConstraint("day_used >= 0 AND month_used >= 0 AND total_used >= 0", name="members_used"),
    )
    op.create_index("members_of", "members", ["organisation_id", "user_id"])


def _make_usage() -> None:
    op.create_table(
        "usage_records",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("service", sa.String(100), nullable=False),
        sa.Column("operation", sa.String(100), nullable=False),
        sa.Column("model_id", sa.String(255)),
        sa.Column("input_tokens", _BIG, nullable=False),
        sa.Column("output_tokens", _BIG, nullable=False),
        sa.Column("credits", _BIG, nullable=False),
        sa.Column("at", _BIG, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
    )
    op.create_index("usage_of", "usage_records", ["user_id", "at"])
    op.create_index("usage_at", "usage_records", ["at"])


def _bound_idempotency() -> None:
    """What is past its retention is found by its age."""
    op.create_index("idempotency_created", "idempotency", ["created_at"])


def _make_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("at", _BIG, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", _BIG),
        sa.Column("last_error", sa.Text, nullable=False),
    )
    op.create_index("outbox_due", "outbox", ["due_at"])


def _forbid_changes_of_transfers() -> None:
    """Append-only (M5) is held by the database itself; the triggers of 0001 went with its table."""
    if op.get_bind().dialect.name == "postgresql":
        for change, each in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER transfers_kept_{each.lower()} BEFORE {change} ON transfers "
                f"FOR EACH {each} EXECUTE FUNCTION transfers_are_append_only()"
            )
        op.execute("ALTER TABLE accounts SET (fillfactor = 50)")
        op.execute("ALTER TABLE grants SET (fillfactor = 70)")
        op.execute("ALTER TABLE reservations SET (fillfactor = 70)")
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER transfers_no_{change.lower()} BEFORE {change} ON transfers "
            "BEGIN SELECT RAISE(ABORT, 'transfers are append-only'); END"
        )
