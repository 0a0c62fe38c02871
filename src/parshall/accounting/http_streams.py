"""Accounting over HTTP for streams: services reserve, extend and settle; people look."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from parshall.accounting.bodies import AbortBody, ExtendBody, FinalizeBody, InitializeBody, RepriceBody, VoidBody, Who
from parshall.accounting.edge import OPEN, Ledger, OnBehalfOf, Settler
from parshall.accounting.model import Reservation, UnknownReservation
from parshall.accounting.service import Accounting
from parshall.accounting.wire import receipt_wire, session_wire, slice_wire
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.clock import rfc3339
from parshall.kernel.credits import wire
from parshall.kernel.errors import Invalid
from parshall.kernel.headers import USER_ID_HEADER
from parshall.kernel.http import Admin, Supervisor, User
from parshall.kernel.ids import StreamId, UserId, is_user_id, parse_stream_id
from parshall.kernel.metering import Usage, UsageSource
from parshall.kernel.telemetry import bind
from parshall.kernel.tokens import Role

MINUTES_DEFAULT = 5
MINUTES_MAX = 60 * 24 * 30

router = APIRouter(prefix="/streaming-sessions", route_class=StrictRoute)

Minutes = Annotated[int, Query(ge=1, le=MINUTES_MAX)]


async def _owned(accounting: Accounting, session_id: str, named: str | None) -> Reservation:
    """The reservation; one of another user than the service names answers as if it did not exist."""
    stream_id = parse_stream_id(session_id)
    bind(stream=stream_id)
    reservation = await accounting.receipt(stream_id)
    owner = reservation.user_id
    if named is not None and named != owner and await accounting.directory.resolve(named) != owner:
        raise UnknownReservation
    return reservation


# ── Services ────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.post("/initialize", status_code=201)
async def initialize(
    body: InitializeBody, accounting: Ledger, _service_token: Settler, named: OnBehalfOf = None
) -> dict[str, Any]:
    """Reserve credits for a stream of the user in X-User-ID. Repeated, it gives the first answer."""
    if named is None:
        raise Invalid(f"Name the user whose credits are reserved in the header {USER_ID_HEADER}.")
    stream_id = parse_stream_id(body.session_id)
    bind(stream=stream_id)
    # An id names itself: the service has verified the token that bears it, and need not wait for auth.
    user_id = UserId(named) if is_user_id(named) else await accounting.directory.resolve(named)
    if body.max_output_tokens is None:
        assert body.estimated_tokens is not None
        granted = await accounting.reserve_whole(
            stream_id=stream_id, user_id=user_id, model_id=body.model_id, tokens=body.estimated_tokens
        )
        return slice_wire(stream_id, granted)
    granted = await accounting.reserve(
        stream_id=stream_id,
        user_id=user_id,
        model_id=body.model_id,
        input_tokens=body.input_tokens,
        output_tokens_max=body.max_output_tokens,
        slice_tokens=body.slice_tokens or body.max_output_tokens,
    )
    return slice_wire(stream_id, granted)


@router.post("/extend")
async def extend(
    body: ExtendBody, accounting: Ledger, _service_token: Settler, named: OnBehalfOf = None
) -> dict[str, Any]:
    """Reserve more output for a running stream; `final` says that this is the last slice."""
    stream_id = (await _owned(accounting, body.session_id, named)).id
    granted = await accounting.extend(stream_id=stream_id, step=body.step, output_tokens=body.output_tokens)
    return slice_wire(stream_id, granted)


@router.post("/reprice")
async def reprice(
    body: RepriceBody, accounting: Ledger, _service_token: Settler, named: OnBehalfOf = None
) -> dict[str, Any]:
    """Go on with another model before the first token: its price holds from here on."""
    stream_id = (await _owned(accounting, body.session_id, named)).id
    granted = await accounting.reprice(
        stream_id=stream_id,
        model_id=body.model_id,
        input_tokens=body.input_tokens,
        output_tokens_max=body.max_output_tokens,
        slice_tokens=min(body.slice_tokens or body.max_output_tokens, body.max_output_tokens),
    )
    return slice_wire(stream_id, granted)


@router.post("/finalize")
async def finalize(
    body: FinalizeBody, accounting: Ledger, _service_token: Settler, named: OnBehalfOf = None
) -> dict[str, Any]:
    """Charge what a stream used and return the rest. Repeated, it gives the first answer."""
    reservation = await _owned(accounting, body.session_id, named)
    usage = body.used(input_tokens=reservation.input_tokens)
    return await _settled(accounting, reservation.id, usage, body.usage_source, body.ended(), charged="actualCredits")


@router.post("/abort")
async def abort(
    body: AbortBody, accounting: Ledger, _service_token: Settler, named: OnBehalfOf = None
) -> dict[str, Any]:
    """End a stream early: charge its prompt and what it generated, and return the rest."""
    reservation = await _owned(accounting, body.session_id, named)
    if body.tokens_generated or reservation.input_tokens:
        usage = Usage(input_tokens=reservation.input_tokens, output_tokens=body.tokens_generated)
        return await _settled(
            accounting, reservation.id, usage, UsageSource.COUNTED, "stopped", charged="partialCredits"
        )
    await accounting.void(stream_id=reservation.id)
    return _ended(await accounting.receipt(reservation.id), charged="partialCredits")


@router.post("/void")
async def void(body: VoidBody, accounting: Ledger, _service_token: Settler, named: OnBehalfOf = None) -> dict[str, Any]:
    """Return everything that is held for a stream; without a receipt where nothing ever was."""
    stream_id = parse_stream_id(body.session_id)
    try:
        await _owned(accounting, stream_id, named)
    except UnknownReservation:
        return {"sessionId": stream_id, "receipt": None}
    await accounting.void(stream_id=stream_id)
    return _ended(await accounting.receipt(stream_id), charged="actualCredits")


async def _settled(
    accounting: Accounting, stream_id: StreamId, usage: Usage, source: UsageSource, outcome: str, *, charged: str
) -> dict[str, Any]:
    await accounting.settle(stream_id=stream_id, usage=usage, source=source, outcome=outcome)
    return _ended(await accounting.receipt(stream_id), charged=charged)


def _ended(reservation: Reservation, *, charged: str) -> dict[str, Any]:
    assert reservation.settlement is not None, "it has just ended, and never runs again"
    return {
        "sessionId": reservation.id,
        charged: wire(reservation.settlement.charged),
        "refund": wire(reservation.settlement.returned),
        "receipt": receipt_wire(reservation),
    }


# ── People ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/active", dependencies=OPEN)
async def my_active(accounting: Ledger, user: User) -> list[dict[str, Any]]:
    """My running streams, newest first."""
    return [session_wire(each) for each in await accounting.active(user.user_id)]


@router.get("/active/all")
async def all_active(accounting: Ledger, _caller: Admin) -> list[dict[str, Any]]:
    """Everybody's running streams, newest first. For administrators."""
    return [session_wire(each) for each in await accounting.active(None)]


@router.get("/active/{user_id}")
async def active_of(user_id: Who, accounting: Ledger, _caller: Supervisor) -> list[dict[str, Any]]:
    """A user's running streams, newest first. For supervisors."""
    return [session_wire(each) for each in await accounting.active(await accounting.directory.resolve(user_id))]


@router.get("/recent")
async def recent(accounting: Ledger, _caller: Supervisor, minutes: Minutes = MINUTES_DEFAULT) -> dict[str, Any]:
    """Everybody's streams that run or lately did, newest first. For supervisors."""
    return await _recent(accounting, None, minutes)


@router.get("/recent/{user_id}")
async def recent_of(
    user_id: Who, accounting: Ledger, _caller: Supervisor, minutes: Minutes = MINUTES_DEFAULT
) -> dict[str, Any]:
    """A user's streams that run or lately did, newest first. For supervisors."""
    return await _recent(accounting, await accounting.directory.resolve(user_id), minutes)


async def _recent(accounting: Accounting, user_id: UserId | None, minutes: int) -> dict[str, Any]:
    found = await accounting.recent(user_id, minutes=minutes)
    return {
        "sessions": [session_wire(each) for each in found],
        "timestamp": rfc3339(accounting.now()),
        "filter": {"minutes": minutes, "userId": user_id},
    }


@router.get("/{session_id}/receipt", dependencies=OPEN)
async def receipt(session_id: str, accounting: Ledger, user: User) -> dict[str, Any]:
    """A stream's receipt, for its owner and supervisors; `settlement: pending` while it runs."""
    reservation = await accounting.receipt(parse_stream_id(session_id))
    if reservation.user_id != user.user_id and not user.role.covers(Role.SUPERVISOR):
        raise UnknownReservation
    return receipt_wire(reservation)
