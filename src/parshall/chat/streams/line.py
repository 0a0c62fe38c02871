"""One connection to the engine that listens to many channels."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

from redis.asyncio import Connection

from parshall.chat.ports import LogAway
from parshall.chat.streams.engine import FAILURES
from parshall.kernel.telemetry import log

HEARTBEAT_SECONDS = 5.0
"""A connection that is silent for so long is asked whether it still lives, and given up when it does not answer."""

_logger = log("streams")

OnWord = Callable[[str, str, bytes, "Line"], Awaitable[None]]
"""Hears the kind of a message, the name between the braces of its channel, and what was said."""


class Line:
    """Listens from its making until the connection ends; `task` is what listens. Channels are named `…{name}…`."""

    def __init__(self, connection: Connection, on_word: OnWord, on_lost: Callable[["Line", LogAway], None]) -> None:
        """`on_lost` is called once, at the end."""
        self.heard: set[str] = set()
        """The names listened to."""
        self._leaving: Counter[str] = Counter()
        self._connection = connection
        self._on_word = on_word
        self._on_lost = on_lost
        self._asked = False
        self._ended = False
        self.task = asyncio.get_running_loop().create_task(self._listen(), name="log-line", context=Context())

    async def subscribe(self, channel: str) -> None:
        """Listen to a channel from the engine's confirmation on. Raises LogAway."""
        self.heard.add(_name(channel))
        await self._say("SSUBSCRIBE", channel)

    async def unsubscribe(self, channel: str) -> None:
        """Listen to it no longer. Raises LogAway."""
        self.heard.discard(_name(channel))
        self._leaving[_name(channel)] += 1
        await self._say("SUNSUBSCRIBE", channel)

    async def _say(self, *command: str) -> None:
        if self._ended:  # the connection would connect anew, with nobody to listen
            raise LogAway
        try:
            await self._connection.send_command(*command, check_health=False)
        except FAILURES as error:
            raise LogAway from error

    async def _listen(self) -> None:
        reason = LogAway("The connection to the stream log has ended; come back shortly.")
        try:
            while True:
                await self._take(await self._next())
        except (*FAILURES, LogAway) as error:
            _logger.warning("log_line_lost", reason=str(error) or type(error).__name__)
        finally:
            self._ended = True
            self._on_lost(self, reason)
            await self._connection.disconnect(nowait=True)

    async def _next(self) -> Any:
        """The next thing that the engine says. Raises RedisError, OSError, also where it no longer says anything."""
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    said = await self._connection.read_response(
                        timeout=math.inf, disconnect_on_error=False, push_request=True
                    )
            except TimeoutError:
                if self._asked:
                    raise
                self._asked = True
                await self._say("PING")
                continue
            self._asked = False
            return said

    async def _take(self, said: Any) -> None:
        if not isinstance(said, list) or len(said) != 3 or said[1] is None:
            return
        kind, name = said[0].decode(), _name(said[1].decode())
        if kind == "sunsubscribe" and self._leaving[name]:  # as it was asked to; somebody may listen again by now
            self._leaving[name] -= 1
            if not self._leaving[name]:
                del self._leaving[name]
            return
        await self._on_word(kind, name, said[2] if isinstance(said[2], bytes) else b"", self)


def _name(channel: str) -> str:
    return channel[channel.index("{") + 1 : channel.index("}")]
