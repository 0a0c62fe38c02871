"""What tokens cost: whole microcredits, rounded up once, monotonic in every count.

The rule of rounding: a cost is an exact sum of integers, and only that sum is rounded, once and up, to a whole
microcredit. So it is never below zero, less than one microcredit above the exact cost, and never falls as counts grow.
Prices themselves are exact; how dollars become one is said at `quotes.microcredits`.
"""

from dataclasses import dataclass

from parshall.kernel.clock import rfc3339
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.metering import Usage

TOKENS_PER_PRICE = 1_000_000
"""Prices are quoted for this many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Microcredits per million tokens of each sort; input and output are those neither cached nor reasoning."""

    input: int
    cached_input: int
    output: int
    reasoning: int

    def __post_init__(self) -> None:
        """Hold what monotonic costs rely on."""
        assert min(self.input, self.cached_input, self.output, self.reasoning) >= 0

    @classmethod
    def of(cls, *, input: int, output: int, cached_input: int | None = None, reasoning: int | None = None) -> "Price":
        """A price where cached input costs as input, and reasoning as output, unless they have rates of their own."""
        return cls(
            input=input,
            cached_input=input if cached_input is None else cached_input,
            output=output,
            reasoning=output if reasoning is None else reasoning,
        )

    def cost(self, usage: Usage) -> Credits:
        """What `usage` costs in microcredits.

        The sum over all sorts of tokens is exact; only the total is rounded, once and up, so that splitting a turn
        never makes it cheaper and a turn that used anything priced costs at least one microcredit.
        """
        exact = (
            (usage.input_tokens - usage.cached_input_tokens) * self.input
            + usage.cached_input_tokens * self.cached_input
            + (usage.output_tokens - usage.reasoning_tokens) * self.output
            + usage.reasoning_tokens * self.reasoning
        )
        return _rounded_up(exact)

    def ceiling(self, *, input_tokens: int, output_tokens: int) -> Credits:
        """The most that so many tokens can cost, whichever of them turn out to be cached or reasoning."""
        return _rounded_up(input_tokens * self._dearest_input + output_tokens * self._dearest_output)

    def affordable(self, *, budget: int, input_tokens: int, output_tokens: int) -> int:
        """The most output tokens, up to `output_tokens`, whose ceiling `budget` (microcredits) covers; 0 if none."""
        left = budget * TOKENS_PER_PRICE - input_tokens * self._dearest_input
        if left < 0:
            return 0
        if self._dearest_output == 0:
            return output_tokens
        return min(output_tokens, left // self._dearest_output)

    @property
    def _dearest_input(self) -> int:
        return max(self.input, self.cached_input)

    @property
    def _dearest_output(self) -> int:
        return max(self.output, self.reasoning)


def _rounded_up(exact: int) -> Credits:
    return Credits(-(-exact // TOKENS_PER_PRICE))


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceVersion:
    """A price of a model (`*`: of any model without one) from an instant on; `version` names it for ever."""

    version: str
    model_id: str
    effective_from: int
    price: Price
    set_by: str

    @classmethod
    def of(cls, model_id: str, price: Price, *, effective_from: int, set_by: str) -> "PriceVersion":
        """The version that holds from that instant (microseconds) on, named for the model and the instant."""
        return cls(
            version=f"{model_id}@{rfc3339(effective_from)}",
            model_id=model_id,
            effective_from=effective_from,
            price=price,
            set_by=set_by,
        )


ANY_MODEL = "*"
"""The model id whose price holds for every model without one of its own."""

DEFAULT_PRICES = {
    ANY_MODEL: Price(input=1000 * MICRO, cached_input=500 * MICRO, output=4000 * MICRO, reasoning=4000 * MICRO),
    "smollm2-135m": Price(input=100 * MICRO, cached_input=50 * MICRO, output=400 * MICRO, reasoning=400 * MICRO),
}
"""What a new deployment starts with."""
