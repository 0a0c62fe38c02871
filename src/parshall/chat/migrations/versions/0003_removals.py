"""Removed users that auth has told of, and what is left to erase."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table of kernel.removals."""
    op.create_table(
        "chat_removals",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("user_id", sa.String(32), nullable=False),
        sa.Column("removed_at", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger),
    )
    op.create_index("chat_removals_due", "chat_removals", ["due_at"])
    op.create_index("chat_removals_by_time", "chat_removals", ["removed_at"])
