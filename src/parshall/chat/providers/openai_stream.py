"""The bytes of an OpenAI-style event stream as deltas: tolerant of how it is cut, strict on what it means."""

import json
from typing import Any

import msgspec

from parshall.chat.ports import Delta, Finish, ProviderFailure, TextDelta, UsageReport
from parshall.chat.providers.counting import clean, count_text
from parshall.kernel.metering import Usage

EVENT_BYTES_MAX = 2 * 1024 * 1024
TOKENS_MAX = 10_000_000
"""No present model reads or writes as much in one answer: a report beyond it is a mistake."""
TEXT_SHOWN_MAX = 200
"""Characters of a provider's own words that may reach a caller."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None  # text with some servers, an object with others


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Any = None  # checked by hand: nonsense in it must not cost the answer
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def garbage(detail: str) -> ProviderFailure:
    """The provider broke the protocol, so that nothing after it can be understood."""
    return ProviderFailure(f"The model provider {detail}; try again or choose another model.", code="provider_garbage")


class EventReader:
    """Cuts reads of `text/event-stream` (WHATWG HTML §9.2.6) into the payloads of whole events.

    kernel.sse has a general parser; this one leaves payloads as bytes, for the JSON decoder to read once, and takes an
    event that the end of the stream completes. Lines end with LF or CRLF; all fields but `data` are ignored.
    """

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads that `chunk` completes. Raises ProviderFailure on an event over EVENT_BYTES_MAX."""
        if chunk.endswith(b"\n\n") and not self._rest and not self._data:  # as a rule a read holds whole events
            if chunk.startswith(b"data:") and chunk.find(b"\n") == len(chunk) - 2 and b"\r" not in chunk:
                self._limit(len(chunk))
                return [chunk[5:-2]]
            events = chunk[:-2].split(b"\n\n")
            if all(event.startswith(b"data:") and b"\n" not in event and b"\r" not in event for event in events):
                self._limit(max(map(len, events)))
                return [event[5:] for event in events]
        payloads: list[bytes] = []
        if b"\n" in chunk:
            if self._rest:
                chunk = bytes(self._rest) + chunk
                self._rest.clear()
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                self._take(line, payloads)
            self._rest += rest
        else:
            self._rest += chunk
        self._limit(len(self._rest) + self._data_bytes)
        return payloads

    def _limit(self, event_bytes: int) -> None:
        if event_bytes > EVENT_BYTES_MAX:
            raise garbage(f"sent an event of more than {EVENT_BYTES_MAX} bytes")

    def end(self) -> list[bytes]:
        """The payload that only the missing blank line kept back, if there is one."""
        return self.feed(b"\n\n")

    def _take(self, line: bytes, payloads: list[bytes]) -> None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if line.startswith(b"data:"):
            self._data.append(line[5:])
            self._data_bytes += len(line)
        elif not line and self._data:
            payloads.append(b"\n".join(self._data))
            self._data, self._data_bytes = [], 0


class Answer:
    """One streamed answer: takes reads, gives deltas, and knows whether it came to its end."""

    def __init__(self) -> None:
        """Nothing has been read yet."""
        self.done = False
        self.begun = False
        self._finish: Finish | None = None
        self.failure: ProviderFailure | None = None
        """What is wrong with the last read; it matters once the deltas before that have been used."""
        self._half = ""  # of a surrogate pair, until the other comes: some servers cut text by UTF-16 units
        self._events = EventReader()

    @property
    def finished(self) -> bool:
        """Whether the model has ended, though the closing `[DONE]` or usage may be still to come."""
        return self.done or self._finish is not None

    def read(self, chunk: bytes) -> list[Delta]:
        """The deltas of all events that `chunk` completes, up to the first that is wrong; `failure` then says so."""
        deltas: list[Delta] = []
        try:
            for payload in self._events.feed(chunk):
                self._take(payload, deltas)
        except ProviderFailure as failure:
            self.failure = failure
        return deltas

    def end(self) -> list[Delta]:
        """The last deltas, `Finish` at the end. Raises ProviderFailure where the answer was cut short."""
        deltas: list[Delta] = []
        try:
            for payload in self._events.end():
                self._take(payload, deltas)
        except ProviderFailure:
            deltas.clear()  # the event was cut in the middle: only whether the answer had ended matters
        if not self.finished:
            raise ProviderFailure(
                "The model provider broke off in the middle of the answer; try again.", code="provider_cut"
            )
        if self._half:
            deltas.append(TextDelta(clean(self._half), 1))
        return [*deltas, self._finish or Finish("stop")]

    def _take(self, payload: bytes, deltas: list[Delta]) -> None:
        if self.done:
            return
        if payload.endswith(b"]") and payload.strip() == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _decode(payload)
        except msgspec.ValidationError as error:
            raise garbage("sent an event of an unknown form") from error
        except ValueError:
            chunk = _decode_leniently(payload)
        if chunk.error:
            raise _failure(chunk.error)
        for choice in chunk.choices or ():
            if choice.index != 0:
                continue
            if choice.delta is not None:
                self._text(choice.delta, deltas)
            if choice.finish_reason:
                self._finish = Finish("length" if choice.finish_reason in ("length", "max_tokens") else "stop")
        if chunk.usage:
            usage = sane_usage(chunk.usage)
            if usage is not None and (usage.output_tokens > 0 or not self.begun):
                deltas.append(UsageReport(usage))

    def _text(self, delta: _Delta, deltas: list[Delta]) -> None:
        thought = delta.reasoning_content or (delta.reasoning if isinstance(delta.reasoning, str) else None)
        if thought:
            deltas.append(TextDelta(thought, count_text(thought), reasoning=True))
            self.begun = True
        content = delta.content
        if content and (self._half or not content.isascii()):
            content = self._whole(content)
        if content:
            deltas.append(TextDelta(content, count_text(content)))
            self.begun = True

    def _whole(self, content: str) -> str:
        """The text with the half that was kept before it, and without one at its end, which is kept."""
        content = self._half + content
        self._half = content[-1] if "\ud800" <= content[-1] <= "\udbff" else ""
        return clean(content[: len(content) - len(self._half)])


def _decode_leniently(payload: bytes) -> _Chunk:
    """A chunk whose text was cut within a character: U+FFFD stands for broken UTF-8, half a surrogate pair is left."""
    try:
        chunk = msgspec.convert(json.loads(payload.decode("utf-8", "replace")), _Chunk)
    except (ValueError, RecursionError) as error:
        raise garbage("sent something that is not JSON") from error
    for choice in chunk.choices or ():
        delta = choice.delta
        if delta is not None:
            delta.reasoning_content = clean(delta.reasoning_content or "")
            delta.reasoning = clean(delta.reasoning) if isinstance(delta.reasoning, str) else None
    return chunk


def sane_usage(report: Any) -> Usage | None:
    """A provider's usage object as Usage; None where its totals are missing or absurd, and a part that exceeds its
    total counts as zero."""
    if not isinstance(report, dict):
        return None
    read, written = _tokens(report.get("prompt_tokens")), _tokens(report.get("completion_tokens"))
    if read is None or written is None:
        return None
    cached = _part(report.get("prompt_tokens_details"), "cached_tokens")
    thought = _part(report.get("completion_tokens_details"), "reasoning_tokens")
    return Usage(
        input_tokens=read,
        cached_input_tokens=cached if cached <= read else 0,
        output_tokens=written,
        reasoning_tokens=thought if thought <= written else 0,
    )


def _tokens(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TOKENS_MAX:
        return None
    return value


def _part(details: Any, name: str) -> int:
    return (_tokens(details.get(name)) or 0) if isinstance(details, dict) else 0


def _failure(error: Any) -> ProviderFailure:
    """An error object that came inside the stream, after the status line."""
    code = error.get("code") if isinstance(error, dict) else None
    busy = str(code) in ("429", "rate_limit_exceeded", "server_error", "overloaded") or str(code).startswith("5")
    return ProviderFailure(
        "The model provider ended the answer with an error; try again or choose another model.",
        code="provider_busy" if busy else "provider_refused",
        retryable=busy,
    )
