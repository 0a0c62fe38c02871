"""The Provider port over HTTP: any server that speaks OpenAI's chat completions."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeGuard

import msgspec
import yarl

from parshall.chat.ports import ModelCard, Prompt, ProviderFailure, Take
from parshall.chat.providers.counting import clean, count_prompt
from parshall.chat.providers.http1 import Client
from parshall.chat.providers.openai_stream import TEXT_SHOWN_MAX, Answer, garbage
from parshall.chat.providers.patience import Patience
from parshall.chat.providers.refusal import refusal
from parshall.chat.providers.reply import Lost, Malformed, Reply, Silent
from parshall.kernel import trace
from parshall.kernel.calls import Call
from parshall.kernel.errors import StartupError
from parshall.kernel.exchange import decoded
from parshall.kernel.recording import current

ANY_MODEL = "*"
CONNECT_SECONDS = 10.0
TRAILER_SECONDS = 5.0
"""How long usage and `[DONE]` may follow after the model has ended; then the answer counts as complete."""
DRAIN_SECONDS = 0.025
"""How long to wait, after the answer, for the end of the body that lets the connection be used again; it delays the
end of an answer from a server that sends none, hence so short."""
KEEPALIVE_SECONDS = 4.0
"""Below the five seconds of uvicorn-based servers: a request must not meet a connection that is just closing."""
MODELS_SECONDS = 60.0
MODELS_TIMEOUT_SECONDS = 5.0
MODELS_MAX = 500
MODEL_ID_CHARS_MAX = 200
BODY_BYTES_MAX = 1024 * 1024
ERROR_BYTES_MAX = 4096

_ASKS_FOR_EVENTS = ((b"Accept", b"text/event-stream"), (b"Content-Type", b"application/json"))


class OpenAIProvider:
    """An OpenAI-compatible server. Nothing is retried: what it was asked once, it may have billed."""

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str | None,
        models: tuple[str, ...],
        first_token_seconds: float = 60.0,
        idle_seconds: float = 30.0,
        context_tokens: int = 128_000,
        output_tokens_max: int = 16_384,
    ) -> None:
        """`models` are the ids to offer; ANY_MODEL among them offers all that the server lists and takes any id.

        The model must begin to answer within `first_token_seconds` and may then be silent for `idle_seconds`.
        `context_tokens` and `output_tokens_max` describe models of which the server says nothing. Raises StartupError.
        """
        self._base = _checked_url(base_url)
        self._key = _checked_key(api_key)
        self._path = self._base.raw_path.rstrip("/")
        self._client = Client(self._base, connect_seconds=CONNECT_SECONDS, keepalive_seconds=KEEPALIVE_SECONDS)
        self._fields = [
            (b"User-Agent", b"parshall"),
            (b"Accept-Encoding", b"identity"),  # compressed streams arrive late
        ]
        if self._key:
            self._fields.append((b"Authorization", f"Bearer {self._key}".encode("ascii")))
        self._configured = tuple(model for model in models if model != ANY_MODEL)
        self._takes_any = ANY_MODEL in models
        self._first_token_seconds = first_token_seconds
        self._idle_seconds = idle_seconds
        self._context_tokens = context_tokens
        self._output_tokens_max = output_tokens_max
        self._closed = False
        self._listed: list[ModelCard] = []
        self._listed_until = 0.0
        self._listing = asyncio.Lock()
        self._new_limit_name: set[str] = set()

    async def models(self) -> Sequence[ModelCard]:
        """The configured models, and with ANY_MODEL those that the server lists (remembered for MODELS_SECONDS).

        A server that cannot be asked lists none.
        """
        cards = [self._card(model) for model in self._configured]
        if self._takes_any:
            cards += [card for card in await self._server_models() if card.id not in self._configured]
        return cards

    def unlisted(self, model_id: str) -> ModelCard | None:
        """With ANY_MODEL a card for every id that could be one: the server has the last word."""
        return self._card(model_id) if self._takes_any and _is_model_id(model_id) else None

    async def count_input(self, prompt: Prompt) -> int:
        """Input tokens by o200k_base and a little over; the server's own count replaces it in the end."""
        return count_prompt(prompt)

    async def stream(self, prompt: Prompt, take: Take) -> None:
        """Give the answer to `take`, all deltas of one read together. Raises ProviderFailure."""
        deadline = asyncio.get_running_loop().time() + self._first_token_seconds
        reply = await self._ask(prompt, deadline)
        reading = _Reading(reply, take, deadline, idle_seconds=self._idle_seconds)
        try:
            await reading.to_end()
            await reply.finish(DRAIN_SECONDS)
        finally:
            reading.close()
            reply.close()

    async def close(self) -> None:
        """Close every connection; running streams end with a failure."""
        self._closed = True
        await self._client.close()

    # ── Asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, prompt: Prompt, deadline: float) -> Reply:
        """The response, its status and type checked, ready to be read."""
        reply = await self._post(prompt, deadline)
        kind = (reply.header("content-type") or "").partition(";")[0].strip().lower()
        encoding = (reply.header("content-encoding") or "identity").strip().lower()
        if reply.status == 200 and kind not in ("application/json", "text/html") and encoding == "identity":
            return reply
        try:
            async with asyncio.timeout_at(deadline):
                body = await reply.read(ERROR_BYTES_MAX)
        except (Lost, TimeoutError):
            body = b""
        finally:
            reply.close()
        if reply.status == 200:
            found = kind if encoding == "identity" else f"{kind}, coded as {encoding},"
            raise garbage(f"answered with {_shown(found)} instead of a plain event stream")
        if self._limit_name_is_old(prompt, reply.status, body):
            self._new_limit_name.add(prompt.model_id)
            return await self._ask(prompt, deadline)
        raise refusal(reply.status, body, retry_after=reply.header("retry-after"), key=self._key)

    async def _post(self, prompt: Prompt, deadline: float) -> Reply:
        if self._closed:
            raise _closed()
        fields = [*self._fields, *_ASKS_FOR_EVENTS, (trace.TRACEPARENT_HEADER.encode(), trace.traceparent().encode())]
        recording = current.get()
        call = None
        if recording is not None:
            url = f"{self._base}/chat/completions"
            call = Call(recording, to="openai", method="POST", url=url, kind="provider")
        try:
            async with asyncio.timeout_at(deadline):
                body = self._request(prompt)
                reply = await self._client.ask("POST", f"{self._path}/chat/completions", fields, body)
        except (Lost, OSError, RuntimeError) as error:
            if call is not None:
                call.lost(dict(decoded(fields)), type(error).__name__)
            if isinstance(error, Malformed):
                raise garbage("does not speak HTTP as it should") from error
            raise _lost(silent=isinstance(error, TimeoutError), answering=False) from error
        if call is not None:
            call.has_come(reply.status, reply.version, sent=decoded(fields), received=decoded(reply.headers))
        return reply

    def _request(self, prompt: Prompt) -> bytes:
        limit = "max_completion_tokens" if prompt.model_id in self._new_limit_name else "max_tokens"
        body: dict[str, Any] = {
            "model": clean(prompt.model_id),
            "messages": [{"role": message.role, "content": clean(message.content)} for message in prompt.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            limit: prompt.output_tokens_max,
        }
        if prompt.temperature is not None:
            body["temperature"] = prompt.temperature
        return msgspec.json.encode(body)

    def _limit_name_is_old(self, prompt: Prompt, status: int, body: bytes) -> bool:
        """Whether the server refused `max_tokens` by name, as OpenAI does for newer models; nothing was generated."""
        return status == 400 and b"max_completion_tokens" in body and prompt.model_id not in self._new_limit_name

    # ── Models ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _card(self, model: str, context_tokens: int | None = None) -> ModelCard:
        context = context_tokens or self._context_tokens
        return ModelCard(
            id=model,
            name=model,
            description=f"Served by {self._base.host}.",
            provider="openai",
            context_tokens=context,
            output_tokens_max=min(self._output_tokens_max, max(1, context // 2)),
            exact_usage=False,
        )

    async def _server_models(self) -> list[ModelCard]:
        async with self._listing:
            if time.monotonic() >= self._listed_until:
                self._listed = await self._ask_models()
                self._listed_until = time.monotonic() + MODELS_SECONDS
            return self._listed

    async def _ask_models(self) -> list[ModelCard]:
        try:
            async with asyncio.timeout(MODELS_TIMEOUT_SECONDS):
                reply = await self._client.ask("GET", f"{self._path}/models", self._fields)
                try:
                    body = await reply.read(BODY_BYTES_MAX)
                    await reply.finish(DRAIN_SECONDS)
                finally:
                    reply.close()
            listed = msgspec.json.decode(body)["data"] if reply.status == 200 else []
            return [self._card(id, context) for id, context in _listed_models(listed)]
        except (Lost, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            return []


def _shown(text: str) -> str:
    """A provider's own words as they may reach a caller."""
    return "".join(letter for letter in text if letter.isprintable())[:TEXT_SHOWN_MAX]


def _listed_models(listed: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
    """Ids, each with its context length where the server gives one (vLLM and OpenRouter do)."""
    models: dict[str, int | None] = {}
    for entry in listed[:MODELS_MAX]:
        name, length = entry["id"], entry.get("max_model_len") or entry.get("context_length")
        if _is_model_id(name):
            models[name] = length if isinstance(length, int) and 0 < length <= 100_000_000 else None
    return list(models.items())


def _is_model_id(name: Any) -> TypeGuard[str]:
    return isinstance(name, str) and 0 < len(name) <= MODEL_ID_CHARS_MAX and name.isprintable()


class _Reading:
    """An answer on its way from the connection to who takes it."""

    def __init__(self, reply: Reply, take: Take, deadline: float, *, idle_seconds: float) -> None:
        """It must have begun by `deadline`, and end by `close`."""
        self._reply = reply
        self._take = take
        self._idle_seconds = idle_seconds
        self._answer = Answer()
        self._patience = Patience(lambda: reply.lose(Silent()), deadline)

    async def to_end(self) -> None:
        """Give all of the answer away. Raises ProviderFailure."""
        try:
            await self._reply.each(self._read)
        except _Whole:
            pass
        except Lost as lost:
            if not self._answer.finished:
                raise _lost(silent=isinstance(lost, Silent), answering=True) from lost
        self._patience.rests = True
        if (taken := self._take(self._answer.end())) is not None:
            await taken

    def close(self) -> None:
        """Wait for the provider no longer."""
        self._patience.close()

    def _read(self, piece: bytes) -> Awaitable[None] | None:
        deltas = self._answer.read(piece)
        taken = self._take(deltas) if deltas else None
        if taken is not None:
            self._patience.rests = True
            return self._taken(taken)
        self._go_on()
        return None

    async def _taken(self, taken: Awaitable[None]) -> None:
        await taken
        self._patience.rests = False
        self._go_on()

    def _go_on(self) -> None:
        answer = self._answer
        if answer.failure is not None:
            raise answer.failure
        if answer.done:
            raise _Whole
        if answer.finished:
            self._patience.again(TRAILER_SECONDS)
        elif answer.begun:
            self._patience.again(self._idle_seconds)


class _Whole(Exception):
    """All that matters of an answer has been read."""


def _lost(*, silent: bool, answering: bool) -> ProviderFailure:
    if silent:
        return ProviderFailure("The model provider took too long; try again shortly.", code="provider_timeout")
    if answering:
        return ProviderFailure(
            "The connection to the model provider broke in the middle of the answer; try again.",
            code="provider_cut",
        )
    return ProviderFailure("The model provider cannot be reached; try again shortly.", code="provider_unreachable")


def _closed() -> ProviderFailure:
    return ProviderFailure("The model provider was shut down; try again shortly.")


def _checked_url(base_url: str) -> yarl.URL:
    try:
        url = yarl.URL(base_url.rstrip("/"))
    except ValueError as error:
        raise StartupError("OPENAI_BASE_URL is not a URL; give one such as http://127.0.0.1:11434/v1.") from error
    if url.scheme not in ("http", "https") or not url.host or url.query_string or url.fragment or url.user:
        raise StartupError(
            "OPENAI_BASE_URL must be an http(s) URL without query or password; for example http://127.0.0.1:11434/v1."
        )
    return url


def _checked_key(api_key: str | None) -> str | None:
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise StartupError("OPENAI_API_KEY must be a single line of ASCII without spaces; correct it.")
    return key or None
