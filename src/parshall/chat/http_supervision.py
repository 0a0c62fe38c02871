"""What supervisors see of others' chats over HTTP, and the audit log of it for administrators."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from parshall.chat import wire
from parshall.chat.http_streams import CARRIES_ID, Offset, SessionIdPath, StreamResponse
from parshall.chat.model import PER_PAGE_MAX
from parshall.chat.observations import OBSERVATIONS_PER_PAGE_MAX, Observation
from parshall.chat.observer import Observer
from parshall.chat.supervision import Supervision
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.clock import rfc3339
from parshall.kernel.errors import ParshallError
from parshall.kernel.http import Admin, Supervisor
from parshall.kernel.telemetry import bind, log

_logger = log("observe")
router = APIRouter(prefix="/api", tags=["supervision"], route_class=StrictRoute)
"""Apart from the router of chat, because an API key that may chat must not observe others."""


async def _service(request: Request) -> Supervision:
    service: Supervision = request.app.state.supervision
    return service


SupervisionService = Annotated[Supervision, Depends(_service)]
Who = Annotated[wire.Text, Path(min_length=1, max_length=255)]
Named = Annotated[wire.Text | None, Query(min_length=1, max_length=255)]
After = Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$")]


class ObserveResponse(StreamResponse):
    """The events of an observation; how it ended is kept, however it ends."""

    def __init__(
        self, request: Request, observation: Observation, observer: Observer, supervision: Supervision
    ) -> None:
        """The observation has begun."""
        super().__init__(request, observer.stream_id, observer)
        self._observation = observation
        self._observer = observer
        self._supervision = supervision

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the stream ends, the observer goes, or may no longer look."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(self._keep_end())

    async def _keep_end(self) -> None:
        """That it began is kept already; where the database is away for the end, the response is over all the same."""
        try:
            await self._supervision.observed(self._observation, self._observer)
        except ParshallError as error:
            _logger.warning("observation_end_not_kept", observation=self._observation.id, reason=error.detail)


@router.get(
    "/chat/sessions/{session_id}/observe", response_class=ObserveResponse, status_code=200, responses=CARRIES_ID
)
async def observe_session(
    request: Request, session_id: SessionIdPath, caller: Supervisor, supervision: SupervisionService, after: Offset
) -> Response:
    """Follow the stream of somebody's chat session: its history, then live."""
    observation, observer = await supervision.observe(session_id, by=caller, after=after)
    bind(stream=observer.stream_id)
    return ObserveResponse(request, observation, observer, supervision)


@router.get("/chat/observations")
async def list_observations(
    _caller: Admin,
    supervision: SupervisionService,
    user_id: Annotated[Named, Query(alias="userId")] = None,
    observer_id: Annotated[Named, Query(alias="observerId")] = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=OBSERVATIONS_PER_PAGE_MAX)] = 100,
) -> dict[str, Any]:
    """The audit log: who looked at whose chat, newest first."""
    found = await supervision.observations(user=user_id, observer=observer_id, after=after, limit=limit)
    return {
        "observations": [_observation_wire(each) for each in found],
        "next": found[-1].id if len(found) == limit else None,
    }


@router.get("/chat/users/search")
async def search_users(
    _caller: Supervisor,
    supervision: SupervisionService,
    query: Annotated[wire.Text, Query(min_length=1, max_length=200)],
    limit: Annotated[int, Query(ge=1, le=PER_PAGE_MAX)] = 20,
) -> dict[str, Any]:
    """Users whose name or e-mail address contains `query`."""
    found = await supervision.search(query, limit=limit)
    return {
        "users": [
            {"id": each.id, "username": each.username, "email": each.email, "role": each.role.value} for each in found
        ]
    }


@router.get("/chat/users/{user_id}/sessions")
async def list_sessions_of(
    user_id: Who,
    _caller: Supervisor,
    supervision: SupervisionService,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    limit: Annotated[int, Query(ge=1, le=PER_PAGE_MAX)] = 20,
    query: Annotated[wire.Text | None, Query(max_length=200)] = None,
) -> dict[str, Any]:
    """A user's chat sessions, last used first."""
    return wire.sessions_page(
        await supervision.sessions_of(user_id, text=query, number=page, per_page=limit), number=page, per_page=limit
    )


@router.get("/chat/users/{user_id}/sessions/{session_id}")
async def get_session_of(
    user_id: Who, session_id: SessionIdPath, caller: Supervisor, supervision: SupervisionService
) -> dict[str, Any]:
    """A user's chat session with its messages; the audit log keeps that it was read."""
    return wire.conversation_wire(await supervision.read(user_id, session_id, by=caller))


def _observation_wire(observation: Observation) -> dict[str, Any]:
    return {
        "id": observation.id,
        "kind": observation.kind,
        "sessionId": observation.session_id,
        "streamingSessionId": observation.stream_id,
        "userId": observation.user_id,
        "observerId": observation.observer_id,
        "observer": observation.observer_name,
        "beganAt": rfc3339(observation.began_at),
        "endedAt": None if observation.ended_at is None else rfc3339(observation.ended_at),
        "end": observation.end,
        "shownAfter": observation.shown_after,
        "shownTo": observation.shown_to,
    }
