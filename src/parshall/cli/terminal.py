"""What all commands share: errors as one sentence, passwords, lists as a table or JSON, work on the data folder."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from parshall.app.config import PASSWORD_VARIABLE
from parshall.client.errors import ClientError
from parshall.kernel.errors import ParshallError, StartupError

if TYPE_CHECKING:
    from parshall.app.local import Parts


PIPE_WIDTH = 1000

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from the first line of standard input.")
]
Row = Mapping[str, Any]
T = TypeVar("T")


class Usage(Exception):
    """The command was called wrongly; its sentence says how to call it. Exit code 2."""


class Refused(Exception):
    """The command could not do it; its sentence says what to do. Exit code 1."""


class Commands(TyperGroup):
    """The outermost group: whatever a person can meet ends as one sentence on standard error, not as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command named by the arguments."""
        try:
            return super().invoke(ctx)
        except Usage as error:
            complain(str(error))
            raise typer.Exit(2) from error
        except ParshallError as error:
            complain(error.detail)
        except (StartupError, ClientError, Refused) as error:
            complain(str(error))
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1)


def group(help_text: str, *, cls: type[TyperGroup] | None = None) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(
        help=help_text,
        cls=cls or TyperGroup,
        no_args_is_help=cls is not Commands,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def complain(sentence: str) -> None:
    """One sentence on standard error."""
    Console(stderr=True).print(Text(printable(sentence), style="red"), soft_wrap=True)


def say(sentence: str) -> None:
    """One sentence on standard output."""
    typer.echo(printable(sentence))


def printable(text: str) -> str:
    """`text` without control characters (tabs and newlines stay): what others wrote must not drive the terminal."""
    return "".join(char for char in text if char in "\n\t" or not (ord(char) < 32 or 127 <= ord(char) < 160))


def clean(typed: str) -> str:
    """What was typed, with bytes that are no UTF-8 replaced: they reach us as half characters that nothing stores."""
    return typed.encode("utf-8", "replace").decode()


def read_password(*, from_stdin: bool, confirm: bool = False) -> str:
    """The password from standard input, the environment or a prompt, in this order; never from an argument."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    from_environment = os.environ.get(PASSWORD_VARIABLE)
    if from_environment:
        return from_environment
    if not sys.stdin.isatty():
        raise Usage(f"There is no terminal to ask for the password on; use --password-stdin or {PASSWORD_VARIABLE}.")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True))


def show(rows: Sequence[Row], *, columns: Mapping[str, str], as_json: bool, empty: str) -> None:
    """Rows as a table (`columns`: member to heading) or as a JSON list; `empty` is said where there is none."""
    if as_json:
        typer.echo(json.dumps(list(rows), indent=2, default=str))
        return
    if not rows:
        say(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(columns.values(), start=1):
        table.add_column(heading, no_wrap=number < len(columns))
    for row in rows:
        table.add_row(*(Text(printable(_cell(row[name]))) for name in columns))
    # A pipe has no width: nothing is cut for those who search the output.
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False).print(table)


def local(work: Callable[["Parts"], Awaitable[T]]) -> T:
    """Run `work` on the services of this machine's data folder. Safe beside a running server.

    Raises StartupError, ParshallError or Refused.
    """
    from parshall.app import config
    from parshall.app import local as parts_of
    from parshall.kernel import telemetry

    settings = config.load()

    async def run() -> T:
        async with parts_of.local(settings) as parts:
            return await work(parts)

    telemetry.configure(level="warning", json=False)
    try:
        return asyncio.run(run())
    except OSError as error:
        reason = error.strerror or str(error)
        raise Refused(
            f"The data folder {settings.home_dir} cannot be used ({reason}); set PARSHALL_HOME_DIR."
        ) from error


def _cell(value: object) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(str, value)) or "–"
    return str(value)
