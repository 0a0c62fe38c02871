"""Users of external issuers, those who were removed, and logins through an issuer that are over."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make their tables, and give sessions an end that no refresh puts off."""
    op.add_column("refresh_families", sa.Column("ends_at", sa.BigInteger, nullable=True))
    op.create_table(
        "external_users",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("user_id", sa.String(32), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False, unique=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("claimed_at", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "shut_out",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("removed_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "spent_logins",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("spent_logins_by_expiry", "spent_logins", ["expires_at"])
