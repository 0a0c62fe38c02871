"""Prices as providers publish them, from the list that genai-prices ships, turned into prices in credits.

Parshall knows four rates without tiers or times of day. Where a provider has several for one thing, the dearest holds:
a stream may then cost its user more than the provider asks, and never the operator.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices, TimeOfDateConstraint

from parshall.accounting.pricing import Price
from parshall.kernel.credits import CREDITS_MAX, MICRO
from parshall.kernel.errors import Invalid

CREDITS_PER_DOLLAR_MAX = 1_000_000
PROVIDERS = tuple(provider.id for provider in providers)
"""The ids of all providers that the list knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A model's price in credits, and in what way it is simpler than the provider's own."""

    provider: str
    model_id: str
    price: Price
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A model that gets no price from the list, and why."""

    model_id: str
    reason: str


def microcredits(dollars: Decimal, credits_per_dollar: Decimal) -> int:
    """A rate in dollars (per so many tokens) in microcredits (per as many): exact, then rounded up to a whole one.

    The one place in which money becomes credits; up, so that no rate lies below what it was made from.
    """
    exact = Fraction(dollars) * Fraction(credits_per_dollar) * MICRO
    return -(-exact.numerator // exact.denominator)


def quotes(
    names: Iterable[str], *, credits_per_dollar: Decimal, at: int, models: Sequence[str] = ()
) -> tuple[list[Quote], list[Skipped]]:
    """The prices of these providers' models at the instant `at`, and what cannot be priced; each model id once.

    `models` narrows them to models by the names that requests use. Raises Invalid for an unknown provider or a rate of
    exchange out of bounds.
    """
    if not credits_per_dollar.is_finite() or not 0 < credits_per_dollar <= CREDITS_PER_DOLLAR_MAX:
        raise Invalid(f"Credits per dollar must be more than 0 and at most {CREDITS_PER_DOLLAR_MAX}; name another.")
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)
    found: dict[str, Quote] = {}
    skipped: list[Skipped] = []
    for provider in map(_provider, dict.fromkeys(names)):
        for model_id, info in _listed(provider, models):
            quote = _quote(provider.id, model_id, info, credits_per_dollar, moment)
            if isinstance(quote, Skipped):
                skipped.append(quote)
            else:
                found[model_id] = _dearer(found[model_id], quote) if model_id in found else quote
    known = {each.model_id for each in skipped}.union(found)
    skipped += [
        Skipped(model_id=name, reason="not in the list of these providers") for name in models if name not in known
    ]
    return list(found.values()), [each for each in skipped if each.model_id not in found]


def _provider(name: str) -> Provider:
    for provider in providers:
        if provider.id == name:
            return provider
    raise Invalid(f"The list has no provider {name!r}; it has {', '.join(PROVIDERS)}.")


def _listed(provider: Provider, models: Sequence[str]) -> list[tuple[str, ModelInfo]]:
    if not models:
        return [(info.id, info) for info in provider.models]
    named = ((name, provider.find_model(name)) for name in models)
    return [(name, info) for name, info in named if info is not None]


def _quote(
    provider: str, model_id: str, info: ModelInfo, credits_per_dollar: Decimal, moment: datetime
) -> Quote | Skipped:
    offers, notes = _in_force(info, moment)
    reason = _unfit(offers)
    if reason:
        return Skipped(model_id=model_id, reason=reason)
    if any(isinstance(value, TieredPrices) for offer in offers for value in vars(offer).values()):
        notes = (*notes, "the dearest of its tiers")
    read, written = _rates(offers, "input_mtok"), _rates(offers, "output_mtok")
    dollars = (
        max(read),
        max(_rates(offers, "cache_read_mtok"), default=max(read)),
        max(written),
        max(_rates(offers, "output_reasoning_mtok"), default=max(written)),
    )
    rates = [microcredits(each, credits_per_dollar) for each in dollars]
    if max(rates) > CREDITS_MAX:
        return Skipped(model_id=model_id, reason="dearer than a price can be")
    price = Price(input=rates[0], cached_input=rates[1], output=rates[2], reasoning=rates[3])
    return Quote(provider=provider, model_id=model_id, price=price, notes=notes)


def _in_force(info: ModelInfo, moment: datetime) -> tuple[list[ModelPrice], tuple[str, ...]]:
    """Every price that the model has at some time of that day; later ones in the list come before earlier ones."""
    if isinstance(info.prices, ModelPrice):
        return [info.prices], ()
    offers: list[ModelPrice] = []
    for each in reversed(info.prices):
        if isinstance(each.constraint, TimeOfDateConstraint):
            offers.append(each.prices)
        elif each.constraint is None or each.constraint.active(moment):
            offers.append(each.prices)
            break
    return offers or [info.prices[0].prices], ("the dearest of its times of day",) if len(offers) > 1 else ()


def _unfit(offers: Sequence[ModelPrice]) -> str | None:
    """Why these prices cannot be charged for by tokens, if they cannot."""
    for offer in offers:
        if not _rates([offer], "input_mtok") or not _rates([offer], "output_mtok"):
            return "not priced by input and output tokens"
        if getattr(offer, "requests_kcount", None):
            return "also priced by the request"
    if not any(_rates(offers, "input_mtok") + _rates(offers, "output_mtok")):
        return "free of charge: set a price by hand where that is meant"
    return None


def _rates(offers: Sequence[ModelPrice], name: str) -> list[Decimal]:
    """All that one thing may cost, in dollars per million tokens."""
    found: list[Decimal] = []
    for offer in offers:
        value: Decimal | TieredPrices | None = getattr(offer, name, None)
        if isinstance(value, TieredPrices):
            found += [value.base, *(tier.price for tier in value.tiers)]
        elif value is not None:
            found.append(value)
    return found


def _dearer(one: Quote, other: Quote) -> Quote:
    """One price for a model that two providers offer: of each rate the dearer one."""
    if one.price == other.price:
        return one
    names = Price.__slots__
    dearer = Price(**{name: max(getattr(one.price, name), getattr(other.price, name)) for name in names})
    note = f"the dearer of {one.provider} and {other.provider}"
    notes = tuple(dict.fromkeys((*one.notes, *other.notes, note)))
    return Quote(provider=one.provider, model_id=one.model_id, price=dearer, notes=notes)
