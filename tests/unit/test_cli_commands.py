"""Laws of the command line itself: exit codes, one sentence for each refusal, secrets that never show."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from parshall import __version__
from parshall.app.config import Settings
from parshall.cli import models, terminal
from parshall.cli.main import app

SECRET = "correct horse battery"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARSHALL_HOME_DIR", str(tmp_path / "home"))


def run(*arguments: str, stdin: str = "", **environment: str) -> Any:
    return CliRunner().invoke(app, list(arguments), input=stdin, env=environment)


def commands(group: Any = None, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    group = group or get_command(app)
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, command in group.commands.items():
        here = (*path, name)
        found += commands(command, here) if hasattr(command, "commands") else [(here, command)]
    return found


COMMANDS = commands()


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_command_explains_itself_with_an_example(path: tuple[str, ...], command: Any) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert "Example:" in command.help
    assert f"parshall {' '.join(path)}" in command.help.partition("Example:")[2]


def test_all_promised_commands_are_there() -> None:
    assert {" ".join(path) for path, _ in COMMANDS} == {
        *("audit", "up", "serve", "chat", "config", "doctor", "openapi", "version", "models list", "models install"),
        *(f"users {verb}" for verb in ("add", "list", "role", "passwd", "remove", "let-in")),
        *(f"credits {verb}" for verb in ("grant", "balance", "statement")),
        *(f"prices {verb}" for verb in ("load", "list", "set")),
        *(f"events {verb}" for verb in ("list", "retry", "test")),
        *(f"organisations {verb}" for verb in ("add", "list", "show", "grant", "members", "join", "leave")),
        *(f"headers {verb}" for verb in ("show", "on", "off", "list", "token")),
        *(f"keys {verb}" for verb in ("create", "list", "revoke", "rotate")),
        *(f"signing-keys {verb}" for verb in ("list", "rotate")),
        *(f"services {verb}" for verb in ("add", "list", "revoke")),
    }


def test_no_command_takes_a_password_as_an_argument() -> None:
    for _, command in COMMANDS:
        names = [name for parameter in command.params for name in parameter.opts]
        assert [name for name in names if "password" in name and name != "--password-stdin"] == []


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_the_version_is_printed(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (0, f"parshall {__version__}\n")


@pytest.mark.parametrize("arguments", [["up", "--split", "--workers", "2"], ["up", "--split", "--port", "80"]])
def test_what_does_not_go_together_is_refused_in_one_sentence(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "--split" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["up", "--port", "99999"],
        ["up", "--workers", "0"],
        ["up", "--split", "--port", "1"],
        ["serve", "billing"],
        ["users", "role", "ann", "king"],
    ],
)
def test_a_wrong_call_is_exit_code_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_wrong_setting_is_one_sentence_on_every_command_that_needs_it() -> None:
    for arguments in (["up"], ["models", "list"]):
        result = run(*arguments, PARSHALL_PORT="many")
        assert result.exit_code == 1
        assert "PARSHALL_PORT" in result.stderr
        assert len(result.stderr.splitlines()) == 1


# ── config ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_config_lists_every_setting_with_its_source_and_meaning() -> None:
    Path("parshall.toml").write_text("slice_tokens = 7\n")
    rows = {row["name"]: row for row in json.loads(run("config", "--json", PARSHALL_PORT="9000").stdout)}
    assert rows.keys() == {f"PARSHALL_{name.upper()}" for name in Settings.model_fields}
    assert (rows["PARSHALL_PORT"]["value"], rows["PARSHALL_PORT"]["source"]) == (9000, "environment")
    assert (rows["PARSHALL_SLICE_TOKENS"]["value"], rows["PARSHALL_SLICE_TOKENS"]["source"]) == (7, "file")
    assert rows["PARSHALL_HOST"]["source"] == "default"
    assert all(row["description"] for row in rows.values())


@pytest.mark.parametrize("form", [["config"], ["config", "--json"]])
def test_config_never_shows_a_secret(form: list[str]) -> None:
    result = run(
        *form,
        PARSHALL_ADMIN_PASSWORD=SECRET,
        PARSHALL_OPENAI_API_KEY=SECRET,
        PARSHALL_MAIL_URL="smtps://me:correct-horse@mail.example.org",
        PARSHALL_OPENAI_BASE_URL="https://me:correct-horse@models.example.org/v1",
    )
    assert result.exit_code == 0
    assert "correct" not in result.stdout
    assert "models.example.org" in result.stdout


@pytest.mark.parametrize(
    ("option", "value"), [("MAIL_URL", "mail.example.org"), ("MAIL_FROM", "Us"), ("PAGES_URL", "javascript:alert(1)")]
)
def test_a_wrong_setting_of_mail_is_named_and_its_value_is_not_shown(option: str, value: str) -> None:
    result = run("users", "list", **{f"PARSHALL_{option}": value})
    assert result.exit_code == 1
    assert f"PARSHALL_{option}: " in result.stderr and value not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_config_still_lists_the_settings_when_one_is_wrong() -> None:
    result = run("config", PARSHALL_PORT="many")
    assert result.exit_code == 1
    assert "PARSHALL_PORT" in result.stderr
    assert "PARSHALL_LEASE_SECONDS" in result.stdout


# ── models ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_models_lists_what_is_configured() -> None:
    result = run(
        *("models", "list", "--json"),
        PARSHALL_EMBEDDED_MODEL="off",
        PARSHALL_OPENAI_BASE_URL="http://127.0.0.1:11434/v1",
        PARSHALL_OPENAI_MODELS="big, *",
    )
    rows = {row["id"]: row for row in json.loads(result.stdout)}
    assert rows.keys() == {"smollm2-135m", "big", "any model id"}
    assert rows["smollm2-135m"]["state"].startswith("off")


def test_a_failed_installation_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "EMBEDDED_MODULE", "parshall_no_such_module")
    monkeypatch.setattr(models, "EMBEDDED_REQUIREMENT", "not a requirement")
    result = run("models", "install")
    assert result.exit_code == 1
    assert "could not be installed" in result.stderr
    assert "Traceback" not in result.output


# ── Passwords and lists ─────────────────────────────────────────────────────────────────────────────────────────────


def reading(**options: bool) -> typer.Typer:
    reader = typer.Typer(cls=terminal.Commands)

    @reader.command()
    def read() -> None:
        typer.echo(repr(terminal.read_password(**options)))

    @reader.command()
    def other() -> None:
        pass

    return reader


def test_standard_input_wins_over_the_environment_for_a_password() -> None:
    result = CliRunner().invoke(
        reading(from_stdin=True), ["read"], input="p w \r\nrest", env={"PARSHALL_PASSWORD": "other"}
    )
    assert result.stdout == "'p w '\n"


def test_the_environment_gives_the_password_without_a_terminal() -> None:
    result = CliRunner().invoke(reading(from_stdin=False), ["read"], env={"PARSHALL_PASSWORD": SECRET})
    assert result.stdout == f"{SECRET!r}\n"


def test_no_source_of_a_password_is_a_wrong_call() -> None:
    result = CliRunner().invoke(reading(from_stdin=False), ["read"], env={"PARSHALL_PASSWORD": None})
    assert result.exit_code == 2
    assert "--password-stdin" in result.stderr


def test_removing_without_a_terminal_needs_yes() -> None:
    result = run("users", "remove", "ann")
    assert result.exit_code == 2
    assert "--yes" in result.stderr


def test_what_others_wrote_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show([{"name": "\x1b]0;x\x07[red]a[/red]"}], columns={"name": "NAME"}, as_json=False, empty="")
    assert "\x1b" not in (shown := capsys.readouterr().out)
    assert "[red]a[/red]" in shown


def test_an_amount_that_is_none_is_refused() -> None:
    result = run("credits", "grant", "ann", "1e-9")
    assert result.exit_code == 1
    assert "six decimal places" in result.stderr
