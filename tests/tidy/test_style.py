"""What a program can check of the style that CONTRIBUTING.md asks for."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.tidy.repository import SOURCE, name, python, tree

FUNCTION_LINES_MAX = 50
FILE_LINES_MAX = 350
VAGUE = {"utils", "util", "manager", "managers", "helper", "helpers", "common", "misc"}
UNFINISHED = re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + r"X)\b")
SILENCED = re.compile(r"type: " + r"ignore(?!\[)")

Function = ast.FunctionDef | ast.AsyncFunctionDef
SOURCES = python("src")
EVERY_FILE = [*SOURCES, *python("tests"), *python("bench")]
TESTS = [path for path in python("tests") if path.name.startswith("test_")]


def wrong(paths: Iterable[Path], complaint: Callable[[Path], Any]) -> dict[str, Any]:
    """What there is to complain of in each of the files, by name."""
    complaints = {name(path): complaint(path) for path in paths}
    return {path: said for path, said in complaints.items() if said}


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


def test_a_file_opens_with_one_sentence_on_what_it_is_for() -> None:
    """What else there is to say follows a blank line."""

    def complaint(path: Path) -> bool:
        sentence = (ast.get_docstring(tree(path)) or "").partition("\n\n")[0]
        return not sentence.endswith(".") or re.search(r"[.!?]\s+[A-Z]", sentence) is not None

    assert wrong(EVERY_FILE, complaint) == {}


def test_a_function_fits_on_a_screen() -> None:
    def complaint(path: Path) -> dict[str, int]:
        lengths = {
            f"{node.name} (line {node.lineno})": (node.end_lineno or 0) - node.lineno + 1 for node in functions(path)
        }
        return {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES_MAX}

    assert wrong(EVERY_FILE, complaint) == {}


def test_a_file_can_be_read_in_one_sitting() -> None:
    assert wrong(SOURCES, lambda path: len(lines(path)) > FILE_LINES_MAX) == {}


def test_a_module_is_named_for_what_it_holds() -> None:
    def complaint(path: Path) -> set[str]:
        return VAGUE & {*path.relative_to(SOURCE).with_suffix("").parts, *path.stem.split("_")}

    assert wrong(SOURCES, complaint) == {}


def test_everything_public_is_documented() -> None:
    made = [path for path in SOURCES if "migrations" not in path.parts]
    assert wrong(made, lambda path: list(undocumented(tree(path).body))) == {}


def test_nothing_is_left_unfinished_or_silenced_without_a_reason() -> None:
    """An error that is silenced is named: `type: ignore[code]`."""

    def complaint(path: Path) -> list[str]:
        text = path.read_text(encoding="utf-8")
        names = [node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)]
        unwritten = [name for name in names if name == "NotImplemented" + "Error"]
        return [*UNFINISHED.findall(text), *SILENCED.findall(text), *unwritten]

    assert wrong(EVERY_FILE, complaint) == {}


def test_a_silenced_rule_is_named_and_says_why() -> None:
    def complaint(path: Path) -> list[str]:
        silenced = [line.strip() for line in lines(path) if "# no" + "qa" in line]
        return [line for line in silenced if not re.search(r"# noqa: [A-Z]+\d+(, [A-Z]+\d+)* - \w", line)]

    assert wrong(SOURCES, complaint) == {}


def test_only_the_command_line_prints_unless_it_says_why() -> None:
    def complaint(path: Path) -> list[str]:
        calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
        prints = [lines(path)[call.lineno - 1] for call in calls if ast.unparse(call.func) == "print"]
        return [line.strip() for line in prints if "# noqa: T201 - " not in line]

    assert wrong([path for path in SOURCES if not path.is_relative_to(SOURCE / "cli")], complaint) == {}


def test_a_test_can_fail() -> None:
    """It asserts, or calls a function, here or imported, that does; a state machine does so in its rules."""
    assert wrong(TESTS, cannot_fail) == {}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def cannot_fail(path: Path) -> list[str]:
    own = {node.name: node for node in functions(path)}
    imports = [node.module or "" for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
    shared = [file for file in python("tests") if file.stem in {module.rpartition(".")[2] for module in imports}]
    known = {node.name: node for file in shared for node in functions(file)} | own
    laws = [node for node in own.values() if node.name.startswith("test_")]
    machines = "stateful" in path.read_text(encoding="utf-8") and any(can_fail(node, known) for node in own.values())
    if not (laws or machines):
        return ["no test stands in this file"]
    return [f"{law.name} (line {law.lineno})" for law in laws if not can_fail(law, known)]


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
