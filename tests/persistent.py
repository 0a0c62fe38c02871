"""Clients that never give up: each reads one answer over refusals and cuts, and notes whatever broke a promise."""

import itertools
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import httpx2
from tests.scripted import Script
from tests.serving import text_of

from parshall.kernel.sse import Event, EventParser

ANSWER_SECONDS_MAX = 15.0
"""No answer takes longer to begin, whatever is down."""
SILENCE_SECONDS_MAX = 20.0
"""A stream without events says so every 15 seconds."""
PAUSE_SECONDS_MAX = 0.3
"""Before it comes back; what Retry-After says in whole seconds would make tests long."""
TERMINAL = frozenset({"done", "error"})


@dataclass
class PersistentClient:
    """Asks for one answer under an id of its own; after a refusal or a cut the next of `urls` is asked for the rest."""

    urls: Sequence[str]
    token: str
    session: str
    stream_id: str
    message: str
    events: list[Event] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    refused: int = 0
    cut: int = 0
    _thread: threading.Thread | None = None

    def start(self) -> "PersistentClient":
        """Ask, in a thread."""
        self._thread = threading.Thread(target=self._run, name=self.stream_id, daemon=True)
        self._thread.start()
        return self

    @property
    def chunks(self) -> int:
        """How many it has seen so far."""
        return sum(event.event == "chunk" for event in self.events)

    @property
    def ended(self) -> bool:
        """Whether it has seen the terminal event."""
        return bool(self.events) and self.events[-1].event in TERMINAL

    def check(self, deadline: float, *, may_fail: bool = False) -> None:
        """Wait for the end: the whole answer, and no promise broken on the way. `deadline` is of time.monotonic().

        With `may_fail` it may also be a part of it that ends in an error behind which asking again may help.
        """
        assert self._thread is not None
        self._thread.join(max(0.0, deadline - time.monotonic()))
        assert not self.complaints, (self.stream_id, self.complaints, self.events[-1:])
        assert self.ended, f"{self.stream_id}: no end; {self.refused} refusals, {self.cut} cuts, {self.events[-1:]}"
        last, whole = self.events[-1], Script.of("", self.message).text()
        if last.event == "error" and may_fail:
            assert last.json()["retryable"] and whole.startswith(text_of(self.events)), (self.stream_id, last)
        else:
            assert last.event == "done" and text_of(self.events) == whole, (self.stream_id, last)

    def _run(self) -> None:
        try:
            for url in itertools.cycle(self.urls):
                self._once(url)
                if self.ended or self.complaints:
                    return
                time.sleep(PAUSE_SECONDS_MAX)
        except Exception as error:
            self.complaints.append(repr(error))

    def _once(self, url: str) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "X-Streaming-Session-Id": self.stream_id}
        began = time.monotonic()
        http = httpx2.Client(base_url=url, headers=headers, timeout=SILENCE_SECONDS_MAX)
        with http, self._ask(http) as answer:
            if (seconds := time.monotonic() - began) > ANSWER_SECONDS_MAX:
                self.complaints.append(f"the answer began after {seconds:.1f} s")
            if answer.status_code == 503 and "retry-after" in answer.headers:
                self.refused += 1
            elif answer.status_code != 200:
                self.complaints.append(f"{answer.status_code} {answer.read().decode()}")
            else:
                self._read(answer)

    def _ask(self, http: httpx2.Client) -> AbstractContextManager[httpx2.Response]:
        if self.events:
            path, after = f"/api/chat/streams/{self.stream_id}", {"Last-Event-ID": self.events[-1].id or ""}
            return http.stream("GET", path, headers=after)
        return http.stream("POST", f"/api/chat/sessions/{self.session}/stream", json={"message": self.message})

    def _read(self, answer: httpx2.Response) -> None:
        """Whatever comes, each event once. A body that breaks off raises; one that ends early says to come back."""
        parser = EventParser()
        for chunk in answer.iter_raw():
            for event in parser.feed(chunk):
                if event.id != str(len(self.events) + 1):
                    self.complaints.append(f"after {len(self.events)} came {event}")
                if self.ended:
                    self.complaints.append(f"after the end came {event}")
                self.events.append(event)
        if not self.ended:
            self.cut += 1
            if parser.retry_milliseconds is None:
                self.complaints.append("a stream was cut without a word on when to come back")
