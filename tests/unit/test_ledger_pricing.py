"""Laws of pricing: exact sums, one rounding, upwards, monotonic; and what a budget affords."""

from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from parshall.accounting.pricing import Price
from parshall.kernel.metering import Usage

MILLION = 1_000_000
amounts = st.integers(0, 5_000 * MILLION)
prices = st.builds(Price, input=amounts, cached_input=amounts, output=amounts, reasoning=amounts)
counts = st.integers(0, 200_000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    read, written = draw(counts), draw(counts)
    return Usage(
        input_tokens=read,
        cached_input_tokens=draw(st.integers(0, read)),
        output_tokens=written,
        reasoning_tokens=draw(st.integers(0, written)),
    )


def test_each_sort_of_token_is_charged_at_its_own_price() -> None:
    price = Price(input=2 * MILLION, cached_input=3 * MILLION, output=5 * MILLION, reasoning=7 * MILLION)
    usage = Usage(input_tokens=10, cached_input_tokens=4, output_tokens=20, reasoning_tokens=5)
    assert price.cost(usage) == 6 * 2 + 4 * 3 + 15 * 5 + 5 * 7


def test_a_fraction_of_a_microcredit_is_rounded_up_and_only_once() -> None:
    price = Price(input=1, cached_input=1, output=1, reasoning=1)
    assert price.cost(Usage(input_tokens=1)) == 1
    assert price.cost(Usage(input_tokens=1, output_tokens=1)) == 1
    assert price.cost(Usage(input_tokens=MILLION)) == 1
    assert price.cost(Usage(input_tokens=MILLION, output_tokens=1)) == 2


def test_nothing_used_costs_nothing() -> None:
    assert Price(input=9, cached_input=9, output=9, reasoning=9).cost(Usage()) == 0


@given(prices, usages(), st.integers(0, 1000), st.integers(0, 1000))
def test_more_tokens_never_cost_less(price: Price, usage: Usage, read: int, written: int) -> None:
    more = Usage(
        input_tokens=usage.input_tokens + read,
        cached_input_tokens=usage.cached_input_tokens,
        output_tokens=usage.output_tokens + written,
        reasoning_tokens=usage.reasoning_tokens,
    )
    assert price.cost(more) >= price.cost(usage)


@given(prices, usages(), usages())
def test_splitting_a_turn_never_makes_it_cheaper(price: Price, first: Usage, second: Usage) -> None:
    both = Usage(
        input_tokens=first.input_tokens + second.input_tokens,
        cached_input_tokens=first.cached_input_tokens + second.cached_input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        reasoning_tokens=first.reasoning_tokens + second.reasoning_tokens,
    )
    assert price.cost(both) <= price.cost(first) + price.cost(second) <= price.cost(both) + 1


@given(prices, usages())
def test_the_ceiling_covers_whatever_the_tokens_turn_out_to_be(price: Price, usage: Usage) -> None:
    assert price.cost(usage) <= price.ceiling(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)


@given(prices, st.integers(0, 10**12), counts, st.integers(1, 200_000))
def test_what_is_affordable_is_covered_and_one_more_is_not(price: Price, budget: int, read: int, asked: int) -> None:
    output = price.affordable(budget=budget, input_tokens=read, output_tokens=asked)
    assert 0 <= output <= asked
    if output > 0:
        assert price.ceiling(input_tokens=read, output_tokens=output) <= budget
    if output < asked:
        assert price.ceiling(input_tokens=read, output_tokens=output + 1) > budget


def exact(price: Price, usage: Usage) -> Fraction:
    """What usage costs before any rounding, in microcredits."""
    sorts = (
        (usage.input_tokens - usage.cached_input_tokens, price.input),
        (usage.cached_input_tokens, price.cached_input),
        (usage.output_tokens - usage.reasoning_tokens, price.output),
        (usage.reasoning_tokens, price.reasoning),
    )
    return sum((Fraction(tokens * rate, MILLION) for tokens, rate in sorts), Fraction(0))


@given(prices, usages())
def test_a_cost_is_never_below_zero_nor_below_the_exact_one_nor_a_microcredit_above_it(
    price: Price, usage: Usage
) -> None:
    cost = price.cost(usage)
    assert isinstance(cost, int) and cost >= 0
    assert 0 <= cost - exact(price, usage) < 1


@given(prices, counts, counts, st.integers(0, 1000), st.integers(0, 1000))
def test_a_ceiling_never_falls_as_counts_grow(price: Price, read: int, written: int, more: int, most: int) -> None:
    low = price.ceiling(input_tokens=read, output_tokens=written)
    assert low <= price.ceiling(input_tokens=read + more, output_tokens=written + most)


@given(prices, st.integers(0, 10**12), counts, st.integers(1, 200_000), st.data())
@example(Price(input=0, cached_input=0, output=3, reasoning=3), 1, 0, 400_000, None)
def test_affordable_is_the_exact_inverse_of_the_ceiling(
    price: Price, budget: int, read: int, asked: int, data: st.DataObject | None
) -> None:
    """A count of output tokens is affordable exactly where its ceiling does not exceed the budget."""
    output = price.affordable(budget=budget, input_tokens=read, output_tokens=asked)
    near = [each for each in (output - 1, output, output + 1) if 1 <= each <= asked]
    for count in [*near, *([data.draw(st.integers(1, asked))] if data else [])]:
        covered = price.ceiling(input_tokens=read, output_tokens=count) <= budget
        assert (count <= output) is covered
