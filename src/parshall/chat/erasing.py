"""What becomes of the records of a removed user that outlive their chat sessions, and whom chat has heard of."""

from sqlalchemy import Connection, update

from parshall.chat.observations import observations
from parshall.chat.store import metadata, streams
from parshall.kernel.ids import SessionId, UserId
from parshall.kernel.removals import removals_table

chat_removals = removals_table("chat_removals", metadata)


def blank_streams(connection: Connection, session_id: SessionId) -> None:
    """Forget what was asked in a chat session: a fingerprint is a hash of it, by which it could be guessed."""
    connection.execute(update(streams).where(streams.c.session_id == session_id).values(fingerprint=""))


def unname_observer(connection: Connection, user_id: UserId) -> None:
    """Take the name of an observer out of the audit log; the id stays."""
    own = observations.c.observer_id == user_id
    connection.execute(update(observations).where(own, observations.c.observer_name != "").values(observer_name=""))
