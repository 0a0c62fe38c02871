"""A fake deployment for the tests of those who use the client: real HTTP, the real wire format, scripted answers."""

import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Self

import uvicorn

from parshall.client.testing.wire import Wire
from parshall.client.testing.world import Answer, ChatSession, Person
from parshall.kernel.credits import Credits, parse_credits

__all__ = ["FakeParshall"]

START_SECONDS_MAX = 10


class FakeParshall:
    """Answers questions as scripted, on a free port of this machine, while its context lasts.

        with FakeParshall(answers={"hi": "hello"}, cut_after=3) as fake, Client(fake.url, token=fake.token) as client:
            text = "".join(event.text for event in client.stream(client.create_session(), "hi"))

    It has one user, `ann` with the password `ann-password`, and further ones by `add_user`. A token is a word of the
    question or of the answer and costs 0.001 credits. It serves login, the own balance and statement, chat sessions,
    streams, and nothing for supervisors or administrators.
    """

    def __init__(
        self,
        *,
        answers: Mapping[str, str | Sequence[str]] | None = None,
        credits: Decimal | float = 100,
        delay_seconds: float = 0.0,
        cut_after: int | None = None,
        strip_header: bool = False,
        unavailable: int = 0,
        lose_answers: int = 0,
    ) -> None:
        """`answers` are given to those questions, as words or as the pieces given; any other gets a stock answer.

        Each piece takes `delay_seconds`. Faults: the first connection of each stream breaks after `cut_after` events;
        the header with the id is stripped; so many requests for streams are 503 (`unavailable`), or begin a stream
        and get no answer (`lose_answers`). All of these may be set later, too.
        """
        self.answers = dict(answers or {})
        self.delay_seconds = delay_seconds
        self.cut_after = cut_after
        self.strip_header = strip_header
        self.unavailable = unavailable
        self.lose_answers = lose_answers
        self.refreshes = 0
        """How often tokens were renewed."""
        self.people: dict[str, Person] = {}
        self.access_tokens: dict[str, Person] = {}
        self.refresh_tokens: dict[str, Person] = {}
        self.sessions: dict[str, ChatSession] = {}
        self.streams: dict[str, Answer] = {}
        """By id, oldest first: `len(fake.streams)` is how many were generated."""
        self.url = ""
        self.add_user("ann", "ann-password", credits=credits)
        self.token, _ = self.issue(self.people["ann"])
        """An access token of `ann`."""

    def add_user(self, name: str, password: str, *, credits: Decimal | float = 100) -> None:
        """Another user who can log in."""
        amount = parse_credits(credits, allow_zero=True)
        person = self.people[name] = Person(name=name, password=password, available=amount)
        if amount:
            person.post("grant", amount, "issued", "available")

    def set_credits(self, credits: Decimal | float, *, user: str = "ann") -> None:
        """What the user has available from now on."""
        amount: Credits = parse_credits(credits, allow_zero=True)
        self.people[user].available = amount

    def expire_tokens(self) -> None:
        """Every access token is refused from now on; refresh tokens still work."""
        self.access_tokens.clear()

    def issue(self, person: Person) -> tuple[str, str]:
        """A new access token and refresh token."""
        access, refresh = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
        self.access_tokens[access] = self.refresh_tokens[refresh] = person
        return access, refresh

    def take(self, fault: str) -> bool:
        """Whether one more of that fault is to be played; then it is one less."""
        left: int = getattr(self, fault)
        setattr(self, fault, max(left - 1, 0))
        return left > 0

    def __enter__(self) -> Self:
        """Listen on a free port."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        wire = Wire(self)
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "server_header": False}
        config = uvicorn.Config(wire, http=wire.lines.protocol(), date_header=False, **quiet)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="fake-parshall")
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("The fake server did not start.")
            time.sleep(0.005)
        return self

    def __exit__(self, *_error: object) -> None:
        """Drop every connection."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
