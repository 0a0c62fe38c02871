"""Header traces over HTTP, for administrators: switched on for a user or a stream, listed, read, switched off."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import Field, model_validator

from parshall.chat import wire
from parshall.chat.debugging import SWITCH_MINUTES, SWITCH_MINUTES_MAX, By, TraceKeeper, Traces
from parshall.chat.har import har_of
from parshall.chat.timeline import summary_of, timeline_of
from parshall.chat.trace_store import Switch
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.clock import rfc3339
from parshall.kernel.http import Admin, WireModel
from parshall.kernel.tokens import Principal

router = APIRouter(prefix="/api/debug/headers", tags=["debugging"], route_class=StrictRoute)


class SwitchBody(WireModel):
    """Whose requests, or which stream's, are traced for how long."""

    user_id: Annotated[wire.Text, Field(min_length=1, max_length=255)] | None = None
    streaming_session_id: Annotated[wire.Text, Field(max_length=100)] | None = None
    minutes: Annotated[int, Field(ge=1, le=SWITCH_MINUTES_MAX)] = SWITCH_MINUTES

    @model_validator(mode="after")
    def _one(self) -> "SwitchBody":
        if (self.user_id is None) == (self.streaming_session_id is None):
            raise ValueError("name either userId or streamingSessionId")
        return self


async def _traces(request: Request) -> Traces:
    traces: Traces = request.app.state.traces
    return traces


async def _keeper(request: Request) -> TraceKeeper:
    keeper: TraceKeeper = request.app.state.trace_keeper
    return keeper


TracesService = Annotated[Traces, Depends(_traces)]
Keeper = Annotated[TraceKeeper, Depends(_keeper)]
Named = Annotated[wire.Text, Path(min_length=1, max_length=100)]


@router.post("", status_code=201)
async def switch_on(body: SwitchBody, caller: Admin, traces: TracesService, keeper: Keeper) -> dict[str, Any]:
    """Trace the headers of a user's requests, or of a stream's, for so many minutes."""
    switch = await traces.switch_on(
        user=body.user_id, stream_id=body.streaming_session_id, minutes=body.minutes, by=_by(caller)
    )
    await keeper.look()
    return _switch_wire(switch)


@router.get("")
async def list_switches(_caller: Admin, traces: TracesService) -> dict[str, Any]:
    """What is switched on, and the newest requests that were traced."""
    return {
        "switches": [_switch_wire(each) for each in await traces.switches()],
        "recent": [summary_of(each) for each in await traces.recent()],
    }


@router.get("/{stream_id}")
async def read_trace(
    stream_id: Named,
    caller: Admin,
    traces: TracesService,
    form: Annotated[Literal["json", "har"], Query(alias="format")] = "json",
) -> dict[str, Any]:
    """What was traced of a stream, or of one request by its id, as a timeline or as HAR 1.2."""
    found = await traces.read(stream_id, by=_by(caller))
    return har_of(found) if form == "har" else timeline_of(stream_id, found)


@router.delete("/{stream_id}")
async def switch_off(stream_id: Named, caller: Admin, traces: TracesService, keeper: Keeper) -> dict[str, Any]:
    """Turn off a switch by its id, or those of a user or a stream by theirs. What was traced stays."""
    gone = await traces.switch_off(stream_id, by=_by(caller))
    await keeper.look()
    return {"message": "These are traced no more.", "switches": [_switch_wire(each) for each in gone]}


def _by(caller: Principal) -> By:
    return By(id=caller.user_id, name=caller.username)


def _switch_wire(switch: Switch) -> dict[str, Any]:
    return {
        "id": switch.id,
        "userId": switch.user_id,
        "streamingSessionId": switch.stream_id,
        "setBy": switch.set_by,
        "setAt": rfc3339(switch.set_at),
        "until": rfc3339(switch.until),
    }
