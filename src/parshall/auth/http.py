"""The HTTP surface of auth: signing up and in, the own profile, and tokens for services and API keys."""

import json
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from parshall.auth import keys
from parshall.auth.edge import (
    REFRESH_COOKIE,
    Document,
    Elsewhere,
    Email,
    NewPassword,
    Present,
    Service,
    SignupBody,
    Username,
    forget,
    granted,
    network_address,
)
from parshall.auth.external import ExternalTokenRefused, IssuerAway
from parshall.auth.http_admin import router as administration
from parshall.auth.http_debug import router as debugging
from parshall.auth.http_keys import router as api_keys
from parshall.auth.http_mail import router as mail
from parshall.auth.http_oidc import router as oidc
from parshall.auth.mailed import Purpose
from parshall.auth.model import ServiceToken
from parshall.auth.wire import (
    ACCESS_TOKEN_TYPE,
    EXCHANGE_GRANT,
    InvalidSubject,
    client_credentials,
    discovery,
    export_document,
    subject_token,
    token_form,
    user_document,
)
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.browsers import check_same_origin
from parshall.kernel.errors import Unauthenticated
from parshall.kernel.http import User, WireModel, current_principal
from parshall.kernel.scopes import opens_to
from parshall.kernel.tokens import API_KEY_PREFIX, PROFILE_SCOPE, presented_token

router = APIRouter(prefix="/api", tags=["auth"], route_class=StrictRoute)
router.include_router(administration)
router.include_router(api_keys)
router.include_router(mail)
router.include_router(oidc)
router.include_router(debugging)
wellknown = APIRouter(tags=["auth"], route_class=StrictRoute)


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


class DeleteBody(WireModel):
    """The own password, as the consent to be removed; whoever logs in through an issuer has none."""

    current_password: str = ""


class ChangePasswordBody(WireModel):
    """The own password, and what it is to become."""

    current_password: str
    new_password: NewPassword


# ── Signing up and in ───────────────────────────────────────────────────────────────────────────────────────────────


@router.post("/auth/signup", status_code=201)
async def signup(body: SignupBody, request: Request, auth: Service) -> Document:
    """Become a user, where the deployment lets anybody."""
    user = await auth.sign_up(body.username, body.email, body.password, network_address(request))
    return {"message": "Welcome; you can log in now.", "userId": user.id}


@router.post("/auth/login")
async def login(body: LoginBody, request: Request, response: Response, auth: Service) -> Document:
    """Log in with a username or e-mail address; the tokens come in the body and as HttpOnly cookies."""
    session = await auth.login(body.username, body.password, network_address(request))
    return granted(request, response, session, "You are logged in.")


@router.post("/auth/refresh")
async def refresh(request: Request, response: Response, auth: Service, body: RefreshBody | None = None) -> Document:
    """Exchange a refresh token, which works once, for a new pair; using one again ends the session everywhere."""
    token = _refresh_token(request, body)
    if not token:
        raise Unauthenticated("Send the refreshToken of the login, in the body or as its cookie.")
    return granted(request, response, await auth.refresh(token), "The session goes on.")


@router.post("/auth/logout")
async def logout(request: Request, response: Response, auth: Service, body: RefreshBody | None = None) -> Document:
    """End the session that the refresh token, or else the access token, belongs to."""
    token = _refresh_token(request, body)
    if token:
        await auth.logout(token)
    else:
        await auth.logout_session((await current_principal(request)).session_id)
    forget(response)
    return {"message": "You are logged out."}


@router.post("/auth/logout-all")
async def logout_all(caller: Present, response: Response, auth: Service) -> Document:
    """End every session of the caller."""
    await auth.logout_all(caller.id)
    forget(response)
    return {"message": "You are logged out everywhere."}


def _refresh_token(request: Request, body: RefreshBody | None) -> str | None:
    """The refresh token in the body, else in the cookie. Raises CrossSite where only another site's page sends it."""
    if body and body.refresh_token:
        return body.refresh_token
    if (token := request.cookies.get(REFRESH_COOKIE)) is not None:
        check_same_origin(request)
    return token


# ── The own profile ─────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/profile", dependencies=[opens_to(PROFILE_SCOPE)])
async def profile(caller: Present) -> Document:
    """The caller as auth knows them now."""
    return {"user": user_document(caller)}


@router.put("/profile")
async def update_profile(body: ProfileBody, caller: Present, request: Request, auth: Service) -> Document:
    """Change the own username or e-mail address; access tokens bear the new one from the next refresh on."""
    user = await auth.update_profile(caller.id, username=body.username, email=body.email)
    if user.email.lower() != caller.email.lower():
        auth.correspondence.offer(Purpose.VERIFY, user.email, network_address(request))
    return {"message": "Your profile is changed.", "user": user_document(user)}


@router.get("/profile/export", response_model=None)
async def export_profile(request: Request, caller: Present, auth: Service) -> Response:
    """All that is kept of the caller, secrets aside; what other services keep is written as it comes."""
    own = export_document(await auth.export(caller.id))
    elsewhere: Elsewhere | None = getattr(request.app.state, "elsewhere", None)
    if elsewhere is None:
        return JSONResponse(own)
    pieces = await elsewhere.members(presented_token(request))
    return StreamingResponse(_whole(own, pieces), media_type="application/json")


async def _whole(own: Document, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    yield json.dumps(own).removesuffix("}") + ","
    async for piece in pieces:
        yield piece
    yield "}"


@router.delete("/profile")
async def delete_profile(
    body: DeleteBody, principal: User, caller: Present, request: Request, response: Response, auth: Service
) -> Document:
    """Remove the caller with every session and API key, for good; not the last administrator."""
    await auth.delete_own(caller.id, principal.session_id, body.current_password, network_address(request))
    forget(response)
    return {"message": "Your account is removed."}


@router.post("/change-password")
async def change_password(
    body: ChangePasswordBody, caller: Present, request: Request, response: Response, auth: Service
) -> Document:
    """Change the own password; every session ends, and the answer holds the tokens of a new one."""
    session = await auth.change_password(caller.id, body.current_password, body.new_password, network_address(request))
    return granted(request, response, session, "Your password is changed; other sessions have ended.")


# ── Services and keys ───────────────────────────────────────────────────────────────────────────────────────────────

_TOKEN_FORM: Document = {
    "type": "object",
    "required": ["grant_type"],
    "properties": {
        "grant_type": {"type": "string", "enum": ["client_credentials", EXCHANGE_GRANT]},
        "client_id": {"type": "string"},
        "client_secret": {"type": "string"},
        "scope": {"type": "string"},
        "subject_token": {"type": "string"},
        "subject_token_type": {"type": "string", "enum": [ACCESS_TOKEN_TYPE]},
    },
}


@router.post(
    "/auth/token",
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": _TOKEN_FORM}}}
    },
)
async def token(request: Request, auth: Service) -> Document:
    """A token for client credentials, as HTTP Basic or in the form (RFC 6749 §4.4): a service's, or an API key.

    An API key is its own name: it stands whole in `client_secret`, and `client_id` is empty or its prefix. The token of
    an external issuer is exchanged for one of ours as `subject_token` (RFC 8693).
    """
    form = token_form(request.headers, await request.body())
    if form["grant_type"] == EXCHANGE_GRANT:
        return await _exchanged(subject_token(form), auth)
    asked = client_credentials(request.headers, form)
    if asked.client_secret.startswith(API_KEY_PREFIX):
        made = await auth.api_keys.granted(asked.client_id, asked.client_secret, asked.scope, network_address(request))
    else:
        made = await auth.service_token(asked.client_id, asked.client_secret, asked.scope)
    return _token(made)


async def _exchanged(subject: str, auth: Service) -> Document:
    try:
        made = await auth.externals.exchange(subject)
    except (ExternalTokenRefused, IssuerAway) as error:
        raise InvalidSubject(error) from error
    return {**_token(made), "issued_token_type": ACCESS_TOKEN_TYPE}


def _token(made: ServiceToken) -> Document:
    return {
        "access_token": made.access_token,
        "token_type": "Bearer",
        "expires_in": made.expires_in,
        "scope": " ".join(sorted(made.scopes)),
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
