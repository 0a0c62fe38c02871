"""Accounting over HTTP: credits and prices, with the routes of streams beside them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from parshall.accounting.bodies import (
    AdjustBody,
    AllocateBody,
    CalculateBody,
    CheckBody,
    DeductBody,
    GrantTerms,
    PriceBody,
    RemoveBody,
    SetBody,
    Who,
)
from parshall.accounting.changes import Terms
from parshall.accounting.edge import OPEN, Key, Ledger, PriceReader, json_text, once_of
from parshall.accounting.http_organisations import router as organisations
from parshall.accounting.http_streams import router as streams
from parshall.accounting.http_usage import router as usage
from parshall.accounting.model import Account, Changed, Grant
from parshall.accounting.pricing import PriceVersion
from parshall.accounting.service import ENTRIES_PER_PAGE_MAX, Accounting
from parshall.accounting.wire import balance_wire, changed_wire, entry_wire, grant_wire, price_wire, rendered
from parshall.accounting.wire_organisations import standing_wire
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.clock import instant
from parshall.kernel.credits import text, wire
from parshall.kernel.http import Admin, Supervisor, User
from parshall.kernel.ids import UserId
from parshall.kernel.tokens import Principal

router = APIRouter(prefix="/api", tags=["accounting"], route_class=StrictRoute)
router.include_router(streams)
router.include_router(usage)
router.include_router(organisations)

ENTRIES_PER_PAGE_DEFAULT = 100
_ID_MAX = 2**63 - 1

Limit = Annotated[int, Query(ge=1, le=ENTRIES_PER_PAGE_MAX)]
After = Annotated[int, Query(ge=0, le=_ID_MAX, description="the last entry already seen")]


# ── Balances ────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/credits/balance", dependencies=OPEN)
async def my_balance(accounting: Ledger, user: User) -> dict[str, Any]:
    """What I hold: available, held by running streams, the grants it comes from, and what an organisation gives me."""
    return await _balance(accounting, user.user_id)


@router.get("/credits/total-balance", dependencies=OPEN)
async def my_total(accounting: Ledger, user: User) -> dict[str, Any]:
    """What I hold in all, credits held by running streams included."""
    return {"totalCredits": wire((await accounting.balance(user.user_id)).total)}


@router.get("/credits/balance/{user_id}")
async def balance_of(user_id: Who, accounting: Ledger, _caller: Supervisor) -> dict[str, Any]:
    """What a user holds. For supervisors."""
    return await _balance(accounting, await accounting.directory.resolve(user_id))


async def _balance(accounting: Accounting, user_id: UserId) -> dict[str, Any]:
    held, standing = await accounting.balance_of(user_id)
    return balance_wire(held) | {"organisation": None if standing is None else standing_wire(standing)}


@router.post("/credits/check", dependencies=OPEN)
async def check(body: CheckBody, accounting: Ledger, user: User) -> dict[str, Any]:
    """Whether I, or my organisation for me, can pay so many credits; `credits` tells how many either can at most."""
    sufficient, available = await accounting.check(user.user_id, body.required_credits)
    answer = {
        "sufficient": sufficient,
        "hasSufficientCredits": sufficient,
        "credits": wire(available),
        "requiredCredits": wire(body.required_credits),
    }
    if sufficient:
        return answer
    needed, there = text(body.required_credits), text(available)
    return answer | {"message": f"{needed} credits are needed and {there} are available; ask for a grant."}


@router.post("/credits/calculate", dependencies=OPEN)
async def calculate(body: CalculateBody, accounting: Ledger, _user: User) -> dict[str, Any]:
    """What tokens of a model cost at the price in force. Bare `tokens` are priced as output."""
    return {"credits": wire(await accounting.prices.calculate(body.model_id, body.usage()))}


@router.get("/credits/statement", dependencies=OPEN)
async def my_statement(
    accounting: Ledger, user: User, after: After = 0, limit: Limit = ENTRIES_PER_PAGE_DEFAULT
) -> dict[str, Any]:
    """My account's entries, oldest first, each with its stream and the available balance behind it."""
    return await _statement(accounting, user.user_id, after, limit)


@router.get("/credits/statement/{user_id}")
async def statement_of(
    user_id: Who, accounting: Ledger, _caller: Supervisor, after: After = 0, limit: Limit = ENTRIES_PER_PAGE_DEFAULT
) -> dict[str, Any]:
    """A user's entries, oldest first. For supervisors."""
    return await _statement(accounting, await accounting.directory.resolve(user_id), after, limit)


async def _statement(accounting: Accounting, user_id: UserId, after: int, limit: int) -> dict[str, Any]:
    found = await accounting.statement(user_id, after=after, limit=limit)
    more = found[-1].number if len(found) == limit else None
    return {"userId": user_id, "entries": [entry_wire(each) for each in found], "next": more}


@router.get("/credits/allocations/all")
async def all_allocations(
    accounting: Ledger,
    _caller: Supervisor,
    after: Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$", description="the last id already seen")] = None,
    limit: Limit = ENTRIES_PER_PAGE_MAX,
) -> dict[str, Any]:
    """Every user's grants, oldest first; `next` is the `after` of the page that follows. For supervisors."""
    found = await accounting.grants_all(after=after, limit=limit)
    more = found[-1].id if len(found) == limit else None
    return {"allocations": [grant_wire(grant) for grant in found], "next": more}


# ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _terms(accounting: Accounting, body: GrantTerms | RemoveBody, caller: Principal) -> Terms:
    at = accounting.now()
    if isinstance(body, RemoveBody):
        return Terms(expires_at=at, granted_by=caller.user_id, notes=body.notes)
    return body.terms(at=at, by=caller.user_id)


@router.post("/credits/deduct")
async def deduct(body: DeductBody, accounting: Ledger, user: User, key: Key) -> Response:
    """Take credits from my own account for something that is not a stream."""

    def render(account: Account) -> str:
        message = f"{text(body.credits)} credits were deducted."
        return rendered({"success": True, "message": message, "remainingBalance": wire(account.available)})

    once = once_of(key, user, "deduct", user.user_id, body)
    work = accounting.deducting(user.user_id, body.credits, note=body.notes)
    return json_text(await accounting.answer_once(work, render=render, status=200, once=once))


@router.post("/credits/allocate", status_code=201)
@router.post("/credits/allocate-by-email", status_code=201)
async def allocate(body: AllocateBody, accounting: Ledger, caller: Supervisor, key: Key) -> Response:
    """Grant credits to a user, named by id, username or e-mail address. For supervisors."""
    user_id = await accounting.directory.resolve(body.user_id)
    once = once_of(key, caller, "allocate", user_id, body)
    work = accounting.allocating(user_id, body.credits, _terms(accounting, body, caller))

    def render(grant: Grant) -> str:
        return rendered(grant_wire(grant) | {"message": f"{text(grant.amount)} credits were allocated."})

    return json_text(await accounting.answer_once(work, render=render, status=201, once=once), 201)


@router.post("/credits/set")
async def set_credits(body: SetBody, accounting: Ledger, caller: Supervisor, key: Key) -> Response:
    """Make a user's total (held by running streams included) come to so many credits. For supervisors."""
    user_id = await accounting.directory.resolve(body.user_id)
    once = once_of(key, caller, "set", user_id, body)
    work = accounting.setting(user_id, body.credits, _terms(accounting, body, caller))

    def render(changed: Changed) -> str:
        return rendered(changed_wire(changed, f"The balance was set to {text(changed.new)} credits."))

    return json_text(await accounting.answer_once(work, render=render, status=200, once=once))


@router.put("/credits/adjust")
async def adjust(body: AdjustBody, accounting: Ledger, caller: Supervisor, key: Key) -> Response:
    """Add credits to a user's account, or take them where `adjustment` is negative. For supervisors."""
    user_id = await accounting.directory.resolve(body.user_id)
    once = once_of(key, caller, "adjust", user_id, body)
    work = accounting.adjusting(user_id, body.adjustment, _terms(accounting, body, caller))

    def render(changed: Changed) -> str:
        answer = changed_wire(changed, f"The balance is now {text(changed.new)} credits.")
        return rendered(answer | {"adjustment": wire(body.adjustment)})

    return json_text(await accounting.answer_once(work, render=render, status=200, once=once))


@router.delete("/credits/remove")
async def remove(body: RemoveBody, accounting: Ledger, caller: Supervisor, key: Key) -> Response:
    """Take credits back from a user. For supervisors."""
    user_id = await accounting.directory.resolve(body.user_id)
    once = once_of(key, caller, "remove", user_id, body)
    work = accounting.adjusting(user_id, -body.credits, _terms(accounting, body, caller))

    def render(changed: Changed) -> str:
        answer = changed_wire(changed, f"{text(body.credits)} credits were removed.")
        return rendered(answer | {"removedCredits": wire(body.credits)})

    return json_text(await accounting.answer_once(work, render=render, status=200, once=once))


# ── Prices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/prices", dependencies=OPEN)
async def prices(accounting: Ledger, _caller: PriceReader) -> dict[str, Any]:
    """Credits per million tokens, per model: the price in force and those to come. `*` holds for any other model."""
    return {"prices": [price_wire(version) for version in await accounting.prices.all()]}


@router.put("/prices")
async def put_price(body: PriceBody, accounting: Ledger, caller: Admin, key: Key) -> Response:
    """Set a model's price from now or from an instant to come; running streams keep the one they began at."""
    start = None if body.effective_from is None else instant(body.effective_from)
    once = once_of(key, caller, "price", caller.user_id, body)
    work = accounting.prices.putting(body.model_id, body.price(), set_by=caller.user_id, effective_from=start)

    def render(version: PriceVersion) -> str:
        return rendered(price_wire(version))

    return json_text(await accounting.answer_once(work, render=render, status=200, once=once))
