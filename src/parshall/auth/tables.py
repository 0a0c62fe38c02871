"""The tables of auth, as its migrations leave them."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

users = Table(
    "users",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("username", String(30), nullable=False),
    Column("username_key", String(30), nullable=False, unique=True),
    Column("email", String(254), nullable=False),
    Column("email_key", String(254), nullable=False, unique=True),
    Column("password_hash", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("is_verified", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("logged_in_at", BigInteger),
    Index("users_by_age", "created_at", "id"),
)
refresh_families = Table(
    "refresh_families",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger),
    Index("refresh_families_by_user", "user_id"),
)
refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("family_id", String(32), ForeignKey("refresh_families.id", ondelete="CASCADE"), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    Index("refresh_tokens_by_family", "family_id"),
)
signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", String(64), primary_key=True),
    Column("private_pem", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
services = Table(
    "services",
    metadata,
    Column("name", String(31), primary_key=True),
    Column("secret_digest", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(100), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_day", Integer),
    Index("api_keys_by_user", "user_id", "name", unique=True),
)
mailed_codes = Table(
    "mailed_codes",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("email_key", String(254), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("mailed_codes_by_user", "user_id"),
)
external_users = Table(
    "external_users",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("issuer", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("claimed_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
removals = Table(
    "removals",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("user_id", String(32), nullable=False),
    Column("removed_at", BigInteger, nullable=False),
)
shut_out = Table(
    "shut_out",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("removed_at", BigInteger, nullable=False),
)
spent_logins = Table(
    "spent_logins",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("expires_at", BigInteger, nullable=False),
    Index("spent_logins_by_expiry", "expires_at"),
)
