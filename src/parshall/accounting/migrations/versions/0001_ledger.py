"""The first tables of accounting: accounts, grants, transfers, reservations, prices, idempotency."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables; from here on transfers can only be added."""
    _make_accounts()
    _make_prices()
    _make_reservations()
    _make_transfers()
    _make_idempotency()
    _forbid_changes_of_transfers()


def _make_accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("available", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.CheckConstraint("available >= 0", name="accounts_available"),
        sa.CheckConstraint("reserved >= 0", name="accounts_reserved"),
    )
    op.create_table(
        "grants",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("account_id", sa.String(255), sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("remaining", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("granted_by", sa.String(255), nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
        sa.CheckConstraint("remaining >= 0 AND remaining <= amount", name="grants_remaining"),
    )
    held = sa.text("remaining > 0")
    op.create_index("grants_held", "grants", ["account_id"], sqlite_where=held, postgresql_where=held)
    op.create_index("grants_due", "grants", ["expires_at"], sqlite_where=held, postgresql_where=held)
    op.create_index("grants_created", "grants", ["created_at", "id"])


def _make_prices() -> None:
    op.create_table(
        "prices",
        sa.Column("version", sa.String(320), primary_key=True),
        sa.Column("model_id", sa.String(255), nullable=False),
        sa.Column("effective_from", sa.BigInteger, nullable=False),
        sa.Column("input", sa.BigInteger, nullable=False),
        sa.Column("cached_input", sa.BigInteger, nullable=False),
        sa.Column("output", sa.BigInteger, nullable=False),
        sa.Column("reasoning", sa.BigInteger, nullable=False),
        sa.Column("set_by", sa.String(255), nullable=False),
        sa.UniqueConstraint("model_id", "effective_from", name="prices_effective"),
    )


def _make_reservations() -> None:
    op.create_table(
        "reservations",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("account_id", sa.String(255), sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("model_id", sa.String(255), nullable=False),
        sa.Column("price_version", sa.String(320), sa.ForeignKey("prices.version"), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens_max", sa.BigInteger, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("used_input_tokens", sa.BigInteger),
        sa.Column("used_cached_input_tokens", sa.BigInteger),
        sa.Column("used_output_tokens", sa.BigInteger),
        sa.Column("used_reasoning_tokens", sa.BigInteger),
        sa.Column("usage_source", sa.String(16)),
        sa.Column("end_hash", sa.String(64)),
        sa.Column("settlement", sa.Text),
    )
    active = sa.text("state = 'active'")
    op.create_index("reservations_due", "reservations", ["expires_at"], sqlite_where=active, postgresql_where=active)
    op.create_index("reservations_of", "reservations", ["account_id", "created_at"])
    op.create_index("reservations_created", "reservations", ["created_at"])
    op.create_table(
        "reservation_parts",
        sa.Column("reservation_id", sa.String(64), sa.ForeignKey("reservations.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("grant_id", sa.String(32), sa.ForeignKey("grants.id"), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.CheckConstraint("amount > 0", name="reservation_parts_amount"),
    )
    op.create_table(
        "slices",
        sa.Column("reservation_id", sa.String(64), sa.ForeignKey("reservations.id"), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("final", sa.Integer, nullable=False),
    )


def _make_transfers() -> None:
    op.create_table(
        "transfers",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("account_id", sa.String(255), sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("grant_id", sa.String(32), sa.ForeignKey("grants.id")),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("debit", sa.String(16), nullable=False),
        sa.Column("credit", sa.String(16), nullable=False),
        sa.Column("reservation_id", sa.String(64)),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("available_after", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.CheckConstraint("amount > 0", name="transfers_amount"),
        sqlite_autoincrement=True,
    )
    op.create_index("transfers_of", "transfers", ["account_id", "id"])
    op.create_index("transfers_for", "transfers", ["reservation_id"])


def _make_idempotency() -> None:
    op.create_table(
        "idempotency",
        sa.Column("scope", sa.String(320), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )


def _forbid_changes_of_transfers() -> None:
    """Append-only (M5) is held by the database itself, whatever a later statement or a person at a prompt may try."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION transfers_are_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'transfers are append-only' "
            "USING ERRCODE = 'integrity_constraint_violation'; END $$"
        )
        op.execute(
            "CREATE TRIGGER transfers_kept BEFORE UPDATE OR DELETE ON transfers "
            "FOR EACH ROW EXECUTE FUNCTION transfers_are_append_only()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER transfers_no_{change.lower()} BEFORE {change} ON transfers "
            "BEGIN SELECT RAISE(ABORT, 'transfers are append-only'); END"
        )
