"""Calls to chat: models, chat sessions, and streams from asking to the receipt."""

from collections.abc import Mapping
from typing import Any, Literal

from parshall.client import records
from parshall.client.addresses import segment
from parshall.client.asked import Asks, asked, opened
from parshall.client.core import Ask
from parshall.client.errors import ClientError
from parshall.client.model import Receipt
from parshall.client.reading import Question, Reading, ReconnectHook
from parshall.client.records import Acknowledged, Chat, Message, NumberedPage, Recommended, StreamState
from parshall.client.steps import Steps
from parshall.kernel import clock
from parshall.kernel.ids import MalformedStreamId, StreamId, new_stream_id, parse_stream_id


class ChatCalls(Asks):
    """What one asks of chat for oneself."""

    @asked
    def models(self) -> Steps[list[dict[str, Any]]]:
        """The models on offer, as the server describes them."""
        read = records.member("models", list[dict[str, Any]])
        return self._core.call(Ask(method="GET", path="/models"), read)

    @asked
    def recommend(
        self, task: str | None = None, *, priority: Literal["quality", "speed", "cost"] | None = None
    ) -> Steps[Recommended]:
        """A model for a task, and why."""
        ask = Ask(method="POST", path="/models/recommend", body={"task": task, "priority": priority})
        return self._core.call(ask, records.of(Recommended), repeatable=True)

    # ── Chat sessions ───────────────────────────────────────────────────────────────────────────────────────────────

    @asked
    def create_session(
        self, *, title: str | None = None, model_id: str | None = None, source: str | None = None
    ) -> Steps[str]:
        """Open a chat session; its id."""
        ask = Ask(method="POST", path="/chat/sessions", body={"title": title, "modelId": model_id, "source": source})
        return self._core.call(ask, records.member("sessionId", str))

    @asked
    def sessions(self, query: str | None = None, *, page: int = 1, limit: int = 20) -> Steps[NumberedPage[Chat]]:
        """The own chat sessions, last used first; `query` searches titles and messages."""
        ask = Ask(method="GET", path="/chat/sessions", query={"query": query, "page": page, "limit": limit})
        return self._core.call(ask, records.numbered("sessions", Chat))

    @asked
    def session(self, session_id: str) -> Steps[dict[str, Any]]:
        """A chat session with its messages. Raises ApiError (404) for one that is not the user's."""
        return self._core.call(Ask(method="GET", path=_session(session_id)), dict)

    @asked
    def messages(self, session_id: str) -> Steps[list[Message]]:
        """The messages of a chat session, oldest first."""
        ask = Ask(method="GET", path=f"{_session(session_id)}/messages")
        return self._core.call(ask, records.member("messages", list[Message]))

    @asked
    def change_session(self, session_id: str, *, title: str | None = None, model_id: str | None = None) -> Steps[Chat]:
        """Rename a chat session, or set its model."""
        ask = Ask(method="PATCH", path=_session(session_id), body={"title": title, "modelId": model_id})
        return self._core.call(ask, records.of(Chat), repeatable=True)

    @asked
    def delete_session(self, session_id: str) -> Steps[None]:
        """Forget a chat session; a running stream is stopped and settled first."""
        yield from self._core.call(Ask(method="DELETE", path=_session(session_id)), dict)

    # ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @opened
    def stream(
        self,
        session_id: str,
        message: str,
        *,
        model_id: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        on_disconnect: Literal["continue", "stop"] | None = None,
        stream_id: str | None = None,
        after: int = 0,
        on_reconnect: ReconnectHook | None = None,
    ) -> Reading:
        """Ask, and read the answer as it comes. Nothing is sent before the first event is asked for.

        The streaming session id is made here: whatever is lost on the way, the same id again can neither start a
        second generation nor be charged twice. Give a `stream_id` of your own (`new_id()`) to have kept it before
        anything is sent: a process that died meanwhile asks the same question again with it, and gets what comes
        behind the offset `after`.
        """
        options = {"modelId": model_id, "maxTokens": max_tokens, "temperature": temperature}
        question = Question(
            path=f"{_session(session_id)}/stream",
            body={"message": message, **options, "onDisconnect": on_disconnect},
            new_id=new_id if stream_id is None else None,
        )
        proposed = new_id() if stream_id is None else named(stream_id)
        return Reading(self._core, stream_id=proposed, after=after, question=question, on_reconnect=on_reconnect)

    @opened
    def resume(self, stream_id: str, *, after: int = 0, on_reconnect: ReconnectHook | None = None) -> Reading:
        """Read a stream, live or ended, from behind the offset `after`, in whatever process it was asked for."""
        return Reading(self._core, stream_id=named(stream_id), after=after, on_reconnect=on_reconnect)

    @opened
    def observe(self, session_id: str, *, after: int = 0, on_reconnect: ReconnectHook | None = None) -> Reading:
        """Follow the stream of somebody's chat session: its history, then live. For supervisors; it is kept on record.

        Around the stream's events stand `observer`, `history-start` and `history-end`.
        """
        path = f"{_session(session_id)}/observe"
        return Reading(self._core, stream_id=None, after=after, observed=path, on_reconnect=on_reconnect)

    @asked
    def stop(self, stream_id: str) -> Steps[Receipt | None]:
        """End a running stream where it stands; what was generated is charged."""
        ask = Ask(method="POST", path=f"/chat/streams/{named(stream_id)}/stop")
        return self._core.call(ask, _receipt, repeatable=True)

    @asked
    def state(self, stream_id: str) -> Steps[StreamState]:
        """How a stream stands."""
        return self._core.call(Ask(method="GET", path=f"/chat/streams/{named(stream_id)}"), records.of(StreamState))

    @asked
    def receipt(self, stream_id: str) -> Steps[Receipt | None]:
        """The receipt of a stream that has ended; None while it runs."""
        return self._core.call(Ask(method="GET", path=f"/chat/streams/{named(stream_id)}"), _receipt)

    @asked
    def acknowledge(self, session_id: str, stream_id: str, text: str, *, tokens_used: int = 0) -> Steps[Acknowledged]:
        """Say that the client is done with a stream and has this text; one that still runs ends as `stopped`.

        The server's log stays the truth for text and charge; `matches` says whether the text agrees with it.
        """
        body = {"streamingSessionId": stream_id, "completeResponse": text, "tokensUsed": tokens_used}
        ask = Ask(method="POST", path=f"{_session(session_id)}/update-stream", body=body)
        return self._core.call(ask, records.of(Acknowledged), repeatable=True)


def new_id() -> StreamId:
    """A streaming session id of one's own, to propose with a question."""
    return new_stream_id(at=clock.now())


def named(stream_id: str) -> StreamId:
    """The id, which has the form of one. Raises ClientError."""
    try:
        return parse_stream_id(stream_id)
    except MalformedStreamId as error:
        raise ClientError(f"{stream_id[:80]!r} is no streaming session id; take it from `stream.id`.") from error


def _session(session_id: str) -> str:
    return f"/chat/sessions/{segment(session_id)}"


def _receipt(answer: Mapping[str, Any]) -> Receipt | None:
    return Receipt.read(answer.get("receipt")) or Receipt.read(answer)
