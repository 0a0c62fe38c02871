"""The meter of one stream: counts output tokens against what has been paid for, and says when more must be reserved."""

import asyncio

from parshall.chat.ports import Ledger
from parshall.kernel.errors import ParshallError
from parshall.kernel.ids import StreamId
from parshall.kernel.metering import Slice

EXTEND_RETRY_SECONDS = 0.2


class Meter:
    """Counts tokens; none may be logged that it has not counted (M7)."""

    def __init__(self, granted: Slice, *, output_tokens_max: int) -> None:
        """Begin with the first slice; `output_tokens_max` is the turn's own limit."""
        self.used = 0
        self.granted = granted.output_tokens
        self.final = granted.final
        self._max = output_tokens_max
        self._slice = granted.output_tokens
        self.step = 0

    def fits(self, tokens: int) -> bool:
        """Whether that many more tokens are paid for."""
        return self.used + tokens <= self.granted

    def count(self, tokens: int) -> bool:
        """Count tokens that are about to be logged; False, and nothing counted, where they are not paid for."""
        used = self.used + tokens
        if used > self.granted:
            return False
        self.used = used
        return True

    @property
    def runs_low(self) -> bool:
        """Whether half of the newest slice is used and more can be asked for."""
        return self.used * 2 >= self.granted * 2 - self._slice and not self.final and self.granted < self._max

    @property
    def at_own_limit(self) -> bool:
        """Whether everything that the turn itself allows is granted: then the end is `length`, not lack of credit."""
        return self.granted >= self._max

    def extend(self, granted: Slice) -> None:
        """Take the next slice; `granted` is cumulative."""
        assert granted.output_tokens >= self.granted
        self._slice = max(1, granted.output_tokens - self.granted)
        self.granted = granted.output_tokens
        self.final = granted.final

    def refuse(self) -> None:
        """Accounting gives no more: the stream ends with the last paid token."""
        self.final = True


async def extension(ledger: Ledger, stream_id: StreamId, step: int, output_tokens: int) -> Slice:
    """The answer to one step, which is repeated while accounting is away. Raises what it refuses with."""
    while True:
        try:
            return await ledger.extend(stream_id=stream_id, step=step, output_tokens=output_tokens)
        except ParshallError as error:
            if error.status != 503:
                raise
        await asyncio.sleep(EXTEND_RETRY_SECONDS)
