"""What the client's rules ask of a driver: requests, bytes and pauses as values, so that the rules do no I/O.

A generator of steps is one piece of work. A driver performs each step that it yields, gives it what came of it, and so
on until it returns; `api.py` has a driver that blocks and one that awaits.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Make a request; what comes of it is an Answer. With `stream` its body is read by further steps."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes | None = field(default=None, repr=False)
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Take the next bytes of the answer that is being streamed; none are left where they are empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Drop the connection, and wait for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Do these steps while nobody else who shares the client does such; they are not left half done."""

    steps: "Steps[None]"


Step = Send | Read | Pause | Alone
Steps = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a request; `body` is empty where it is streamed. Names of headers are found in any case."""

    status: int
    headers: Mapping[str, str]
    phrase: str = ""
    body: bytes = field(default=b"", repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the request was fulfilled."""
        return 200 <= self.status < 300


class Broken(Exception):
    """A request or a connection that came to nothing; its text is a few words on why.

    `sent` is false where the request certainly never left, so that it may be made again whatever it does.
    """

    def __init__(self, reason: str, *, sent: bool = True) -> None:
        super().__init__(reason)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Failure:
    """What is given to the steps instead of an answer."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """The steps are over, with this result."""

    value: T


def go_on(steps: Generator[S, Any, T], came: object) -> S | Ended[T]:
    """Give the steps what came of the last one; the next, or their end. Raises what they raise."""
    try:
        return steps.throw(came.error) if isinstance(came, Failure) else steps.send(came)
    except StopIteration as end:
        return Ended(end.value)
