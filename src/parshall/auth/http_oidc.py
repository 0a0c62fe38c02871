"""Logging in through an external issuer: the browser is sent there, and comes back as somebody."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from parshall.auth.edge import Document, Service, granted
from parshall.auth.external_login import LOGIN_SECONDS
from parshall.kernel.bodies import StrictRoute

router = APIRouter(prefix="/auth/oidc", route_class=StrictRoute)

TICKET_COOKIE = "oidcLogin"
TICKET_PATH = "/api/auth/oidc"
ANSWER_CHARS_MAX = 4096
_Answer = Annotated[str | None, Query(max_length=ANSWER_CHARS_MAX)]
_AWAY: dict[int | str, dict[str, Any]] = {303: {"description": "The browser goes on elsewhere"}}


@router.get("")
async def list_issuers(auth: Service) -> Document:
    """Where people can log in beside the password."""
    issuers = auth.external_login.issuers()
    return {
        "issuers": [
            {"name": each.name, "issuer": each.issuer, "login": f"{TICKET_PATH}/{each.name}/login"} for each in issuers
        ]
    }


@router.get("/{name}/login", status_code=303, response_class=RedirectResponse, responses=_AWAY)
async def begin_login(
    name: str, auth: Service, return_to: Annotated[str, Query(alias="returnTo")] = "/"
) -> RedirectResponse:
    """Send the browser to the issuer; it comes back logged in, and goes to `returnTo`, a path of this site."""
    begun = await auth.external_login.begin(name, return_to)
    response = RedirectResponse(begun.url, status_code=303)
    response.set_cookie(
        TICKET_COOKIE,
        begun.ticket,
        max_age=LOGIN_SECONDS,
        path=TICKET_PATH,
        secure=_is_secure(auth),
        httponly=True,
        samesite="lax",  # strict would keep it back when the issuer sends the browser here
    )
    return response


@router.get("/{name}/callback", response_model=None, responses=_AWAY)
async def finish_login(
    name: str,
    request: Request,
    auth: Service,
    code: _Answer = None,
    state: _Answer = None,
    iss: _Answer = None,
    error: _Answer = None,
) -> Response:
    """Take the issuer's answer: the tokens of a new session as cookies, and for programs that want JSON as such.

    A page gets them with `POST /api/auth/refresh`, which the cookie is enough for.
    """
    given = {"code": "" if error else code, "state": state, "iss": iss}
    answer = {key: value for key, value in given.items() if value is not None}
    arrived = await auth.external_login.finish(name, answer, request.cookies.get(TICKET_COOKIE, ""))
    session = await auth.login_from(arrived)
    response = Response()
    document = granted(request, response, session, "You are logged in.", secure=_is_secure(auth))
    response.delete_cookie(TICKET_COOKIE, path=TICKET_PATH, httponly=True, samesite="lax")
    if "application/json" in request.headers.get("accept", ""):
        answered: Response = JSONResponse(document)
    else:
        answered = RedirectResponse(f"{auth.external_login.public_url}{arrived.return_to}", status_code=303)
    for cookie in response.headers.getlist("set-cookie"):
        answered.headers.append("set-cookie", cookie)
    return answered


def _is_secure(auth: Service) -> bool:
    return auth.external_login.public_url.startswith("https://")
