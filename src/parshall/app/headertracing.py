"""Traces of headers in a serving process: what records them, and, where chat is served, what keeps and shows them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.types import ASGIApp

from parshall.app.config import Settings
from parshall.chat.debugging import TraceKeeper, Traces
from parshall.chat.supervision import People
from parshall.kernel import clock
from parshall.kernel.database import Database
from parshall.kernel.fingerprints import Fingerprints, deployment_secret
from parshall.kernel.headertrace import HeaderTrace, Mode, Tracing
from parshall.kernel.places import noted_places
from parshall.kernel.tokens import TokenVerifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """The parts of it; a process without chat keeps nothing, and tells other services what reached it."""

    tracing: Tracing
    traces: Traces | None = None
    keeper: TraceKeeper | None = None

    def in_front_of(self, app: ASGIApp) -> ASGIApp:
        """The application, with its requests traced where that is wanted."""
        return HeaderTrace(app, self.tracing)

    def offer(self, app: FastAPI) -> None:
        """What its routes need, where chat is served."""
        if self.traces is not None:
            app.state.traces, app.state.trace_keeper = self.traces, self.keeper


@contextmanager
def traced_parts(
    settings: Settings, name: str, verifier: TokenVerifier, chat: tuple[Database, People] | None
) -> Iterator[Traced]:
    """For the service of that name; `chat` is its database and who is who. Raises StartupError."""
    given, mode = settings.fingerprint_secret, Mode(settings.header_trace)
    secret = deployment_secret(given.get_secret_value() if given else None, settings.home_dir)
    tracing = Tracing(mode=mode, fingerprints=Fingerprints(secret), service=name, clock=clock.now, verifier=verifier)
    with noted_places() if mode is Mode.DEVELOPMENT else nullcontext():
        if chat is None:
            yield Traced(tracing=tracing)
            return
        database, people = chat
        traces = Traces(database, people=people, clock=clock.now)
        yield Traced(tracing=tracing, traces=traces, keeper=TraceKeeper(database, tracing=tracing, clock=clock.now))
