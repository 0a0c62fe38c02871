"""The HTTP surface of auth: signing up and in, the own profile, administration of users, and tokens for services."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from parshall.auth import keys, model
from parshall.auth.model import NewUser, Session
from parshall.auth.service import REFRESH_SECONDS, Auth
from parshall.auth.wire import client_credentials, discovery, outcome_document, user_document
from parshall.kernel.errors import Forbidden, NotFound, ParshallError, Unauthenticated
from parshall.kernel.http import Admin, Caller, User, WireModel, current_principal
from parshall.kernel.tokens import Principal, Role

router = APIRouter(prefix="/api", tags=["auth"])
wellknown = APIRouter(tags=["auth"])

ACCESS_COOKIE = "accessToken"
REFRESH_COOKIE = "refreshToken"
REFRESH_PATH = "/api/auth"

Document = dict[str, Any]
Username = Annotated[str, Field(pattern=model.USERNAME_PATTERN)]
Email = Annotated[str, Field(max_length=model.EMAIL_CHARS_MAX, pattern=model.EMAIL_PATTERN)]
NewPassword = Annotated[str, Field(min_length=model.PASSWORD_CHARS_MIN, max_length=model.PASSWORD_BYTES_MAX)]


class SignupBody(WireModel):
    """A new user's own wishes."""

    username: Username
    email: Email
    password: NewPassword


class LoginBody(WireModel):
    """A username or e-mail address with the password."""

    username: str
    password: str


class RefreshBody(WireModel):
    """The refresh token, where it does not come as a cookie."""

    refresh_token: str | None = None


class ProfileBody(WireModel):
    """What is to change of the own profile."""

    username: Username | None = None
    email: Email | None = None


class ChangePasswordBody(WireModel):
    """The own password, and what it is to become."""

    current_password: str
    new_password: NewPassword


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


async def _service(request: Request) -> Auth:
    auth: Auth = request.app.state.auth
    return auth


Service = Annotated[Auth, Depends(_service)]


async def _administrator(principal: Admin, auth: Service) -> Principal:
    """Users are administered with today's role: the token of a demoted admin must not restore it."""
    try:
        user = await auth.find_user(principal.user_id)
    except NotFound as error:
        raise model.UserGone from error
    if user.role is not Role.ADMIN:
        raise Forbidden
    return principal


async def _reader(principal: Caller, auth: Service) -> Principal:
    """Users are looked up by administrators, and by services that resolve a name."""
    if principal.is_service:
        principal.require_scope(model.READ_SCOPE)
        return principal
    principal.require(Role.ADMIN)
    return await _administrator(principal, auth)


Administrator = Annotated[Principal, Depends(_administrator)]
Reader = Annotated[Principal, Depends(_reader)]

# ── Signing up and in ───────────────────────────────────────────────────────────────────────────────────────────────


@router.post("/auth/signup", status_code=201)
async def signup(body: SignupBody, auth: Service) -> Document:
    """Become a user."""
    user = await auth.create_user(body.username, body.email, body.password)
    return {"message": "Welcome; you can log in now.", "userId": user.id}


@router.post("/auth/login")
async def login(body: LoginBody, request: Request, response: Response, auth: Service) -> Document:
    """Log in with a username or e-mail address; the tokens come in the body and as HttpOnly cookies."""
    session = await auth.login(body.username, body.password, _address(request))
    return _granted(request, response, session, "You are logged in.")


@router.post("/auth/refresh")
async def refresh(request: Request, response: Response, auth: Service, body: RefreshBody | None = None) -> Document:
    """Exchange a refresh token, which works once, for a new pair; using one again ends the session everywhere."""
    token = _refresh_token(request, body)
    if not token:
        raise Unauthenticated("Send the refreshToken of the login, in the body or as its cookie.")
    return _granted(request, response, await auth.refresh(token), "The session goes on.")


@router.post("/auth/logout")
async def logout(request: Request, response: Response, auth: Service, body: RefreshBody | None = None) -> Document:
    """End the session that the refresh token, or else the access token, belongs to."""
    token = _refresh_token(request, body)
    if token:
        await auth.logout(token)
    else:
        await current_principal(request)
        await auth.logout_session(request.headers["authorization"].partition(" ")[2].strip())
    _forget(response)
    return {"message": "You are logged out."}


@router.post("/auth/logout-all")
async def logout_all(caller: User, response: Response, auth: Service) -> Document:
    """End every session of the caller."""
    await auth.logout_all(caller.user_id)
    _forget(response)
    return {"message": "You are logged out everywhere."}


def _granted(request: Request, response: Response, session: Session, message: str) -> Document:
    secure = request.url.scheme == "https"
    for name, value, seconds, path in (
        (ACCESS_COOKIE, session.access_token, session.expires_in, "/"),
        (REFRESH_COOKIE, session.refresh_token, REFRESH_SECONDS, REFRESH_PATH),
    ):
        response.set_cookie(name, value, max_age=seconds, path=path, secure=secure, httponly=True, samesite="lax")
    return {
        "message": message,
        "accessToken": session.access_token,
        "refreshToken": session.refresh_token,
        "expiresIn": session.expires_in,
        "tokenType": "Bearer",
        "user": user_document(session.user),
    }


def _forget(response: Response) -> None:
    response.delete_cookie(ACCESS_COOKIE, path="/", httponly=True, samesite="lax")
    response.delete_cookie(REFRESH_COOKIE, path=REFRESH_PATH, httponly=True, samesite="lax")


def _refresh_token(request: Request, body: RefreshBody | None) -> str | None:
    return (body and body.refresh_token) or request.cookies.get(REFRESH_COOKIE)


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


# ── The own profile ─────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/profile")
async def profile(caller: User, auth: Service) -> Document:
    """The caller as auth knows them now."""
    try:
        return {"user": user_document(await auth.find_user(caller.user_id))}
    except NotFound as error:
        raise model.UserGone from error


@router.put("/profile")
async def update_profile(body: ProfileBody, caller: User, auth: Service) -> Document:
    """Change the own username or e-mail address; access tokens bear the new one from the next refresh on."""
    user = await auth.update_profile(caller.user_id, username=body.username, email=body.email)
    return {"message": "Your profile is changed.", "user": user_document(user)}


@router.post("/change-password")
async def change_password(
    body: ChangePasswordBody, caller: User, request: Request, response: Response, auth: Service
) -> Document:
    """Change the own password; every session ends, and the answer holds the tokens of a new one."""
    session = await auth.change_password(caller.user_id, body.current_password, body.new_password, _address(request))
    return _granted(request, response, session, "Your password is changed; other sessions have ended.")


# ── Administration ──────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/admin/users")
async def list_users(
    _reader: Reader,
    auth: Service,
    query: Annotated[str, Query(max_length=100, pattern=r"^[^\x00]*$")] = "",
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    limit: Annotated[int, Query(ge=1, le=model.USERS_PER_PAGE_MAX)] = model.USERS_PER_PAGE_MAX,
) -> Document:
    """Users whose name or e-mail address contains `query`, eldest first."""
    found, total = await auth.users_page(query=query, page=page, limit=limit)
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


@router.get("/admin/users/{user_id}")
async def user_by_id(user_id: str, _reader: Reader, auth: Service) -> Document:
    """The user with this id; a username or an e-mail address does as well."""
    return {"user": user_document(await auth.find_user(user_id))}


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
    await auth.delete_user(user_id, by=admin.user_id)
    return {"message": "The user is removed."}


# ── Services and keys ───────────────────────────────────────────────────────────────────────────────────────────────

_TOKEN_FORM: Document = {
    "type": "object",
    "required": ["grant_type"],
    "properties": {
        "grant_type": {"type": "string", "enum": ["client_credentials"]},
        "client_id": {"type": "string"},
        "client_secret": {"type": "string"},
        "scope": {"type": "string"},
    },
}


@router.post(
    "/auth/token",
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": _TOKEN_FORM}}}
    },
)
async def token(request: Request, auth: Service) -> Document:
    """A service token for client credentials, as HTTP Basic or in the form (RFC 6749 §4.4)."""
    asked = client_credentials(request.headers, await request.body())
    granted = await auth.service_token(asked.client_id, asked.client_secret, asked.scope)
    return {
        "access_token": granted.access_token,
        "token_type": "Bearer",
        "expires_in": granted.expires_in,
        "scope": " ".join(sorted(granted.scopes)),
    }


@wellknown.get("/.well-known/jwks.json")
async def jwks(response: Response, auth: Service) -> Document:
    """The public keys that verify access tokens (RFC 7517)."""
    response.headers["Cache-Control"] = f"public, max-age={keys.KEYS_CACHED_SECONDS}"
    return {"keys": (await auth.key_set()).as_dict(private=False)["keys"]}


@wellknown.get("/.well-known/openid-configuration")
async def configuration(auth: Service) -> Document:
    """Where the keys and the token endpoint are (RFC 8414)."""
    return discovery(auth.issuer)
