"""The program `parshall`: its commands put together, starting the server, and naming the version."""

from typing import Annotated

import typer

from parshall import __version__
from parshall.app.apart import ServiceName
from parshall.cli import (
    audit,
    chat,
    config,
    credits,
    doctor,
    events,
    headers,
    keys,
    models,
    openapi,
    organisations,
    prices,
    services,
    signing_keys,
    users,
)
from parshall.cli.terminal import Commands, Usage, group

app = group("Metered AI streams: login, chat, Server-Sent Events and prepaid credits.", cls=Commands)
app.add_typer(users.app, name="users")
app.add_typer(credits.app, name="credits")
app.add_typer(prices.app, name="prices")
app.add_typer(events.app, name="events")
app.add_typer(organisations.app, name="organisations")
app.add_typer(services.app, name="services")
app.add_typer(keys.app, name="keys")
app.add_typer(signing_keys.app, name="signing-keys")
app.add_typer(models.app, name="models")
app.add_typer(headers.app, name="headers")
app.command(name="audit")(audit.audit)
app.command(name="chat")(chat.chat)
app.command(name="config")(config.config)
app.command(name="doctor")(doctor.doctor)
app.command(name="openapi")(openapi.openapi)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Metered AI streams: login, chat, Server-Sent Events and prepaid credits that never drift.

    Start with `parshall up`, then `parshall chat`. Settings are environment variables; `parshall config` lists them.
    """
    if version:
        typer.echo(f"parshall {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def up(
    split: Annotated[bool, typer.Option("--split", help="Each service as a process of its own.")] = False,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes that share the port; needs PostgreSQL and Valkey.")
    ] = 1,
    demo: Annotated[bool, typer.Option("--demo", help="Make users and credits to try it out with.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: PARSHALL_HOST).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one (default: PARSHALL_PORT).")
    ] = None,
    descriptor: Annotated[int | None, typer.Option(min=3, hidden=True)] = None,
) -> None:
    """Serve everything on one port until Ctrl-C; with --split auth, accounting and chat on a port each.

    Example: parshall up --demo --port 8080
    """
    if split and workers > 1:
        raise Usage("--split and --workers do not go together: run more processes of `parshall serve chat` instead.")
    if split and port is not None:
        raise Usage("--split listens on three ports: set PARSHALL_AUTH_PORT, _ACCOUNTING_PORT and _CHAT_PORT.")
    from parshall.app import config as configuration  # the server's imports are heavy: only who serves pays for them
    from parshall.app import server
    from parshall.app import split as apart
    from parshall.app import workers as several

    settings = configuration.load(host=host, port=port)
    if split:
        raise typer.Exit(apart.run(settings, demo=demo))
    if workers > 1:
        raise typer.Exit(several.run(settings, workers, demo=demo))
    raise typer.Exit(server.run(settings, demo=demo, descriptor=descriptor))


@app.command()
def serve(
    service: Annotated[ServiceName, typer.Argument(help="Which service.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: PARSHALL_HOST).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one (default: that of the service).")
    ] = None,
) -> None:
    """Serve one service until Ctrl-C; the others are found by PARSHALL_AUTH_URL and PARSHALL_ACCOUNTING_URL.

    Example: PARSHALL_SERVICE_SECRET=… parshall serve chat
    """
    from parshall.app import config as configuration
    from parshall.app import server

    settings = configuration.load(host=host, **{f"{service}_port": port})
    raise typer.Exit(server.run(settings, service=service))


@app.command()
def version() -> None:
    """Print the version.

    Example: parshall version
    """
    typer.echo(f"parshall {__version__}")


def main() -> None:
    """Run the command that the arguments name; exit codes: 0 done, 1 refused (a sentence says why), 2 wrong usage."""
    app(prog_name="parshall")
