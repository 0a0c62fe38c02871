"""What auth's routes share: the service, forms of names and passwords, callers as auth knows them now, and cookies."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request, Response
from pydantic import Field

from parshall.auth import model
from parshall.auth.service import REFRESH_SECONDS, Auth
from parshall.auth.wire import user_document
from parshall.kernel.browsers import is_secure
from parshall.kernel.errors import Forbidden
from parshall.kernel.http import Admin, Caller, User, WireModel
from parshall.kernel.tokens import Principal, Role

Document = dict[str, Any]
Username = Annotated[str, Field(pattern=model.USERNAME_PATTERN)]
Email = Annotated[str, Field(max_length=model.EMAIL_CHARS_MAX, pattern=model.EMAIL_PATTERN)]
NewPassword = Annotated[str, Field(min_length=model.PASSWORD_CHARS_MIN, max_length=model.PASSWORD_BYTES_MAX)]


ACCESS_COOKIE = "accessToken"
REFRESH_COOKIE = "refreshToken"
REFRESH_PATH = "/api/auth"


class SignupBody(WireModel):
    """A new user's own wishes."""

    username: Username
    email: Email
    password: NewPassword


class Elsewhere(Protocol):
    """What other services keep of a user, which auth does not know: members of a JSON object, as pieces of text."""

    async def members(self, token: str) -> AsyncIterator[str]:
        """What is kept of the user of this token, asked by it. Raises Unavailable."""
        ...


async def _service(request: Request) -> Auth:
    auth: Auth = request.app.state.auth
    return auth


def network_address(request: Request) -> str:
    """Where a request came from, which counts for throttles."""
    return request.client.host if request.client else "unknown"


Service = Annotated[Auth, Depends(_service)]


async def _present(principal: User, auth: Service) -> model.User:
    """Elsewhere a token counts until it expires; here it must not outlive its session, nor restore an old role."""
    return await auth.present(principal.user_id, principal.session_id)


Present = Annotated[model.User, Depends(_present)]
"""The calling user as auth knows them now."""


async def _administrator(_principal: Admin, user: Present) -> model.User:
    if user.role is not Role.ADMIN:
        raise Forbidden
    return user


async def _reader(principal: Caller, auth: Service) -> Principal:
    """Users are looked up by administrators, and by services that resolve a name."""
    if principal.is_service:
        principal.require_scope(model.READ_SCOPE)
        return principal
    principal.require(Role.ADMIN)
    await _administrator(principal, await _present(principal, auth))
    return principal


Administrator = Annotated[model.User, Depends(_administrator)]
Reader = Annotated[Principal, Depends(_reader)]


def granted(
    request: Request, response: Response, session: model.Session, message: str, *, secure: bool = False
) -> Document:
    """The tokens of a session, as the body and as HttpOnly cookies; `secure` where it is known that https is used."""
    secure = secure or is_secure(request)
    for name, value, seconds, path in (
        (ACCESS_COOKIE, session.access_token, session.expires_in, "/"),
        (REFRESH_COOKIE, session.refresh_token, REFRESH_SECONDS, REFRESH_PATH),
    ):
        response.set_cookie(name, value, max_age=seconds, path=path, secure=secure, httponly=True, samesite="strict")
    return {
        "message": message,
        "accessToken": session.access_token,
        "refreshToken": session.refresh_token,
        "expiresIn": session.expires_in,
        "tokenType": "Bearer",
        "user": user_document(session.user),
    }


def forget(response: Response) -> None:
    """Take the cookies back."""
    response.delete_cookie(ACCESS_COOKIE, path="/", httponly=True, samesite="strict")
    response.delete_cookie(REFRESH_COOKIE, path=REFRESH_PATH, httponly=True, samesite="strict")
