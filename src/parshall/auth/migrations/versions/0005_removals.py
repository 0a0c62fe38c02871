"""Who was removed, for other services to hear of."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the list."""
    op.create_table(
        "removals",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("user_id", sa.String(32), nullable=False),
        sa.Column("removed_at", sa.BigInteger, nullable=False),
    )
