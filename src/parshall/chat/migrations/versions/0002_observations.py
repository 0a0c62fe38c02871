"""The audit log of supervision."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table, and the index by which the streams that run are found."""
    op.create_table(
        "observations",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("session_id", sa.String(32), nullable=False),
        sa.Column("stream_id", sa.String(64)),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("observer_id", sa.String(64), nullable=False),
        sa.Column("observer_name", sa.String(255), nullable=False),
        sa.Column("began_at", sa.BigInteger, nullable=False),
        sa.Column("shown_after", sa.BigInteger, nullable=False),
        sa.Column("shown_to", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("end", sa.String(20)),
    )
    op.create_index("observations_in_order", "observations", ["began_at", "id"])
    op.create_index("observations_of_user", "observations", ["user_id", "began_at", "id"])
    op.create_index("observations_by_observer", "observations", ["observer_id", "began_at", "id"])
