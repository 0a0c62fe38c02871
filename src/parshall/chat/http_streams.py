"""Streams over HTTP: the one response class that carries Server-Sent Events, and the routes around it."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from parshall.chat import wire
from parshall.chat.mismatch import named_id
from parshall.chat.model import receipt
from parshall.chat.reader import Reader, Reading
from parshall.chat.service import Chat
from parshall.kernel import sse
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.errors import Invalid
from parshall.kernel.headers import STREAM_ID_HEADER, stream_headers
from parshall.kernel.http import User
from parshall.kernel.ids import STREAM_ID_PATTERN, SessionId, StreamId, stream_id_in
from parshall.kernel.pushing import push_of
from parshall.kernel.telemetry import bind
from parshall.kernel.tokens import Principal

streams_router = APIRouter(tags=["streams"], route_class=StrictRoute)

OFFSET_MAX = 2**53


async def _service(request: Request) -> Chat:
    """On the loop, as every dependency: the framework runs one that is not a coroutine in a thread."""
    service: Chat = request.app.state.chat
    return service


ChatService = Annotated[Chat, Depends(_service)]
SessionIdPath = Annotated[SessionId, Path(pattern=r"^[0-9a-f]{32}$")]
ProposedId = Annotated[str | None, Header(alias=STREAM_ID_HEADER)]

CARRIES_ID: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            STREAM_ID_HEADER: {
                "description": "The id of the stream, before every other header; on a stream event 1 has it too.",
                "required": True,
                "schema": {"type": "string", "pattern": STREAM_ID_PATTERN},
            }
        }
    }
}
"""What the OpenAPI document says of answers about one stream."""


class MalformedOffset(Invalid):
    """A resume position that is not the id of an event."""

    code = "malformed_offset"
    title = "Malformed offset"
    default = "Last-Event-ID (or ?after=) must be the id of an event of this stream: a whole number from 0."


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A turn that has begun, or that had begun before."""

    stream_id: StreamId
    caller: Principal


async def ask_stream(
    request: Request,
    session_id: SessionIdPath,
    body: wire.AskBody,
    user: User,
    chat: ChatService,
    proposed: ProposedId = None,
) -> Asked:
    """Begin or find the stream of a request, before the status line: errors are still HTTP errors here."""
    stream_id = await chat.streaming.ask(
        body.ask(request.app.state.on_disconnect),
        user_id=user.user_id,
        session_id=session_id,
        proposed=None if proposed is None else named_id(proposed),
    )
    bind(stream=stream_id)
    return Asked(stream_id=stream_id, caller=user)


async def offset_of(
    after: Annotated[str | None, Query(max_length=20)] = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> int:
    """The offset to resume behind; the header wins, since a browser sets it on its own reconnect."""
    given = last_event_id or after or "0"
    if not (given.isascii() and given.isdigit() and int(given) <= OFFSET_MAX):
        raise MalformedOffset
    return int(given)


Offset = Annotated[int, Depends(offset_of)]


class StreamResponse(Response):
    """Server-Sent Events of one stream. The id header goes out before any other (H1)."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, stream_id: StreamId, reader: Reading) -> None:
        """The reader is left when the response ends, however it ends."""
        self.background = None
        self.status_code = 200
        self._reader = reader
        self._readers: set[Reading] = request.app.state.readers
        self.raw_headers = stream_headers(
            stream_id,
            origin=request.headers.get("origin"),
            allowed_origins=request.app.state.allowed_origins,
            http_version=str(request.scope.get("http_version", "1.1")),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the stream ends, the client goes, or the server asks its readers to come back."""
        reader = self._reader
        self._readers.add(reader)
        watch = asyncio.create_task(_until_gone(receive, reader))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            push = push_of(scope)
            if push is not None and isinstance(reader, Reader):
                reader.push_to(push)
            async for chunk in reader:
                await send({"type": "http.response.body", "body": chunk or sse.PING, "more_body": True})
            last = b"" if reader.ended else sse.GOODBYE
            await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            watch.cancel()
            self._readers.discard(reader)
            reader.leave()


async def _until_gone(receive: Receive, reader: Reading) -> None:
    """Let the reader go as soon as its client has."""
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.interrupt()


async def read_to_end(request: Request, reader: Reader) -> None:
    """Read a stream to its end for a client that waits for the whole answer, or until that client goes."""
    readers: set[Reading] = request.app.state.readers
    readers.add(reader)
    watch = asyncio.create_task(_until_gone(request.receive, reader))
    try:
        async for _ in reader:
            pass
    finally:
        watch.cancel()
        readers.discard(reader)
        reader.leave()


@streams_router.post(
    "/chat/sessions/{session_id}/stream", response_class=StreamResponse, status_code=200, responses=CARRIES_ID
)
async def stream_answer(
    request: Request, asked: Annotated[Asked, Depends(ask_stream)], chat: ChatService, after: Offset
) -> Response:
    """Ask and read the answer live. The same id again attaches to the same stream and never charges twice."""
    return StreamResponse(request, asked.stream_id, await chat.attach(asked.stream_id, after=after))


@streams_router.get(
    "/chat/streams/{stream_id}",
    response_class=StreamResponse,
    status_code=200,
    responses={200: {"content": {"application/json": {}}, **CARRIES_ID[200]}},
)
async def resume_stream(request: Request, stream_id: str, user: User, chat: ChatService, after: Offset) -> Response:
    """Read a stream from an offset, live or ended; with `Accept: application/json`, its state and receipt."""
    stream = await chat.stream(stream_id, caller=user)
    bind(stream=stream.id)
    accepted = request.headers.get("accept", "")
    if "application/json" in accepted and "text/event-stream" not in accepted:
        return JSONResponse(wire.stream_wire(stream), headers={STREAM_ID_HEADER: stream.id})
    return StreamResponse(request, stream.id, await chat.attach(stream.id, after=after))


@streams_router.post("/chat/streams/{stream_id}/stop", responses=CARRIES_ID)
async def stop_stream(stream_id: str, user: User, chat: ChatService) -> JSONResponse:
    """End a stream now; what was generated is kept and charged. Stopping an ended stream gives its receipt."""
    stream = await chat.stream(stream_id, caller=user)
    ended = await chat.streaming.stop(stream)
    body = {"message": "The stream has ended.", "streamingSessionId": ended.id, "receipt": receipt(ended)}
    return JSONResponse(body, headers={STREAM_ID_HEADER: ended.id})


@streams_router.post("/chat/sessions/{session_id}/update-stream")
async def update_stream(
    session_id: SessionIdPath, body: wire.UpdateStream, user: User, chat: ChatService
) -> dict[str, Any]:
    """Acknowledge a stream. The server's log stays the truth; `matches` says whether the client's text agrees."""
    if (named := stream_id_in(str(body.streaming_session_id))) is not None:
        bind(stream=named)
    done = await chat.acknowledge(
        session_id, user_id=user.user_id, named=body.streaming_session_id, text=body.complete_response
    )
    return {
        "message": "The chat session is up to date.",
        "sessionId": session_id,
        "tokensUsed": wire.tokens_used(done.stream),
        "matches": done.comparison != "different",
        "comparison": done.comparison,
        "receipt": receipt(done.stream),
    }
