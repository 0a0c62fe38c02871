"""What a limited token, such as an API key's, opens: the routes that name one of its scopes, and nothing else."""

from typing import Any

from fastapi import Depends, Request

from parshall.kernel.errors import Forbidden
from parshall.kernel.tokens import Principal


def opens_to(scope: str) -> Any:
    """For `dependencies=[…]` of a route or router: a limited token with this scope may come in.

    FastAPI solves these before the parameters of the route, and so before the caller is asked for.
    """

    async def name_scope(request: Request) -> None:
        request.state.opening_scope = scope

    return Depends(name_scope)


def check_scope(principal: Principal, request: Request) -> None:
    """Raises Forbidden where a limited token does not open the route of this request."""
    scope: str | None = getattr(request.state, "opening_scope", None)
    if principal.is_limited and scope not in principal.scopes:
        needed = f"needs the scope {scope}" if scope else "is not for API keys; log in"
        raise Forbidden(f"This {needed}.")
