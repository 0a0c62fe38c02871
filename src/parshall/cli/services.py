"""`parshall services`: credentials of services that call others as themselves."""

from typing import Annotated

import typer

from parshall.cli.terminal import AsJson, group, local, say, show
from parshall.kernel.clock import rfc3339

app = group("Credentials of services that call others as themselves.")

Name = Annotated[str, typer.Argument(help="2 to 31 lower-case letters, digits or hyphens.")]


@app.command()
def add(
    name: Name,
    scope: Annotated[
        list[str] | None, typer.Option(help="A scope to allow; repeat it for more (default: all).")
    ] = None,
) -> None:
    """Add a service and print its secret, once.

    Example: parshall services add chat --scope accounting:settle
    """
    # Without --scope the service decides what all scopes are.
    secret = local(lambda parts: parts.auth.add_service(name, scope) if scope else parts.auth.add_service(name))
    typer.echo(f"The secret of {name}; it cannot be shown again:", err=True)
    typer.echo(secret)


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
