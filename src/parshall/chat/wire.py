"""Request bodies of the chat API and the JSON forms of its answers."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from parshall.chat.model import MESSAGE_CHARACTERS_MAX, TITLE_CHARACTERS_MAX, Ask, ChatSession, Stream, receipt
from parshall.chat.service import Conversation
from parshall.kernel.clock import rfc3339
from parshall.kernel.http import WireModel


def _storable(text: str) -> str:
    """Refuse what no database keeps: lone surrogates and, for PostgreSQL, NUL."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must not contain NUL characters or lone surrogates")
    return text


Text = Annotated[str, AfterValidator(_storable)]
MessageText = Annotated[Text, Field(min_length=1, max_length=MESSAGE_CHARACTERS_MAX)]
ModelId = Annotated[Text, Field(min_length=1, max_length=200)]
Title = Annotated[Text, Field(min_length=1, max_length=TITLE_CHARACTERS_MAX)]


class CreateSession(WireModel):
    """POST /chat/sessions."""

    title: Title | None = None
    initial_message: MessageText | None = None
    model_id: ModelId | None = None
    source: Annotated[Text, Field(max_length=50)] | None = None


class ChangeSession(WireModel):
    """PATCH /chat/sessions/{id}."""

    title: Title | None = None
    model_id: ModelId | None = None


class AskBody(WireModel):
    """POST /chat/sessions/{id}/stream and …/messages."""

    message: MessageText
    model_id: ModelId | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    on_disconnect: Literal["continue", "stop"] | None = None

    def ask(self, default: Literal["continue", "stop"]) -> Ask:
        """The request as the service takes it; `default` is the deployment's onDisconnect."""
        return Ask(
            message=self.message,
            model_id=self.model_id,
            output_tokens_max=self.max_tokens,
            temperature=self.temperature,
            on_disconnect=self.on_disconnect or default,
        )


class UpdateStream(WireModel):
    """POST /chat/sessions/{id}/update-stream."""

    complete_response: Annotated[str, Field(max_length=4_000_000)]
    streaming_session_id: Annotated[str, Field(max_length=200)]
    tokens_used: Annotated[int, Field(ge=0, le=2**53)]


class Recommend(WireModel):
    """POST /models/recommend."""

    task: Annotated[Text, Field(max_length=200)] | None = None
    priority: Literal["quality", "speed", "cost"] | None = None


def session_summary(session: ChatSession) -> dict[str, Any]:
    """A chat session in a list."""
    return {
        "id": session.id,
        "sessionId": session.id,
        "title": session.title,
        "modelId": session.model_id,
        "source": session.source,
        "createdAt": rfc3339(session.created_at),
        "updatedAt": rfc3339(session.updated_at),
    }


def sessions_page(found: tuple[list[ChatSession], int], *, number: int, per_page: int) -> dict[str, Any]:
    """A page of chat sessions, numbered from 1, of as many as there are."""
    sessions, total = found
    return {
        "sessions": [session_summary(session) for session in sessions],
        "pagination": {
            "total": total,
            "pages": -(-total // per_page),
            "currentPage": number,
            "perPage": per_page,
        },
    }


def conversation_wire(conversation: Conversation) -> dict[str, Any]:
    """A chat session with its messages and what its streams used."""
    streams = conversation.streams
    ended = [stream for stream in streams if stream.ending is not None]
    active = next((stream.id for stream in streams if stream.is_open), None)
    return {
        **session_summary(conversation.session),
        "messages": [message.wire() for message in conversation.messages],
        "metadata": {
            "streamingSessionId": streams[-1].id if streams else None,
            "lastTokensUsed": tokens_used(ended[-1]) if ended else 0,
            "totalTokensUsed": sum(tokens_used(stream) for stream in ended),
            "activeStreamingSession": active,
        },
    }


def tokens_used(stream: Stream) -> int:
    """Input and output tokens of an ended stream together."""
    assert stream.ending is not None
    return stream.ending.usage.input_tokens + stream.ending.usage.output_tokens


def stream_wire(stream: Stream) -> dict[str, Any]:
    """State, usage and receipt of a stream."""
    ending = stream.ending
    return {
        "streamingSessionId": stream.id,
        "sessionId": stream.session_id,
        "modelId": stream.model_id,
        "fallbackApplied": stream.fallback_applied,
        "state": "active" if ending is None else "ended",
        "outcome": None if ending is None else ending.outcome.value,
        "createdAt": rfc3339(stream.created_at),
        "endedAt": None if ending is None else rfc3339(ending.ended_at),
        "usage": None if ending is None else ending.usage.wire(),
        "receipt": None if ending is None else receipt(stream),
    }
