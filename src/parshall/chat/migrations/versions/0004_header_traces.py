"""Traces of headers, and for whom they are made."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the tables, and the indexes by which traces are found and forgotten."""
    op.create_table(
        "header_traces",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("parent", sa.String(32)),
        sa.Column("stream_id", sa.String(64)),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("header_traces_of_stream", "header_traces", ["stream_id", "at"])
    op.create_index("header_traces_in_order", "header_traces", ["at", "id"])
    op.create_index("header_traces_of_parent", "header_traces", ["parent"])
    op.create_table(
        "header_switches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("user_id", sa.String(64)),
        sa.Column("stream_id", sa.String(64)),
        sa.Column("set_by", sa.String(255), nullable=False),
        sa.Column("set_at", sa.BigInteger, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
    )
