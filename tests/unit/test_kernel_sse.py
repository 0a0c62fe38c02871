"""Laws of the event stream: frames that every reader survives, and a parser that obeys WHATWG HTML §9.2."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.kernel.sse import EVENT_BYTES_MAX, GOODBYE, PING, Event, EventParser, frame, parse

# Lone surrogates, U+2028, NUL and all; but two halves of a pair are one character to JSON.
texts = st.text(st.characters(exclude_categories=[])).filter(
    lambda t: not re.search("[\ud800-\udbff][\udc00-\udfff]", t)
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
payloads = st.dictionaries(texts, values, max_size=4)


def fed(*chunks: bytes) -> list[Event]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def data_of(stream: bytes) -> list[str]:
    return [event.data for event in fed(stream)]


@given(st.lists(payloads, min_size=1, max_size=4), st.data())
def test_any_json_survives_framing_and_any_cutting_into_chunks(
    sent: list[dict[str, object]], data: st.DataObject
) -> None:
    stream = b"".join(frame(n, "chunk", payload, retry=n == 1) for n, payload in enumerate(sent, start=1))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    events = fed(*(stream[a:b] for a, b in pairwise(edges)))
    assert [event.json() for event in events] == sent
    assert [event.id for event in events] == [str(n) for n in range(1, len(sent) + 1)]
    assert {event.event for event in events} == {"chunk"}


@given(payloads)
def test_a_frame_is_one_event_of_ascii_lines_that_no_line_reader_can_split(payload: dict[str, object]) -> None:
    sent = frame(7, "done", payload)
    assert sent.isascii() and b"\r" not in sent
    assert sent.startswith(b"event: done\ndata: {") and sent.endswith(b"}\nid: 7\n\n")
    assert sent.decode().splitlines() == sent.decode().split("\n")[:-1]
    assert sent.count(b"\n") == 4


def test_the_first_frame_tells_when_to_reconnect() -> None:
    assert frame(1, "session", {}, retry=True).startswith(b"retry: 1000\nevent: session\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_say_is_refused_and_not_sent(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        frame(1, "chunk", {"tokens": number})


@pytest.mark.parametrize(("offset", "event"), [(0, "chunk"), (1, "two\nlines"), (1, "")])
def test_a_frame_that_readers_would_misread_is_our_own_mistake(offset: int, event: str) -> None:
    with pytest.raises(AssertionError):
        frame(offset, event, {})


def test_pings_and_goodbyes_are_invisible_and_a_goodbye_sets_the_delay() -> None:
    parser = EventParser()
    assert list(parser.feed(PING + GOODBYE + PING)) == []
    assert parser.retry_milliseconds == 1000


def test_frames_of_a_log_parse_back() -> None:
    frames = [frame(n, "chunk", {"n": n}) for n in (1, 2, 3)]
    assert [json.loads(event.data) for event in parse(frames)] == [{"n": 1}, {"n": 2}, {"n": 3}]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
        (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),
        (b"data:test\n\ndata: test\n\n", ["test", "test"]),
        (b"data:  two blanks\n\n", [" two blanks"]),
        (b": a comment\n\nevent: x\n\n", []),
        (b"data: a: b\n\n", ["a: b"]),
        (b"unknown: field\ndata: x\n\n", ["x"]),
        (b"data: unfinished\n", []),
        (b"\xef\xbb\xbfdata: after a BOM\n\n", ["after a BOM"]),
        (b"data: \xef\xbb\xbfx\n\n\xef\xbb\xbfdata: y\n\n", ["\ufeffx"]),
        (b"data: \xff\n\n", ["\ufffd"]),
        ("data: a\u2028b\x85c\x0bd\n\n".encode(), ["a\u2028b\x85c\x0bd"]),
    ],
)
def test_the_corner_cases_of_the_specification(stream: bytes, expected: list[str]) -> None:
    assert data_of(stream) == expected


@given(st.sampled_from(["\n", "\r", "\r\n"]), st.data())
def test_every_line_end_of_the_specification_means_the_same(end: str, data: st.DataObject) -> None:
    stream = f"id: 1{end}event: e{end}data: a{end}data: b{end}{end}data: c{end}{end}".encode()
    cut = data.draw(st.integers(0, len(stream)))
    events = fed(stream[:cut], b"", stream[cut:])
    assert [(event.id, event.event, event.data) for event in events] == [("1", "e", "a\nb"), ("1", "message", "c")]


def test_a_carriage_return_ends_its_line_without_waiting_for_more() -> None:
    assert data_of(b"data: x\r\r") == ["x"]


def test_an_event_that_was_cut_off_is_not_the_one_to_resume_after() -> None:
    parser = EventParser()
    list(parser.feed(frame(4, "chunk", {}) + b"id: 5\nevent: chunk\ndata: {"))
    assert parser.last_id == "4"


def test_an_id_stays_until_another_is_given_and_one_with_nul_is_ignored() -> None:
    assert [e.id for e in fed(b"id: 1\ndata\n\ndata\n\nid: 2\0\ndata\n\nid\ndata\n\n")] == ["1", "1", "1", ""]


@pytest.mark.parametrize("value", ["1.5", "-1", "soon", "\u0661", "", "9" * 5000])
def test_a_retry_that_is_no_sensible_number_is_ignored(value: str) -> None:
    parser = EventParser()
    list(parser.feed(f"retry: {value}\n\n".encode()))
    assert parser.retry_milliseconds is None


@pytest.mark.parametrize("chunk", [b"x" * 65536, b"data: " + b"x" * 65529 + b"\n"], ids=["one line", "many lines"])
def test_an_endless_event_is_refused_before_it_fills_the_memory(chunk: bytes) -> None:
    parser = EventParser()
    with pytest.raises(ValueError, match="longer"):
        for _ in range(EVENT_BYTES_MAX // len(chunk) + 2):
            list(parser.feed(chunk))
