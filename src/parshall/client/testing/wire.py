"""The fake deployment over HTTP: the paths that a chat application uses, in the real wire format."""

import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from parshall.client.testing.lines import NOTHING, Lines, Reading
from parshall.client.testing.world import DEFAULT_ANSWER, MODEL_ID, TOKEN_PRICE, Answer, ChatSession, Person, Refused
from parshall.client.testing.world import pieces_of as pieces
from parshall.kernel import clock
from parshall.kernel.credits import parse_credits, wire
from parshall.kernel.headers import REQUEST_ID_HEADER, STREAM_ID_HEADER, stream_headers
from parshall.kernel.ids import new_stream_id, parse_stream_id
from parshall.kernel.refusals import install_errors, problem
from parshall.kernel.tokens import presented_token

if TYPE_CHECKING:
    from parshall.client.testing import FakeParshall

PER_MILLION = 1_000_000


class Wire:
    """The routes of one fake, as an ASGI application."""

    def __init__(self, fake: "FakeParshall") -> None:
        """The faults to play and the answers to give are the fake's."""
        self._fake = fake
        self.lines = Lines()
        self._app = FastAPI(openapi_url=None)
        install_errors(self._app)
        self._app.add_exception_handler(Refused, _refused)
        for method, path, answer in self._routes():
            self._app.add_api_route(f"/api{path}", answer, methods=[method], response_model=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request under a request id."""
        request_id = scope["request_id"] = uuid.uuid4().hex

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (REQUEST_ID_HEADER.encode(), request_id.encode())]
            await send(message)

        await self._app(scope, receive, named)

    def _routes(self) -> list[tuple[str, str, Callable[..., Awaitable[Response]]]]:
        return [
            ("POST", "/auth/login", self._login),
            ("POST", "/auth/refresh", self._refresh),
            ("POST", "/auth/logout", self._logout),
            ("GET", "/profile", self._profile),
            ("GET", "/credits/balance", self._balance),
            ("POST", "/credits/check", self._check),
            ("POST", "/credits/calculate", self._calculate),
            ("GET", "/credits/statement", self._statement),
            ("GET", "/models", self._models),
            ("GET", "/chat/sessions", self._list_sessions),
            ("POST", "/chat/sessions", self._create_session),
            ("GET", "/chat/sessions/{session_id}", self._session),
            ("PATCH", "/chat/sessions/{session_id}", self._change_session),
            ("DELETE", "/chat/sessions/{session_id}", self._delete_session),
            ("GET", "/chat/sessions/{session_id}/messages", self._messages),
            ("POST", "/chat/sessions/{session_id}/stream", self._ask),
            ("POST", "/chat/sessions/{session_id}/update-stream", self._acknowledge),
            ("GET", "/chat/streams/{stream_id}", self._resume),
            ("POST", "/chat/streams/{stream_id}/stop", self._stop),
        ]

    # ── Who ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _login(self, request: Request) -> Response:
        body = await _body(request)
        person = self._fake.people.get(str(body.get("username")))
        if person is None or person.password != body.get("password"):
            raise Refused(401, "wrong_credentials", "The username or password is not right; check both and try again.")
        return JSONResponse(self._granted(person))

    async def _refresh(self, request: Request) -> Response:
        person = self._fake.refresh_tokens.pop(str((await _body(request)).get("refreshToken")), None)
        if person is None:
            raise Refused(401, "refresh_refused", "The session cannot be prolonged; log in again.")
        self._fake.refreshes += 1
        return JSONResponse(self._granted(person))

    async def _logout(self, request: Request) -> Response:
        self._fake.refresh_tokens.pop(str((await _body(request)).get("refreshToken")), None)
        return JSONResponse({"message": "You are logged out."})

    def _granted(self, person: Person) -> dict[str, Any]:
        access, refresh = self._fake.issue(person)
        pair = {"accessToken": access, "refreshToken": refresh, "tokenType": "Bearer"}
        return {"message": "You are logged in.", **pair, "expiresIn": 900, "user": person.document()}

    def _person(self, request: Request) -> Person:
        person = self._fake.access_tokens.get(presented_token(request))
        if person is None:
            raise Refused(
                401, "unauthenticated", "Log in and send the access token as `Authorization: Bearer <token>`."
            )
        return person

    async def _profile(self, request: Request) -> Response:
        return JSONResponse({"user": self._person(request).document()})

    # ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _balance(self, request: Request) -> Response:
        return JSONResponse(self._person(request).balance())

    async def _check(self, request: Request) -> Response:
        person, body = self._person(request), await _body(request)
        required = parse_credits(body.get("requiredCredits", 0), allow_zero=True)
        answer = {"credits": wire(person.available), "requiredCredits": wire(required)}
        sufficient = required <= person.available
        return JSONResponse({"sufficient": sufficient, "hasSufficientCredits": sufficient, **answer})

    async def _calculate(self, request: Request) -> Response:
        self._person(request)
        body = await _body(request)
        tokens = sum(int(body.get(name) or 0) for name in ("tokens", "inputTokens", "outputTokens"))
        return JSONResponse({"credits": wire(tokens * TOKEN_PRICE)})

    async def _statement(self, request: Request) -> Response:
        person, after = self._person(request), int(request.query_params.get("after", "0"))
        limit = int(request.query_params.get("limit", "100"))
        entries = person.entries[after : after + limit]
        more = entries[-1]["id"] if len(entries) == limit else None
        return JSONResponse({"userId": person.id, "entries": entries, "next": more})

    # ── Chats ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _models(self, request: Request) -> Response:
        self._person(request)
        price = wire(TOKEN_PRICE * PER_MILLION)
        cost = {"input": price, "cachedInput": price, "output": price, "reasoning": price}
        model = {"id": MODEL_ID, "name": "Fake", "description": "Answers as scripted.", "capabilities": ["chat"]}
        return JSONResponse(
            {"models": [{**model, "creditCost": cost, "maxTokens": 1024, "contextTokens": 8192, "available": True}]}
        )

    async def _list_sessions(self, request: Request) -> Response:
        person, query = self._person(request), request.query_params
        number, limit = int(query.get("page", "1")), int(query.get("limit", "20"))
        wanted = query.get("query", "").lower()
        own = [each for each in reversed(self._fake.sessions.values()) if each.owner is person]
        found = [each for each in own if wanted in (each.title or "").lower()]
        place = {"total": len(found), "pages": -(-len(found) // limit), "currentPage": number, "perPage": limit}
        shown = found[(number - 1) * limit : number * limit]
        return JSONResponse({"sessions": [each.summary() for each in shown], "pagination": place})

    async def _create_session(self, request: Request) -> Response:
        person, body = self._person(request), await _body(request)
        chat = ChatSession(
            owner=person, title=body.get("title"), model_id=body.get("modelId"), source=body.get("source")
        )
        self._fake.sessions[chat.id] = chat
        return JSONResponse(chat.summary(), 201)

    def _chat(self, request: Request) -> ChatSession:
        person = self._person(request)
        chat = self._fake.sessions.get(request.path_params["session_id"])
        if chat is None or chat.owner is not person:
            raise _not_found()
        return chat

    async def _session(self, request: Request) -> Response:
        chat = self._chat(request)
        streams = self._streams_of(chat)
        receipts = [each.ending for each in streams if not each.is_running and each.ending]
        metadata = {
            "streamingSessionId": streams[-1].id if streams else None,
            "lastTokensUsed": receipts[-1]["tokensUsed"] if receipts else 0,
            "totalTokensUsed": sum(each["tokensUsed"] for each in receipts),
            "activeStreamingSession": next((each.id for each in streams if each.is_running), None),
        }
        return JSONResponse({**chat.summary(), "messages": chat.messages, "metadata": metadata})

    async def _change_session(self, request: Request) -> Response:
        chat, body = self._chat(request), await _body(request)
        chat.title, chat.model_id = body.get("title") or chat.title, body.get("modelId") or chat.model_id
        return JSONResponse(chat.summary())

    async def _delete_session(self, request: Request) -> Response:
        chat = self._chat(request)
        for stream in self._streams_of(chat):
            stream.stop()
            del self._fake.streams[stream.id]
        del self._fake.sessions[chat.id]
        return JSONResponse({"message": "The chat session is deleted.", "sessionId": chat.id})

    async def _messages(self, request: Request) -> Response:
        chat = self._chat(request)
        for stream in self._streams_of(chat):
            stream.receipt()  # one that is due ends now, and its answer is a message
        return JSONResponse({"messages": chat.messages})

    def _streams_of(self, chat: ChatSession) -> list[Answer]:
        return [each for each in self._fake.streams.values() if each.chat is chat]

    # ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, request: Request) -> Response:
        chat, body = self._chat(request), await _body(request)
        self._fail_if_told()
        proposed = request.headers.get(STREAM_ID_HEADER)
        stream_id = new_stream_id(at=clock.now()) if proposed is None else parse_stream_id(proposed)
        stream = self._fake.streams.get(stream_id) or self._begun(chat, stream_id, body)
        if stream.chat is not chat or stream.asked != body:
            raise Refused(409, "id_reused", "This id was already used for another request; make a new one.")
        if self._fake.take("lose_answers"):
            return Reading(self.lines, stream, cut_after=NOTHING)
        return self._reading(request, stream)

    def _begun(self, chat: ChatSession, stream_id: str, body: dict[str, Any]) -> Answer:
        if (running := next((each for each in self._streams_of(chat) if each.is_running), None)) is not None:
            detail = "Another answer of this chat session is still running; attach to it, stop it, or wait for its end."
            raise Refused(409, "stream_active", detail, streamingSessionId=running.id)
        message = str(body.get("message") or "")
        if not message:
            raise Refused(400, "validation_failed", "The request is not valid (body.message); correct it.", errors=[])
        stream = Answer(
            stream_id=stream_id,
            chat=chat,
            asked=body,
            pieces=pieces(self._fake.answers.get(message, DEFAULT_ANSWER)),
            delay_seconds=self._fake.delay_seconds,
        )
        self._fake.streams[stream_id] = stream
        return stream

    def _stream(self, request: Request) -> Answer:
        person = self._person(request)
        stream = self._fake.streams.get(parse_stream_id(request.path_params["stream_id"]))
        if stream is None or stream.chat.owner is not person:
            raise _not_found(reason="unknown", wayOut="Check the deployment and the user.")
        return stream

    async def _resume(self, request: Request) -> Response:
        stream, accepted = self._stream(request), request.headers.get("accept", "")
        if "application/json" in accepted and "text/event-stream" not in accepted:
            return JSONResponse(stream.state(), headers={STREAM_ID_HEADER: stream.id})
        self._fail_if_told()
        return self._reading(request, stream)

    async def _stop(self, request: Request) -> Response:
        stream = self._stream(request)
        stream.stop()
        body = {"message": "The stream has ended.", "streamingSessionId": stream.id, "receipt": stream.receipt()}
        return JSONResponse(body, headers={STREAM_ID_HEADER: stream.id})

    async def _acknowledge(self, request: Request) -> Response:
        chat, body = self._chat(request), await _body(request)
        stream = self._fake.streams.get(str(body.get("streamingSessionId")))
        if stream is None or stream.chat is not chat:
            newest = next((each.id for each in reversed(self._streams_of(chat))), None)
            details = {"expected": newest, "received": None, "reason": "unknown"}
            raise Refused(400, "stream_id_mismatch", "Streaming session ID mismatch.", details=details)
        stream.stop()
        text, given = stream.text(), str(body.get("completeResponse"))
        same = "exact" if given == text else "prefix" if text.startswith(given) else "different"
        answer = {"message": "The chat session is up to date.", "sessionId": chat.id, "comparison": same}
        used = stream.ending["tokensUsed"] if stream.ending else 0
        return JSONResponse({**answer, "tokensUsed": used, "matches": same != "different", "receipt": stream.receipt()})

    def _fail_if_told(self) -> None:
        if self._fake.take("unavailable"):
            raise Refused(503, "unavailable", "The service cannot answer now; try again shortly.")

    def _reading(self, request: Request, stream: Answer) -> Reading:
        position = request.headers.get("Last-Event-ID") or request.query_params.get("after") or "0"
        raw = stream_headers(stream.id, origin=None, allowed_origins=(), http_version="1.1")
        if self._fake.strip_header:
            raw = [pair for pair in raw if pair[0] != STREAM_ID_HEADER.encode()]
        cut = None if stream.cut else self._fake.cut_after
        return Reading(self.lines, stream, after=int(position), cut_after=cut, raw_headers=raw)


async def _body(request: Request) -> dict[str, Any]:
    try:
        document = await request.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Refused(400, "malformed_json", "The body is not valid JSON in UTF-8; correct it and send it again.")
    return document


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    title = error.code.replace("_", " ")
    challenge = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "0"}}
    return problem(
        request,
        status=error.status,
        code=error.code,
        title=title,
        detail=error.detail,
        headers=challenge.get(error.status),
        **error.extra,
    )


def _not_found(**extra: Any) -> Refused:
    return Refused(404, "not_found", "There is nothing here by that name, or it is not yours.", **extra)
