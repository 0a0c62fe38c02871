"""The tables of accounting as the statements of its stores see them; the migrations make them."""

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, Text

from parshall.kernel.removals import removals_table

metadata = MetaData()

accounting_removals = removals_table("accounting_removals", metadata)

accounts = Table(  # of a user or of an organisation: both draw their ids from the same 128 bits
    "accounts",
    metadata,
    Column("id", String(255), primary_key=True),
    Column("available", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),  # transfers so far
    Column("head", String(64), nullable=False),  # hash of the last one
    Column("created_at", BigInteger, nullable=False),
)

grants = Table(
    "grants",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("account_id", String(255), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("remaining", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("granted_by", String(255), nullable=False),
    Column("notes", Text, nullable=False),
    Column("announced", Integer, nullable=False),  # whether its coming expiry was announced
)

transfers = Table(
    "transfers",
    metadata,
    Column("account_id", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True),  # 1, 2, … in each account, without a gap
    Column("kind", String(16), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("grant_id", String(32)),
    Column("reservation_id", String(64)),
    Column("at", BigInteger, nullable=False),
    Column("available_after", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    Column("hash", String(64), nullable=False),
)

reservations = Table(
    "reservations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("account_id", String(255), nullable=False),  # who pays: the user, or the user's organisation
    Column("user_id", String(255), nullable=False),
    Column("model_id", String(255), nullable=False),
    Column("price_version", String(320), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("parts", Text, nullable=False),  # JSON: [[grant id, amount], …] in the order of taking
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("output_tokens_max", BigInteger, nullable=False),
    Column("slice_tokens", BigInteger, nullable=False),
    Column("slice_tokens_min", BigInteger, nullable=False),
    Column("step", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("first_reserved", BigInteger, nullable=False),  # the first slice, for replays
    Column("first_output_tokens", BigInteger, nullable=False),
    Column("first_expires_at", BigInteger, nullable=False),
    Column("first_final", Integer, nullable=False),
    Column("member_id", String(32), nullable=False),  # toward whose limits it counts; empty where the user pays
    Column("counted_on", Integer, nullable=False),  # the day, as members.day, on which it counts
    Column("ended_at", BigInteger),
    Column("used_input_tokens", BigInteger),
    Column("used_cached_input_tokens", BigInteger),
    Column("used_output_tokens", BigInteger),
    Column("used_reasoning_tokens", BigInteger),
    Column("usage_source", String(16)),
    Column("outcome", String(32)),
    Column("charged", BigInteger),
    Column("uncollected", BigInteger),
    Column("balance_after", BigInteger),
    Column("transfers_from", BigInteger),  # the settlement's transfers have the numbers from … up to, not including, …
    Column("transfers_to", BigInteger),
)

slices = Table(  # the answers to extensions 1, 2, …; the answer to the reservation itself is in its row
    "slices",
    metadata,
    Column("reservation_id", String(64), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("asked", BigInteger, nullable=False),
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

organisations = Table(
    "organisations",
    metadata,
    Column("id", String(32), primary_key=True),  # its account has the same id
    Column("name", String(100), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(255), nullable=False),
)

members = Table(  # a user belongs to one organisation at most
    "members",
    metadata,
    Column("user_id", String(255), primary_key=True),
    Column("id", String(32), nullable=False),  # of this membership: who leaves and joins again has another
    Column("organisation_id", String(32), nullable=False),
    Column("role", String(16), nullable=False),
    Column("limit_day", BigInteger),
    Column("limit_month", BigInteger),
    Column("limit_total", BigInteger),
    Column("day", Integer, nullable=False),  # days since the epoch, UTC, that day_used is about
    Column("day_used", BigInteger, nullable=False),  # held by running streams and charged by ended ones
    Column("month", Integer, nullable=False),  # months since the year 0, UTC
    Column("month_used", BigInteger, nullable=False),
    Column("total_used", BigInteger, nullable=False),
    Column("joined_at", BigInteger, nullable=False),
)

usage_records = Table(  # what services report beside streams
    "usage_records",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("user_id", String(255), nullable=False),
    Column("service", String(100), nullable=False),
    Column("operation", String(100), nullable=False),
    Column("model_id", String(255)),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("credits", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("metadata", Text, nullable=False),
)

outbox = Table(  # announcements that wait for delivery or were given up; a delivered one is deleted
    "outbox",
    metadata,
    Column("id", String(32), primary_key=True),  # the CloudEvents id: a receiver drops what it has seen
    Column("type", String(100), nullable=False),
    Column("subject", String(255), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("body", Text, nullable=False),  # its data as JSON
    Column("attempts", Integer, nullable=False),
    Column("due_at", BigInteger),  # when to try next, or until when a claim holds; absent: given up
    Column("last_error", Text, nullable=False),
)
