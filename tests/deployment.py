"""The committed files of deploy/ as tests read them, and what in them speaks of the program."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml

from parshall.app.apart import ServiceName, port_of
from parshall.app.config import FILE_VARIABLE, PREFIX, Settings, load
from parshall.app.secrets import FOLDER_VARIABLE
from parshall.cli.main import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
OPTIONS = {PREFIX + name.upper() for name in Settings.model_fields} | {FILE_VARIABLE, FOLDER_VARIABLE}
USER = 10001
"""Who runs in the image."""
_DEFAULT = re.compile(r"\$\{(\w+):-([^}]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction of a Containerfile, its lines joined, and the number of its stage from 0 on."""

    stage: int
    name: str
    text: str


def instructions() -> list[Instruction]:
    """Those of deploy/Containerfile."""
    lines = [line for line in _lines(DEPLOY / "Containerfile") if not line.startswith("#")]
    found, stage = [], -1
    for each in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        name, _, text = each.strip().partition(" ")
        if name:
            stage += name == "FROM"
            found.append(Instruction(stage=stage, name=name, text=text.strip()))
    return found


def compose() -> dict[str, Any]:
    """deploy/compose.yaml with its anchors followed and its variables at their defaults."""
    found: dict[str, Any] = _defaults(yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    return found


def _defaults(value: Any) -> Any:
    match value:
        case dict():
            return {name: _defaults(each) for name, each in value.items()}
        case list():
            return [_defaults(each) for each in value]
        case str():
            return _DEFAULT.sub(r"\2", value)
    return value


def manifests(folder: str) -> Iterator[dict[str, Any]]:
    """Every object of that folder of deploy/kubernetes, but for what is kustomize's own."""
    for file in sorted((DEPLOY / "kubernetes" / folder).glob("*.yaml")):
        if file.name != "kustomization.yaml":
            yield from yaml.safe_load_all(file.read_text(encoding="utf-8"))


def check_command(words: Sequence[str]) -> None:
    """Raises a usage error for what is no command of the program with options that it has."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    command.make_context("parshall", rest)


def check_options(variables: Iterable[str]) -> None:
    """Each is an option of the program, or none of ours."""
    assert [name for name in variables if name.startswith(PREFIX) and name not in OPTIONS] == []


def settings_of(variables: Mapping[str, str], monkeypatch: Any) -> Settings:
    """The settings of a process with these variables and no others of ours. Raises StartupError."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load()


def port_of_service(service: str) -> int:
    """The port that a service listens on where nothing else is said."""
    return port_of(Settings.model_construct(), ServiceName(service))


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()
