"""The tests tested: a copy of the code with one promise broken must fail the very test that holds the promise."""

import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.mutants import fresh
from tests.mutants.table import MUTANTS, Mutant

import parshall

ROOT = Path(__file__).parents[2]
CODE = Path(parshall.__file__).parent
SECONDS_MAX = 100
LAW_BROKEN = ("AssertionError", "assert ", "Failed: DID NOT RAISE")
"""How a failure begins when a law does not hold: not with an error of import, of syntax or of a fixture."""


def copied(folder: Path) -> Path:
    shutil.copytree(CODE, folder / "parshall", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "parshall"


def ran(folder: Path, *tests: str) -> tuple[int, list[str]]:
    """How many cases ran on the code in `folder`, on SQLite in this process, and what the failed ones say."""
    report = folder / "report.xml"
    arguments = [*tests, "-k", "not postgres and not http", f"--junitxml={report}"]
    output = fresh.run(folder, ROOT, arguments, seconds_max=SECONDS_MAX)
    assert report.exists(), output
    cases = list(ET.parse(report).iter("testcase"))
    problems = [problem for case in cases for kind in ("failure", "error") for problem in case.findall(kind)]
    assert cases, output
    return len(cases), [problem.get("message", "") for problem in problems]


def name_of(mutant: Mutant) -> str:
    return f"{mutant.suite}::{mutant.test}"


def test_there_are_no_two_mutants_alike_and_every_killer_passes_on_the_code_as_it_is(tmp_path: Path) -> None:
    assert len({(mutant.file, mutant.text, mutant.becomes) for mutant in MUTANTS}) == len(MUTANTS)
    copied(tmp_path)
    names = sorted({name_of(mutant) for mutant in MUTANTS})
    count, problems = ran(tmp_path, *names)
    assert (count >= len(names), problems) == (True, [])


def noticed(folder: Path, mutant: Mutant) -> list[str]:
    """What the named test says of the mutant; nothing where it noticed nothing."""
    path = copied(folder) / mutant.file
    code = path.read_text()
    assert code.count(mutant.text) == 1, "the table names a text that the file does not hold exactly once"
    path.write_text(code.replace(mutant.text, mutant.becomes))
    return ran(folder, name_of(mutant))[1]


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Mutant, "Future[list[str]]"]]:
    """Of each mutant that was asked for, several at a time: most of what one takes is the start of an interpreter."""
    asked = [item.callspec.params["mutant"] for item in request.session.items if "verdicts" in item.fixturenames]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {mutant: pool.submit(noticed, tmp_path_factory.mktemp("mutant"), mutant) for mutant in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks.replace(" ", "-"))
def test_a_mutant_is_killed_by_the_test_named_for_it(
    mutant: Mutant, verdicts: dict[Mutant, "Future[list[str]]"]
) -> None:
    problems = verdicts[mutant].result()
    assert problems, f"nothing noticed that {mutant.breaks}"
    assert all(problem.startswith(LAW_BROKEN) for problem in problems), problems
