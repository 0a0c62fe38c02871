"""What a program can check of the style that CONTRIBUTING.md asks for."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tidy.repository import SOURCE, name, python, tree

FUNCTION_LINES_MAX = 50
FILE_LINES_MAX = 350
VAGUE = {"utils", "util", "manager", "managers", "helper", "helpers", "common", "misc"}
UNFINISHED = re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + r"X)\b")
SILENCED = re.compile(r"type: " + r"ignore(?!\[)")

Function = ast.FunctionDef | ast.AsyncFunctionDef
EVERY_SOURCE = pytest.mark.parametrize("path", python("src"), ids=name)
EVERY_TEST = pytest.mark.parametrize("path", [p for p in python("tests") if p.name.startswith("test_")], ids=name)
EVERY_FILE = pytest.mark.parametrize("path", [*python("src"), *python("tests"), *python("bench")], ids=name)


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def undocumented(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Public names without a docstring; what stands inside of a function or a private class is private."""
    for node in body:
        if not isinstance(node, Function | ast.ClassDef) or is_exempt(node):
            continue
        if not ast.get_docstring(node):
            yield f"{prefix}{node.name} (line {node.lineno})"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{prefix}{node.name}.")


def is_exempt(node: Function | ast.ClassDef) -> bool:
    """Private names, what a protocol of Python or pydantic explains already; never a route."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if any(decorator.startswith("router.") for decorator in decorators):
        return False
    explained = any(re.match(r"(typing\.)?overload|.*_validator\b|.*\.setter", text) for text in decorators)
    return node.name.startswith("_") or explained


@EVERY_FILE
def test_a_file_opens_with_one_sentence_on_what_it_is_for(path: Path) -> None:
    sentence = (ast.get_docstring(tree(path)) or "").partition("\n\n")[0]
    assert sentence.endswith("."), "the docstring is missing or does not end with a full stop"
    assert not re.search(r"[.!?]\s+[A-Z]", sentence), "one sentence; what else there is to say follows a blank line"


@EVERY_FILE
def test_a_function_fits_on_a_screen(path: Path) -> None:
    lengths = {
        f"{node.name} (line {node.lineno})": (node.end_lineno or 0) - node.lineno + 1 for node in functions(path)
    }
    assert {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES_MAX} == {}


@EVERY_SOURCE
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES_MAX


@EVERY_SOURCE
def test_a_module_is_named_for_what_it_holds(path: Path) -> None:
    assert not VAGUE & {*path.relative_to(SOURCE).with_suffix("").parts, *path.stem.split("_")}


@pytest.mark.parametrize("path", [p for p in python("src") if "migrations" not in p.parts], ids=name)
def test_everything_public_is_documented(path: Path) -> None:
    assert list(undocumented(tree(path).body)) == []


@EVERY_FILE
def test_nothing_is_left_unfinished_or_silenced_without_a_reason(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not UNFINISHED.findall(text)
    assert not SILENCED.findall(text), "name the error: type: " + "ignore[code]"
    names = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
    assert "NotImplemented" + "Error" not in names


@EVERY_SOURCE
def test_a_silenced_rule_is_named_and_says_why(path: Path) -> None:
    silenced = [line for line in path.read_text(encoding="utf-8").splitlines() if "# no" + "qa" in line]
    assert [line.strip() for line in silenced if not re.search(r"# noqa: [A-Z]+\d+(, [A-Z]+\d+)* - \w", line)] == []


@pytest.mark.parametrize("path", [p for p in python("src") if not p.is_relative_to(SOURCE / "cli")], ids=name)
def test_only_the_command_line_prints_unless_it_says_why(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    prints = [lines[call.lineno - 1] for call in calls if ast.unparse(call.func) == "print"]
    assert [line.strip() for line in prints if "# noqa: T201 - " not in line] == []


@EVERY_TEST
def test_a_test_can_fail(path: Path) -> None:
    """It asserts, or calls a function, here or imported, that does; a state machine does so in its rules."""
    own = {node.name: node for node in functions(path)}
    imports = [node.module or "" for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
    shared = [file for file in python("tests") if file.stem in {module.rpartition(".")[2] for module in imports}]
    known = {node.name: node for file in shared for node in functions(file)} | own
    laws = [node for node in own.values() if node.name.startswith("test_")]
    machines = "stateful" in path.read_text(encoding="utf-8") and any(can_fail(node, known) for node in own.values())
    assert laws or machines, "no test stands in this file"
    assert [f"{law.name} (line {law.lineno})" for law in laws if not can_fail(law, known)] == []


def can_fail(law: Function, known: dict[str, Function], seen: frozenset[str] = frozenset()) -> bool:
    for node in ast.walk(law):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called == "raises" or called.startswith(("assert_", "check", "expect")):
                return True
            if called in known and called not in seen and can_fail(known[called], known, seen | {called}):
                return True
    return False
