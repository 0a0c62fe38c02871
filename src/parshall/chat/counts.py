"""What a stream adds to the metrics: at its first token, at its end, and where a provider fails; never per event."""

from collections.abc import Callable

from parshall.chat.model import Ending, Outcome, Stream
from parshall.kernel import metrics, trace
from parshall.kernel.clock import SECOND

Label = Callable[[str], str]
"""How metrics name a model."""
CRASHED = "provider_crashed"
"""The kind of a failure that no provider has told: our own code about it broke."""

for _outcome in Outcome:  # from 0 on: what rises from nothing to one must show as a rise
    metrics.streams_ended.labels(_outcome.value)


def count_first_token(stream: Stream, label: Label, *, at: int) -> None:
    """The first token of a stream is in its log, at `at` (microseconds)."""
    metrics.first_token_seconds.labels(label(stream.model_id)).observe((at - stream.created_at) / SECOND)
    if (span := trace.running()) is not None:
        span.event("first token")


def count_end(stream: Stream, ending: Ending, label: Label) -> None:
    """The end of a stream was kept, and what it has used."""
    metrics.streams_ended.labels(ending.outcome.value).inc()
    metrics.stream_seconds.observe((ending.ended_at - stream.created_at) / SECOND)
    model, usage = label(stream.model_id), ending.usage
    used = {
        "input": usage.input_tokens,
        "cached_input": usage.cached_input_tokens,
        "output": usage.output_tokens,
        "reasoning": usage.reasoning_tokens,
    }
    for direction, tokens in used.items():
        metrics.tokens.labels(model, direction).inc(tokens)


def count_failure(provider: str, kind: str) -> None:
    """A provider has failed; whether it is asked again does not matter here."""
    metrics.provider_errors.labels(provider, kind).inc()
