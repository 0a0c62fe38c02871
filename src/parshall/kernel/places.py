"""For development: every header that a response of the framework gets is noted with the line of code that set it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.datastructures import MutableHeaders
from starlette.responses import Response

from parshall.kernel.recording import NotedList, Recording, current, place_of_caller


@contextmanager
def noted_places() -> Iterator[None]:
    """While this lasts, responses that are made for a traced request note what is written to their headers."""
    plain = Response.init_headers

    def init_headers(self: Response, headers: Mapping[str, str] | None = None) -> None:
        recording = current.get()
        if recording is None or not recording.with_places:
            plain(self, headers)
            return
        try:
            plain(self, headers)
        except UnicodeEncodeError:
            for name, value in (headers or {}).items():
                _check(recording, name, value)
            raise
        self.raw_headers = NotedList(recording, self.raw_headers, new=True)
        self._headers = _NotedHeaders(recording, self.raw_headers)

    Response.init_headers = init_headers  # type: ignore[method-assign]
    try:
        yield
    finally:
        Response.init_headers = plain  # type: ignore[method-assign]


class _NotedHeaders(MutableHeaders):
    """Headers that note what cannot even be written; the list below notes the rest."""

    def __init__(self, recording: Recording, raw: NotedList) -> None:
        super().__init__(raw=raw)
        self._recording = recording

    def __setitem__(self, key: str, value: str) -> None:
        _check(self._recording, key, value)
        super().__setitem__(key, value)

    def append(self, key: str, value: str) -> None:
        _check(self._recording, key, value)
        super().append(key, value)

    def setdefault(self, key: str, value: str) -> str:
        _check(self._recording, key, value)
        return super().setdefault(key, value)


def _check(recording: Recording, name: str, value: str) -> None:
    """Note what no header can carry, before writing it fails."""
    try:
        (name + value).encode("latin-1")
    except UnicodeEncodeError:
        recording.fault("invalid", name, place_of_caller())
