"""What accounting's routes share: the service, idempotency keys, and who may settle."""

import re
from typing import Annotated

from fastapi import Depends, Header, Request, Response

from parshall.accounting.bodies import Who
from parshall.accounting.once import Once
from parshall.accounting.service import Accounting
from parshall.kernel.errors import Invalid
from parshall.kernel.headers import USER_ID_HEADER
from parshall.kernel.http import Caller, WireModel
from parshall.kernel.ids import UserId
from parshall.kernel.scopes import opens_to
from parshall.kernel.tokens import CREDITS_SCOPE, Principal

SETTLE_SCOPE = "accounting:settle"
_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")


async def _service(request: Request) -> Accounting:
    accounting: Accounting = request.app.state.accounting
    return accounting


async def _idempotency_key(
    key: Annotated[str | None, Header(alias="Idempotency-Key", description="makes a repeated request safe")] = None,
) -> str | None:
    if key is not None and not _KEY.match(key):
        raise Invalid("An Idempotency-Key has 1 to 255 printable ASCII characters; make another one.")
    return key


async def _settler(principal: Caller) -> Principal:
    principal.require_scope(SETTLE_SCOPE)
    return principal


async def _price_reader(principal: Caller) -> Principal:
    if principal.is_service:
        principal.require_scope(SETTLE_SCOPE)
    return principal


Ledger = Annotated[Accounting, Depends(_service)]
Key = Annotated[str | None, Depends(_idempotency_key)]
Settler = Annotated[Principal, Depends(_settler)]
"""A service that may settle; users cannot, or they would set the price of their own streams."""
PriceReader = Annotated[Principal, Depends(_price_reader)]
"""Any user, and a service that shows users what models cost."""
OPEN = [opens_to(CREDITS_SCOPE)]
"""What a route is declared with that API keys may read."""
OnBehalfOf = Annotated[Who | None, Header(alias=USER_ID_HEADER, description="the user whom the service acts for")]


def once_of(key: str | None, caller: Principal, operation: str, user_id: UserId, body: WireModel) -> Once | None:
    """The request under its key; however the body names the user, it is the same request."""
    if key is None:
        return None
    asked = body.model_dump(mode="json", exclude={"user_id"})
    return Once.of(user_id, asked, caller=caller.user_id, operation=operation, key=key)


def json_text(body: str, status: int = 200) -> Response:
    """A rendered answer, as it is."""
    return Response(body, status_code=status, media_type="application/json")
