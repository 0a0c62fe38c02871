"""The tables of accounting as the statements of its stores see them; the migrations make them."""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Integer, MetaData, String, Table, Text

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(255), primary_key=True),
    Column("available", BigInteger, CheckConstraint("available >= 0"), nullable=False),
    Column("reserved", BigInteger, CheckConstraint("reserved >= 0"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

grants = Table(
    "grants",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("remaining", BigInteger, CheckConstraint("remaining >= 0 AND remaining <= amount"), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("granted_by", String(255), nullable=False),
    Column("notes", Text, nullable=False),
)

transfers = Table(
    "transfers",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("grant_id", ForeignKey("grants.id")),
    Column("kind", String(16), nullable=False),
    Column("amount", BigInteger, CheckConstraint("amount > 0"), nullable=False),
    Column("debit", String(16), nullable=False),
    Column("credit", String(16), nullable=False),
    Column("reservation_id", String(64)),
    Column("at", BigInteger, nullable=False),
    Column("available_after", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    sqlite_autoincrement=True,
)

reservations = Table(
    "reservations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("model_id", String(255), nullable=False),
    Column("price_version", ForeignKey("prices.version"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("output_tokens_max", BigInteger, nullable=False),
    Column("step", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("used_input_tokens", BigInteger),
    Column("used_cached_input_tokens", BigInteger),
    Column("used_output_tokens", BigInteger),
    Column("used_reasoning_tokens", BigInteger),
    Column("usage_source", String(16)),
    Column("end_hash", String(64)),
    Column("settlement", Text),
)

reservation_parts = Table(
    "reservation_parts",
    metadata,
    Column("reservation_id", ForeignKey("reservations.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("grant_id", ForeignKey("grants.id"), nullable=False),
    Column("amount", BigInteger, CheckConstraint("amount > 0"), nullable=False),
)

slices = Table(  # step 0 is the reservation itself, 1, 2, … its extensions
    "slices",
    metadata,
    Column("reservation_id", ForeignKey("reservations.id"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("hash", String(64), nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("final", Integer, nullable=False),
)

prices = Table(
    "prices",
    metadata,
    Column("version", String(320), primary_key=True),
    Column("model_id", String(255), nullable=False),
    Column("effective_from", BigInteger, nullable=False),
    Column("input", BigInteger, nullable=False),
    Column("cached_input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("set_by", String(255), nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("scope", String(320), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("hash", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
