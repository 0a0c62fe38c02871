"""`parshall signing-keys`: the keys that sign access tokens."""

import sys
from typing import Annotated

import typer

from parshall.cli.terminal import AsJson, Usage, group, local, say, show
from parshall.kernel.clock import rfc3339

app = group("The keys that sign access tokens.")

COLUMNS = {"createdAt": "CREATED", "kid": "KEY ID"}


@app.command()
def rotate(
    leaked: Annotated[
        bool, typer.Option("--leaked", help="Somebody else may have the keys: refuse at once what they have signed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Make a new signing key; tokens signed with the old one stay valid until they expire.

    With --leaked every access token ends within half a minute, and clients refresh; nobody needs to log in again.

    Example: parshall signing-keys rotate
    """
    if not leaked:
        local(lambda parts: parts.auth.rotate())
        say("A new signing key is made; running servers sign with it in about a minute.")
        return
    if not yes and not sys.stdin.isatty():
        raise Usage("There is no terminal to confirm on; add --yes.")
    if not yes:
        typer.confirm("End every access token?", abort=True)
    local(lambda parts: parts.auth.replace_keys())
    say("The old signing keys are gone; running servers refuse what they have signed within half a minute.")


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys with which access tokens can be verified, newest first.

    Example: parshall signing-keys list
    """
    keys = local(lambda parts: parts.auth.keys_in_force())
    rows = [{"kid": key.kid, "createdAt": rfc3339(key.created_at)} for key in keys]
    show(rows, columns=COLUMNS, as_json=as_json, empty="There are no signing keys.")
