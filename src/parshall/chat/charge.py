"""What a turn is charged for, by the rules alone: the provider's own word where it can be true, else our own count."""

from dataclasses import dataclass

from parshall.chat.model import Outcome
from parshall.kernel.metering import Usage, UsageSource

INPUT_TOKENS_SPARE = 1024
"""What a provider's template may add to a prompt beyond twice our own count."""
OUTPUT_TOKENS_SPARE = 16
"""Tokens of an answer that stand for no text, such as the one that means its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Our own count of a turn. `text_bytes` is the length of all its text in UTF-8, thoughts included."""

    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    text_bytes: int
    output_tokens_max: int


def believable(report: Usage, counted: Counted) -> bool:
    """Whether a provider's numbers can belong to this turn.

    A prompt is never empty, nor is an answer whose text came. No token is shorter than a byte, so that what is not said
    to be hidden reasoning cannot be more than the text; and nothing is more than twice what was asked for.
    """
    silent = report.output_tokens == 0 and counted.output_tokens > 0
    shown = report.output_tokens - report.reasoning_tokens
    return (
        not silent
        and 0 < report.input_tokens <= 2 * counted.input_tokens + INPUT_TOKENS_SPARE
        and report.output_tokens <= 2 * max(counted.output_tokens_max, counted.output_tokens)
        and shown <= counted.text_bytes + OUTPUT_TOKENS_SPARE
    )


def charged(outcome: Outcome, report: Usage | None, counted: Counted) -> tuple[Usage, UsageSource]:
    """What to charge and who says so.

    A report counts for a whole answer only. A failure without a single token of output costs nothing; a stop by the
    user pays for the prompt.
    """
    if outcome is Outcome.COMPLETED and report is not None and believable(report, counted):
        return report, UsageSource.PROVIDER
    if outcome.is_failure and counted.output_tokens == 0:
        return Usage(), UsageSource.COUNTED
    return Usage(
        input_tokens=counted.input_tokens,
        output_tokens=counted.output_tokens,
        reasoning_tokens=counted.reasoning_tokens,
    ), UsageSource.COUNTED
