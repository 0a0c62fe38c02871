"""The producers of this process: owns their tasks, keeps their leases, and ends them in order at shutdown."""

import asyncio
import contextlib
from collections.abc import Callable

from parshall.chat.model import Outcome, Stream
from parshall.chat.ports import LeaseLost, LogAway, LogUnavailable, StreamLog
from parshall.chat.turn import Producer
from parshall.kernel import trace
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.errors import Unavailable
from parshall.kernel.ids import SessionId, StreamId
from parshall.kernel.telemetry import log

SETTLE_AT_SHUTDOWN_SECONDS_MAX = 1.5
RENEWALS_PER_LEASE = 3

_logger = log("streams")


class Producers:
    """Every stream that is being produced here, by id."""

    def __init__(
        self, stream_log: StreamLog, *, clock: Clock, lease_seconds: float, on_end: Callable[[StreamId], None]
    ) -> None:
        """Leases last `lease_seconds` and are renewed three times within that. `on_end` hears of every end."""
        self._log = stream_log
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._on_end = on_end
        self._producers: dict[StreamId, Producer] = {}
        self._tasks: dict[StreamId, asyncio.Task[Stream]] = {}
        self._renewal: asyncio.Task[None] | None = None

    def __contains__(self, stream_id: StreamId) -> bool:
        """Whether that stream is produced here."""
        return stream_id in self._producers

    def __len__(self) -> int:
        """How many streams are produced here."""
        return len(self._producers)

    def lease_until(self) -> int:
        """When a lease taken now ends, in microseconds."""
        return self._clock() + int(self._lease_seconds * SECOND)

    def get(self, stream_id: StreamId) -> Producer | None:
        """The producer of a stream, where it is here."""
        return self._producers.get(stream_id)

    def of_session(self, session_id: SessionId) -> Producer | None:
        """The producer of a chat session's open stream, where it is here."""
        return next((p for p in self._producers.values() if p.stream.session_id == session_id), None)

    def start(self, producer: Producer) -> None:
        """Run a producer until its stream has ended."""
        stream_id = producer.stream.id
        assert stream_id not in self._producers
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(), name="lease-renewal")
        self._producers[stream_id] = producer
        task = self._tasks[stream_id] = asyncio.create_task(self._run(producer), name=stream_id)
        task.add_done_callback(lambda _: self._on_end(stream_id))  # also when it is cancelled before its first step

    def stop(self, stream_id: StreamId) -> None:
        """Have a stream that is produced here, if it is, end as its user wishes."""
        producer = self._producers.get(stream_id)
        if producer is not None:
            producer.stop(Outcome.STOPPED)

    async def ended(self, stream_id: StreamId) -> None:
        """Wait until a stream that is produced here has ended; a cancelled waiter leaves it alone."""
        task = self._tasks.get(stream_id)
        if task is not None:
            await asyncio.wait({task})

    async def shut_down(self, *, drain_seconds: float) -> None:
        """Let running streams finish for a while, then interrupt and settle them, then hand over what is left."""
        await self._wait(drain_seconds)
        for producer in tuple(self._producers.values()):
            producer.stop(Outcome.INTERRUPTED)
        await self._wait(SETTLE_AT_SHUTDOWN_SECONDS_MAX)
        left = dict(self._tasks)
        for task in left.values():
            task.cancel()
        await asyncio.gather(*left.values(), return_exceptions=True)
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)

    async def _wait(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks.values()), timeout=seconds)

    async def _run(self, producer: Producer) -> Stream:
        try:
            with trace.span("stream", stream=producer.stream.id):
                return await producer.run()
        except asyncio.CancelledError:
            _logger.info("stream_handed_over", stream=producer.stream.id)
            raise
        except LeaseLost:
            _logger.warning("lease_lost", stream=producer.stream.id)
            raise
        except Unavailable as error:
            _logger.warning("stream_left_to_the_sweep", stream=producer.stream.id, reason=error.detail)
            raise
        except Exception:
            _logger.exception("producer_failed", stream=producer.stream.id)
            raise
        finally:
            with contextlib.suppress(LeaseLost, LogUnavailable):
                await self._log.release(producer.lease)
            del self._producers[producer.stream.id]
            task = self._tasks.pop(producer.stream.id)
            task.add_done_callback(_retrieve)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / RENEWALS_PER_LEASE)
            await asyncio.gather(*(self._renew_lease(each) for each in tuple(self._producers.values())))

    async def _renew_lease(self, producer: Producer) -> None:
        try:
            producer.lease = await self._log.renew(producer.lease, until=self.lease_until())
        except LeaseLost:
            producer.stop(Outcome.INTERRUPTED)
        except LogAway:  # which it says itself, once for all streams
            return
        except LogUnavailable as error:
            _logger.warning("lease_not_renewed", stream=producer.stream.id, reason=error.detail)


def _retrieve(task: asyncio.Task[Stream]) -> None:
    """Mark the failure as seen: `_run` has logged it."""
    if not task.cancelled():
        task.exception()
