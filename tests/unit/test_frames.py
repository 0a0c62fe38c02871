"""Text events are put together by hand, for speed: they must be what the encoder of all events makes of them."""

from hypothesis import given
from hypothesis import strategies as st

from parshall.chat.frames import text_frame
from parshall.chat.ports import TextDelta
from parshall.kernel import sse

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))
"""Lone surrogates, controls and noncharacters too."""


@given(ANY_TEXT, st.integers(0, 10**6), st.booleans(), st.integers(1, 2**53), st.integers(0, 10**9))
def test_a_text_event_is_what_the_encoder_makes_of_it(
    text: str, tokens: int, reasoning: bool, offset: int, total: int
) -> None:
    made = text_frame(TextDelta(text, tokens, reasoning), offset, total)
    name, data = "reasoning" if reasoning else "chunk", {"text": text, "tokens": tokens, "totalTokens": total}
    assert made == sse.frame(offset, name, data)
    [event] = sse.parse([made])
    assert (event.id, event.event, event.json()) == (str(offset), name, data)
