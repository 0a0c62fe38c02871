"""Reading one stream to its end across disconnects, restarts and outages, each event exactly once."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parshall.client.core import Ask, Core
from parshall.client.errors import ApiError, StreamLost, Unreachable, WrongStream
from parshall.client.model import OBSERVER_EVENTS, Receipt, StreamEvent
from parshall.client.outage import RETRIED_STATUSES, Outage
from parshall.client.steps import Broken, Pause, Read, Step
from parshall.kernel.headers import LAST_EVENT_ID_HEADER, STREAM_ID_HEADER
from parshall.kernel.ids import MalformedStreamId, StreamId, parse_stream_id
from parshall.kernel.sse import PING, Event, EventParser

ReconnectHook = Callable[[int, str], None]
"""Called before each pause with the number of the attempt that follows (1, 2, …) and a few words on what broke."""
OFFSET_DIGITS_MAX = 18
_ACCEPT = {"Accept": "text/event-stream, application/problem+json", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What begins a stream: asked again with the same id, it attaches to the stream that it began."""

    path: str
    body: Mapping[str, Any]
    new_id: Callable[[], StreamId] | None = None
    """Makes another id where the server has undone the attempt under the first; None: the id is the caller's own."""


class Reading:
    """Where the reading of one stream stands. `steps` may be iterated once; it yields events between its steps."""

    def __init__(
        self,
        core: Core,
        *,
        stream_id: StreamId | None,
        after: int = 0,
        question: Question | None = None,
        observed: str | None = None,
        on_reconnect: ReconnectHook | None = None,
    ) -> None:
        """`question` begins the stream; without one it is resumed, or followed at the path `observed`."""
        self.id = stream_id
        self.offset = after
        self._core = core
        self._question = question
        self._observed = observed
        self._on_reconnect = on_reconnect or (lambda _attempt, _reason: None)
        self._outage = Outage(core.retry, now=core.now, chance=core.chance)
        self._asked = self._begun = question is None
        self._named = stream_id is not None and (question is None or after > 0)
        """Whether the id can change no more."""
        self._noticed = False
        self._server_pause = 0.0
        self._nothing_more = False

    def steps(self) -> Generator[Step | StreamEvent, Any, None]:
        """Until the terminal event. Raises ApiError, StreamLost, WrongStream."""
        while True:
            try:
                if (yield from self._connection()):
                    return
                reason, rest = "the connection ended before the answer did", 0.0
            except ApiError as error:
                if self._begins_anew(error):
                    continue
                if not self._passing(error):
                    raise
                reason, rest = error.message, error.retry_after
            except (Broken, Unreachable) as error:
                reason, rest = str(error), 0.0
            yield from self._wait(reason, at_least=rest)

    @property
    def _unbegun(self) -> bool:
        """Whether this asks a question and has seen nothing of the answer yet."""
        return self._question is not None and not self._named

    # ── One connection ──────────────────────────────────────────────────────────────────────────────────────────────

    def _connection(self) -> Generator[Step | StreamEvent, Any, bool]:
        """The new events of one connection; whether nothing can follow them."""
        answer = yield from self._core.request(self._ask())
        if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
            raise Broken("something other than the server answered")
        told = self._told(answer.headers.get(STREAM_ID_HEADER))
        self._outage.connected()
        parser, silent = EventParser(), self.offset > 0 and self._observed is None
        while chunk := (yield Read()):
            silent = silent and chunk == PING
            for raw in _parsed(parser, chunk):
                event = self._fresh(raw, told)
                if event is not None:
                    yield event
                    if event.terminal:
                        return True
            if parser.retry_milliseconds is not None:
                self._server_pause = parser.retry_milliseconds / 1000
        return silent and (yield from self._is_over())

    def _ask(self) -> Ask:
        position = {LAST_EVENT_ID_HEADER: str(self.offset)} if self.offset else {}  # offset 0 is nobody's id
        if self._question is not None and not self._asked:
            headers = {STREAM_ID_HEADER: str(self.id), **position, **_ACCEPT}
            body = self._question.body
            return Ask(method="POST", path=self._question.path, body=body, headers=headers, stream=True)
        path = self._observed or f"/chat/streams/{self.id}"
        return Ask(method="GET", path=path, headers={**position, **_ACCEPT}, stream=True)

    def _is_over(self) -> Generator[Step, Any, bool]:
        """Whether a stream that gave nothing, and no word of a restart, has ended at this offset.

        Its state says `ended` shortly before its last event is there, so the stream has to give nothing once more.
        """
        ask = Ask(method="GET", path=f"/chat/streams/{self.id}", headers={"Accept": "application/json"})
        ended = (yield from self._core.call(ask, lambda state: state.get("state"))) == "ended"
        over, self._nothing_more = ended and self._nothing_more, ended
        return over

    # ── Ids ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _told(self, header: str | None) -> StreamId | None:
        """The id that the header gives; None where it was lost or spoilt on the way: the first event has it too."""
        try:
            told = None if header is None else parse_stream_id(header)
        except MalformedStreamId:
            return None
        if told is not None and self._named and told != self.id:
            raise WrongStream(f"{told} answers instead of {self.id}; something in between mixes up answers.")
        if told is not None and not self._named:
            self.id, self._named = told, self._observed is not None
        return told

    def _confirm(self, data: Mapping[str, Any], told: StreamId | None) -> None:
        """Hold the id in the first event against the one in the header. The server's word counts, not our proposal."""
        try:
            named = parse_stream_id(str(data.get("streamingSessionId")))
        except MalformedStreamId as error:
            raise Broken("an event arrived damaged") from error
        if told is not None and told != named:
            raise WrongStream(f"The header names {told} and the first event {named}; ask `parshall doctor` why.")
        if self._named and named != self.id:
            raise WrongStream(f"{named} answers instead of {self.id}; something in between mixes up answers.")
        self.id, self._named = named, True

    # ── Events ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _fresh(self, raw: Event, told: StreamId | None) -> StreamEvent | None:
        """The event if it is the next one; None for one already delivered. Raises Broken where one is missing.

        An event without an offset of its own is not of the log, so nothing could make its delivery happen once.
        """
        if self._observed is not None and raw.event in OBSERVER_EVENTS:
            return self._notice(raw, told)
        known = raw.id.isascii() and raw.id.isdigit() and len(raw.id) <= OFFSET_DIGITS_MAX
        offset = int(raw.id) if known else 0
        if offset <= self.offset:
            return None
        if offset != self.offset + 1:
            raise Broken(f"events are missing after {self.offset}")
        data = _members(raw)
        if raw.event == "session":
            self._confirm(data, told)
        self.offset = offset
        self._outage.over()
        return StreamEvent(offset=offset, event=raw.event, data=data)

    def _notice(self, raw: Event, told: StreamId | None) -> StreamEvent | None:
        """What an observer is told beside the stream, once; that it may look no longer, always."""
        event = StreamEvent(offset=self.offset, event=raw.event, data=_members(raw))
        if raw.event == "observer":
            self._confirm(event.data, told)
        return event if event.terminal or not self._noticed else None

    # ── Failures ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begins_anew(self, error: ApiError) -> bool:
        """Whether the question is to be put once more, at once: nothing began, and nothing was charged."""
        if error.status != 404 or error.code == "stream_forgotten" or not self._asked or not self._unbegun:
            return False
        self._asked = False  # the request never arrived: the same id again can start only one stream
        return True

    def _passing(self, error: ApiError) -> bool:
        """Whether waiting may help: being told to slow down does not end a stream that has begun."""
        if error.code == "stream_forgotten":  # of a question just asked: it is being taken over from a dead process
            return self._unbegun
        waits = error.status in RETRIED_STATUSES or (error.status == 429 and self._begun)
        return waits or self._takes_another_id(error)

    def _takes_another_id(self, error: ApiError) -> bool:
        """Whether the server has undone the attempt under an id that was made here: another may take its place."""
        if error.code != "reservation_ended" or not self._unbegun:
            return False
        if self._question is None or self._question.new_id is None:
            return False
        self.id = self._question.new_id()
        return True

    def _wait(self, reason: str, *, at_least: float) -> Generator[Step, Any, None]:
        self._asked = self._begun = self._noticed = True
        pause = self._outage.next_pause(at_least=max(at_least, self._server_pause))
        if pause is None:
            assert self.id is not None or self._observed is not None
            kept = "was answered" if self.offset else "it may have answered"
            raise StreamLost(
                f"The stream could not be read ({reason}); the server keeps what {kept} as {self.id}.",
                stream_id=self.id or StreamId(""),
                offset=self.offset,
            )
        self._on_reconnect(self._outage.attempts, reason)
        yield Pause(seconds=pause)


class Progress:
    """How far the reader of a stream has come; the base of the streams that drivers give."""

    def __init__(self, reading: Reading) -> None:
        """Nothing is sent before the first event is asked for."""
        self._reading = reading
        self._steps = reading.steps()
        self._came: Any = None
        self._receipt: Receipt | None = None

    @property
    def id(self) -> StreamId:
        """The streaming session id, known before anything is sent; of an observed stream, with its first event.

        It changes before the first event only: where the server names another, or has undone the attempt under this.
        """
        return self._reading.id or StreamId("")

    @property
    def offset(self) -> int:
        """Offset of the last event delivered; with the id, all that another process needs to go on."""
        return self._reading.offset

    @property
    def receipt(self) -> Receipt | None:
        """What the stream used and cost; None before its terminal event."""
        return self._receipt

    def _delivered(self, event: StreamEvent) -> StreamEvent:
        self._receipt = event.receipt or self._receipt
        return event


def _parsed(parser: EventParser, chunk: bytes) -> Iterator[Event]:
    try:
        yield from parser.feed(chunk)
    except ValueError as error:
        raise Broken(str(error)) from error


def _members(raw: Event) -> dict[str, Any]:
    try:
        data = json.loads(raw.data)
    except (ValueError, RecursionError) as error:
        raise Broken("an event arrived damaged") from error
    if not isinstance(data, dict):
        raise Broken("an event arrived damaged")
    return data
