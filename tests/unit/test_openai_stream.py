"""The reader of OpenAI-style streams: any cut, any line end, any nonsense."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.chat.ports import Delta, Finish, Prompt, PromptMessage, ProviderFailure, TextDelta, UsageReport
from parshall.chat.providers.counting import COUNTED_CHARS_MAX, clean, count_prompt, count_text
from parshall.chat.providers.openai_stream import EVENT_BYTES_MAX, TOKENS_MAX, Answer, EventReader, sane_usage
from parshall.kernel.metering import Usage


def event(content: str, *, finish: str | None = None, ascii_only: bool = False) -> bytes:
    body = {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]}
    return b"data: " + json.dumps(body, ensure_ascii=ascii_only).encode() + b"\n\n"


def read(*chunks: bytes) -> list[Delta]:
    """Everything that an answer gives for these reads. Raises what it raises."""
    answer = Answer()
    deltas: list[Delta] = []
    for chunk in chunks:
        deltas += answer.read(chunk)
        if answer.failure is not None:
            raise answer.failure
    return deltas + answer.end()


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def failure_of(*chunks: bytes) -> str:
    with pytest.raises(ProviderFailure) as failed:
        read(*chunks)
    return failed.value.reason


DONE = b"data: [DONE]\n\n"
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(parts=st.lists(texts, max_size=6), cuts=st.lists(st.integers(0, 600), max_size=12), crlf=st.booleans())
def test_no_cut_of_the_bytes_changes_the_text(parts: list[str], cuts: list[int], crlf: bool) -> None:
    whole = b": hello\n\n" + b"".join(event(part) for part in parts) + DONE
    if crlf:
        whole = whole.replace(b"\n", b"\r\n")
    edges = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    deltas = read(*(whole[start:end] for start, end in itertools.pairwise(edges)))
    assert text_of(deltas) == "".join(parts)
    assert deltas[-1] == Finish("stop")


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_but_a_provider_failure(noise: bytes) -> None:
    for chunks in ((noise,), (b"data: " + noise + b"\n\n",), (event("x"), noise, DONE)):
        try:
            deltas = read(*chunks)
        except ProviderFailure:
            continue
        assert isinstance(deltas[-1], Finish)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    json_values,
    st.sampled_from(["choices", "usage", "error", "delta", "content", "reasoning", "finish_reason", "prompt_tokens"]),
)
def test_no_value_in_any_place_raises_anything_but_a_provider_failure(value: Any, place: str) -> None:
    delta = {"content": "x", place: value}
    choice = {"index": 0, "delta": delta, place: value}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, place: value}
    body = {"choices": [choice], "usage": usage, place: value}
    try:
        deltas = read(b"data: " + json.dumps(body).encode() + b"\n\n", DONE)
    except ProviderFailure:
        return
    assert isinstance(deltas[-1], Finish)
    text_of(deltas).encode("utf-8")


def test_all_events_of_one_read_come_together() -> None:
    answer = Answer()
    assert [type(delta) for delta in answer.read(event("a") + event("b") + b"data:")] == [TextDelta, TextDelta]


def test_what_came_before_nonsense_is_kept() -> None:
    answer = Answer()
    assert text_of(answer.read(event("good") + b"data: {\n\n" + event("lost"))) == "good"
    with pytest.raises(ProviderFailure):
        if answer.failure is not None:
            raise answer.failure


def test_a_cut_within_a_character_costs_that_character_only() -> None:
    half = b'{"choices":[{"index":0,"delta":{"content":"a\\ud83d"}}]}'
    broken = b'{"choices":[{"index":0,"delta":{"content":"b\xc3"}}]}'
    deltas = read(b"data: " + half + b"\n\ndata: " + broken + b"\n\n", DONE)
    assert text_of(deltas) == "a\ufffdb\ufffd"


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        ((r"a\ud83d", r"\ude00b"), "a😀b"),
        ((r"\ud83d", r"\ude00\ud83d", r"\ude00"), "😀😀"),
        ((r"a\ud83d", "b"), "a\ufffdb"),
        ((r"a\ud83d", "é"), "a\ufffdé"),
        ((r"a\ud83d",), "a\ufffd"),
        ((r"\ude00a",), "\ufffda"),
    ],
)
def test_a_character_that_comes_in_halves_is_whole(contents: tuple[str, ...], text: str) -> None:
    chunks = ['data: {"choices":[{"index":0,"delta":{"content":"' + each + '"}}]}\n\n' for each in contents]
    deltas = read(*(chunk.encode() for chunk in chunks), DONE)
    assert text_of(deltas) == text and isinstance(deltas[-1], Finish)


def test_data_lines_of_one_event_are_joined() -> None:
    assert EventReader().feed(b"event: x\ndata: 1\nid: 3\ndata:2\n\n") == [b" 1\n2"]


def test_nothing_counts_after_done() -> None:
    assert text_of(read(event("a") + DONE + event("b"))) == "a"


def test_an_answer_without_done_is_whole_when_the_model_said_so() -> None:
    assert read(event("a", finish="length"))[-1] == Finish("length")
    assert read(event("a", finish="stop").rstrip(b"\n"))[-1] == Finish("stop")


def test_an_answer_without_any_end_is_cut() -> None:
    assert failure_of(event("a")) == "provider_cut"
    assert failure_of(event("a"), event("b")[:20]) == "provider_cut"
    assert failure_of() == "provider_cut"


def test_a_large_event_passes_and_a_huge_one_does_not() -> None:
    large = "é" * (EVENT_BYTES_MAX // 2 - 200)
    assert text_of(read(event(large), DONE)) == large
    assert failure_of(b"data: " + b"x" * EVENT_BYTES_MAX) == "provider_garbage"
    assert failure_of(*[b"data: " + b"x" * 100_000 + b"\n"] * 22) == "provider_garbage"


def test_a_large_event_in_small_reads_takes_linear_time() -> None:
    whole = event("x" * 1_000_000)
    reads = [whole[at : at + 64] for at in range(0, len(whole), 64)]
    assert len(text_of(read(*reads, DONE))) == 1_000_000


def test_an_error_inside_the_stream_is_a_failure() -> None:
    assert failure_of(event("a"), b'data: {"error": {"code": 503}}\n\n') == "provider_busy"
    assert failure_of(b'data: {"error": "no"}\n\n') == "provider_refused"


def test_only_the_first_choice_is_read() -> None:
    body = {"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]}
    assert text_of(read(b"data: " + json.dumps(body).encode() + b"\n\n", DONE)) == "a"


def test_usage_that_denies_the_text_just_sent_is_left_out() -> None:
    zero = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":0}}\n\n'
    assert not [delta for delta in read(event("a"), zero, DONE) if isinstance(delta, UsageReport)]
    assert [delta for delta in read(zero, DONE) if isinstance(delta, UsageReport)]


@pytest.mark.parametrize(
    "report",
    [
        None,
        7,
        {},
        {"prompt_tokens": 1},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": TOKENS_MAX + 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": 1.5, "completion_tokens": 1},
        {"prompt_tokens": "1", "completion_tokens": 1},
    ],
)
def test_a_report_without_believable_totals_is_none(report: Any) -> None:
    assert sane_usage(report) is None


def test_a_part_larger_than_its_total_counts_as_zero() -> None:
    report = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 11},
        "completion_tokens_details": {"reasoning_tokens": 6},
    }
    assert sane_usage(report) == Usage(input_tokens=10, output_tokens=5)
    report["prompt_tokens_details"] = {"cached_tokens": 10}
    report["completion_tokens_details"] = {"reasoning_tokens": 5}
    assert sane_usage(report) == Usage(input_tokens=10, cached_input_tokens=10, output_tokens=5, reasoning_tokens=5)


def test_every_text_has_a_count_and_every_piece_of_it_at_least_one_token() -> None:
    assert count_text("") == 0
    assert count_text("hello world") == 2
    assert count_text("<|endoftext|>") > 1
    assert count_text("\ud800") >= 1
    assert count_text(" a" * COUNTED_CHARS_MAX) == COUNTED_CHARS_MAX


def test_a_prompt_counts_its_words_and_what_stands_around_them() -> None:
    messages = tuple(PromptMessage(role="user", content="hello world") for _ in range(3))
    assert count_prompt(Prompt(model_id="m", messages=messages, output_tokens_max=1)) == 8 + 3 * (4 + 2)


@given(st.text())
def test_cleaned_text_can_be_encoded_and_whole_text_is_untouched(text: str) -> None:
    clean(text).encode("utf-8")
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert clean(text) == text
