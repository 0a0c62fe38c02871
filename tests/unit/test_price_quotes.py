"""Laws of loading a published price list: dollars become credits by one rule, and never less than providers ask."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from genai_prices import Usage as Asked
from genai_prices.data import providers
from genai_prices.types import ConditionalPrice, ModelInfo
from hypothesis import given
from hypothesis import strategies as st

from parshall.accounting.pricing import Price
from parshall.accounting.quotes import CREDITS_PER_DOLLAR_MAX, PROVIDERS, Quote, microcredits, quotes
from parshall.kernel.clock import SECOND, instant
from parshall.kernel.credits import CREDITS_MAX, MICRO
from parshall.kernel.errors import Invalid
from parshall.kernel.metering import Usage

DAY = datetime(2026, 11, 24, tzinfo=UTC)
AT = instant(DAY)
RATE = Decimal(1000)
EVERY, SKIPPED = quotes(PROVIDERS, credits_per_dollar=RATE, at=AT)
LISTED = [(provider, info) for provider in providers for info in provider.models]
PRICED = [(provider, info) for provider, info in LISTED if info.id in {each.model_id for each in EVERY}]
BY_ID = {each.model_id: each for each in EVERY}

dollars = st.decimals(0, 1000, places=9)
rates = st.decimals(Decimal("0.000001"), CREDITS_PER_DOLLAR_MAX, places=6)


@given(dollars, rates)
def test_dollars_become_microcredits_exactly_and_are_then_rounded_up(price: Decimal, rate: Decimal) -> None:
    made = microcredits(price, rate)
    assert isinstance(made, int)
    assert 0 <= made - Fraction(price) * Fraction(rate) * MICRO < 1


@given(dollars, dollars, rates)
def test_the_dearer_in_dollars_is_never_the_cheaper_in_credits(one: Decimal, other: Decimal, rate: Decimal) -> None:
    assert microcredits(min(one, other), rate) <= microcredits(max(one, other), rate)


def test_a_dollar_is_as_many_credits_as_was_said() -> None:
    assert microcredits(Decimal("2.5"), RATE) == 2500 * MICRO
    assert microcredits(Decimal("0.0000000001"), Decimal(1)) == 1
    assert microcredits(Decimal("1e-30"), Decimal("1e-30")) == 1
    assert microcredits(Decimal(0), RATE) == 0


@given(
    st.sampled_from(PRICED),
    st.integers(0, 400_000),
    st.integers(0, 400_000),
    st.integers(0, 100_000),
    st.integers(0, 86_399),
)
def test_a_loaded_price_never_charges_less_than_the_provider_asks(
    listed: tuple[object, ModelInfo], read: int, cached: int, written: int, second: int
) -> None:
    """Whatever tier the usage falls into and whatever time of that day it is, by the list's own reckoning."""
    provider, info = listed
    quote = BY_ID[info.id]
    at = DAY + timedelta(seconds=second)
    usage = Asked(input_tokens=read + cached, cache_read_tokens=cached, output_tokens=written)
    asked = info.calc_price(usage, provider, genai_request_timestamp=at).total_price  # type: ignore[arg-type]
    charged = quote.price.cost(Usage(input_tokens=read + cached, cached_input_tokens=cached, output_tokens=written))
    assert charged >= Fraction(asked) * Fraction(RATE) * MICRO - Fraction(1, 10**9)


def test_every_model_is_priced_or_skipped_with_a_reason_and_none_twice() -> None:
    named = [each.model_id for each in EVERY]
    assert len(named) == len(set(named)) > 1000
    assert {info.id for _, info in LISTED} == {*named, *(each.model_id for each in SKIPPED)}
    assert not set(named) & {each.model_id for each in SKIPPED}
    assert all(each.reason for each in SKIPPED)
    for each in EVERY:
        price = each.price
        assert max(price.input, price.cached_input, price.output, price.reasoning) <= CREDITS_MAX
        assert max(price.input, price.output) > 0, "nothing is given away by loading a list"


def one(provider: str, model: str, at: int = AT) -> Quote:
    (found,), skipped = quotes([provider], credits_per_dollar=RATE, at=at, models=[model])
    assert not skipped
    return found


def test_a_model_may_be_named_as_requests_name_it() -> None:
    dated = one("openai", "gpt-4o-2024-08-06")
    assert (dated.model_id, dated.price) == ("gpt-4o-2024-08-06", one("openai", "gpt-4o").price)


def test_of_tiers_the_dearest_holds_and_it_is_said() -> None:
    assert any("tiers" in note for each in EVERY for note in each.notes)
    plain = [each for each in EVERY if not each.notes]
    assert len(plain) > len(EVERY) / 2


def test_of_several_providers_the_dearer_holds_rate_by_rate() -> None:
    """Of every model that some offer at different prices."""
    names = Price.__slots__
    differing = 0
    alone = [quotes([name], credits_per_dollar=RATE, at=AT)[0] for name in PROVIDERS]
    for model_id, quote in BY_ID.items():
        offers = [each.price for listed in alone for each in listed if each.model_id == model_id]
        assert quote.price == Price(**{name: max(getattr(each, name) for each in offers) for name in names})
        if len(set(offers)) > 1:
            differing += 1
            assert any(note.startswith("the dearer of ") for note in quote.notes)
    assert differing > 10


def test_a_price_announced_for_a_later_day_does_not_hold_yet() -> None:
    """Of some model whose price the list knows to have changed."""
    changed = next(
        (provider.id, info, each)
        for provider, info in LISTED
        if isinstance(info.prices, list) and len(info.prices) == 2
        for each in [info.prices[1]]
        if hasattr(each.constraint, "start_date")
        and str(getattr(each.prices, "input_mtok", None)) != str(getattr(info.prices[0].prices, "input_mtok", None))
        and not any(hasattr(getattr(part.prices, "input_mtok", None), "tiers") for part in info.prices)
        and info.id in BY_ID
    )
    provider, info, later = changed
    assert isinstance(later, ConditionalPrice)
    begins = instant(datetime.combine(later.constraint.start_date, datetime.min.time(), UTC))  # type: ignore[union-attr]
    before, after = (one(provider, info.id, at) for at in (begins - SECOND, begins))
    assert before.price != after.price


def test_an_unknown_provider_or_model_or_rate_is_said() -> None:
    with pytest.raises(Invalid, match="no provider"):
        quotes(["nobody"], credits_per_dollar=RATE, at=AT)
    found, skipped = quotes(["openai"], credits_per_dollar=RATE, at=AT, models=["no such model"])
    assert (found, [each.reason for each in skipped]) == ([], ["not in the list of these providers"])
    for rate in ("0", "-1", "NaN", "Infinity", "1000001"):
        with pytest.raises(Invalid, match="Credits per dollar"):
            quotes(["openai"], credits_per_dollar=Decimal(rate), at=AT)
