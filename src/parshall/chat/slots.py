"""How many streams run at once: of one user, and of this process."""

from collections import defaultdict

from parshall.kernel.errors import TooManyRequests
from parshall.kernel.ids import StreamId, UserId

RETRY_SECONDS = 2
"""Nobody knows when a stream will end; most are short."""


class TooManyStreams(TooManyRequests):
    """As many streams run as may run at once; `extra` gives `limit`, and in `scope` whose: `user` or `deployment`."""

    code = "too_many_streams"
    title = "Too many streams"
    default = "Too many streams run at once; wait until one ends, or stop one, and ask again."


def too_many(*, user_limit: int | None = None, deployment_limit: int | None = None) -> TooManyStreams:
    """The refusal at one of the two limits."""
    if user_limit is not None:
        return TooManyStreams(
            f"{user_limit} of your streams run, and no more may at once; stop one, or wait until one ends.",
            retry_after=RETRY_SECONDS,
            scope="user",
            limit=user_limit,
        )
    return TooManyStreams(
        "The server runs as many streams as it may; try again shortly.",
        retry_after=RETRY_SECONDS,
        scope="deployment",
        limit=deployment_limit,
    )


class Slots:
    """Who runs a stream in this process. Taking one is a single step of the event loop, so that no two share it."""

    def __init__(self, *, per_user: int, in_all: int) -> None:
        """Both limits are numbers of streams."""
        self._per_user = per_user
        self._in_all = in_all
        self._users: dict[StreamId, UserId] = {}
        self._running: defaultdict[UserId, int] = defaultdict(int)

    def __len__(self) -> int:
        """How many are taken."""
        return len(self._users)

    def take(self, stream_id: StreamId, user_id: UserId) -> None:
        """Take a slot for a stream that has none. Raises TooManyStreams."""
        assert stream_id not in self._users
        if self._running.get(user_id, 0) >= self._per_user:
            raise too_many(user_limit=self._per_user)
        if len(self._users) >= self._in_all:
            raise too_many(deployment_limit=self._in_all)
        self._users[stream_id] = user_id
        self._running[user_id] += 1

    def release(self, stream_id: StreamId) -> None:
        """Give a stream's slot back; once more changes nothing."""
        user_id = self._users.pop(stream_id, None)
        if user_id is None:
            return
        self._running[user_id] -= 1
        if not self._running[user_id]:
            del self._running[user_id]
