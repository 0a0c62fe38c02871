"""`parshall prices`: load a published price list, set a model's price, and see what is in force."""

from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parshall.cli.terminal import AsJson, Usage, clean, group, local, say, show
from parshall.kernel import clock
from parshall.kernel.clock import INSTANT_MAX, instant, rfc3339
from parshall.kernel.credits import Credits, parse_credits, wire

if TYPE_CHECKING:
    from parshall.accounting.pricing import Price, PriceVersion
    from parshall.accounting.quotes import Quote, Skipped
    from parshall.app.local import Parts

SET_BY = "cli"
PROVIDER_DEFAULT = "openai"
CREDITS_PER_DOLLAR_DEFAULT = "1000"
RATES = {"input": "INPUT", "cachedInput": "CACHED", "output": "OUTPUT", "reasoning": "REASONING"}
COLUMNS = {"modelId": "MODEL", **RATES, "effectiveFrom": "FROM", "version": "VERSION"}
LOADED_COLUMNS = {"modelId": "MODEL", **RATES, "change": "CHANGE", "notes": "NOTES"}

app = group("Load a price list, set prices, and see what is in force. Rates are credits per million tokens.")

Rate = Annotated[str, typer.Option(help="Credits per million tokens.")]
OptionalRate = Annotated[str | None, typer.Option(help="Credits per million tokens; left out: as the whole.")]


@app.command()
def load(
    provider: Annotated[
        list[str] | None, typer.Option(help=f"Whose models; may be repeated (default: {PROVIDER_DEFAULT}).")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model, by the name that requests use; may be repeated.")
    ] = None,
    credits_per_dollar: Annotated[str, typer.Option(help="What a dollar is worth.")] = CREDITS_PER_DOLLAR_DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be set.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set prices from the list that is installed with Parshall (genai-prices), from now on.

    Of tiers and times of day the dearest counts. What cannot be priced by tokens is skipped and named with the reason.

    Example: parshall prices load --provider openai --credits-per-dollar 1000 --dry-run
    """
    from parshall.accounting.quotes import quotes  # the list is large: only who loads it pays for it

    found, skipped = quotes(
        provider or [PROVIDER_DEFAULT],
        credits_per_dollar=_decimal(credits_per_dollar),
        at=clock.now(),
        models=model or (),
    )

    async def work(parts: "Parts") -> "dict[str, Price]":
        listed, at = await parts.accounting.prices.all(), parts.accounting.now()
        if not dry_run:
            await parts.accounting.prices.put_all([(each.model_id, each.price) for each in found], set_by=SET_BY)
        return {each.model_id: each.price for each in listed if each.effective_from <= at}

    rows = _loaded(found, skipped, local(work))
    show(rows, columns=LOADED_COLUMNS, as_json=as_json, empty="The list has no such model.")
    if not as_json:
        changed = sum(1 for row in rows if row["change"] in ("new", "changed"))
        done = "would be set" if dry_run else "were set"
        say(f"{changed} prices {done}, {len(found) - changed} hold already, {len(skipped)} models were skipped.")


@app.command("list")
def list_prices(as_json: AsJson = False) -> None:
    """List the prices in force and those to come, in credits per million tokens; `*` holds for any other model.

    Example: parshall prices list --json
    """

    async def work(parts: "Parts") -> "list[PriceVersion]":
        return list(await parts.accounting.prices.all())

    rows = [
        {
            "modelId": each.model_id,
            **_rates(each.price),
            "effectiveFrom": rfc3339(each.effective_from),
            "version": each.version,
        }
        for each in local(work)
    ]
    show(rows, columns=COLUMNS, as_json=as_json, empty="There are no prices.")


@app.command("set")
def set_price(
    model: Annotated[str, typer.Argument(help="Model id, or * for every model without a price of its own.")],
    input: Rate,
    output: Rate,
    cached_input: OptionalRate = None,
    reasoning: OptionalRate = None,
    start: Annotated[
        str | None, typer.Option("--from", help="From when on, such as 2027-01-01T00:00:00Z (default: now).")
    ] = None,
) -> None:
    """Set a model's price from now on, or from an instant to come.

    Example: parshall prices set gpt-4o --input 2500 --output 10000 --cached-input 1250
    """
    from parshall.accounting.pricing import Price

    model_id = _model_id(model)
    price = Price.of(
        input=_rate(input),
        output=_rate(output),
        cached_input=None if cached_input is None else _rate(cached_input),
        reasoning=None if reasoning is None else _rate(reasoning),
    )
    effective_from = None if start is None else _instant(start)

    async def work(parts: "Parts") -> "PriceVersion":
        return await parts.accounting.prices.put(model_id, price, set_by=SET_BY, effective_from=effective_from)

    say(f"The price {clean(local(work).version)} is set.")


def _loaded(found: "list[Quote]", skipped: "list[Skipped]", known: "dict[str, Price]") -> list[dict[str, Any]]:
    """What is loaded and what is not, as rows; `known` are the prices before."""
    rows: list[dict[str, Any]] = [
        {
            "modelId": each.model_id,
            **_rates(each.price),
            "change": _change(known.get(each.model_id), each.price),
            "notes": "; ".join(each.notes),
        }
        for each in found
    ]
    return rows + [
        {"modelId": each.model_id, **dict.fromkeys(RATES), "change": "skipped", "notes": each.reason}
        for each in skipped
    ]


def _rates(price: "Price") -> dict[str, int | float]:
    rates = (price.input, price.cached_input, price.output, price.reasoning)
    return {name: wire(rate) for name, rate in zip(RATES, rates, strict=True)}


def _change(known: "Price | None", wanted: "Price") -> str:
    if known is None:
        return "new"
    return "none" if known == wanted else "changed"


def _rate(written: str) -> Credits:
    return parse_credits(written, allow_zero=True)


def _model_id(written: str) -> str:
    from parshall.accounting.bodies import MODEL_ID_CHARACTERS_MAX

    if not 0 < len(written) <= MODEL_ID_CHARACTERS_MAX or not written.isprintable():
        raise Usage(f"A model id has 1 to {MODEL_ID_CHARACTERS_MAX} printable characters; write it as requests do.")
    return written


def _decimal(written: str) -> Decimal:
    try:
        return Decimal(written)
    except InvalidOperation as error:
        raise Usage("--credits-per-dollar takes a decimal number, such as 1000.") from error


def _instant(written: str) -> int:
    try:
        found = instant(datetime.fromisoformat(written))
    except (ValueError, OverflowError) as error:
        raise Usage("--from takes a date or date-time, such as 2027-01-01T00:00:00Z.") from error
    if found > INSTANT_MAX:
        raise Usage("--from must lie before the year 10000.")
    return found
