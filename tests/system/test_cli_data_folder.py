"""Laws of the administration commands, each run as a person runs it: as a program, on a data folder of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "correct horse battery"


# The commands run in one other process: starting it anew for each would cost most of the time, and running them here
# would leave this process's logs pointed at a stream of theirs.
HOST = """
import json, sys
from typer.testing import CliRunner
from parshall.cli.main import app
for line in sys.stdin:
    asked = json.loads(line)
    result = CliRunner().invoke(app, asked["arguments"], input=asked["stdin"], env=asked["env"])
    answer = {"exit_code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


class Commands:
    """Runs commands on one data folder."""

    def __init__(self, process: subprocess.Popen[str], home: Path) -> None:
        self.process = process
        self.home = home

    def run(self, *arguments: str, stdin: str = "") -> Result:
        assert self.process.stdin
        assert self.process.stdout
        env = {"PARSHALL_HOME_DIR": str(self.home)}
        self.process.stdin.write(json.dumps({"arguments": arguments, "stdin": stdin, "env": env}) + "\n")
        self.process.stdin.flush()
        return Result(**json.loads(self.process.stdout.readline()))

    def done(self, *arguments: str, stdin: str = "") -> str:
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def listed(self, *arguments: str) -> Any:
        return json.loads(self.done(*arguments, "--json"))


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARSHALL_")}
    with subprocess.Popen(
        [sys.executable, "-c", HOST],
        env=kept,
        cwd=tmp_path_factory.mktemp("elsewhere"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        yield running
        assert running.stdin
        running.stdin.close()


@pytest.fixture
def commands(process: subprocess.Popen[str], tmp_path: Path) -> Commands:
    return Commands(process, tmp_path / "home")


def test_users_are_added_promoted_and_removed(commands: Commands) -> None:
    commands.done("users", "add", "ann", "--email", "ann@example.org", "--password-stdin", stdin=PASSWORD)
    commands.done("users", "role", "ANN@example.org", "supervisor")
    assert [(user["username"], user["role"]) for user in commands.listed("users", "list")] == [("ann", "supervisor")]
    again = commands.run("users", "add", "Ann", "--email", "b@example.org", "--password-stdin", stdin=PASSWORD)
    assert (again.exit_code, len(again.stderr.splitlines())) == (1, 1)
    assert "taken" in again.stderr
    commands.done("users", "remove", "ann", "--yes")
    assert commands.listed("users", "list") == []


def test_granted_credits_show_in_balance_and_statement(commands: Commands) -> None:
    commands.done("users", "add", "ann", "--email", "ann@example.org", "--password-stdin", stdin=PASSWORD)
    commands.done("credits", "grant", "ann", "12.000001", "--days", "7", "--note", "welcome")
    balance = commands.listed("credits", "balance", "ann@example.org")
    assert (balance["totalCredits"], balance["availableCredits"], balance["reservedCredits"]) == (
        12.000001,
        12.000001,
        0,
    )
    assert [(grant["credits"], grant["notes"]) for grant in balance["grants"]] == [(12.000001, "welcome")]
    (entry,) = commands.listed("credits", "statement", "ann")
    assert (entry["kind"], entry["credits"], entry["availableAfter"]) == ("grant", 12.000001, 12.000001)
    nobody = commands.run("credits", "grant", "nobody", "1")
    assert (nobody.exit_code, len(nobody.stderr.splitlines())) == (1, 1)


def test_an_organisation_is_added_funded_joined_and_left(commands: Commands) -> None:
    commands.done("users", "add", "ann", "--email", "ann@example.org", "--password-stdin", stdin=PASSWORD)
    commands.done("organisations", "add", " Physics ")
    commands.done("organisations", "grant", "Physics", "12.5", "--note", "term")
    (listed,) = commands.listed("organisations", "list")
    shown = commands.listed("organisations", "show", listed["id"])
    assert (shown["name"], shown["availableCredits"], shown["organisationId"]) == ("Physics", 12.5, listed["id"])
    commands.done("organisations", "join", "Physics", "ann", "--per-day", "3", "--total", "9", "--role", "manager")
    commands.done("organisations", "join", "Physics", "ann@example.org", "--per-day", "none", "--per-month", "0")
    (member,) = commands.listed("organisations", "members", "Physics")
    limits = (member["limitPerDay"], member["limitPerMonth"], member["limitTotal"])
    assert (member["role"], *limits) == ("manager", None, 0, 9)
    commands.done("organisations", "leave", "Physics", "ann")
    assert commands.listed("organisations", "members", "Physics") == []
    for refused in (("add", "Physics"), ("add", " "), ("show", "Optics"), ("leave", "Physics", "ann")):
        result = commands.run("organisations", *refused)
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)


def test_a_service_secret_is_printed_once_and_alone(commands: Commands) -> None:
    secret = commands.done("services", "add", "chat", "--scope", "accounting:settle").removesuffix("\n")
    assert len(secret) >= 32
    assert secret.split() == [secret]
    assert [(one["name"], one["scopes"]) for one in commands.listed("services", "list")] == [
        ("chat", ["accounting:settle"])
    ]
    assert secret not in commands.done("services", "list")
    commands.done("services", "revoke", "chat")
    assert commands.run("services", "revoke", "chat").exit_code == 1


def test_a_service_is_given_the_secret_of_a_file_as_often_as_asked(commands: Commands, tmp_path: Path) -> None:
    file, secret = tmp_path / "secret", "0123456789abcdef" * 4
    file.write_text(f"{secret}\n", encoding="utf-8")
    add = ("services", "add", "chat", "--scope", "auth:read", "--secret-file", str(file))
    told = [commands.run(*add) for _ in range(2)]
    assert [result.exit_code for result in told] == [0, 0]
    assert [result.stdout + result.stderr for result in told] == [
        f"chat is known by that secret {when}.\n" for when in ("now", "already")
    ]
    assert [(one["name"], one["scopes"]) for one in commands.listed("services", "list")] == [("chat", ["auth:read"])]
    file.write_text("short", encoding="utf-8")
    for wrong in (file, tmp_path / "missing"):
        refused = commands.run(*add[:-1], str(wrong))
        assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1) and "short" not in refused.stderr


def test_signing_keys_are_rotated_and_thrown_away(commands: Commands) -> None:
    (first,) = commands.listed("signing-keys", "list")
    commands.done("signing-keys", "rotate")
    newer, older = commands.listed("signing-keys", "list")
    assert older == first and newer["createdAt"] > first["createdAt"]
    assert commands.run("signing-keys", "rotate", "--leaked").exit_code == 2
    assert len(commands.listed("signing-keys", "list")) == 2
    commands.done("signing-keys", "rotate", "--leaked", "--yes")
    (only,) = commands.listed("signing-keys", "list")
    assert only["kid"] not in (newer["kid"], older["kid"])


def test_an_api_key_is_printed_once_listed_and_revoked(commands: Commands) -> None:
    commands.done("users", "add", "ann", "--email", "ann@example.org", "--password-stdin", stdin=PASSWORD)
    key = commands.done("keys", "create", "ann", "report", "--scope", "chat", "--days", "7").removesuffix("\n")
    assert key.split() == [key]
    (listed,) = commands.listed("keys", "list", "ann@example.org")
    assert (listed["name"], listed["scopes"], listed["lastUsedOn"]) == ("report", ["chat"], None)
    assert key.startswith(listed["prefix"]) and key not in commands.done("keys", "list", "ann")
    for refused in (("create", "ann", "report"), ("create", "nobody", "x"), ("create", "ann", "x", "--scope", "all")):
        result = commands.run("keys", *refused)
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    commands.done("keys", "revoke", "ann", listed["prefix"])
    assert commands.listed("keys", "list", "ann") == []
    assert commands.run("keys", "revoke", "ann", listed["id"]).exit_code == 1
    commands.done("keys", "rotate")


def test_a_data_folder_that_cannot_be_used_is_one_sentence(commands: Commands) -> None:
    commands.home.write_text("a file where the folder should be")
    result = commands.run("users", "list")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "PARSHALL_HOME_DIR" in result.stderr


def test_a_price_list_is_loaded_once_and_shown_first_where_that_is_asked(commands: Commands) -> None:
    before = commands.listed("prices", "list")
    planned = commands.listed("prices", "load", "--model", "gpt-4o", "--model", "nothing", "--dry-run")
    assert [(row["modelId"], row["change"]) for row in planned] == [("gpt-4o", "new"), ("nothing", "skipped")]
    assert planned[1]["notes"]
    assert commands.listed("prices", "list") == before
    assert "1 prices were set" in commands.done("prices", "load", "--model", "gpt-4o")
    (priced,) = [row for row in commands.listed("prices", "list") if row["modelId"] == "gpt-4o"]
    assert {name: priced[name] for name in ("input", "cachedInput", "output", "reasoning")} == {
        name: planned[0][name] for name in ("input", "cachedInput", "output", "reasoning")
    }
    assert "0 prices were set, 1 hold already" in commands.done("prices", "load", "--model", "gpt-4o")
    dearer = commands.listed("prices", "load", "--model", "gpt-4o", "--credits-per-dollar", "2000")
    assert (dearer[0]["change"], dearer[0]["input"]) == ("changed", 2 * priced["input"])


def test_a_price_is_set_from_now_or_later_and_never_for_the_past(commands: Commands) -> None:
    commands.done("prices", "set", "mine", "--input", "1.5", "--output", "6", "--from", "2999-01-01")
    commands.done("prices", "set", "mine", "--input", "1", "--output", "4", "--cached-input", "0.5", "--reasoning", "5")
    now, later = [row for row in commands.listed("prices", "list") if row["modelId"] == "mine"]
    assert [now[name] for name in ("input", "cachedInput", "output", "reasoning")] == [1, 0.5, 4, 5]
    assert [later[name] for name in ("input", "cachedInput", "output", "reasoning")] == [1.5, 1.5, 6, 6]
    assert later["effectiveFrom"] == "2999-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("set", "mine", "--input", "1", "--output", "1", "--from", "2020-01-01"), 1),
        (("set", "mine", "--input", "1", "--output", "-1"), 1),
        (("set", "mine", "--input", "1e400", "--output", "1"), 1),
        (("set", "mine", "--input", "1", "--output", "1", "--from", "soon"), 2),
        (("set", "a\nb", "--input", "1", "--output", "1"), 2),
        (("set", "a" * 256, "--input", "1", "--output", "1"), 2),
        (("load", "--provider", "nobody"), 1),
        (("load", "--credits-per-dollar", "much"), 2),
        (("load", "--credits-per-dollar", "NaN"), 1),
        (("load", "--credits-per-dollar", "0"), 1),
    ],
)
def test_a_price_that_is_none_is_refused_in_one_sentence(
    commands: Commands, arguments: tuple[str, ...], code: int
) -> None:
    result = commands.run("prices", *arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1), result.stderr
    assert {row["modelId"] for row in commands.listed("prices", "list")} == {"*", "smollm2-135m"}
