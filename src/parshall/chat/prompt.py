"""From a chat session's history to a prompt that fits the model's context."""

from collections.abc import Sequence
from dataclasses import replace

from parshall.chat.catalog import Choice
from parshall.chat.model import Ask, Message
from parshall.chat.ports import ModelCard, Prompt, PromptMessage, PromptTooLong

HISTORY_MESSAGES_MAX = 200


async def compose_prompt(
    choice: Choice, history: Sequence[Message], ask: Ask, *, output_tokens_max: int
) -> tuple[Prompt, int]:
    """The prompt and its input tokens. Oldest messages are left out until the answer has room. Raises PromptTooLong."""
    wanted = min(ask.output_tokens_max or output_tokens_max, output_tokens_max, choice.card.output_tokens_max)
    spoken = [PromptMessage(role=message.role, content=message.content) for message in history]
    kept = spoken[-HISTORY_MESSAGES_MAX:]
    while True:
        prompt = Prompt(
            model_id=choice.card.id,
            messages=(*kept, PromptMessage(role="user", content=ask.message)),
            output_tokens_max=wanted,
            temperature=ask.temperature,
        )
        tokens = await _count(choice, prompt)
        room = choice.card.context_tokens - tokens
        if room >= min(wanted, _answer_room(choice.card)):
            return _limited(prompt, room), tokens
        if not kept:
            if room < 1:
                raise PromptTooLong
            return _limited(prompt, room), tokens
        kept = kept[(len(kept) + 1) // 2 :]


def _answer_room(card: ModelCard) -> int:
    """Tokens that an answer should at least have before old messages are left out for it."""
    return card.context_tokens // 4


def _limited(prompt: Prompt, room: int) -> Prompt:
    return replace(prompt, output_tokens_max=min(prompt.output_tokens_max, room))


async def _count(choice: Choice, prompt: Prompt) -> int:
    """Input tokens; a prompt that the provider refuses as too long counts as more than fits."""
    try:
        return await choice.provider.count_input(prompt)
    except PromptTooLong:
        return choice.card.context_tokens + 1
