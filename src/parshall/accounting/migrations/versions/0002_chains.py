"""Number and chain each account's transfers, fold parts and first slices into reservations, add organisations."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from parshall.accounting.chain import GENESIS, link

revision = "0002"
down_revision = "0001"

_ROWS = 500
_BIG = sa.BigInteger


def upgrade() -> None:
    """Rewrite what 0001 kept; then make what is new."""
    heads = _chain_transfers()
    _extend_accounts(heads)
    _fold_reservations()
    op.add_column("grants", sa.Column("announced", sa.Integer, nullable=False, server_default="0"))
    _make_organisations()
    _make_usage()
    _make_outbox()
    _forbid_changes_of_transfers()


def _batches(query: str) -> Iterator[Any]:
    """The rows of a query on what 0001 kept; read whole, as SQLite cannot write while it reads."""
    yield from op.get_bind().execute(sa.text(query)).mappings().all()


def _chain_transfers() -> dict[str, tuple[int, str]]:
    bind = op.get_bind()
    new = op.create_table(
        "chained",
        sa.Column("account_id", sa.String(255), primary_key=True),
        sa.Column("number", _BIG, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("amount", _BIG, nullable=False),
        sa.Column("grant_id", sa.String(32)),
        sa.Column("reservation_id", sa.String(64)),
        sa.Column("at", _BIG, nullable=False),
        sa.Column("available_after", _BIG, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.CheckConstraint("amount > 0", name="transfers_positive"),
        sqlite_with_rowid=False,
    )
    heads: dict[str, tuple[int, str]] = {}
    chained: list[dict[str, Any]] = []
    bind.execute(sa.text("CREATE TEMPORARY TABLE renumbered (id BIGINT PRIMARY KEY, number BIGINT NOT NULL)"))
    numbers: list[dict[str, int]] = []
    for row in _batches("SELECT * FROM transfers ORDER BY account_id, id"):
        number, head = heads.get(row["account_id"], (0, GENESIS))
        kind = "deduct" if (row["kind"], row["debit"]) == ("charge", "available") else row["kind"]
        entry = (
            *(row["account_id"], number + 1, kind, row["amount"], row["grant_id"]),
            *(row["reservation_id"], row["at"], row["available_after"], row["note"]),
        )
        heads[row["account_id"]] = (number + 1, link(head, entry))
        names = [column.name for column in new.columns]
        chained.append(dict(zip(names, (*entry, heads[row["account_id"]][1]), strict=True)))
        numbers.append({"id": row["id"], "number": number + 1})
    for start in range(0, len(chained), _ROWS):
        bind.execute(new.insert(), chained[start : start + _ROWS])
        renumber = sa.text("INSERT INTO renumbered (id, number) VALUES (:id, :number)")
        bind.execute(renumber, numbers[start : start + _ROWS])
    op.drop_table("transfers")
    op.rename_table("chained", "transfers")
    return heads


def _extend_accounts(heads: dict[str, tuple[int, str]]) -> None:
    op.add_column("accounts", sa.Column("number", _BIG, nullable=False, server_default="0"))
    op.add_column("accounts", sa.Column("head", sa.String(64), nullable=False, server_default=""))
    if heads:
        op.get_bind().execute(
            sa.text("UPDATE accounts SET number = :number, head = :head WHERE id = :id"),
            [{"id": account, "number": number, "head": head} for account, (number, head) in heads.items()],
        )


def _make_reservations() -> sa.Table:
    return op.create_table(
        "folded",
        sa.Column("id", sa.String(64), primary_key=True),
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
    folded = _make_reservations()
    parts: defaultdict[str, list[list[Any]]] = defaultdict(list)
    for row in _batches("SELECT * FROM reservation_parts ORDER BY reservation_id, position"):
        parts[row["reservation_id"]].append([row["grant_id"], row["amount"]])
    first = {row["reservation_id"]: row for row in _batches("SELECT * FROM slices WHERE step = 0")}
    numbers = {row["id"]: row["number"] for row in _batches("SELECT * FROM renumbered")}
    rows = [_folded(row, parts[row["id"]], first[row["id"]], numbers) for row in _batches("SELECT * FROM reservations")]
    for start in range(0, len(rows), _ROWS):
        bind.execute(folded.insert(), rows[start : start + _ROWS])
    _remake_slices()
    bind.execute(sa.text("DROP TABLE renumbered"))


def _folded(row: Any, parts: list[list[Any]], first: Any, numbers: dict[int, int]) -> dict[str, Any]:
    ended = json.loads(row["settlement"]) if row["settlement"] else None
    moved = sorted(numbers[each] for each in ended["transfers"]) if ended else []
    return {
        **{name: row[name] for name in _KEPT},
        "user_id": row["account_id"],
        "parts": json.dumps(parts, separators=(",", ":")),
        # What was asked for is gone but for its digest: a replay of a reservation older than this meets a 409.
        "slice_tokens": first["output_tokens"],
        "slice_tokens_min": 1,
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


def _remake_slices() -> None:
    """Extensions only, by what they asked for: at 0001 that was a digest, so their old answers cannot be replayed."""
    op.drop_table("slices")
    op.drop_table("reservation_parts")
    op.drop_table("reservations")
    op.rename_table("folded", "reservations")
    active = sa.text("state = 'active'")
    op.create_index("reservations_due", "reservations", ["expires_at"], sqlite_where=active, postgresql_where=active)
    op.create_index("reservations_of", "reservations", ["user_id", "created_at"])
    op.create_index("reservations_created", "reservations", ["created_at"])
    op.create_table(
        "slices",
        sa.Column("reservation_id", sa.String(64), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("asked", _BIG, nullable=False),
        sa.Column("reserved", _BIG, nullable=False),
        sa.Column("output_tokens", _BIG, nullable=False),
        sa.Column("expires_at", _BIG, nullable=False),
        sa.Column("final", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )


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
