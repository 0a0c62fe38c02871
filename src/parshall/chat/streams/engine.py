"""The engine of the shared log, Valkey or Redis: scripts that wait at the same time go out in one round trip."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.asyncio import Connection, Redis, RedisCluster, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import NoScriptError, ReadOnlyError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as NotAnswered
from redis.maint_notifications import MaintNotificationsConfig

from parshall.chat.ports import LogAway
from parshall.chat.streams.address import Address
from parshall.chat.streams.scripts import Script
from parshall.kernel.errors import StartupError
from parshall.kernel.telemetry import log

T = TypeVar("T")

ANSWER_SECONDS_MAX = 3.0
"""An engine that is silent for longer is away."""
CONNECT_SECONDS_MAX = 2.0
REST_SECONDS = 0.25
"""How long an engine that is away is left alone before it is tried again."""
VERSION_MIN = 7
BROKEN = (NotConnected, RuntimeError)
"""What says that a connection has ended. uvloop raises a RuntimeError for bytes that are sent after that."""
UNREACHED = (OSError, *BROKEN, NotAnswered, RedisClusterException, ReadOnlyError)
"""What says that the engine is not there. One that has become a replica is not: its address leads elsewhere by now."""
FAILURES = (*UNREACHED, RedisError)

_logger = log("streams")

Reply = Any
"""What a script answered, or the LogAway that says why there is no answer."""


@dataclass(frozen=True, slots=True)
class _Call:
    script: Script
    keys: tuple[str, ...]
    arguments: tuple[str | bytes | int, ...]
    receive: Callable[[Reply], Any]
    answered: "asyncio.Future[Any]"

    def command(self, *, whole: bool) -> tuple[str | bytes | int, ...]:
        """The command that runs the script, by its digest, or whole for an engine that does not know it yet."""
        name, program = ("EVAL", self.script.text) if whole else ("EVALSHA", self.script.digest)
        return (name, program, len(self.keys), *self.keys, *self.arguments)

    def settle(self, reply: Reply) -> None:
        """Let `receive` see the reply, whether or not anybody still waits for it."""
        try:
            result = self.receive(reply)
        except Exception as error:
            if not self.answered.done():
                self.answered.set_exception(error)
        else:
            if not self.answered.done():
                self.answered.set_result(result)


class Engine:
    """A connection to the engine; its calls are carried out in the order in which they were made."""

    def __init__(self, client: "Redis | RedisCluster", address: Address) -> None:
        """`connect` makes one that is known to answer."""
        self.address = address
        self.on_lost: Callable[[LogAway], None] = lambda _: None
        self._client = client
        self._waiting: list[_Call] = []
        self._carrier: asyncio.Task[None] | None = None
        self._rest_until = 0.0
        self._is_away = False
        self._closed = False

    @classmethod
    async def connect(cls, address: Address) -> "Engine":
        """The engine there, a single one or a cluster. Raises StartupError."""
        options = _options(address)
        single = Redis(host=address.host, port=address.port, ssl=address.tls, **options)
        try:
            facts = await single.info()
            engine = cls(single, address)
            if facts.get("redis_mode") == "cluster":
                await single.aclose()
                cluster = RedisCluster(host=address.host, port=address.port, ssl=address.tls, **options)
                engine = cls(await cluster.initialize(), address)
        except FAILURES as error:
            await single.aclose()
            raise StartupError(
                f"The stream log at {address} cannot be used ({_why(error)}); start it or correct "
                "PARSHALL_STREAM_LOG_URL."
            ) from error
        try:
            _judge(facts, address)
        except StartupError:
            await engine.close()
            raise
        return engine

    @property
    def rests(self) -> bool:
        """Whether the engine was found to be away a moment ago."""
        return asyncio.get_running_loop().time() < self._rest_until

    def call(
        self,
        script: Script,
        keys: tuple[str, ...],
        *arguments: str | bytes | int,
        receive: Callable[[Reply], T],
    ) -> "asyncio.Future[T]":
        """Run a script, after those called before it; `receive` makes the result of its reply.

        It is run also when its caller no longer waits, and what it raises is raised to the caller.
        """
        if self._closed:
            raise LogAway("The stream log is closed.")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Call(script, keys, arguments, receive, answered))
        if self._carrier is None:
            # In a context of its own: what it logs is not of the request that happened to start it.
            self._carrier = loop.create_task(self._carry(), name="stream-log", context=Context())
        return answered

    async def run(self, *command: str | int) -> Any:
        """The answer to one plain command. Raises LogAway."""
        try:
            return await self._client.execute_command(*command)
        except FAILURES as error:
            raise self._away(error) from error

    async def line(self, key: str) -> "Connection":
        """A connection of the caller's own to the node that holds a key. Raises LogAway."""
        host, _, port = self.node(key).rpartition(":")
        kind = SSLConnection if self.address.tls else Connection
        connection = kind(host=host, port=int(port), **_options(self.address))
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except FAILURES as error:
            raise self._away(error) from error
        return connection

    def node(self, key: str) -> str:
        """Host and port of the node that holds a key. Raises LogAway."""
        if not isinstance(self._client, RedisCluster):
            return f"{self.address.host}:{self.address.port}"
        try:
            node = self._client.get_node_from_key(key)
        except FAILURES as error:
            raise self._away(error) from error
        if node is None:
            raise LogAway("No node of the stream log's cluster holds this stream now.")
        return f"{node.host}:{node.port}"

    async def close(self) -> None:
        """Carry out what waits, then let the connections go."""
        self._closed = True
        if self._carrier is not None:
            await asyncio.wait({self._carrier}, timeout=ANSWER_SECONDS_MAX)
        for call in self._take():
            call.settle(LogAway("The stream log is closed."))
        await self._client.aclose()

    async def _carry(self) -> None:
        """One round trip after the other, each with everything that was called meanwhile."""
        try:
            while calls := self._take():
                replies: list[Reply] = [LogAway()] * len(calls)  # whatever happens here, nobody waits for ever
                try:
                    replies = await self._exchange(calls)
                finally:
                    for call, reply in zip(calls, replies, strict=True):
                        call.settle(reply)
        finally:
            self._carrier = None

    def _take(self) -> list[_Call]:
        calls, self._waiting = self._waiting, []
        return calls

    async def _exchange(self, calls: list[_Call]) -> list[Reply]:
        if self.rests:
            return [LogAway()] * len(calls)
        try:
            replies = await self._send(calls, whole=False)
            unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                again = await self._send([calls[index] for index in unknown], whole=True)
                for index, reply in zip(unknown, again, strict=True):
                    replies[index] = reply
        except FAILURES as error:
            replies = [error] * len(calls)
        if any(isinstance(reply, ReadOnlyError) for reply in replies) and isinstance(self._client, Redis):
            await self._client.connection_pool.disconnect(inuse_connections=False)
        return self._judged(replies)

    def _judged(self, replies: list[Reply]) -> list[Reply]:
        """The replies, with one LogAway in place of failures that are alike."""
        if self._is_away and not any(isinstance(reply, Exception) for reply in replies):
            self._is_away = False
            _logger.info("log_back")
        away = {id(reply): self._away(reply) for reply in replies if isinstance(reply, Exception)}
        return [away.get(id(reply), reply) for reply in replies]

    async def _send(self, calls: list[_Call], *, whole: bool) -> list[Reply]:
        if len(calls) == 1:
            return [await self._one(calls[0].command(whole=whole))]
        pipeline: Any = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*call.command(whole=whole))
        replies: list[Reply] = await pipeline.execute(raise_on_error=False)
        return replies

    async def _one(self, command: tuple[str | bytes | int, ...]) -> Reply:
        try:
            return await self._client.execute_command(*command)
        except NoScriptError as error:
            return error

    def _away(self, error: Exception) -> LogAway:
        """What a failure means to callers. An engine that refuses may take the same later: it is full, or it loads."""
        away = LogAway(f"The stream log cannot be reached ({_why(error)}); try again shortly.")
        if isinstance(error, UNREACHED):
            if not self._is_away:
                _logger.warning("log_away", reason=_why(error))
            self._is_away = True
            self._rest_until = asyncio.get_running_loop().time() + REST_SECONDS
            self.on_lost(away)
        else:
            _logger.warning("log_refused", reason=_why(error))
        return away


def checked(reply: Reply) -> Any:
    """The reply. Raises LogAway where there was none."""
    if isinstance(reply, LogAway):
        raise LogAway(reply.detail)  # one of its own: many calls share the reply
    return reply


def _options(address: Address) -> dict[str, Any]:
    return {
        **address.options(),
        "socket_timeout": ANSWER_SECONDS_MAX,
        "socket_connect_timeout": CONNECT_SECONDS_MAX,
        "socket_keepalive": True,
        # Once more, on a fresh connection: the engine may have been started again since. Every script may be repeated.
        "retry": Retry(NoBackoff(), 1, supported_errors=BROKEN),  # type: ignore[arg-type]  # it takes any exception
        "protocol": 2,
        "client_name": "parshall",
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _why(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


def _judge(facts: dict[str, Any], address: Address) -> None:
    """Refuse an engine that is too old; warn of one that may forget. Raises StartupError."""
    version = str(facts.get("redis_version", "0"))
    if int(version.partition(".")[0]) < VERSION_MIN:
        raise StartupError(
            f"The stream log at {address} is Redis {version}; Parshall needs Valkey 8, Redis 7 or newer."
        )
    if facts.get("maxmemory") and facts.get("maxmemory_policy") != "noeviction":
        _logger.warning("log_may_evict", policy=facts.get("maxmemory_policy"))
    if not facts.get("aof_enabled"):
        _logger.warning("log_not_durable", reason="the engine keeps no append-only file; see OPERATIONS")
