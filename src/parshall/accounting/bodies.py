"""What clients may send to accounting: validated at the edge, exact from there on."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel

from parshall.accounting.changes import Terms
from parshall.accounting.model import PRIORITY_MAX, TOKENS_MAX
from parshall.accounting.pricing import Price
from parshall.kernel.clock import DAY, INSTANT_MAX, instant
from parshall.kernel.credits import Credits, InvalidAmount, parse_credits
from parshall.kernel.http import WireModel
from parshall.kernel.ids import UserId
from parshall.kernel.metering import Usage, UsageSource

EXPIRY_DAYS_MAX = 36_500
EXPIRY_DAYS_DEFAULT = 30
WHO_CHARACTERS_MAX = 254
"""Of an id, a username or an e-mail address (RFC 5321 §4.5.3.1 leaves 254 for the last)."""
NOTES_CHARACTERS_MAX = 1000
MODEL_ID_CHARACTERS_MAX = 255

Outcome = Literal["completed", "stopped", "abandoned", "credit_limit", "provider_error", "timeout", "interrupted"]

# ── Values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def printable(value: str) -> str:
    """`value`, which names something and so has no control characters. Raises ValueError."""
    if not value.isprintable():  # also refuses NUL, which PostgreSQL cannot store, and lone surrogates
        raise ValueError("must not contain control characters")
    return value


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain NUL")
    return value


def _representable(moment: datetime) -> datetime:
    if instant(moment) > INSTANT_MAX:
        raise ValueError("must lie before the year 10000")
    return moment


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    return value


def _micro(value: object, info: ValidationInfo) -> Credits:
    return _parsed(_number(value), info)


def _micro_or_zero(value: object, info: ValidationInfo) -> Credits:
    return _parsed(_number(value), info, allow_zero=True)


def _signed_micro(value: object, info: ValidationInfo) -> int:
    number = _number(value)
    return -_parsed(-number, info) if number < 0 else _parsed(number, info)


def _parsed(number: int | float, info: ValidationInfo, *, allow_zero: bool = False) -> Credits:
    """The amount. Raises InvalidAmount, which names the member as other failures of validation do."""
    try:
        return parse_credits(number, allow_zero=allow_zero)
    except InvalidAmount as error:
        path = f"body.{to_camel(info.field_name or '')}"
        raise InvalidAmount(error.detail, errors=[{"path": path, "message": error.detail}]) from error


def _decimal(minimum: float | None) -> WithJsonSchema:
    limits = {} if minimum is None else {"minimum": minimum}
    return WithJsonSchema({"type": "number", "multipleOf": 0.000001, **limits})


Who = Annotated[str, Field(min_length=1, max_length=WHO_CHARACTERS_MAX), AfterValidator(printable)]
ModelId = Annotated[str, Field(min_length=1, max_length=MODEL_ID_CHARACTERS_MAX), AfterValidator(printable)]
Notes = Annotated[str, Field(max_length=NOTES_CHARACTERS_MAX), AfterValidator(_without_nul)]
Tokens = Annotated[int, Field(strict=True, ge=0, le=TOKENS_MAX)]
SomeTokens = Annotated[int, Field(strict=True, ge=1, le=TOKENS_MAX)]
Amount = Annotated[Credits, BeforeValidator(_micro), _decimal(0.000001)]
"""Decimal credits on the wire, exactly as microcredits once validated."""
AmountOrZero = Annotated[Credits, BeforeValidator(_micro_or_zero), _decimal(0)]
SignedAmount = Annotated[int, BeforeValidator(_signed_micro), _decimal(None)]

# ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Owned(WireModel):
    """Names a user by id, username or e-mail address; older clients say `email`."""

    user_id: Who = Field(validation_alias=AliasChoices("userId", "email"))


class CheckBody(WireModel):
    """Is so much there?"""

    required_credits: AmountOrZero = Field(validation_alias=AliasChoices("requiredCredits", "credits"))


class DeductBody(WireModel):
    """Take so much from my own account."""

    credits: Amount
    notes: Notes = ""


class OnTerms(WireModel):
    """On what terms credits are given or taken."""

    expiry_days: Annotated[int, Field(strict=True, ge=1, le=EXPIRY_DAYS_MAX)] = EXPIRY_DAYS_DEFAULT
    priority: Annotated[int, Field(strict=True, ge=0, le=PRIORITY_MAX)] = 0
    notes: Notes = ""

    def terms(self, *, at: int, by: UserId) -> Terms:
        """As the ledger takes them, from the instant `at`."""
        return Terms(expires_at=at + self.expiry_days * DAY, granted_by=by, priority=self.priority, notes=self.notes)


class GrantTerms(Owned, OnTerms):
    """The same, for a user's account."""


class AllocateBody(GrantTerms):
    """Grant so much."""

    credits: Amount


class SetBody(GrantTerms):
    """Make it so much."""

    credits: AmountOrZero


class AdjustBody(GrantTerms):
    """Add so much, or take it where negative."""

    adjustment: SignedAmount = Field(validation_alias=AliasChoices("adjustment", "credits"))


class RemoveBody(Owned):
    """Take so much back."""

    credits: Amount
    notes: Notes = ""


class _Counted(WireModel):
    """Tokens of a turn, cached and reasoning ones included in input and output."""

    input_tokens: Tokens = 0
    cached_input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0

    @model_validator(mode="after")
    def _included(self) -> "_Counted":
        if self.cached_input_tokens > self.input_tokens or self.reasoning_tokens > self.output_tokens:
            raise ValueError("cached tokens are part of the input and reasoning tokens part of the output")
        return self

    def usage(self) -> Usage:
        """As the ledger takes it."""
        return Usage(
            input_tokens=self.input_tokens,
            cached_input_tokens=self.cached_input_tokens,
            output_tokens=self.output_tokens,
            reasoning_tokens=self.reasoning_tokens,
        )


class UsageBody(_Counted):
    """What a turn used."""


class CalculateBody(WireModel):
    """What would it cost? Bare `tokens` count as output, the dearest reading."""

    model_id: ModelId
    tokens: Tokens | None = None
    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cached_tokens: Tokens = 0

    @model_validator(mode="after")
    def _consistent(self) -> "CalculateBody":
        if self.tokens is None and not {"input_tokens", "output_tokens"} & self.model_fields_set:
            raise ValueError("give tokens, or inputTokens and outputTokens")
        if self.cached_tokens > self.input_tokens:
            raise ValueError("cached tokens are part of the input")
        return self

    def usage(self) -> Usage:
        """As pricing takes it."""
        if self.tokens is not None:
            return Usage(output_tokens=self.tokens)
        return Usage(
            input_tokens=self.input_tokens,
            cached_input_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
        )


class PriceBody(WireModel):
    """Credits per million tokens; cached input costs as input and reasoning as output where left out."""

    model_id: ModelId
    input: AmountOrZero
    output: AmountOrZero
    cached_input: AmountOrZero | None = None
    reasoning: AmountOrZero | None = None
    effective_from: Annotated[datetime, AfterValidator(_representable)] | None = None

    def price(self) -> Price:
        """As pricing takes it."""
        return Price.of(input=self.input, output=self.output, cached_input=self.cached_input, reasoning=self.reasoning)


# ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class InitializeBody(WireModel):
    """Reserve for a stream: an estimate that must be covered whole, or a prompt and a first slice of output."""

    session_id: str
    model_id: ModelId
    estimated_tokens: SomeTokens | None = None
    input_tokens: Tokens = 0
    max_output_tokens: SomeTokens | None = None
    slice_tokens: SomeTokens | None = None

    @model_validator(mode="after")
    def _enough(self) -> "InitializeBody":
        if self.estimated_tokens is None and self.max_output_tokens is None:
            raise ValueError("give estimatedTokens, or inputTokens, maxOutputTokens and sliceTokens")
        return self


class ExtendBody(WireModel):
    """Reserve more output; `step` counts extensions from 1."""

    session_id: str
    output_tokens: SomeTokens
    step: SomeTokens


class RepriceBody(WireModel):
    """Another model for a running stream, with its prompt and limits."""

    session_id: str
    model_id: ModelId
    input_tokens: Tokens
    max_output_tokens: SomeTokens
    slice_tokens: SomeTokens | None = None


class FinalizeBody(WireModel):
    """What a stream used: the counts, or only their total."""

    session_id: str
    actual_tokens: Tokens | None = None
    usage: UsageBody | None = None
    usage_source: UsageSource = UsageSource.COUNTED
    success: bool = True
    outcome: Outcome | None = None

    @model_validator(mode="after")
    def _enough(self) -> "FinalizeBody":
        if self.actual_tokens is None and self.usage is None:
            raise ValueError("give usage or actualTokens")
        return self

    def used(self, *, input_tokens: int) -> Usage:
        """The usage; of a bare total, what the prompt was reserved for is input and the rest output."""
        if self.usage is not None:
            return self.usage.usage()
        total = self.actual_tokens or 0
        return Usage(input_tokens=min(input_tokens, total), output_tokens=max(total - input_tokens, 0))

    def ended(self) -> str:
        """The outcome to record."""
        return self.outcome or ("completed" if self.success else "provider_error")


class AbortBody(WireModel):
    """End a stream early, with what it generated."""

    session_id: str
    tokens_generated: Tokens = 0


class VoidBody(WireModel):
    """Give up a stream that produced nothing."""

    session_id: str
