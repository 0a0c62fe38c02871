"""What calls answer with: each record has the members of its wire object, in Python's spelling; amounts are exact."""

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, TypeVar

import msgspec

from parshall.client.errors import foreign

T = TypeVar("T")
Amount = Decimal | int | float
"""Credits, with six decimal places at most."""


class Unlimited(Enum):
    """Says that a limit is to be lifted, where None says that it stays."""

    UNLIMITED = None


class Record(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The base of records. Members that this version does not know are left out."""


class User(Record, frozen=True, kw_only=True):
    """A user as auth knows them."""

    id: str
    username: str
    email: str = ""
    role: str = "enduser"
    is_verified: bool = False
    created_at: datetime | None = None


class ApiKey(Record, frozen=True, kw_only=True):
    """An API key; `key` itself is there only in the answer that made it."""

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...] = ()
    created_at: datetime | None = None
    expires_at: datetime | None = None
    last_used_on: str | None = None
    key: str | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return f"ApiKey(id={self.id!r}, name={self.name!r}, prefix={self.prefix!r})"


class NewUser(Record, frozen=True, kw_only=True):
    """A user to be made."""

    username: str
    email: str
    password: str
    role: str = "enduser"

    def __repr__(self) -> str:
        """Without the password."""
        return f"NewUser(username={self.username!r}, role={self.role!r})"


class MadeUser(Record, frozen=True, kw_only=True):
    """What became of one user of a batch: its id, or why it was not made."""

    username: str
    success: bool
    user_id: str | None = None
    code: str | None = None
    error: str | None = None


class Page(Record, Generic[T], frozen=True, kw_only=True):
    """A page of a list. `next` is what to give as `after` for the page that follows; None where there is none."""

    items: tuple[T, ...]
    next: Any = None


class NumberedPage(Record, Generic[T], frozen=True, kw_only=True):
    """A page of a list by number, from 1, of `pages` with `total` items in all."""

    items: tuple[T, ...]
    number: int
    pages: int
    total: int


class Entry(Record, frozen=True, kw_only=True):
    """One line of a statement: credits that moved from the book `debit` to the book `credit`."""

    id: int
    kind: str
    credits: Decimal
    debit: str
    credit: str
    balance_after: Decimal
    at: datetime | None = None
    allocation_id: str | None = None
    streaming_session_id: str | None = None
    notes: str | None = None
    hash: str | None = None


class Grant(Record, frozen=True, kw_only=True):
    """Credits that were granted, and what is left of them."""

    id: str
    user_id: str
    total_credits: Decimal
    remaining_credits: Decimal
    expires_at: datetime | None = None
    allocated_at: datetime | None = None
    allocated_by: str | None = None
    priority: int = 0
    notes: str | None = None


class Changed(Record, frozen=True, kw_only=True):
    """What an administrator's change of a balance did."""

    user_id: str
    previous_credits: Decimal
    new_credits: Decimal


class Checked(Record, frozen=True, kw_only=True):
    """Whether so many credits can be paid; `credits` is how many can at most."""

    sufficient: bool
    credits: Decimal
    required_credits: Decimal


class Organisation(Record, frozen=True, kw_only=True):
    """A group with credits of its own."""

    id: str
    name: str
    created_at: datetime | None = None
    created_by: str | None = None


class Member(Record, frozen=True, kw_only=True):
    """A membership, with what was drawn and may be drawn; a limit that is None is none.

    `organisation` and `available_credits`, what may be drawn now, are there in one's own.
    """

    user_id: str
    organisation_id: str
    role: str
    limit_per_day: Decimal | None = None
    limit_per_month: Decimal | None = None
    limit_total: Decimal | None = None
    used_today: Decimal = Decimal(0)
    used_this_month: Decimal = Decimal(0)
    used_total: Decimal = Decimal(0)
    limit_left: Decimal | None = None
    joined_at: datetime | None = None
    organisation: Organisation | None = None
    available_credits: Decimal | None = None


class Price(Record, frozen=True, kw_only=True):
    """Credits per million tokens of a model, from an instant on. The model `*` stands for any other."""

    model_id: str
    input: Decimal
    output: Decimal
    cached_input: Decimal
    reasoning: Decimal
    effective_from: datetime | None = None
    version: str | None = None


class Used(Record, frozen=True, kw_only=True):
    """What was used in a span of time; the maps hold credits."""

    total_records: int
    total_credits: Decimal
    by_service: dict[str, Decimal] = {}
    by_day: dict[str, Decimal] = {}
    by_model: dict[str, Decimal] = {}
    by_user: dict[str, Decimal] = {}
    recent_activity: tuple[dict[str, Any], ...] = ()


class Running(Record, frozen=True, kw_only=True):
    """A stream as accounting sees it; `session_id` is its streaming session id."""

    session_id: str
    user_id: str
    model_id: str
    status: str
    allocated_credits: Decimal
    used_credits: Decimal
    started_at: datetime | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None


class Model(Record, frozen=True, kw_only=True):
    """A model on offer; `credit_cost` is its price as the server gives it."""

    id: str
    name: str = ""
    description: str = ""
    capabilities: tuple[str, ...] = ()
    credit_cost: Any = None
    max_tokens: int | None = None
    context_tokens: int | None = None
    available: bool = True


class Recommended(Record, frozen=True, kw_only=True):
    """A model for a task, and why."""

    recommended_model: str
    reason: str
    model_details: Model


class Chat(Record, frozen=True, kw_only=True):
    """A chat session in a list."""

    id: str
    title: str | None = None
    model_id: str | None = None
    source: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Message(Record, frozen=True, kw_only=True):
    """One message of a chat session; an answer names its stream."""

    id: str
    role: str
    content: str
    streaming_session_id: str | None = None
    tokens: int | None = None
    created_at: datetime | None = None


class StreamState(Record, frozen=True, kw_only=True):
    """How a stream stands: `state` is `active` or `ended`."""

    streaming_session_id: str
    session_id: str
    model_id: str
    state: str
    outcome: str | None = None
    fallback_applied: bool = False
    created_at: datetime | None = None
    ended_at: datetime | None = None
    usage: dict[str, int] | None = None
    receipt: dict[str, Any] | None = None


class Acknowledged(Record, frozen=True, kw_only=True):
    """What the server makes of the text that the client has: `exact`, a `prefix`, or `different` (does not match)."""

    matches: bool
    comparison: str
    tokens_used: int
    receipt: dict[str, Any] | None = None


class Observation(Record, frozen=True, kw_only=True):
    """One look of a supervisor at a user's chat, as the audit log keeps it."""

    id: str
    kind: str
    session_id: str | None = None
    streaming_session_id: str | None = None
    user_id: str | None = None
    observer_id: str | None = None
    observer: str | None = None
    began_at: datetime | None = None
    ended_at: datetime | None = None
    end: str | None = None


def of(kind: type[T]) -> Callable[[Any], T]:
    """Reads a wire object as that record. Raises ApiError where it is none."""

    def read(wire: Any) -> T:
        try:
            return msgspec.convert(wire, kind)
        except msgspec.ValidationError as error:
            raise foreign(200) from error

    return read


def member(name: str, kind: type[T]) -> Callable[[Mapping[str, Any]], T]:
    """Reads the member of that name."""
    return lambda wire: of(kind)(wire.get(name))


def page(name: str, kind: type[T]) -> Callable[[Mapping[str, Any]], Page[T]]:
    """Reads a page whose items stand under that name."""
    return lambda wire: Page(items=tuple(map(of(kind), wire.get(name) or ())), next=wire.get("next"))


def numbered(name: str, kind: type[T]) -> Callable[[Mapping[str, Any]], NumberedPage[T]]:
    """Reads a page by number whose items stand under that name."""

    def read(wire: Mapping[str, Any]) -> NumberedPage[T]:
        place = wire.get("pagination") or {}
        return NumberedPage(
            items=tuple(map(of(kind), wire.get(name) or ())),
            number=int(place.get("currentPage", 1)),
            pages=int(place.get("pages", 1)),
            total=int(place.get("total", 0)),
        )

    return read
