"""What clients may send about usage: a use to record, and the span of a report."""

import json
import re
from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, WithJsonSchema

from parshall.accounting.bodies import AmountOrZero, ModelId, Tokens, Who, printable
from parshall.kernel.clock import DAY, INSTANT_MAX, instant
from parshall.kernel.http import WireModel

NAME_CHARACTERS_MAX = 100
METADATA_BYTES_MAX = 4096

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}\Z", re.ASCII)
_DATE_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})?\Z", re.ASCII)


def _moment(value: object) -> int:
    """The instant of an RFC 3339 date-time; one without an offset is taken as UTC."""
    if not isinstance(value, str) or not _DATE_TIME.match(value):
        raise ValueError("must be a date-time as RFC 3339 writes it, such as 2026-11-24T08:30:00Z")
    try:
        found = instant(datetime.fromisoformat(value.upper()))
    except OverflowError as error:  # an offset that leads out of the calendar
        raise ValueError("must lie in the years 1970 to 9999") from error
    if not 0 <= found <= INSTANT_MAX:
        raise ValueError("must lie in the years 1970 to 9999")
    return found


def _day(value: object) -> int | None:
    """The instant at which the day of an RFC 3339 date begins (UTC); None where it is no date."""
    if not isinstance(value, str) or not _DATE.match(value):
        return None
    found = date.fromisoformat(value)
    return instant(datetime(found.year, found.month, found.day, tzinfo=UTC))


def _since(value: object) -> int:
    day = _day(value)
    return _in_calendar(_moment(value) if day is None else day)


def _until(value: object) -> int:
    day = _day(value)
    return _in_calendar(_moment(value) if day is None else day + DAY)


def _in_calendar(found: int) -> int:
    if not 0 <= found <= INSTANT_MAX:
        raise ValueError("must lie in the years 1970 to 9999")
    return found


def _small(value: dict[str, Any]) -> dict[str, Any]:
    try:
        written = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if len(written) > METADATA_BYTES_MAX:
        raise ValueError(f"may have at most {METADATA_BYTES_MAX} bytes as JSON in ASCII")
    return value


_DATE_SCHEMA = WithJsonSchema({"type": "string", "examples": ["2026-11-24", "2026-11-24T08:30:00Z"]})

Since = Annotated[int, BeforeValidator(_since), _DATE_SCHEMA]
"""Where a span begins: an instant, or a day (UTC) from its first moment on."""
Until = Annotated[int, BeforeValidator(_until), _DATE_SCHEMA]
"""Where a span ends: before an instant, or with the whole of a day (UTC)."""
Moment = Annotated[int, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX), AfterValidator(printable)]
Metadata = Annotated[dict[str, Any], AfterValidator(_small)]


class RecordBody(WireModel):
    """A use that is no stream; `credits` tells what it cost and charges nothing."""

    user_id: Who | None = Field(default=None, validation_alias=AliasChoices("userId", "email"))
    service: Name
    operation: Name
    model_id: ModelId | None = None
    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    credits: AmountOrZero = Field(default=0, validate_default=True)
    timestamp: Moment | None = None
    metadata: Metadata = Field(default_factory=dict)
