"""The administration of users over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from parshall.auth import model
from parshall.auth.edge import Administrator, Document, NewPassword, Reader, Service, SignupBody
from parshall.auth.model import NewUser
from parshall.auth.wire import export_document, outcome_document, user_document
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.clock import rfc3339
from parshall.kernel.errors import NotFound, ParshallError
from parshall.kernel.http import WireModel
from parshall.kernel.removals import REMOVALS_PER_PAGE_MAX
from parshall.kernel.tokens import Role

router = APIRouter(route_class=StrictRoute)


class NewPasswordBody(WireModel):
    """What a user's password is to become."""

    new_password: NewPassword


class RoleBody(WireModel):
    """What a user's role is to become."""

    role: Role


class CreateBody(SignupBody):
    """A user as an administrator makes one."""

    role: Role = Role.ENDUSER


class BatchItem(WireModel):
    """One user of a batch; checked one by one, so that a wrong one does not hinder the others."""

    username: str = ""
    email: str = ""
    password: str = ""
    role: Role = Role.ENDUSER


class BatchBody(WireModel):
    """Users to be made."""

    users: Annotated[list[BatchItem], Field(min_length=1, max_length=model.BATCH_USERS_MAX)]


@router.get("/admin/users")
async def list_users(
    _reader: Reader,
    auth: Service,
    query: Annotated[str, Query(max_length=100, pattern=r"^[^\x00]*$")] = "",
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    limit: Annotated[int, Query(ge=1, le=model.USERS_PER_PAGE_MAX)] = model.USERS_PER_PAGE_MAX,
    who: Annotated[str | None, Query(max_length=254)] = None,
) -> Document:
    """Users whose name or e-mail address contains `query`, eldest first; or the one of this id, name or address."""
    if who is None:
        found, total = await auth.users_page(query=query, page=page, limit=limit)
    else:
        found, total = [await auth.find_user(who)], 1
    return {
        "users": [user_document(user) for user in found],
        "pagination": {"total": total, "pages": -(-total // limit), "currentPage": page, "perPage": limit},
    }


@router.post("/admin/users", status_code=201)
async def create_user(body: CreateBody, _admin: Administrator, auth: Service) -> Document:
    """Make a user with a role."""
    user = await auth.create_user(body.username, body.email, body.password, body.role)
    return {"message": "The user is made.", "userId": user.id}


@router.post("/admin/users/batch", status_code=201)
async def create_users(body: BatchBody, _admin: Administrator, auth: Service) -> Document:
    """Make many users; the results say of each in order whether it was made, or why not."""
    asked = [NewUser(username=u.username, email=u.email, password=u.password, role=u.role) for u in body.users]
    outcomes = await auth.create_users(asked)
    failed = sum(isinstance(outcome, ParshallError) for outcome in outcomes)
    made = len(outcomes) - failed
    return {
        "message": f"{made} of {len(outcomes)} users are made.",
        "results": [outcome_document(new, outcome) for new, outcome in zip(asked, outcomes, strict=True)],
        "summary": {"total": len(outcomes), "successful": made, "failed": failed},
    }


@router.get("/admin/users/by-email/{email}")
async def user_by_email(email: str, _reader: Reader, auth: Service) -> Document:
    """The user with this e-mail address."""
    if "@" not in email:
        raise NotFound
    return {"user": user_document(await auth.find_user(email))}


@router.get("/admin/removals")
async def list_removals(
    _reader: Reader,
    auth: Service,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=REMOVALS_PER_PAGE_MAX)] = REMOVALS_PER_PAGE_MAX,
) -> Document:
    """Who was removed, by id, in order, numbered above `after`: for services that erase what they keep."""
    found = await auth.removals(after=after, limit=limit)
    return {
        "removals": [
            {"number": each.number, "userId": each.user_id, "removedAt": rfc3339(each.removed_at)} for each in found
        ]
    }


@router.get("/admin/users/{user_id}")
async def user_by_id(user_id: str, _reader: Reader, auth: Service) -> Document:
    """The user with this id; a username or an e-mail address does as well."""
    return {"user": user_document(await auth.find_user(user_id))}


@router.get("/admin/users/{user_id}/export")
async def export_user(user_id: str, _admin: Administrator, auth: Service) -> Document:
    """All that auth keeps of a user, secrets aside."""
    return export_document(await auth.export(user_id))


@router.put("/admin/users/{user_id}/role")
async def set_role(user_id: str, body: RoleBody, _admin: Administrator, auth: Service) -> Document:
    """Give a user a role; access tokens bear it from the next refresh on."""
    user = await auth.set_role(user_id, body.role)
    return {"message": f"{user.username} is {user.role.value} now.", "user": user_document(user)}


@router.post("/admin/users/{user_id}/reset-password")
async def reset_password(user_id: str, body: NewPasswordBody, _admin: Administrator, auth: Service) -> Document:
    """Give a user another password; every session of theirs ends."""
    await auth.set_password(user_id, body.new_password)
    return {"message": "The password is changed; every session of the user has ended."}


@router.delete("/admin/users/{user_id}")
async def delete_user(user_id: str, admin: Administrator, auth: Service) -> Document:
    """Remove a user with every session; not oneself, and not the last administrator."""
    await auth.delete_user(user_id, by=admin.id)
    return {"message": "The user is removed."}
