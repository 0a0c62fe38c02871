"""Debug tokens over HTTP: made for administrators, who have a request traced by sending one with it."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from parshall.auth.edge import Administrator, Document, Service
from parshall.kernel import clock
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.clock import MINUTE, rfc3339
from parshall.kernel.debugtokens import DEBUG_MINUTES, DEBUG_MINUTES_MAX
from parshall.kernel.fingerprints import DEBUG_HEADER
from parshall.kernel.http import WireModel
from parshall.kernel.telemetry import log

router = APIRouter(prefix="/debug/headers", route_class=StrictRoute)
_logger = log("headers")


class DebugTokenBody(WireModel):
    """For how long."""

    minutes: Annotated[int, Field(ge=1, le=DEBUG_MINUTES_MAX)] = DEBUG_MINUTES


@router.post("/token", status_code=201)
async def create_debug_token(body: DebugTokenBody, admin: Administrator, auth: Service) -> Document:
    """Make a token for the header X-Debug-Headers; whatever request carries it is traced. It opens nothing."""
    token = await auth.debug_token(admin.id, minutes=body.minutes)
    _logger.info("debug_header_made", by=admin.id, minutes=body.minutes)
    return {"header": DEBUG_HEADER, "token": token, "expiresAt": rfc3339(clock.now() + body.minutes * MINUTE)}
