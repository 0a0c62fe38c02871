"""`parshall headers`: every header of a stream as a timeline or HAR, and for whom they are traced."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from parshall.cli.terminal import AsJson, Refused, Usage, group, local, say, show
from parshall.kernel import clock
from parshall.kernel.clock import rfc3339
from parshall.kernel.debugtokens import DEBUG_MINUTES, DEBUG_MINUTES_MAX
from parshall.kernel.fingerprints import DEBUG_HEADER
from parshall.kernel.ids import is_user_id

if TYPE_CHECKING:
    from parshall.chat.debugging import Traces
    from parshall.chat.trace_store import Switch

T = TypeVar("T")
BY = "cli"
MINUTES = 15
MINUTES_MAX = 24 * 60
COLUMNS = {"id": "SWITCH", "userId": "USER", "streamingSessionId": "STREAM", "until": "UNTIL", "setBy": "SET BY"}


class _Named(TyperGroup):
    """`parshall headers ID` is `parshall headers show ID`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = group(
    "Every header of a stream, as a timeline: `parshall headers ID`; and for whom headers are traced.", cls=_Named
)

User = Annotated[str | None, typer.Option("--user", help="Username, e-mail address or id.")]
Stream = Annotated[str | None, typer.Option("--stream", help="Streaming session id; the stream may be yet to come.")]


@app.command("show")
def show_trace(
    named: Annotated[str, typer.Argument(metavar="ID", help="Streaming session id, or the id of one traced request.")],
    har: Annotated[
        Path | None, typer.Option(help="Write a HAR 1.2 file, which browsers' developer tools import.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was traced of a stream: every request about it, its headers in order, and the calls between services.

    Example: parshall headers show stream-1620847252-a1b2c3d4
    """
    from parshall.chat.har import har_of
    from parshall.chat.timeline import timeline_of

    documents = _with_traces(lambda traces: traces.read(named, by=_by()))
    if har is not None:
        try:
            har.write_text(json.dumps(har_of(documents), indent=1), encoding="utf-8")
        except OSError as error:
            raise Refused(f"{har} cannot be written ({error.strerror}); name another file.") from error
    timeline = timeline_of(named, documents)
    if as_json:
        typer.echo(json.dumps(timeline, indent=2))
    elif har is None:
        for line in lines_of(timeline):
            say(line)
    else:
        say(f"{len(documents)} requests and calls are in {har}.")


@app.command()
def on(
    user: User = None,
    stream: Stream = None,
    minutes: Annotated[int, typer.Option(min=1, max=MINUTES_MAX, help="For how long.")] = MINUTES,
) -> None:
    """Trace the requests of one user, or those about one stream; running servers follow within a second.

    Example: parshall headers on --user ann --minutes 10
    """
    if (user is None) == (stream is None):
        raise Usage("Name one of --user and --stream.")
    user_id = None if user is None else _user_id(user)
    made = _with_traces(lambda traces: traces.switch_on(user=user_id, stream_id=stream, minutes=minutes, by=_by()))
    say(f"The headers of {user or stream} are traced until {rfc3339(made.until)[:19]}Z.")


@app.command()
def off(user: User = None, stream: Stream = None) -> None:
    """Trace one user or stream no more, or nobody at all; what was traced stays.

    Example: parshall headers off --user ann
    """
    if user is not None and stream is not None:
        raise Usage("Name one of --user and --stream, or neither for all.")
    named = stream if user is None else _user_id(user)
    gone = _with_traces(lambda traces: traces.switch_off(named, by=_by()))
    say(f"{len(gone)} {'switch is' if len(gone) == 1 else 'switches are'} off.")


@app.command("list")
def list_switches(as_json: AsJson = False) -> None:
    """List whose headers are traced now.

    Example: parshall headers list
    """
    rows = [_row(each) for each in _with_traces(lambda traces: traces.switches())]
    show(rows, columns=COLUMNS, as_json=as_json, empty="Nobody is traced; `parshall headers on` changes that.")


@app.command()
def token(
    minutes: Annotated[int, typer.Option(min=1, max=DEBUG_MINUTES_MAX, help="For how long it works.")] = DEBUG_MINUTES,
) -> None:
    """Make a token for the header X-Debug-Headers; each request that carries it is traced. It opens nothing.

    Example: parshall headers token --minutes 5
    """
    made = local(lambda parts: parts.auth.debug_token(BY, minutes=minutes))
    typer.echo(f"Send it as {DEBUG_HEADER}; it works for {minutes} minutes:", err=True)
    typer.echo(made)


# ── Telling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def lines_of(timeline: dict[str, Any]) -> Iterator[str]:
    """The timeline for people: each request with what happened, and how many milliseconds after its beginning."""
    yield timeline["streamingSessionId"]
    for exchange in timeline["exchanges"]:
        request, began = exchange["request"], datetime.fromisoformat(exchange["at"])
        yield ""
        yield f"{exchange['at']}  {exchange['role']}  {request['method']} {request['target']}"
        yield f"{'':12}by {exchange['userId'] or 'nobody known'}, traced for: {exchange['reason']}"
        for note in exchange["notes"]:
            yield f"{'':12}{note}"
        for event in timeline["timeline"]:
            if event["exchange"] == exchange["id"] and event["event"] != "request":
                after = (datetime.fromisoformat(event["at"]) - began).total_seconds() * 1000
                yield f"{after:9.3f}ms {_told(event)}"


def _told(event: dict[str, Any]) -> str:
    match event["event"]:
        case "received":
            return f"<  {event['name']}: {event['value']}"
        case "set":
            return f" > {event['name']}: {event['value']}" + (f"    [{event['place']}]" if event["place"] else "")
        case "response":
            return f" > status {event['status']}"
        case "fault":
            return f"!! {event['kind']}: {event['name']}" + (f"    [{event['place']}]" if event["place"] else "")
        case "call" | "provider":
            return f"-> {event['to']}: {event['method']} {event['target']}"
        case "answer":
            return f"<- {event['to']}: {event['status'] or 'no answer'}{_hop(event['hop'])}"
    return str(event["event"])


def _hop(hop: dict[str, Any] | None) -> str:
    """What happened on the way, where the receiver told."""
    if hop is None:
        return ""
    told = [
        f"{side} {what} {', '.join(hop[side][what])}"
        for side in ("request", "response")
        for what in ("lost", "added", "changed")
        if hop[side][what]
    ]
    return f" ({'; '.join(told) or 'nothing lost, added or changed'})"


def _row(switch: "Switch") -> dict[str, Any]:
    return {
        "id": switch.id,
        "userId": switch.user_id,
        "streamingSessionId": switch.stream_id,
        "until": rfc3339(switch.until),
        "setBy": switch.set_by,
    }


# ── On this machine ─────────────────────────────────────────────────────────────────────────────────────────────────


def _by() -> Any:
    from parshall.chat.debugging import By

    return By(id=BY, name=BY)


def _user_id(who: str) -> str:
    return who if is_user_id(who) else local(lambda parts: parts.auth.resolve(who))


def _with_traces(work: Callable[["Traces"], Awaitable[T]]) -> T:
    """Run `work` on chat's database. Safe beside a running server. Raises StartupError, ParshallError."""
    from parshall.app import config
    from parshall.app.local import existing_database
    from parshall.chat.debugging import Traces
    from parshall.kernel import telemetry

    settings = config.load()
    telemetry.configure(level="warning", json=False)

    async def run() -> T:
        async with existing_database(settings, "chat") as database:
            return await work(Traces(database, people=None, clock=clock.now))

    return asyncio.run(run())
