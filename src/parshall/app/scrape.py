"""`GET /metrics`, for a scraper with the deployment's token and for administrators; never by where it comes from."""

import asyncio
import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from parshall.kernel import metrics
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.http import current_principal
from parshall.kernel.tokens import Role, presented_token

PATH = "/metrics"

_documented = HTTPBearer(auto_error=False, description="PARSHALL_METRICS_TOKEN, or an administrator's accessToken.")


router = APIRouter(tags=["operations"], route_class=StrictRoute)


@router.get(PATH, response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def scrape(
    request: Request, _credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_documented)]
) -> Response:
    """Metrics as Prometheus reads them, of every process on this port."""
    token: SecretStr | None = request.app.state.metrics_token
    if token is None or not _is(presented_token(request), token):  # administrators may always
        (await current_principal(request)).require(Role.ADMIN)
    request.app.state.look()  # brings up to date what is not counted as it happens
    accept = request.headers.get("accept", "")
    content, media_type = await asyncio.to_thread(metrics.exposition, accept)  # it may read the files of workers
    return Response(content, headers={"Content-Type": media_type, "Cache-Control": "no-store"})


def _is(presented: str, token: SecretStr) -> bool:
    """Whether that is the token; how long it takes to see tells nothing of it."""
    return hmac.compare_digest(presented.encode(), token.get_secret_value().encode())
