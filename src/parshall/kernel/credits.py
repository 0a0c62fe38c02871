"""Amounts: integer microcredits inside, decimal credits with at most six places on the wire."""

from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import NewType

from parshall.kernel.errors import Invalid

Credits = NewType("Credits", int)
"""An amount in microcredits; never a float."""

MICRO = 1_000_000
CREDITS_MAX = 1_000_000_000 * MICRO
"""No single amount may exceed a billion credits: sums stay far inside 64 bits and exact as JSON numbers."""


_EXACT = Context(prec=28, traps=[Inexact, InvalidOperation])
"""Raises where a digit would be lost; the default context rounds to 28 digits without a word."""


class InvalidAmount(Invalid):
    """An amount that is not a positive decimal of at most six places and a billion credits."""

    code = "invalid_amount"
    title = "Invalid amount"
    default = "Give credits as a number from 0.000001 to 1000000000 with at most six decimal places."


def parse_credits(value: Decimal | int | float | str, *, allow_zero: bool = False) -> Credits:
    """A wire amount (decimal credits) as microcredits, exactly. Raises InvalidAmount; never rounds."""
    try:
        micro = _EXACT.multiply(Decimal(str(value)), MICRO)
    except (ArithmeticError, ValueError) as error:  # ValueError: an int of more digits than Python will print
        raise InvalidAmount from error
    if not micro.is_finite() or not 0 <= micro <= CREDITS_MAX or micro != micro.to_integral_value():
        raise InvalidAmount
    if micro == 0 and not allow_zero:
        raise InvalidAmount
    return Credits(int(micro))


def wire(amount: int) -> int | float:
    """Microcredits as the JSON number of decimal credits: an int where whole, else the shortest exact decimal."""
    whole, rest = divmod(amount, MICRO)
    return whole if rest == 0 else float(Decimal(amount) / MICRO)


def text(amount: int) -> str:
    """Microcredits for people, without trailing zeros: `12.5`."""
    return f"{Decimal(amount) / MICRO:f}".rstrip("0").rstrip(".") if amount % MICRO else str(amount // MICRO)
