"""`parshall doctor`: examine a deployment from outside, through whatever stands in front of it."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parshall.cli.terminal import PIPE_WIDTH, AsJson, PasswordStdin, Usage, complain, printable, read_password, say
from parshall.doctor.model import Plan, Profile

if TYPE_CHECKING:
    from parshall.doctor.model import Report

NOT_DONE = 2
"""Exit code beside 0 (no fault) and 1 (faults): the deployment could not be examined."""
_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red", "not checked": "dim"}


Url = Annotated[str, typer.Argument(help="The address that clients use, such as https://chat.example.org.")]
Username = Annotated[
    str | None, typer.Option("--username", "-u", envvar="PARSHALL_USERNAME", help="Username or e-mail address.")
]
Token = Annotated[
    str | None, typer.Option(envvar="PARSHALL_TOKEN", help="An access token or API key, instead of logging in.")
]
Origins = Annotated[
    list[str] | None, typer.Option("--origin", help="The origin of a page that calls it; repeat it for more.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Leave out the silence.")]
Silence = Annotated[float, typer.Option("--silence", min=1, max=600, help="Seconds of silence that must survive.")]
Message = Annotated[str | None, typer.Option(help="What to ask; the answer should take a second or more.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Model to ask.")]
OfProfile = Annotated[Profile, typer.Option(help="generic: any service that sends events.")]
StreamPath = Annotated[str, typer.Option(help="generic: the path, with its query, that gives the stream.")]
Body = Annotated[str | None, typer.Option(help="generic: POST this body instead of GET.")]
RequestHeaders = Annotated[
    list[str] | None, typer.Option("--header", help='generic: a request header, "Name: value"; repeat it for more.')
]
CaFile = Annotated[Path | None, typer.Option(help="Certificates (PEM) to trust instead of the system's.")]
HtmlFile = Annotated[Path | None, typer.Option(help="Write the report to this file, as HTML.")]


def doctor(
    url: Url,
    username: Username = None,
    password_stdin: PasswordStdin = False,
    token: Token = None,
    origins: Origins = None,
    quick: Quick = False,
    silence_seconds: Silence = 90,
    message: Message = None,
    model: Model = None,
    profile: OfProfile = Profile.PARSHALL,
    path: StreamPath = "/",
    body: Body = None,
    headers: RequestHeaders = None,
    ca_file: CaFile = None,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Examine a deployment: headers, CORS, buffering, resuming, charging, timeouts, TLS.

    Asks for two short answers as a user, at that user's cost. Exit code: 0 no fault, 1 faults, 2 it could not be
    examined. The password is asked for, or read with --password-stdin or from PARSHALL_PASSWORD.

    Example: parshall doctor https://chat.example.org --username ann --origin https://www.example.org
    """
    logs_in = profile is Profile.PARSHALL and token is None
    if logs_in and not username:
        raise Usage("Say who is to be charged for two short answers: --username NAME, or --token.")
    plan = Plan(
        url=url,
        profile=profile,
        username=username,
        password=read_password(from_stdin=password_stdin) if logs_in else None,
        token=token,
        origins=[_origin(given) for given in origins or ()],
        model_id=model,
        silence_seconds=None if quick else silence_seconds,
        ca_file=str(ca_file) if ca_file else None,
        path=path if path.startswith("/") else f"/{path}",
        body=body,
        headers=[_header(given) for given in headers or ()],
        **({} if message is None else {"message": message}),
    )
    raise typer.Exit(_run(plan, html=html, as_json=as_json))


def _run(plan: Plan, *, html: Path | None, as_json: bool) -> int:
    report = _examined(plan)
    _write(report, html)
    if as_json:
        typer.echo(json.dumps(report.wire(), indent=2))
    else:
        _tell(report)
    return report.exit_code


def _examined(plan: Plan) -> "Report":
    from parshall.doctor.examine import examine
    from parshall.doctor.model import CannotRun

    try:
        with _progress() as progress:
            return asyncio.run(examine(plan, progress))
    except CannotRun as error:
        complain(str(error))
        raise typer.Exit(NOT_DONE) from error


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being examined, where standard error is a terminal."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("Examining {task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task("the connection", total=None)
        yield lambda words: shown.update(task, description=printable(words))


def _write(report: "Report", file: Path | None) -> None:
    from parshall.doctor import page

    if file is None:
        return
    try:
        file.write_text(page.html(report), encoding="utf-8")
    except OSError as error:
        complain(f"{file} cannot be written ({error.strerror}); name another file.")
        raise typer.Exit(NOT_DONE) from error


def _tell(report: "Report") -> None:
    from parshall.doctor import page

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("VERDICT", "CHECK"):
        table.add_column(heading, no_wrap=True)
    table.add_column("WHAT WAS SEEN")
    for finding in report.findings:
        status = finding.status.value
        table.add_row(Text(status, style=_STYLES[status]), printable(finding.title), Text(printable(finding.evidence)))
        if finding.remedy:
            table.add_row("", "", Text(f"→ {finding.remedy}", style="bold"))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False).print(table)
    say(f"In front: {', '.join(report.front) or 'nothing that names itself'}.")
    say(page.verdict(report))


def _origin(text: str) -> str:
    """An origin as browsers send it. Raises Usage."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("http", "https") or not rest or set(rest) & set("/?# "):
        raise Usage(f"{text!r} is no origin; an origin is scheme and host without a path: https://www.example.org.")
    return text


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator or not name.strip() or not text.isascii() or not text.isprintable():
        raise Usage(f'{name!r} is no header; give --header "Name: value".')
    return name.strip(), value.strip()
