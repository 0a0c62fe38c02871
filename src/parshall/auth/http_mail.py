"""E-mail over HTTP: codes are asked for in the same words for every address, and given back."""

from fastapi import APIRouter, Request

from parshall.auth.edge import Document, Email, NewPassword, Service, network_address
from parshall.auth.mailed import Purpose
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.http import WireModel

router = APIRouter(prefix="/auth", route_class=StrictRoute)

_ON_ITS_WAY = "If a user has this address, a message is on its way to it."


class AddressBody(WireModel):
    """An e-mail address."""

    email: Email


class CodeBody(WireModel):
    """A code as it was mailed."""

    token: str


class ResetBody(CodeBody):
    """A code as it was mailed, and what the password is to become."""

    new_password: NewPassword


@router.post("/forgot-password")
async def forgot_password(body: AddressBody, request: Request, auth: Service) -> Document:
    """Have a code mailed with which a new password can be set."""
    auth.correspondence.ask(Purpose.RESET, body.email, network_address(request))
    return {"message": _ON_ITS_WAY}


@router.post("/resend-verification")
async def resend_verification(body: AddressBody, request: Request, auth: Service) -> Document:
    """Have a code mailed with which the address can be confirmed."""
    auth.correspondence.ask(Purpose.VERIFY, body.email, network_address(request))
    return {"message": _ON_ITS_WAY}


@router.post("/verify-email")
async def verify_email(body: CodeBody, auth: Service) -> Document:
    """Confirm an address by the code that was mailed to it."""
    await auth.correspondence.verify(body.token)
    return {"message": "The e-mail address is confirmed."}


@router.post("/reset-password")
async def reset_password(body: ResetBody, auth: Service) -> Document:
    """Set a new password by the code that was mailed; every session and API key of the user ends."""
    await auth.correspondence.reset(body.token, body.new_password)
    return {"message": "The password is changed; log in with it."}
