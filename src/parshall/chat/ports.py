"""What a turn needs of the outside: a ledger, a provider and a stream log, each as narrow as its use."""

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from parshall.kernel.errors import Invalid, ParshallError
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Slice, Usage, UsageSource

# ── Ledger ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Ledger(Protocol):
    """Credits for one stream: reserve, extend, settle or void. Every call may be repeated with the same answer."""

    async def reserve(
        self,
        *,
        stream_id: StreamId,
        user_id: UserId,
        model_id: str,
        input_tokens: int,
        output_tokens_max: int,
        slice_tokens: int,
    ) -> Slice:
        """Reserve the prompt and a first slice of output, as much of it as the balance covers.

        Raises InsufficientCredits when not even one output token is covered, Unavailable when unreachable, KeyReused
        for an id that was reserved with other arguments, Conflict for one whose reservation has ended.
        """
        ...

    async def extend(self, *, stream_id: StreamId, step: int, output_tokens: int) -> Slice:
        """Reserve `output_tokens` more, or as many as the balance covers; `step` (1, 2, …) is the idempotency key.

        Raises InsufficientCredits when not one more token is covered.
        """
        ...

    async def reprice(
        self, *, stream_id: StreamId, model_id: str, input_tokens: int, output_tokens_max: int, slice_tokens: int
    ) -> Slice:
        """Go on with another model before the first token: its price holds, and its prompt and limits.

        Nothing is returned before the end, and what a dearer model needs more is reserved. The slice is the first of
        that model. Raises InsufficientCredits when that does not even cover one token; then nothing has changed.
        """
        ...

    async def settle(self, *, stream_id: StreamId, usage: Usage, source: UsageSource, outcome: str) -> Settlement:
        """Charge what was used and return the rest. A replay gives the first answer."""
        ...

    async def void(self, *, stream_id: StreamId) -> Settlement | None:
        """Return everything; None for an id that was never reserved."""
        ...


# ── Provider ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMessage:
    """One message of the conversation as a provider sees it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a provider is asked: the conversation, oldest first, and the limits of the answer."""

    model_id: str
    messages: tuple[PromptMessage, ...]
    output_tokens_max: int
    temperature: float | None = None


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer and its tokens by this provider's count (zero where a token gave no text yet)."""

    text: str
    tokens: int
    reasoning: bool = False


class UsageReport(msgspec.Struct, frozen=True, gc=False):
    """The provider's own word on what was used so far; the last one counts."""

    usage: Usage


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The provider ended of its own accord: `stop` or `length`."""

    reason: Literal["stop", "length"]


Delta = TextDelta | UsageReport | Finish
Take = Callable[[Sequence[Delta]], Awaitable[None] | None]
"""Takes a part of an answer: at once, or by the end of what it returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A model as it is offered to users."""

    id: str
    name: str
    description: str
    provider: str
    context_tokens: int
    output_tokens_max: int
    capabilities: tuple[str, ...] = field(default=("chat",))
    exact_usage: bool = True


class ProviderFailure(ParshallError):
    """The provider could not answer, or not to the end.

    `retryable` says whether the same prompt may work later, `elsewhere` whether it may with another model now (as a
    rule the same), `pause_seconds` how long the provider asked to be left alone.
    """

    status = 503
    code = "provider_error"
    title = "Model provider failed"
    default = "The model provider failed; try again shortly."

    def __init__(
        self,
        detail: str | None = None,
        /,
        *,
        code: str | None = None,
        retryable: bool = True,
        elsewhere: bool | None = None,
        pause_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = code or type(self).code
        self.retryable = retryable
        self.elsewhere = retryable if elsewhere is None else elsewhere
        self.pause_seconds = pause_seconds


class PromptTooLong(Invalid):
    """The message alone leaves no room for an answer in the model's context."""

    code = "prompt_too_long"
    title = "Prompt too long"
    default = "The message does not fit the model's context; shorten it or choose a model with a larger one."


class Provider(Protocol):
    """A source of answers."""

    async def models(self) -> Sequence[ModelCard]:
        """The models that can be asked now. Raises ProviderFailure."""
        ...

    def unlisted(self, model_id: str) -> ModelCard | None:
        """A card for an id that `models` does not list; None where such ids are not taken."""
        ...

    async def count_input(self, prompt: Prompt) -> int:
        """Input tokens of the prompt: exact, or an upper bound that errs little. Raises PromptTooLong."""
        ...

    async def stream(self, prompt: Prompt, take: Take) -> None:
        """Give the answer to `take` as it comes, all deltas of one read together, and return at its end.

        What `take` returns is awaited before it is called again; what it raises ends the answer and is raised here.
        That, or being cancelled, stops the provider promptly, and nothing is generated afterwards. Raises
        ProviderFailure.
        """
        ...

    async def close(self) -> None:
        """Stop whatever runs and release connections and threads."""
        ...


# ── StreamLog ───────────────────────────────────────────────────────────────────────────────────────────────────────


EVENTS_PER_READ_MAX = 512
"""Frames handed to a reader at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The most that a log keeps of one stream. Producers end their stream at half of it, so that its end has room."""

    events_max: int = 1 << 18
    bytes_max: int = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to produce one stream until `expires_at`; a higher epoch fences every lower one (S5)."""

    stream_id: StreamId
    epoch: int
    expires_at: int


class LeaseLost(ParshallError):
    """Another producer has taken the stream over; whoever sees this must stop without settling."""

    status = 409
    code = "lease_lost"
    title = "Lease lost"
    default = "Another process has taken this stream over."


class LogUnavailable(ParshallError):
    """The log cannot keep or give events now."""

    status = 503
    code = "log_unavailable"
    title = "Stream log unavailable"
    default = "The stream log cannot be reached; try again shortly."


class LogAway(LogUnavailable):
    """The log cannot be reached. It may have kept what it was given: giving it the same again is safe."""

    default = "The stream log cannot be reached now; try again shortly."

    def __init__(self, detail: str | None = None, /) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class LogLost(LogUnavailable):
    """The log has lost events of a stream for good, so that nothing more of it can be kept."""

    default = "The stream log has lost this stream; read the answer in the chat session's history once it has ended."


class _Kept:
    """Awaitable, and done."""

    def __await__(self) -> Generator[None, None, None]:
        """Wait for nothing."""
        yield from ()


KEPT = _Kept()
"""What has nothing left to be waited for."""


class Tail(Protocol):
    """One reader's place in a stream; iterate it. An empty batch says that the stream was silent for a while."""

    def __aiter__(self) -> "Tail":
        """The tail itself."""
        ...

    async def __anext__(self) -> Sequence[bytes]:
        """The next frames, at most EVENTS_PER_READ_MAX of them. Raises LogUnavailable."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the stream was closed and everything of it handed out."""
        ...

    push: Callable[[Sequence[bytes]], bool] | None
    """Asked with the next frames while somebody waits in the iteration: what it takes is not handed out there."""

    def close(self) -> None:
        """Stop here: the iteration ends at once, whoever waits in it."""
        ...


class StreamLog(Protocol):
    """The events of streams, in order, from offset 1. An event is visible to readers only once it is kept (S1)."""

    bounds: Bounds

    async def acquire(self, stream_id: StreamId, *, owner: str, at: int, until: int) -> Lease | None:
        """Take the stream if nobody holds an unexpired lease on it; None while somebody else does.

        Instants in microseconds since the epoch. Raises LogUnavailable.
        """
        ...

    async def renew(self, lease: Lease, *, until: int) -> Lease:
        """Hold it for longer. Raises LeaseLost, LogUnavailable."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give the stream up, so that another may acquire it at once. Raises LeaseLost, LogUnavailable."""
        ...

    async def held(self, stream_ids: Sequence[StreamId], *, at: int) -> set[StreamId]:
        """Which of these somebody, perhaps this process, holds an unexpired lease on. Raises LogUnavailable."""
        ...

    def append(self, lease: Lease, frames: Sequence[bytes], *, first_offset: int) -> Awaitable[None]:
        """Keep frames as the events `first_offset`, `first_offset` + 1, …; done once readers can see them.

        KEPT where they can at once. Raises, at once or where it is awaited, LeaseLost for a stale epoch and
        LogUnavailable when the log cannot keep them: LogAway where the same append may succeed later, LogLost where
        none will.
        """
        ...

    async def close_stream(self, lease: Lease) -> None:
        """No event follows; tails end after the last. The lease ends with it. Raises LeaseLost, LogUnavailable."""
        ...

    async def read(self, stream_id: StreamId, *, after: int, limit: int) -> tuple[list[bytes], bool]:
        """At most `limit` frames after that offset, and whether the stream ends with them (closed, none left).

        A stream that the log does not know gives none and has ended. Raises LogUnavailable.
        """
        ...

    async def tail(self, stream_id: StreamId, *, after: int, silence_seconds: float) -> Tail:
        """Every frame after that offset as it is kept, until the stream is closed. Raises LogUnavailable."""
        ...

    async def trim(self, *, closed_before: int) -> int:
        """Forget streams closed before that instant (microseconds); how many. Raises LogUnavailable."""
        ...

    async def forget(self, stream_id: StreamId) -> None:
        """Forget a closed stream now; one that is not closed stays. Raises LogUnavailable."""
        ...

    async def check(self) -> None:
        """Raises LogUnavailable unless the log answers."""
        ...

    async def close(self) -> None:
        """End every tail and release resources."""
        ...
