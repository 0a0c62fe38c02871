"""The Provider port on a small model inside this process, so that a fresh installation answers without any network."""

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from parshall.chat.ports import (
    Delta,
    Finish,
    ModelCard,
    Prompt,
    PromptTooLong,
    ProviderFailure,
    Take,
    TextDelta,
    UsageReport,
)
from parshall.chat.providers.counting import clean
from parshall.chat.providers.llama import Engine, Token, weights
from parshall.kernel.metering import Usage

MODEL_ID = "smollm2-135m"

SLOTS = 2
"""Answers at once; more wait. They share the same threads, so more slots would only make each slower."""
SLOT_TOKENS = 4096
"""Context of one answer, prompt included. The model could read 8192, at 25 kB of memory a token."""
OUTPUT_TOKENS_MAX = 2048
CHARS_PER_TOKEN_MAX = 64
"""Text beyond so many characters per token of context is refused without being tokenized."""
SYSTEM_PROMPT = "You are a helpful assistant. Give short, correct answers."
"""Where the conversation brings none. The model's own prompt makes this quantization answer in broken French."""

CARD = ModelCard(
    id=MODEL_ID,
    name="SmolLM2 135M Instruct",
    description="A small model that runs inside this server, offline. Quick and simple; do not rely on its facts.",
    provider="embedded",
    context_tokens=SLOT_TOKENS,
    output_tokens_max=OUTPUT_TOKENS_MAX,
)


class EmbeddedProvider:
    """SmolLM2-135M-Instruct through llama.cpp, on half of the cores. Counts and usage are the model's own."""

    def __init__(self, engine: Engine) -> None:
        """Take over a loaded engine; `start` is the usual way."""
        self._engine = engine
        self._threads = ThreadPoolExecutor(SLOTS, thread_name_prefix="model")
        self._slots = asyncio.Semaphore(SLOTS)
        self._running: set[_Generation] = set()
        self._closed = False
        # Whoever forgets to close: the engine's thread must be joined before the interpreter takes its memory down.
        self._finalizer = weakref.finalize(self, engine.close)

    @staticmethod
    async def start(*, threads: int | None = None) -> "EmbeddedProvider":
        """Load the model, in a thread and within about a second; `threads` default to half of the cores.

        Raises StartupError where the weights are missing or do not load.
        """
        count = threads or max(1, (os.cpu_count() or 1) // 2)
        path = weights()
        return EmbeddedProvider(
            await asyncio.to_thread(Engine, path, alias=MODEL_ID, slots=SLOTS, slot_tokens=SLOT_TOKENS, threads=count)
        )

    async def models(self) -> Sequence[ModelCard]:
        """The one model."""
        return [CARD]

    def unlisted(self, model_id: str) -> ModelCard | None:  # noqa: ARG002 - named by the port
        """There is no other model here."""
        return None

    async def count_input(self, prompt: Prompt) -> int:
        """Input tokens, exactly. Raises PromptTooLong where no room is left for an answer."""
        return len(await self._tokens(prompt))

    async def stream(self, prompt: Prompt, take: Take) -> None:
        """Give the answer to `take`, waiting for a free slot first. Raises ProviderFailure, PromptTooLong.

        However it ends, the model stops at its next step, within a token or BATCH_TOKENS of the prompt, and that is
        waited for.
        """
        assert prompt.output_tokens_max > 0
        tokens = await self._tokens(prompt)
        await self._slots.acquire()
        generation = self._begin(tokens, prompt)
        answer = _Answer()
        try:
            while events := await generation.take():
                deltas = [delta for event in events for delta in answer.read(event)]
                if deltas and (taken := take(deltas)) is not None:
                    await taken
            if not answer.finished:
                raise ProviderFailure("The embedded model was stopped; try again shortly.", code="provider_cut")
        finally:
            await generation.stop()

    async def close(self) -> None:
        """Stop every answer, then the model."""
        self._closed = True
        for generation in list(self._running):
            await generation.stop()
        self._threads.shutdown(wait=False)  # its threads are idle now
        await asyncio.to_thread(self._finalizer)

    async def _tokens(self, prompt: Prompt) -> list[Token]:
        conversation = [(message.role, clean(message.content)) for message in prompt.messages]
        if not conversation or conversation[0][0] != "system":
            conversation.insert(0, ("system", SYSTEM_PROMPT))
        chars = sum(len(content) for _, content in conversation)
        if chars > SLOT_TOKENS * CHARS_PER_TOKEN_MAX:
            raise PromptTooLong(contextTokens=SLOT_TOKENS)
        try:
            tokens = await asyncio.to_thread(self._engine.tokenize, conversation)
        except OSError as error:
            raise _closed() from error
        if len(tokens) >= SLOT_TOKENS:
            raise PromptTooLong(inputTokens=len(tokens), contextTokens=SLOT_TOKENS)
        return tokens

    def _begin(self, tokens: list[Token], prompt: Prompt) -> "_Generation":
        """Start generating in the slot that the caller has acquired; the slot is free when the thread has ended."""
        if self._closed:
            self._slots.release()
            raise _closed()
        generation = _Generation()
        limit = min(prompt.output_tokens_max, SLOT_TOKENS - len(tokens))
        thread = asyncio.get_running_loop().run_in_executor(
            self._threads, self._engine.generate, tokens, limit, prompt.temperature, generation.on_event
        )
        generation.thread = thread
        self._running.add(generation)
        thread.add_done_callback(lambda _: self._end(generation))
        return generation

    def _end(self, generation: "_Generation") -> None:
        self._running.discard(generation)
        self._slots.release()
        generation.wake()


def _closed() -> ProviderFailure:
    return ProviderFailure("The embedded model was shut down; try again shortly.")


class _Generation:
    """The way of events from the model's thread to the loop: many appended, one wake-up."""

    thread: asyncio.Future[None]

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[dict[str, Any]] = deque()
        self._something = asyncio.Event()
        self._woken = False
        self._stopped = False

    def on_event(self, event: dict[str, Any]) -> bool:
        """Called by the model's thread; True stops the model.

        It also stops when the main thread has ended: an interpreter that exits joins this thread first, and must not
        wait for an answer that nobody reads.
        """
        if self._stopped or not threading.main_thread().is_alive():
            return True
        self._events.append(event)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._something.set)
            except RuntimeError:  # the loop was closed over us
                return True
        return False

    def wake(self) -> None:
        """Let `take` look again: the thread has ended."""
        self._something.set()

    async def take(self) -> list[dict[str, Any]]:
        """All events since the last call, at least one; none when the thread has ended. Raises ProviderFailure."""
        while not self._events:
            if self.thread.done():
                if failure := self.thread.exception():
                    raise ProviderFailure("The embedded model failed; try again.") from failure
                return []
            await self._something.wait()
            self._something.clear()
            self._woken = False  # before the events are taken: a later one must wake us again
        return [self._events.popleft() for _ in range(len(self._events))]

    async def stop(self) -> None:
        """Have the model stop at its next step, and wait until it has."""
        self._stopped = True
        await asyncio.wait([self.thread])


class _Answer:
    """Turns the model's events into deltas whose tokens add up to the usage at the end."""

    def __init__(self) -> None:
        self.finished = False
        self._tokens = 0

    def read(self, event: dict[str, Any]) -> list[Delta]:
        """Deltas of one event: a token that is only part of a character gives no text and is counted with the next.

        Raises ProviderFailure where the model reports an error.
        """
        if "error" in event:
            raise ProviderFailure("The embedded model could not answer; try again.")
        choice = event["choices"][0]
        if "prompt_progress" in event:
            return []
        if choice["finish_reason"] is None:
            return [TextDelta(choice["text"], self._new_tokens(event["timings"]["predicted_n"]))]
        return self._end(choice, event["usage"])

    def _end(self, choice: dict[str, Any], used: dict[str, Any]) -> list[Delta]:
        self.finished = True
        unseen = self._new_tokens(used["completion_tokens"])  # such as the token that means the end
        last: list[Delta] = [TextDelta(choice["text"], unseen)] if unseen or choice["text"] else []
        usage = Usage(
            input_tokens=used["prompt_tokens"],
            cached_input_tokens=used["prompt_tokens_details"]["cached_tokens"],
            output_tokens=used["completion_tokens"],
        )
        return [*last, UsageReport(usage), Finish("length" if choice["finish_reason"] == "length" else "stop")]

    def _new_tokens(self, total: int) -> int:
        new, self._tokens = total - self._tokens, total
        return new
