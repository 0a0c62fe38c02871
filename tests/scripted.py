"""An answer as a script, and a Provider that plays it inside the process: for tests of what stands above the port."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from parshall.chat.ports import (
    Delta,
    Finish,
    ModelCard,
    Prompt,
    Provider,
    ProviderFailure,
    Take,
    TextDelta,
    UsageReport,
)
from parshall.kernel.metering import Usage

SCRIPT = re.compile(r"^fake(-[a-z]*[0-9]*)*$")
STEP = re.compile(r"([a-z]+)([0-9]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What an answer does, as words after `fake`: `fake-n20-ms5-nousage` sends 20 chunks, one each 5 ms, no usage.

    Times are in milliseconds, positions in chunks; None means never.
    """

    n: int = 5
    """Chunks, a token each."""
    b: int = 6
    """Bytes of a chunk."""
    ms: int = 0
    """Pause before each chunk."""
    ttft: int = 0
    """Pause before the first."""
    stall: int | None = None
    """Falls silent after so many chunks."""
    die: int | None = None
    """Cuts the connection after so many chunks."""
    garbage: int | None = None
    """Sends nonsense after so many chunks."""
    error: int | None = None
    """Reports an error inside the stream after so many chunks."""
    status: int = 200
    busy: int = 0
    """Refuses so many requests of the same words with 503 before it answers."""
    after: int | None = None
    """Asks for so many seconds of rest (Retry-After) where it refuses."""
    big: int = 0
    """Sends so many thousand characters more as one chunk."""
    flags: frozenset[str] = field(default=frozenset())
    """nousage, badusage, zerousage, nanusage, textusage, manyusage (more than the text holds), noise (bytes that are no
    event), burst (all in one write), nodone, nofinish, split (one byte a write), crlf, nasty (hard text), hard (n
    chunks of harder text), think, muse (every second chunk is a thought, so that no two are joined), json, redirect,
    newlimit (wants max_completion_tokens), hang (after the end), late (the end of the body)."""

    def thinks(self, index: int) -> bool:
        """Whether that chunk is a thought."""
        return bool(index % 2) if "muse" in self.flags else "think" in self.flags and index == 0

    @staticmethod
    def of(model_id: str, last_message: str) -> "Script":
        """The script that the last message names with its first word, else the model id."""
        first = last_message.split(maxsplit=1)[0] if last_message.split() else ""
        for text in (first, model_id):
            if SCRIPT.match(text) and (text != "fake" or text == model_id):
                return Script._parse(text)
        return Script()

    @staticmethod
    def _parse(text: str) -> "Script":
        numbers: dict[str, int] = {}
        flags: set[str] = set()
        for word in text.split("-")[1:]:
            match = STEP.fullmatch(word)
            if match and match[2]:
                numbers[match[1]] = int(match[2])
            else:
                flags.add(word)
        return Script(**numbers, flags=frozenset(flags))

    def chunks(self, limit: int) -> list[str]:
        """The texts of the answer, cut at `limit` tokens."""
        if "nasty" in self.flags:
            return NASTY[:limit]
        if "hard" in self.flags:
            return [HARD[index % len(HARD)] for index in range(min(self.n, limit))]
        words = [f"w{index} ".ljust(self.b, ".") for index in range(min(self.n, limit))]
        return [*words, "long " * (self.big * 200)] if self.big else words

    def text(self, limit: int = 1_000_000) -> str:
        """The whole answer, with the characters that come in halves."""
        return "".join(self.chunks(limit)).encode("utf-16", "surrogatepass").decode("utf-16")

    def finish(self, limit: int) -> str:
        """Why it ends: `length` where the limit cuts it."""
        whole = len(NASTY) if "nasty" in self.flags else self.n
        return "length" if whole > limit else "stop"


NASTY = [
    "emoji 👩‍👩‍👧‍👦",
    "line\u2028para\u2029nel\u0085",
    "nul\0bel\a",
    "data: [DONE]\n\ndata: {}",
    "\r\n\r\n",
    '"quote" \\u0000 \\',
    "<|im_end|><|endoftext|>",
    " ",
    "é̂中文ع",
]
"""Text that breaks careless readers."""

HARD = [
    "👩",
    "\u200d👩\u200d",
    "👧🏽 𝄞",
    "\ud83d",
    "\ude80",
    "🏳️\u200d🌈",
    "line\u2028para\u2029nel\u0085",
    "nul\0bel\a",
    "\r\n",
    "\rlone\r",
    "\ufeffdata: none\n",
    "\n\nevent: done\n",
    "data: {}\n\n",
    "id: 1\nretry: 1\n:",
    '"quote" \\" \\u0000 \\',
    "</script>\x7f\x1f",
    " ",
    "é̂中文ع",
]
"""Text that breaks careless clients: characters in pieces, line ends of every kind, and events within events.

One character comes in halves, which only a provider over HTTP can send.
"""


class ScriptedProvider:
    """Plays scripts; counts one token a chunk and, for input, one a word; remembers what it was asked."""

    def __init__(self, *, models: Sequence[str] = ("fake",)) -> None:
        """Offers `models`; `gate` holds every answer before its next chunk while it is cleared."""
        self._models = models
        self.gate = asyncio.Event()
        self.gate.set()
        self.prompts: list[Prompt] = []
        self.sent = 0
        self.running = 0
        self.hung_up = 0
        self.closed = False

    async def models(self) -> Sequence[ModelCard]:
        """Cards of the configured ids."""
        return [self._card(model) for model in self._models]

    def _card(self, model: str) -> ModelCard:
        return ModelCard(
            id=model,
            name=model,
            description="Plays a script.",
            provider="scripted",
            context_tokens=4096,
            output_tokens_max=1024,
        )

    def unlisted(self, model_id: str) -> ModelCard | None:
        """Ids that are scripts are taken without being listed."""
        return self._card(model_id) if SCRIPT.match(model_id) else None

    async def count_input(self, prompt: Prompt) -> int:
        """One token a word, one a message."""
        return sum(1 + len(message.content.split()) for message in prompt.messages)

    async def stream(self, prompt: Prompt, take: Take) -> None:
        """The script that the prompt names."""
        if self.closed:
            raise ProviderFailure("closed")
        script = Script.of(prompt.model_id, prompt.messages[-1].content if prompt.messages else "")
        self.prompts.append(prompt)
        self.running += 1
        ended = False
        try:
            async with aclosing(self._play(script, prompt)) as played:
                async for deltas in played:
                    if (taken := take(deltas)) is not None:
                        await taken
            ended = True
        finally:
            self.running -= 1
            self.hung_up += not ended

    async def _play(self, script: Script, prompt: Prompt) -> AsyncGenerator[Sequence[Delta], None]:
        if script.status != 200:
            raise _refusal(script.status, script.after)
        if sum(asked.messages[-1] == prompt.messages[-1] for asked in self.prompts) <= script.busy:
            raise _refusal(503, script.after)
        await asyncio.sleep(script.ttft / 1000)
        chunks = script.chunks(prompt.output_tokens_max)
        for index in range(len(chunks) + 1):
            await self._hold(script, index)
            if index == len(chunks):
                break
            self.sent += 1
            tokens = len(chunks[index]) // 5 if index == script.n else 1  # of a big one, each word
            yield [TextDelta(chunks[index], tokens, reasoning=script.thinks(index))]
        if "nofinish" in script.flags:
            raise ProviderFailure("cut", code="provider_cut")
        usage = Usage(input_tokens=await self.count_input(prompt), output_tokens=len(chunks))
        last = Finish("length" if script.finish(prompt.output_tokens_max) == "length" else "stop")
        yield [last] if "nousage" in script.flags else [UsageReport(usage), last]

    async def _hold(self, script: Script, index: int) -> None:
        """Whatever happens before chunk `index`."""
        if index == script.stall:
            await asyncio.Event().wait()
        if index in (script.die, script.garbage, script.error):
            raise ProviderFailure("cut", code="provider_cut" if index == script.die else "provider_garbage")
        await asyncio.sleep(script.ms / 1000)
        while not self.gate.is_set() or self.closed:
            if self.closed:
                raise ProviderFailure("closed", code="provider_cut")
            await self.gate.wait()

    async def close(self) -> None:
        """End every answer at its next chunk."""
        self.closed = True
        self.gate.set()


async def batches(provider: Provider, prompt: Prompt) -> AsyncGenerator[Sequence[Delta], None]:
    """The answer, a batch at a time; the provider is held until the next is asked for, and stopped by `aclose`."""
    taken: asyncio.Queue[tuple[Sequence[Delta], asyncio.Future[None]] | None] = asyncio.Queue()

    def take(deltas: Sequence[Delta]) -> asyncio.Future[None]:
        wanted = asyncio.get_running_loop().create_future()
        taken.put_nowait((deltas, wanted))
        return wanted

    answering = asyncio.ensure_future(provider.stream(prompt, take))
    answering.add_done_callback(lambda _: taken.put_nowait(None))
    try:
        while (batch := await taken.get()) is not None:
            yield batch[0]
            if not batch[1].done():
                batch[1].set_result(None)
        await answering
    finally:
        answering.cancel()
        await asyncio.wait([answering])


def _refusal(status: int, after: int | None) -> ProviderFailure:
    busy = status == 429 or status >= 500
    return ProviderFailure(
        f"{status}",
        code="provider_busy" if busy else "provider_refused",
        retryable=busy,
        elsewhere=busy or status == 404,
        pause_seconds=after,
    )
