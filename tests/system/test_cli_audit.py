"""Laws of `parshall audit`, run as an operator runs it: as a program, on a data folder or beside a PostgreSQL."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests import quick
from tests.histories import FEW, PACKAGE, everything, tamper
from tests.postgres import Engine


class Operator:
    """Runs the program with the records of a test as its own."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PARSHALL_")}
        records = {"PARSHALL_ACCOUNTING_DATABASE_URL": engine.url(PACKAGE)}
        self.environment = {**kept, "PARSHALL_HOME_DIR": str(folder / "home"), **records}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "parshall", *arguments]
        return quick.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False)

    def found(self, *arguments: str) -> Any:
        return json.loads(self.run("audit", "--json", *arguments).stdout)


@pytest.fixture
async def operator(engine: Engine, tmp_path: Path) -> Operator:
    history = await everything(engine, FEW)
    await history.close()
    return Operator(engine, tmp_path)


def test_what_agrees_is_exit_code_0_and_quiet_where_there_is_no_terminal(operator: Operator) -> None:
    done = operator.run("audit")
    assert (done.returncode, done.stderr) == (0, "")
    assert "All agrees." in done.stdout
    assert any(line.split() == ["sum", "0"] for line in done.stdout.splitlines())
    report = operator.found()
    assert (report["clean"], report["accounts"], report["findings"]) == (True, len(FEW), [])
    assert f"Anchor: {report['anchor']}" in done.stdout


def test_what_does_not_agree_is_exit_code_1_and_one_line_each(operator: Operator, engine: Engine) -> None:
    tamper(engine, "UPDATE accounts SET available = available + 1000000 WHERE id = 'ann'")
    done = operator.run("audit", "--save", "anchor")
    assert (done.returncode, done.stderr) == (1, "")
    said = "ann: The account says that 1.0003 credits are available; its transfers come to 0.0003 credits. (M1)"
    assert said in done.stdout.splitlines()
    assert "No anchor was saved" in done.stdout
    assert not (operator.folder / "anchor").exists()
    report = operator.found()
    assert (report["clean"], report["findingCount"]) == (False, 2)
    (finding, whole) = report["findings"]
    assert (finding["account"], finding["rule"], finding["law"]) == ("ann", "account_available", "M1")
    assert finding["facts"] == {"expected": "0.0003 credits", "found": "1.0003 credits"}
    assert (whole["account"], whole["rule"]) == (None, "sum")


def test_of_many_findings_the_first_are_printed_and_the_rest_counted(operator: Operator, engine: Engine) -> None:
    def spoil_everything(connection: Any) -> None:
        connection.exec_driver_sql("UPDATE transfers SET amount = amount + 1")

    tamper(engine, spoil_everything)
    done = operator.run("audit")
    assert done.returncode == 1
    assert sum(line.endswith(")") and ": " in line for line in done.stdout.splitlines()) == 50
    assert any(line.startswith("… and ") and line.endswith(" more.") for line in done.stdout.splitlines())


def test_an_anchor_is_saved_and_held_against(operator: Operator, engine: Engine) -> None:
    saved = operator.run("audit", "--save", "anchor")
    assert saved.returncode == 0
    digest = operator.found()["anchor"]
    held = operator.run("audit", "--against", "anchor")
    assert held.returncode == 0
    assert f"Held against the anchor {digest}" in held.stdout.splitlines()
    lines = (operator.folder / "anchor").read_text().splitlines(keepends=True)
    (operator.folder / "anchor").write_text("".join(line.replace(',"', ',"0') for line in lines))
    other = operator.run("audit", "--against", "anchor")
    assert other.returncode == 1
    assert "is another one than when the anchor was saved" in other.stdout


def test_one_account_is_named_as_people_name_it(operator: Operator, engine: Engine) -> None:
    tamper(engine, "UPDATE accounts SET available = available + 1 WHERE id = 'ann'")
    assert operator.run("audit", "--account", "Bob").returncode == 0
    assert operator.run("audit", "--account", "ann").returncode == 1
    nobody = operator.run("audit", "--account", "nobody")
    assert (nobody.returncode, len(nobody.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    "arguments", ["--against absent", "--against broken", "--save absent/anchor", "--account ann --save anchor"]
)
def test_what_keeps_it_from_being_done_is_exit_code_2_and_one_sentence(operator: Operator, arguments: str) -> None:
    (operator.folder / "broken").write_text("nonsense\n")
    done = operator.run("audit", *arguments.split())
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_without_records_there_is_nothing_to_audit(tmp_path: Path, operator: Operator) -> None:
    operator.environment["PARSHALL_ACCOUNTING_DATABASE_URL"] = f"sqlite:///{tmp_path / 'absent.db'}"
    done = operator.run("audit")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert not (tmp_path / "absent.db").exists()


def test_a_damaged_database_is_exit_code_2(tmp_path: Path, operator: Operator) -> None:
    (tmp_path / "damaged.db").write_bytes(b"This is no database at all. " * 500)
    operator.environment["PARSHALL_ACCOUNTING_DATABASE_URL"] = f"sqlite:///{tmp_path / 'damaged.db'}"
    done = operator.run("audit")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
