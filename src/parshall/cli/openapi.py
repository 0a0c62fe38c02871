"""`parshall openapi`: what the HTTP API is, for programs that read it, without a server."""

import json
from typing import Annotated

import typer

from parshall.app.apart import ALL, ServiceName


def openapi(
    service: Annotated[ServiceName | None, typer.Option(help="Of one service alone (default: of all).")] = None,
    postman: Annotated[bool, typer.Option("--postman", help="As a Postman collection to import.")] = False,
) -> None:
    """Print the OpenAPI document, or the same as a Postman collection; a server has both: /openapi.json, /postman.json.

    Example: parshall openapi --postman > parshall.postman_collection.json
    """
    from parshall.app.postman import collection  # the server's imports are heavy: only who needs them pays for them
    from parshall.app.surface import name_of, surface

    services = frozenset({service}) if service else ALL
    document = surface(services).openapi()
    shown = collection(document, name=name_of(services)) if postman else document
    typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
