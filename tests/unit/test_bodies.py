"""Laws of bodies: JSON of one meaning is read, and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.kernel.bodies import JSON_DEPTH_MAX, MalformedJson, parsed

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def nested(depth: int, kind: str) -> bytes:
    text = "1"
    for _ in range(depth):
        text = f"[{text}]" if kind == "arrays" else f'{{"a":{text}}}'
    return text.encode()


@given(VALUES)
def test_what_json_can_say_is_read_as_it_is(value: object) -> None:
    assert parsed(json.dumps(value).encode()) == value


@pytest.mark.parametrize("kind", ["arrays", "objects"])
def test_nesting_is_taken_to_the_limit_and_not_beyond(kind: str) -> None:
    parsed(nested(JSON_DEPTH_MAX, kind))
    for depth in (JSON_DEPTH_MAX + 1, 1000, 100_000):
        with pytest.raises(MalformedJson, match="nested"):
            parsed(nested(depth, kind))


def test_brackets_in_text_are_no_nesting() -> None:
    assert parsed(json.dumps(["[" * 5000, "{" * 5000]).encode()) == ["[" * 5000, "{" * 5000]


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'[{"b":{"a":1,"a":1}}]',
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b"",
        b"{",
        b"{}{}",
        b"{'a':1}",
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"9" * 5000,
        b'"\x00"',
    ],
)
def test_what_two_readers_could_take_differently_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedJson):
        parsed(body)
