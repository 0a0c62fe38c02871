"""Chat sessions, their messages, and the record of every stream."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "chat_sessions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("title", sa.String(100), nullable=False),
        sa.Column("model_id", sa.String(200)),
        sa.Column("source", sa.String(50)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_index("chat_sessions_by_user", "chat_sessions", ["user_id", "updated_at"])
    op.create_table(
        "messages",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("session_id", sa.String(32), sa.ForeignKey("chat_sessions.id", ondelete="CASCADE"), nullable=False),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("stream_id", sa.String(64)),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("messages_in_order", "messages", ["session_id", "created_at"])
    op.create_index("messages_by_stream", "messages", ["stream_id"])
    _streams()


def _streams() -> None:
    op.create_table(
        "streams",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("session_id", sa.String(32), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("requested_model", sa.String(200)),
        sa.Column("model_id", sa.String(200), nullable=False),
        sa.Column("fallback_applied", sa.Boolean, nullable=False),
        sa.Column("on_disconnect", sa.String(10), nullable=False),
        sa.Column("input_tokens", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("ending", sa.Text),
        sa.Column("settlement", sa.Text),
        sa.Column("closed_at", sa.BigInteger),
    )
    op.create_index("streams_of_session", "streams", ["session_id", "created_at"])
    is_open, is_unfinished = sa.text("ended_at IS NULL"), sa.text("closed_at IS NULL OR settlement IS NULL")
    op.create_index(
        "one_open_stream_a_session",
        "streams",
        ["session_id"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_index(
        "streams_unfinished", "streams", ["created_at"], sqlite_where=is_unfinished, postgresql_where=is_unfinished
    )
