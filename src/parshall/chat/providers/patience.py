"""How long a provider's silence is borne, by one timer an answer: a timer a read would cost more than the read."""

import asyncio
from collections.abc import Callable

LOOK_AGAIN_SECONDS = 1.0


class Patience:
    """Calls `lost` once a deadline has passed, which may be moved."""

    def __init__(self, lost: Callable[[], None], deadline: float) -> None:
        """`deadline` is an instant of the running loop's clock. End it with `close`."""
        self.rests = False
        """Whether it is not the provider that is waited for."""
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._deadline = self._looks_at = deadline
        self._timer = self._loop.call_at(deadline, self._look)

    def again(self, seconds: float) -> None:
        """So many seconds from now on."""
        self._deadline = self._loop.time() + seconds
        if self._deadline < self._looks_at:
            self._timer.cancel()
            self._look_at(self._deadline)

    def close(self) -> None:
        """Wait for as long as it takes."""
        self._timer.cancel()

    def _look(self) -> None:
        """Armed anew only here: a deadline that was moved is looked at when the timer of the last one fires."""
        now = self._loop.time()
        if self.rests:
            self._look_at(now + LOOK_AGAIN_SECONDS)
        elif now < self._deadline:
            self._look_at(self._deadline)
        else:
            self._lost()

    def _look_at(self, instant: float) -> None:
        self._looks_at = instant
        self._timer = self._loop.call_at(instant, self._look)
