"""`parshall users`: who may log in, in which role."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from parshall.cli.terminal import AsJson, PasswordStdin, Usage, group, local, read_password, say, show
from parshall.kernel.clock import rfc3339
from parshall.kernel.tokens import Role

if TYPE_CHECKING:
    from parshall.app.local import Parts
    from parshall.auth.model import User

app = group("Add, list and remove users.")

Who = Annotated[str, typer.Argument(help="Username, e-mail address or id.")]
COLUMNS = {"username": "USERNAME", "email": "E-MAIL", "role": "ROLE", "createdAt": "CREATED", "id": "ID"}


@app.command()
def add(
    username: Annotated[str, typer.Argument(help="3 to 30 letters, digits, hyphens or underscores.")],
    email: Annotated[str, typer.Option(help="E-mail address.")],
    role: Annotated[Role, typer.Option(help="What the user may do.")] = Role.ENDUSER,
    password_stdin: PasswordStdin = False,
) -> None:
    """Add a user.

    Example: parshall users add ann --email ann@example.org --role supervisor
    """
    password = read_password(from_stdin=password_stdin, confirm=True)
    user = local(lambda parts: parts.auth.create_user(username, email, password, role))
    say(f"Added {user.username} ({role.value}) with the id {user.id}.")


@app.command("list")
def list_users(as_json: AsJson = False) -> None:
    """List all users.

    Example: parshall users list --json
    """
    rows = [
        {
            "id": user.id,
            "username": user.username,
            "email": user.email,
            "role": user.role.value,
            "createdAt": rfc3339(user.created_at),
        }
        for user in local(_everybody)
    ]
    show(rows, columns=COLUMNS, as_json=as_json, empty="There are no users yet; `parshall up` makes the first.")


@app.command()
def role(who: Who, new_role: Annotated[Role, typer.Argument(metavar="ROLE", help="The new role.")]) -> None:
    """Change a user's role.

    Example: parshall users role ann admin
    """
    local(lambda parts: parts.auth.set_role(who, new_role))
    say(f"{who} is now {new_role.value}; access tokens issued before keep the old role until they expire.")


@app.command()
def passwd(who: Who, password_stdin: PasswordStdin = False) -> None:
    """Set a user's password and end all of the user's sessions.

    Example: parshall users passwd ann
    """
    password = read_password(from_stdin=password_stdin, confirm=True)
    local(lambda parts: parts.auth.set_password(who, password))
    say(f"The password of {who} is set; every earlier login has ended.")


@app.command()
def remove(who: Who, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Remove a user; what the ledger recorded stays.

    Example: parshall users remove ann --yes
    """
    if not yes and not sys.stdin.isatty():
        raise Usage("There is no terminal to confirm on; add --yes.")
    if not yes:
        typer.confirm(f"Remove {who}?", abort=True)
    local(lambda parts: parts.auth.delete_user(who))
    say(f"Removed {who}.")


@app.command("let-in")
def let_in(
    issuer: Annotated[str, typer.Argument(help="The issuer's URL, as its tokens name it.")],
    subject: Annotated[str, typer.Argument(help="Who it is there: the claim sub.")],
) -> None:
    """Let somebody of an external issuer in again, who was removed.

    Example: parshall users let-in https://login.example.org 248289761001
    """
    local(lambda parts: parts.auth.let_in(issuer, subject))
    say(f"{subject} is taken for a new user when they next log in.")


async def _everybody(parts: "Parts") -> "list[User]":
    users, total = await parts.auth.users_page()
    page = 1
    while len(users) < total:
        page += 1
        more, total = await parts.auth.users_page(page=page)
        if not more:  # somebody was removed while we read
            break
        users += more
    return users
