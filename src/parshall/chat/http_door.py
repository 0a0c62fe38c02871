"""The way in for the request that begins a stream, beside the framework's: it costs a fifth of what that takes.

What is usual is answered here, by the same functions that the route of `http_streams` is made of. Whatever is unusual
about a request (a body that does not validate, a query, another type of content) goes the framework's way unchanged,
so that there is one place that says what is wrong with it.
"""

import re

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from parshall.chat.http_streams import StreamResponse, ask_stream, offset_of
from parshall.chat.wire import AskBody
from parshall.kernel.bodies import MalformedJson, parsed
from parshall.kernel.errors import ParshallError
from parshall.kernel.headers import LAST_EVENT_ID_HEADER, STREAM_ID_HEADER
from parshall.kernel.http import current_user
from parshall.kernel.ids import SessionId
from parshall.kernel.requests import TEMPLATE
from parshall.kernel.tokens import CHAT_SCOPE

ROUTE = "/api/chat/sessions/{session_id}/stream"
_PATH = re.compile(r"/api/chat/sessions/([0-9a-f]{32})/stream")
_JSON = ("application/json", "application/json; charset=utf-8")


class Door:
    """An ASGI application that serves `POST /api/chat/sessions/{id}/stream` itself and leaves the rest to another."""

    def __init__(self, app: FastAPI) -> None:
        """`app` has the route too, its services in its state, and the handler of ParshallError."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        asked = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if asked is None or scope.get("root_path") or scope["query_string"]:
            await self._app(scope, receive, send)
            return
        scope["app"], scope[TEMPLATE] = self._app, ROUTE
        request = Request(scope, receive)
        try:
            content = await request.body()
        except ClientDisconnect:
            return
        body = _body(request, content)
        if body is None:
            await self._app(scope, _again(content, receive), send)
            return
        response = await self._answer(request, SessionId(asked[1]), body)
        await response(scope, receive, send)

    async def _answer(self, request: Request, session_id: SessionId, body: AskBody) -> Response:
        """The stream, or the refusal, as the framework would have it."""
        request.state.opening_scope = CHAT_SCOPE
        chat = request.app.state.chat
        try:
            user = await current_user(request)
            proposed = request.headers.get(STREAM_ID_HEADER)
            after = await offset_of(None, request.headers.get(LAST_EVENT_ID_HEADER))
            asked = await ask_stream(request, session_id, body, user, chat, proposed)
            return StreamResponse(request, asked.stream_id, await chat.attach(asked.stream_id, after=after))
        except ParshallError as error:
            refused: Response = await self._app.exception_handlers[ParshallError](request, error)  # type: ignore[misc]
            return refused


def _body(request: Request, content: bytes) -> AskBody | None:
    """The body of a usual request."""
    if request.headers.get("content-type", "").lower() not in _JSON:
        return None
    try:
        return AskBody.model_validate(parsed(content))
    except (ValidationError, MalformedJson):
        return None


def _again(content: bytes, receive: Receive) -> Receive:
    """A receive that begins with a body that was read already."""
    read: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive_again() -> Message:
        return read.pop() if read else await receive()

    return receive_again
