"""Accounting over HTTP for organisations: supervisors found and fund them, managers see to the members."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from parshall.accounting.bodies import Who
from parshall.accounting.bodies_organisations import (
    GroupAdjustBody,
    GroupAllocateBody,
    GroupRemoveBody,
    GroupSetBody,
    MemberBody,
    Name,
    OrganisationBody,
)
from parshall.accounting.changes import Terms
from parshall.accounting.combine import Operation
from parshall.accounting.edge import OPEN, Key, Ledger, json_text
from parshall.accounting.model import Changed, Grant
from parshall.accounting.once import Once
from parshall.accounting.organisation import Member, Organisation
from parshall.accounting.organisations import MEMBERS_PER_PAGE_MAX, ORGANISATIONS_PER_PAGE_MAX
from parshall.accounting.service import ENTRIES_PER_PAGE_MAX, Accounting
from parshall.accounting.wire import balance_wire, changed_wire, entry_wire, grant_wire, rendered
from parshall.accounting.wire_organisations import member_wire, membership_wire, of_group, organisation_wire
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.credits import text
from parshall.kernel.errors import NotFound
from parshall.kernel.http import Supervisor, User, WireModel
from parshall.kernel.ids import UserId
from parshall.kernel.tokens import Principal, Role

PER_PAGE_DEFAULT = 100
_ID_MAX = 2**63 - 1

router = APIRouter(prefix="/organisations", route_class=StrictRoute)

Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="the organisation's id")]
AfterEntry = Annotated[int, Query(alias="after", ge=0, le=_ID_MAX, description="the last entry already seen")]
AfterName = Annotated[Name | None, Query(alias="after", description="the last name already seen")]
AfterMember = Annotated[Who | None, Query(alias="after", description="the last userId already seen")]


def _by(user: Principal) -> UserId | None:
    """Who must be a member or manager; None for those who may do it without."""
    return None if user.role.covers(Role.SUPERVISOR) else user.user_id


def _once(
    key: str | None, caller: Principal, operation: str, *named: str, body: WireModel | None = None
) -> Once | None:
    if key is None:
        return None
    asked = None if body is None else body.model_dump(mode="json", exclude_unset=True)
    return Once.of(*named, asked, caller=caller.user_id, operation=operation, key=key)


# ── Organisations ───────────────────────────────────────────────────────────────────────────────────────────────────


def _organisation(organisation: Organisation) -> str:
    return rendered(organisation_wire(organisation))


@router.post("", status_code=201)
async def found(body: OrganisationBody, accounting: Ledger, caller: Supervisor, key: Key) -> Response:
    """Make an organisation, with an empty account. For supervisors."""
    once = _once(key, caller, "organisation-found", body=body)
    work = accounting.organisations.founding(body.name, created_by=caller.user_id)
    return json_text(await accounting.answer_once(work, render=_organisation, status=201, once=once), 201)


@router.get("")
async def organisations(
    accounting: Ledger,
    _caller: Supervisor,
    after: AfterName = None,
    limit: Annotated[int, Query(ge=1, le=ORGANISATIONS_PER_PAGE_MAX)] = PER_PAGE_DEFAULT,
) -> dict[str, Any]:
    """All organisations by name; `next` is the `after` of the page that follows. For supervisors."""
    listed = await accounting.organisations.all(after=after or "", limit=limit)
    more = listed[-1].name if len(listed) == limit else None
    return {"organisations": [organisation_wire(each) for each in listed], "next": more}


@router.get("/mine", dependencies=OPEN)
async def mine(accounting: Ledger, user: User) -> dict[str, Any]:
    """My organisation, my limits there, what of them I have used, and what I may draw now; 404 without one."""
    return membership_wire(await accounting.organisations.standing(user.user_id))


@router.get("/{organisation_id}")
async def organisation(organisation_id: Id, accounting: Ledger, user: User) -> dict[str, Any]:
    """An organisation. For its members and supervisors."""
    return organisation_wire(await accounting.organisations.find(organisation_id, by=_by(user)))


@router.patch("/{organisation_id}")
async def rename(
    organisation_id: Id, body: OrganisationBody, accounting: Ledger, caller: Supervisor, key: Key
) -> Response:
    """Give an organisation another name. For supervisors."""
    once = _once(key, caller, "organisation-rename", organisation_id, body=body)
    work = accounting.organisations.renaming(organisation_id, body.name)
    return json_text(await accounting.answer_once(work, render=_organisation, status=200, once=once))


# ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/{organisation_id}/balance")
async def balance(organisation_id: Id, accounting: Ledger, user: User) -> dict[str, Any]:
    """What the organisation holds. For its managers and supervisors."""
    await accounting.organisations.managed(organisation_id, by=_by(user))
    return of_group(balance_wire(await accounting.balance(organisation_id)))


@router.get("/{organisation_id}/statement")
async def statement(
    organisation_id: Id,
    accounting: Ledger,
    user: User,
    after: AfterEntry = 0,
    limit: Annotated[int, Query(ge=1, le=ENTRIES_PER_PAGE_MAX)] = PER_PAGE_DEFAULT,
) -> dict[str, Any]:
    """The organisation's entries, oldest first, each with its stream. For its managers and supervisors."""
    await accounting.organisations.managed(organisation_id, by=_by(user))
    entries = await accounting.statement(organisation_id, after=after, limit=limit)
    more = entries[-1].number if len(entries) == limit else None
    return {"organisationId": organisation_id, "entries": [entry_wire(each) for each in entries], "next": more}


@router.post("/{organisation_id}/allocate", status_code=201)
async def allocate(
    organisation_id: Id, body: GroupAllocateBody, accounting: Ledger, caller: Supervisor, key: Key
) -> Response:
    """Grant credits to an organisation. For supervisors."""
    once = _once(key, caller, "organisation-allocate", organisation_id, body=body)
    terms = body.terms(at=accounting.now(), by=caller.user_id)
    work = accounting.organisations.of(organisation_id, accounting.allocating(organisation_id, body.credits, terms))

    def render(grant: Grant) -> str:
        message = f"{text(grant.amount)} credits were allocated."
        return rendered(of_group(grant_wire(grant)) | {"message": message})

    return json_text(await accounting.answer_once(work, render=render, status=201, once=once), 201)


@router.post("/{organisation_id}/set")
async def set_credits(
    organisation_id: Id, body: GroupSetBody, accounting: Ledger, caller: Supervisor, key: Key
) -> Response:
    """Make an organisation's total, held by running streams included, come to so many credits. For supervisors."""
    once = _once(key, caller, "organisation-set", organisation_id, body=body)
    terms = body.terms(at=accounting.now(), by=caller.user_id)
    return await _changed(accounting, accounting.setting(organisation_id, body.credits, terms), organisation_id, once)


@router.put("/{organisation_id}/adjust")
async def adjust(
    organisation_id: Id, body: GroupAdjustBody, accounting: Ledger, caller: Supervisor, key: Key
) -> Response:
    """Add credits to an organisation's account, or take them where `adjustment` is negative. For supervisors."""
    once = _once(key, caller, "organisation-adjust", organisation_id, body=body)
    terms = body.terms(at=accounting.now(), by=caller.user_id)
    work = accounting.adjusting(organisation_id, body.adjustment, terms)
    return await _changed(accounting, work, organisation_id, once)


@router.delete("/{organisation_id}/remove")
async def remove(
    organisation_id: Id, body: GroupRemoveBody, accounting: Ledger, caller: Supervisor, key: Key
) -> Response:
    """Take credits back from an organisation. For supervisors."""
    once = _once(key, caller, "organisation-remove", organisation_id, body=body)
    terms = Terms(expires_at=accounting.now(), granted_by=caller.user_id, notes=body.notes)
    return await _changed(
        accounting, accounting.adjusting(organisation_id, -body.credits, terms), organisation_id, once
    )


async def _changed(
    accounting: Accounting, work: Operation[Changed], organisation_id: str, once: Once | None
) -> Response:
    def render(changed: Changed) -> str:
        return rendered(of_group(changed_wire(changed, f"The balance is now {text(changed.new)} credits.")))

    checked = accounting.organisations.of(organisation_id, work)
    return json_text(await accounting.answer_once(checked, render=render, status=200, once=once))


# ── Members ─────────────────────────────────────────────────────────────────────────────────────────────────────────
# Who manages nothing is told so before a user is looked up: nobody learns here who there is. The change checks again.


@router.get("/{organisation_id}/members")
async def members(
    organisation_id: Id,
    accounting: Ledger,
    user: User,
    after: AfterMember = None,
    limit: Annotated[int, Query(ge=1, le=MEMBERS_PER_PAGE_MAX)] = PER_PAGE_DEFAULT,
) -> dict[str, Any]:
    """Members with their limits and what they have used, by id. For the organisation's managers and supervisors."""
    await accounting.organisations.managed(organisation_id, by=_by(user))
    listed = await accounting.organisations.members(organisation_id, after=after or "", limit=limit)
    more = listed[-1].user_id if len(listed) == limit else None
    return {"organisationId": organisation_id, "members": [member_wire(each) for each in listed], "next": more}


@router.put("/{organisation_id}/members/{user_id}")
async def put_member(
    organisation_id: Id, user_id: Who, body: MemberBody, accounting: Ledger, user: User, key: Key
) -> Response:
    """Let a user join, or change role and limits. What is left out stays; null lifts a limit.

    For supervisors; managers of the organisation add plain members and set their limits.
    """
    await accounting.organisations.managed(organisation_id, by=_by(user))
    member_id = await accounting.directory.resolve(user_id)
    once = _once(key, user, "organisation-member", organisation_id, member_id, body=body)
    work = accounting.organisations.putting(organisation_id, member_id, body.change(), by=_by(user))

    def render(member: Member) -> str:
        return rendered(member_wire(member))

    return json_text(await accounting.answer_once(work, render=render, status=200, once=once))


@router.delete("/{organisation_id}/members/{user_id}")
async def remove_member(organisation_id: Id, user_id: Who, accounting: Ledger, user: User, key: Key) -> Response:
    """End a membership. Its running streams keep what they hold and get nothing more.

    For supervisors; managers of the organisation remove plain members.
    """
    await accounting.organisations.managed(organisation_id, by=_by(user))
    try:
        member_id = await accounting.directory.resolve(user_id)
    except NotFound:  # a user who is gone can still be a member
        member_id = UserId(user_id)
    once = _once(key, user, "organisation-leave", organisation_id, member_id)
    work = accounting.organisations.removing(organisation_id, member_id, by=_by(user))

    def render(member: Member) -> str:
        return rendered({"message": "The membership has ended.", "userId": member.user_id})

    return json_text(await accounting.answer_once(work, render=render, status=200, once=once))
