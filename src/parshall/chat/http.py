"""The chat API over HTTP: chat sessions, messages and models; streams are in `http_streams`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from parshall.chat import wire
from parshall.chat.http_silence import silence_router
from parshall.chat.http_streams import (
    CARRIES_ID,
    Asked,
    ChatService,
    SessionIdPath,
    ask_stream,
    read_to_end,
    streams_router,
)
from parshall.chat.model import PER_PAGE_MAX, receipt
from parshall.chat.ports import ModelCard
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.headers import STREAM_ID_HEADER
from parshall.kernel.http import User
from parshall.kernel.refusals import problem
from parshall.kernel.scopes import opens_to
from parshall.kernel.tokens import CHAT_SCOPE

router = APIRouter(prefix="/api", tags=["chat"], dependencies=[opens_to(CHAT_SCOPE)], route_class=StrictRoute)
router.include_router(silence_router)  # first: its path would be a stream's id
router.include_router(streams_router)


@router.post("/chat/sessions", status_code=201)
async def create_session(body: wire.CreateSession, user: User, chat: ChatService) -> dict[str, Any]:
    """Begin a chat session."""
    session = await chat.create(
        user_id=user.user_id,
        title=body.title,
        first=body.initial_message,
        model_id=body.model_id,
        source=body.source,
    )
    return wire.session_summary(session)


@router.get("/chat/sessions")
async def list_sessions(
    user: User,
    chat: ChatService,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    limit: Annotated[int, Query(ge=1, le=PER_PAGE_MAX)] = 20,
    query: Annotated[wire.Text | None, Query(max_length=200)] = None,
) -> dict[str, Any]:
    """The caller's chat sessions, last used first; `query` searches titles and messages."""
    found = await chat.page(user_id=user.user_id, text=query, number=page, per_page=limit)
    return wire.sessions_page(found, number=page, per_page=limit)


@router.get("/chat/sessions/{session_id}")
async def get_session(session_id: SessionIdPath, user: User, chat: ChatService) -> dict[str, Any]:
    """A chat session with its messages and its streaming metadata."""
    return wire.conversation_wire(await chat.get(session_id, user_id=user.user_id))


@router.patch("/chat/sessions/{session_id}")
async def change_session(
    session_id: SessionIdPath, body: wire.ChangeSession, user: User, chat: ChatService
) -> dict[str, Any]:
    """Rename a chat session or set its model."""
    changed = await chat.change(session_id, user_id=user.user_id, title=body.title, model_id=body.model_id)
    return wire.session_summary(changed)


@router.delete("/chat/sessions/{session_id}")
async def delete_session(session_id: SessionIdPath, user: User, chat: ChatService) -> dict[str, Any]:
    """Forget a chat session; a running stream is stopped and settled first."""
    await chat.delete(session_id, user_id=user.user_id)
    return {"message": "The chat session is deleted.", "sessionId": session_id}


@router.get("/chat/sessions/{session_id}/messages")
async def list_messages(session_id: SessionIdPath, user: User, chat: ChatService) -> dict[str, Any]:
    """The messages of a chat session, oldest first."""
    conversation = await chat.get(session_id, user_id=user.user_id)
    return {"messages": [message.wire() for message in conversation.messages]}


@router.post("/chat/sessions/{session_id}/messages", responses=CARRIES_ID)
async def send_message(
    request: Request, session_id: SessionIdPath, asked: Annotated[Asked, Depends(ask_stream)], chat: ChatService
) -> JSONResponse:
    """Ask and wait for the whole answer; metered like a stream, and resumable by its id if the connection breaks."""
    await read_to_end(request, await chat.attach(asked.stream_id, after=0))
    await chat.streaming.producers.ended(asked.stream_id)  # a client that has gone must not stop it
    stream = await chat.streaming.find(asked.stream_id, caller=asked.caller)
    ended = await chat.streaming.stop(stream)
    assert ended.ending is not None
    headers = {STREAM_ID_HEADER: ended.id}
    if ended.ending.outcome.is_failure:
        return problem(
            request,
            status=503,
            code=ended.ending.error_code or ended.ending.outcome.value,
            title="No complete answer",
            detail=ended.ending.error_message or "The answer was cut short; what was generated is in the history.",
            headers={**headers, "Retry-After": "1"},
            receipt=receipt(ended),
        )
    body = {
        "message": "The answer is in `response`.",
        "sessionId": session_id,
        "response": await chat.streaming.records.answer(ended.id),
        "tokensUsed": wire.tokens_used(ended),
        "streamingSessionId": ended.id,
        "finishReason": ended.ending.finish_reason,
        "receipt": receipt(ended),
    }
    return JSONResponse(body, headers=headers)


@router.get("/models")
async def list_models(request: Request, _user: User, chat: ChatService) -> dict[str, Any]:
    """The models on offer, with their prices in credits per million tokens."""
    return {"models": [await _model_wire(request, card) for card in await chat.models()]}


@router.post("/models/recommend")
async def recommend_model(request: Request, body: wire.Recommend, _user: User, chat: ChatService) -> dict[str, Any]:
    """A model for a task, and why."""
    card, reason = await chat.catalog.recommend(task=body.task, priority=body.priority)
    return {"recommendedModel": card.id, "reason": reason, "modelDetails": await _model_wire(request, card)}


async def _model_wire(request: Request, card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "name": card.name,
        "description": card.description,
        "capabilities": list(card.capabilities),
        "creditCost": await request.app.state.price_of(card.id),
        "maxTokens": card.output_tokens_max,
        "contextTokens": card.context_tokens,
        "available": True,
    }
