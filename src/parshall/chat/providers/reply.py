"""The answer to a request over HTTP/1.1, given away piece by piece as it comes."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Protocol

WAITING_BYTES_MAX = 65_536
"""Of a body that is not taken: then no more is read until it is."""

Take = Callable[[bytes], Awaitable[None] | None]


class Lost(Exception):
    """The connection ended before the answer did."""


class Malformed(Lost):
    """The server does not speak HTTP/1.1."""


class Silent(Lost):
    """Whoever waited for the server does so no longer."""


class Source(Protocol):
    """Where a reply comes from."""

    def hold(self) -> None:
        """Read no more for now."""
        ...

    def go_on(self) -> None:
        """Read again."""
        ...

    def end(self, *, whole: bool) -> None:
        """The answer is over; whether all of it was read."""
        ...


class Reply:
    """The answer to one request. It must be closed: a connection on which it is not whole is then cut."""

    def __init__(self, connection: Source) -> None:
        """It comes by way of that connection."""
        self.status = 0
        self.version = "1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.begun = asyncio.get_running_loop().create_future()
        """Done once the head is there, or with why it will never be."""
        self._connection = connection
        self._take: Take | None = None
        self._context = copy_context()
        self.pieces: list[bytes] = []
        """Of the body, not given away yet."""
        self._whole = False
        self._lost: Lost | None = None
        self._failure: Exception | None = None
        self._wanted: Awaitable[None] | None = None
        self._news: asyncio.Future[None] | None = None

    def header(self, name: str) -> str | None:
        """The first field of that name (in lower case)."""
        wanted = name.encode()
        return next((value.decode("latin-1") for each, value in self.headers if each.lower() == wanted), None)

    async def each(self, take: Take) -> None:
        """Give the body to `take` as it comes, all of one read together, until it ends.

        What `take` returns is awaited before it gets more; what it raises ends this and is raised here. It runs in the
        context of this task. Raises Lost.
        """
        while True:
            while self.pieces:
                wanted = take(self._waiting())
                if wanted is not None:
                    await wanted
            if self._lost is not None:
                raise self._lost
            if self._whole:
                return
            self._connection.go_on()
            self._take, self._news = take, asyncio.get_running_loop().create_future()
            self._context = copy_context()
            try:
                await self._news
            except BaseException:
                if asyncio.iscoroutine(self._wanted):
                    self._wanted.close()
                raise
            finally:
                self._take = self._news = None
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            if (wanted := self._wanted) is not None:
                self._wanted = None
                await wanted

    async def read(self, limit: int) -> bytes:
        """At most `limit` bytes of the body. Raises Lost."""
        body = bytearray()

        def take(piece: bytes) -> None:
            body.extend(piece)
            if len(body) >= limit:
                raise _Enough

        try:
            await self.each(take)
        except _Enough:
            pass
        return bytes(body[:limit])

    async def finish(self, seconds: float) -> None:
        """Wait so long for the end of a body that nobody needs any more, so that its connection is of use again."""
        if self._whole:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.each(lambda _piece: None)
        except (TimeoutError, Lost):
            return

    def close(self) -> None:
        """Nobody wants the rest."""
        self._connection.end(whole=self._whole)

    def lose(self, lost: Lost) -> None:
        """Nothing more will come."""
        if self._whole:
            return
        self._lost = self._lost or lost
        if not self.begun.done():
            self.begun.set_exception(lost)
            self.begun.exception()  # nobody may be there to see it
        self._tell()

    def has_begun(self, status: int, version: str) -> None:
        """The head is there."""
        self.status, self.version = status, version
        if not self.begun.done():
            self.begun.set_result(None)

    def end(self) -> None:
        """The body is whole."""
        self._whole = True

    def give(self) -> None:
        """Hand out what a read has brought."""
        take = self._take
        if self.pieces and take is not None:
            try:
                self._wanted = self._context.run(take, self._waiting())
            except Exception as failure:  # it belongs to who waits in `each`
                self._failure = failure
            if self._wanted is not None or self._failure is not None:
                self._take = None
                self._tell()
        if self._whole:
            self._tell()
        elif self.pieces and sum(map(len, self.pieces)) > WAITING_BYTES_MAX:
            self._connection.hold()

    def _waiting(self) -> bytes:
        pieces = self.pieces
        if len(pieces) == 1:
            return pieces.pop()
        self.pieces = []
        return b"".join(pieces)

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class _Enough(Exception):
    """As much of a body as is wanted."""
