"""`parshall services`: credentials of services that call others as themselves."""

from pathlib import Path
from typing import Annotated

import typer

from parshall.cli.terminal import AsJson, Refused, group, local, say, show
from parshall.kernel.clock import rfc3339

app = group("Credentials of services that call others as themselves.")

Name = Annotated[str, typer.Argument(help="2 to 31 lower-case letters, digits or hyphens.")]


@app.command()
def add(
    name: Name,
    scope: Annotated[
        list[str] | None, typer.Option(help="A scope to allow; repeat it for more (default: all).")
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option(help="A file with the secret that it has or shall have, in place of a new one.")
    ] = None,
) -> None:
    """Add a service and print its secret, once. With --secret-file it may be there already, and is given that secret.

    Example: parshall services add chat --scope accounting:settle
    """
    if secret_file is not None:
        _keep(name, scope, _first_line(secret_file))
        return
    # Without --scope the service decides what all scopes are.
    secret = local(lambda parts: parts.auth.add_service(name, scope) if scope else parts.auth.add_service(name))
    typer.echo(f"The secret of {name}; it cannot be shown again:", err=True)
    typer.echo(secret)


def _keep(name: str, scope: list[str] | None, secret: str) -> None:
    more = {"scopes": scope} if scope else {}
    changed = local(lambda parts: parts.auth.keep_service(name, secret=secret, **more))
    say(f"{name} is known by that secret now." if changed else f"{name} is known by that secret already.")


def _first_line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"The file {file} cannot be read ({type(error).__name__}); name one with a secret.") from error


@app.command("list")
def list_services(as_json: AsJson = False) -> None:
    """List the services that have a secret.

    Example: parshall services list
    """
    rows = [
        {"name": service.name, "scopes": sorted(service.scopes), "createdAt": rfc3339(service.created_at)}
        for service in local(lambda parts: parts.auth.services())
    ]
    columns = {"name": "NAME", "scopes": "SCOPES", "createdAt": "CREATED"}
    show(rows, columns=columns, as_json=as_json, empty="There are no services; `parshall services add NAME` adds one.")


@app.command()
def revoke(name: Name) -> None:
    """Take a service's secret back; tokens that it holds expire within minutes.

    Example: parshall services revoke chat
    """
    local(lambda parts: parts.auth.revoke_service(name))
    say(f"Revoked {name}.")
