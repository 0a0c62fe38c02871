"""How prompts are counted and cleaned before a provider sees them."""

from functools import cache, lru_cache
from typing import Any

from parshall.chat.ports import Prompt

MESSAGE_TOKENS = 4
"""Role and delimiters of one message in a chat template; those in use take three or four."""
PROMPT_TOKENS = 8
"""What a template puts around the conversation: its beginning and the head of the answer."""
COUNTED_CHARS_MAX = 65_536
"""Longer text is counted in pieces of this length, which may add one token a piece."""
REMEMBERED_CHARS_MAX = 32
"""Counts of text no longer than this are remembered: at most some 2 MiB of them."""


@cache
def _encoding() -> Any:
    """The encoding of OpenAI's present models; shipped with the package, read once (0.2 s)."""
    import bpe_openai  # costs 0.8 s, which commands that never count need not pay

    return bpe_openai.get_encoding("o200k_base")


def prepare() -> None:
    """Read the encoding now. It takes a second or two, so do it in a thread, before the first prompt needs it."""
    _encoding()


def count_text(text: str) -> int:
    """Tokens of `text` in o200k_base; control tokens written out in it count as the text that they are."""
    return _count_short(text) if len(text) <= REMEMBERED_CHARS_MAX else _count(text)


@lru_cache(maxsize=16_384)
def _count_short(text: str) -> int:
    """Answers come in pieces of a token or two, and the same ones again and again."""
    return _count(text)


def _count(text: str) -> int:
    encode = _encoding().encode_ordinary
    if len(text) <= COUNTED_CHARS_MAX:
        return len(encode(text))
    return sum(len(encode(text[at : at + COUNTED_CHARS_MAX])) for at in range(0, len(text), COUNTED_CHARS_MAX))


def count_prompt(prompt: Prompt) -> int:
    """Input tokens of a prompt by o200k_base: for models with that vocabulary a slightly high bound."""
    return PROMPT_TOKENS + sum(MESSAGE_TOKENS + count_text(message.content) for message in prompt.messages)


def clean(text: str) -> str:
    """`text` with lone surrogates replaced by U+FFFD: no encoder of UTF-8 takes them."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
