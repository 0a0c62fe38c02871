"""`parshall config`: every setting in force, where it comes from, and what it means."""

import os
import re
from typing import Any

import typer
from pydantic import BaseModel, SecretStr

from parshall.app.config import PREFIX, Settings, load
from parshall.app.secrets import secret_names
from parshall.cli.terminal import AsJson, complain, show
from parshall.kernel.errors import StartupError

HIDDEN = "(hidden)"
COLUMNS = {"name": "NAME", "value": "VALUE", "source": "SOURCE", "description": "MEANING"}
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")


def config(as_json: AsJson = False) -> None:
    """Print every setting in force; secrets are hidden.

    Example: PARSHALL_PORT=9000 parshall config
    """
    try:
        settings = load()
    except StartupError as error:  # whoever has it wrong needs the list most: it is given without values
        complain(str(error))
        show(_rows(None), columns=COLUMNS, as_json=as_json, empty="")
        raise typer.Exit(1) from error
    show(_rows(settings), columns=COLUMNS, as_json=as_json, empty="")


def _rows(settings: Settings | None) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{PREFIX}{name.upper()}",
            "value": None if settings is None else _shown(getattr(settings, name)),
            "source": None if settings is None else _source(settings, name),
            "description": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]


def _source(settings: Settings, name: str) -> str:
    if name not in settings.model_fields_set:
        return "default"
    option = f"{PREFIX}{name.upper()}"
    if any(variable.upper() == option for variable in os.environ):
        return "environment"
    return "secret" if option in secret_names(PREFIX) else "file"


def _shown(value: object) -> object:
    """A value fit to be seen: secrets hidden, and credentials inside URLs too."""
    match value:
        case SecretStr():
            return HIDDEN
        case str():
            return _URL_PASSWORD.sub(f"{HIDDEN}@", value)
        case bool() | int() | float() | None:
            return value
        case BaseModel():
            return {name: _shown(part) for name, part in value}
        case dict():
            return {name: _shown(part) for name, part in value.items()}
        case frozenset():
            return sorted(map(str, value))
        case tuple():
            return [_shown(part) for part in value]
    return str(value)
