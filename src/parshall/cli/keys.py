"""`parshall keys`: API keys of users, with which programs call in their name."""

from typing import TYPE_CHECKING, Annotated

import typer

from parshall.auth.apikey import DAYS_DEFAULT, DAYS_MAX
from parshall.cli import signing_keys
from parshall.cli.terminal import AsJson, group, local, say, show
from parshall.kernel import clock
from parshall.kernel.clock import DAY, rfc3339
from parshall.kernel.tokens import KEY_SCOPES

if TYPE_CHECKING:
    from parshall.app.local import Parts
    from parshall.auth.apikey import ApiKey, MadeKey

app = group("API keys, with which programs call in a user's name.")

Who = Annotated[str, typer.Argument(help="Username, e-mail address or id of the user.")]
COLUMNS = {
    "name": "NAME",
    "scopes": "SCOPES",
    "createdAt": "CREATED",
    "expiresAt": "EXPIRES",
    "lastUsedOn": "LAST USED",
    "prefix": "BEGINS WITH",
}


@app.command()
def create(
    who: Who,
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(sorted(KEY_SCOPES))}; repeat it for more (default: all)."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=DAYS_MAX, help="Days until the key expires.")] = DAYS_DEFAULT,
) -> None:
    """Make an API key for a user and print it, once.

    Example: parshall keys create ann nightly-report --scope credits:read --days 30
    """
    scopes = frozenset(scope) if scope else KEY_SCOPES

    async def work(parts: "Parts") -> "MadeKey":
        user_id = await parts.auth.resolve(who)
        return await parts.auth.api_keys.create(user_id, name, scopes=scopes, expires_at=clock.now() + days * DAY)

    made = local(work)
    typer.echo(f"The API key {name} of {who}; it cannot be shown again:", err=True)
    typer.echo(made.text)


@app.command("list")
def list_keys(who: Who, as_json: AsJson = False) -> None:
    """List a user's API keys.

    Example: parshall keys list ann
    """

    async def work(parts: "Parts") -> "list[ApiKey]":
        return await parts.auth.api_keys.keys_of(await parts.auth.resolve(who))

    rows = [
        {
            "id": key.id,
            "name": key.name,
            "scopes": sorted(key.scopes),
            "createdAt": rfc3339(key.created_at),
            "expiresAt": rfc3339(key.expires_at),
            "lastUsedOn": None if key.used_day is None else rfc3339(key.used_day * DAY)[:10],
            "prefix": key.prefix,
        }
        for key in local(work)
    ]
    show(rows, columns=COLUMNS, as_json=as_json, empty=f"{who} has no API keys; `parshall keys create` makes one.")


@app.command()
def revoke(who: Who, key: Annotated[str, typer.Argument(help="How the key begins, or its id.")]) -> None:
    """Revoke a user's API key; running servers refuse it within half a minute.

    Example: parshall keys revoke ann parshall_0123456789abcdef
    """

    async def work(parts: "Parts") -> None:
        await parts.auth.api_keys.revoke(await parts.auth.resolve(who), key)

    local(work)
    say(f"Revoked the API key {key}.")


@app.command(hidden=True)
def rotate() -> None:
    """Make a new signing key, as `parshall signing-keys rotate` does; version 0.1 had it under this name.

    Example: parshall keys rotate
    """
    signing_keys.rotate(leaked=False, yes=False)
