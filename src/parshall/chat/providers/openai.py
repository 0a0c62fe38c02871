"""The Provider port over HTTP: any server that speaks OpenAI's chat completions."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeGuard

import aiohttp
import msgspec
import yarl

from parshall.chat.ports import Delta, ModelCard, Prompt, ProviderFailure
from parshall.chat.providers.counting import clean, count_prompt
from parshall.chat.providers.openai_stream import Answer, garbage
from parshall.chat.providers.patience import Patience
from parshall.chat.providers.refusal import refusal
from parshall.kernel import trace
from parshall.kernel.calls import Call
from parshall.kernel.errors import StartupError
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

_LOST = (aiohttp.ClientError, OSError, RuntimeError)
"""What a broken connection raises: TimeoutError is an OSError, and aiohttp reads a closed one with a RuntimeError."""


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
        self._configured = tuple(model for model in models if model != ANY_MODEL)
        self._takes_any = ANY_MODEL in models
        self._first_token_seconds = first_token_seconds
        self._idle_seconds = idle_seconds
        self._context_tokens = context_tokens
        self._output_tokens_max = output_tokens_max
        self._opened: aiohttp.ClientSession | None = None
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

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Sequence[Delta], None]:
        """The answer, all deltas of one read together. Raises ProviderFailure. Closing it closes the connection."""
        deadline = asyncio.get_running_loop().time() + self._first_token_seconds
        response = await self._ask(prompt, deadline)
        answer, patience = Answer(), Patience(response, deadline)
        try:
            while not answer.done:
                chunk = await self._read(response, answer, patience)
                if not chunk:
                    break
                deltas = answer.read(chunk)
                if deltas:
                    yield deltas
                answer.check()
            yield answer.end()
            await _drain(response)
        finally:
            patience.close()
            response.close()

    async def close(self) -> None:
        """Close every connection; running streams end with a failure."""
        self._closed = True
        if self._opened is not None:
            await self._opened.close()

    # ── Asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _session(self) -> aiohttp.ClientSession:
        """The one session, made on first use: it belongs to the running loop."""
        if self._closed:
            raise ProviderFailure("The model provider was shut down; try again shortly.")
        if self._opened is None:
            headers = {"Accept-Encoding": "identity"}  # compressed streams arrive late
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            self._opened = aiohttp.ClientSession(
                headers=headers,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._opened

    async def _ask(self, prompt: Prompt, deadline: float) -> aiohttp.ClientResponse:
        """The response, its status and type checked, ready to be read."""
        response = await self._post(prompt, deadline)
        if response.status == 200 and response.content_type not in ("application/json", "text/html"):
            return response
        try:
            async with asyncio.timeout_at(deadline):
                body = await _body(response, ERROR_BYTES_MAX)
        except _LOST:
            body = b""
        finally:
            response.close()
        if response.status == 200:
            raise garbage(f"answered with {response.content_type} instead of an event stream")
        if self._limit_name_is_old(prompt, response.status, body):
            self._new_limit_name.add(prompt.model_id)
            return await self._ask(prompt, deadline)
        raise refusal(response.status, body, retry_after=response.headers.get("Retry-After"), key=self._key)

    async def _post(self, prompt: Prompt, deadline: float) -> aiohttp.ClientResponse:
        session, url = self._session(), f"{self._base}/chat/completions"
        recording = current.get()
        call = None if recording is None else Call(recording, to="openai", method="POST", url=url, kind="provider")
        try:
            async with asyncio.timeout_at(deadline):
                response = await session.post(
                    url,
                    data=self._request(prompt),
                    headers={
                        "Content-Type": "application/json",
                        "Accept": "text/event-stream",
                        trace.TRACEPARENT_HEADER: trace.traceparent(),
                    },
                    allow_redirects=False,
                )
            if call is not None:
                call.answered(response)
            return response
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if call is not None:
                call.lost(session.headers, type(error).__name__)
            if isinstance(error, aiohttp.ClientError) and not isinstance(error, aiohttp.ClientConnectionError):
                raise garbage("does not speak HTTP as it should") from error
            raise self._lost(error, answering=False) from error

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

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer, patience: Patience) -> bytes:
        """The next bytes; none at the end, or where all that matters has been read. Raises ProviderFailure."""
        if answer.finished:
            patience.again(TRAILER_SECONDS)
        elif answer.begun:
            patience.again(self._idle_seconds)
        try:
            return await response.content.readany()
        except _LOST as error:
            if answer.finished:
                return b""
            raise self._lost(error, answering=True) from error

    def _lost(self, error: Exception, *, answering: bool) -> ProviderFailure:
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            return ProviderFailure("The model provider took too long; try again shortly.", code="provider_timeout")
        if answering:
            return ProviderFailure(
                "The connection to the model provider broke in the middle of the answer; try again.",
                code="provider_cut",
            )
        return ProviderFailure("The model provider cannot be reached; try again shortly.", code="provider_unreachable")

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
            async with (
                asyncio.timeout(MODELS_TIMEOUT_SECONDS),
                self._session().get(f"{self._base}/models", allow_redirects=False) as response,
            ):
                body = await _body(response, BODY_BYTES_MAX)
                listed = msgspec.json.decode(body)["data"] if response.status == 200 else []
            return [self._card(id, context) for id, context in _listed_models(listed)]
        except (*_LOST, ValueError, KeyError, TypeError, AttributeError, ProviderFailure):
            return []


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


async def _body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """At most `limit` bytes of the body."""
    body = b""
    while len(body) < limit:
        chunk = await response.content.read(limit - len(body))
        if not chunk:
            break
        body += chunk
    return body


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Give the connection back if its body ends now; otherwise it is closed."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while await response.content.readany():
                pass
    except _LOST:
        return
    response.release()


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
