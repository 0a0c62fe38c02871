"""`parshall chat`: log in, ask, and read the answer as it comes, on a terminal or in a script."""

import sys
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console

from parshall.cli.conversation import Conversation, Ended
from parshall.cli.screen import Screen
from parshall.cli.terminal import PasswordStdin, Usage, clean, read_password
from parshall.client import Client, ClientError

DEFAULT_URL = "http://127.0.0.1:8000"
PROMPT = "you › "


def chat(
    message: Annotated[
        str | None, typer.Argument(help="Ask this and leave; without it standard input, or a conversation.")
    ] = None,
    url: Annotated[str, typer.Option(envvar="PARSHALL_URL", help="Where Parshall listens.")] = DEFAULT_URL,
    username: Annotated[
        str | None, typer.Option("--username", "-u", envvar="PARSHALL_USERNAME", help="Username or e-mail address.")
    ] = None,
    password_stdin: PasswordStdin = False,
    token: Annotated[
        str | None, typer.Option(envvar="PARSHALL_TOKEN", help="An access token, instead of logging in.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model to ask (default: the server's choice).")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Go on with this chat session.")] = None,
    auth_url: Annotated[
        str | None,
        typer.Option(help="Where auth listens, if elsewhere (with services apart, --url is chat's address)."),
    ] = None,
    accounting_url: Annotated[str | None, typer.Option(help="Where accounting listens, if elsewhere.")] = None,
) -> None:
    """Chat with a model; each answer ends with its receipt.

    Ctrl-C stops an answer, and only what was generated is charged. A broken connection is taken up where it broke.
    The password is asked for, or read with --password-stdin or from PARSHALL_PASSWORD.

    Example: parshall chat --username ann "What does a Parshall flume measure?"
    """
    with Client(url, token=token, auth_url=auth_url, accounting_url=accounting_url) as client:
        if token is None:
            client.login(_username(username), read_password(from_stdin=password_stdin))
        try:
            if session is not None:
                client.session(session)  # refused here where it is not the user's, before anything is typed
            screen = Screen(Console(highlight=False), Console(stderr=True, highlight=False))
            conversation = Conversation(client, screen, session_id=session, model_id=model)
            _converse(conversation, screen, message)
        finally:
            with suppress(ClientError):
                client.logout()


def _converse(conversation: Conversation, screen: Screen, message: str | None) -> None:
    if message is None and sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - imported, it gives input() line editing and history
        screen.note("/help lists the commands; Ctrl-C stops an answer, and leaves at the prompt.")
        conversation.loop(lambda: clean(input(PROMPT)))
        return
    asked = clean(sys.stdin.read() if message is None else message).strip()
    if not asked:
        raise Usage('There is nothing to ask; give a message: parshall chat "Hello".')
    ended = conversation.ask(asked)
    if ended is not Ended.COMPLETE:
        raise typer.Exit(1)


def _username(given: str | None) -> str:
    if given:
        return given
    if not sys.stdin.isatty():
        raise Usage("Say who you are with --username NAME, or log in with --token.")
    return str(typer.prompt("Username", err=True))
