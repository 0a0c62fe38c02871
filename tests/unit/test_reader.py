"""The laws of one reader: its writes are bounded, in order and whole, and what it tells of its place is true."""

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from parshall.chat.reader import WRITE_BYTES_MAX, Reader


class Batches:
    """A tail that gives these batches of frames and then ends."""

    def __init__(self, batches: Sequence[Sequence[bytes]]) -> None:
        self._batches = list(batches)
        self.ended = False

    def __aiter__(self) -> "Batches":
        return self

    async def __anext__(self) -> Sequence[bytes]:
        if not self._batches:
            self.ended = True
            raise StopAsyncIteration
        return self._batches.pop(0)

    def close(self) -> None:
        self._batches.clear()


frames = st.builds(
    lambda size, letter: letter * size,
    st.sampled_from([1, 200, 20_000, 65_536, 99_000]),
    st.binary(min_size=1, max_size=1),
)


def read(reader: Reader) -> list[bytes]:
    async def work() -> list[bytes]:
        return [piece async for piece in reader]

    return asyncio.run(work())


@given(st.lists(st.lists(frames, max_size=9), max_size=5))
def test_a_write_is_bounded_and_all_of_them_say_what_was_logged(batches: list[list[bytes]]) -> None:
    reader = Reader(Batches(batches), None, after=3)
    pieces = read(reader)
    largest = max((len(frame) for batch in batches for frame in batch), default=0)
    assert b"".join(pieces) == b"".join(frame for batch in batches for frame in batch)
    assert all(len(piece) <= max(WRITE_BYTES_MAX, largest) for piece in pieces)
    assert sum(not piece for piece in pieces) == sum(not batch for batch in batches), "a silence is told once"
    assert reader._offset == 3 + sum(map(len, batches))
    assert reader.ended


def test_an_interrupted_reader_gives_no_more_of_what_it_had_at_hand() -> None:
    async def work() -> list[bytes]:
        reader = Reader(Batches([[b"x" * WRITE_BYTES_MAX] * 3]), None, after=0)
        first = await anext(reader)
        reader.interrupt()
        return [first, *[piece async for piece in reader]]

    assert asyncio.run(work()) == [b"x" * WRITE_BYTES_MAX]
