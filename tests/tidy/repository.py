"""The project's own files as the tidy tests read them."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "parshall"
_GENERATED = {"__pycache__", "node_modules", "dist", "build"}


@cache
def files() -> tuple[Path, ...]:
    """Every file that is or would be committed; of a folder without git, every one that no tool has made."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else _walked()
    return tuple(sorted(ROOT / name for name in names if name and (ROOT / name).is_file()))


def _walked() -> Iterator[str]:
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if not any(part in _GENERATED or (part.startswith(".") and part != ".ci") for part in parts):
            yield str(path.relative_to(ROOT))


def texts() -> Iterator[tuple[Path, str]]:
    """Every file that is text, with its text."""
    for path in files():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def python(folder: str) -> list[Path]:
    """The Python files under that folder."""
    return [path for path in files() if path.suffix == ".py" and path.is_relative_to(ROOT / folder)]


@cache
def tree(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name(path: Path) -> str:
    """The file as it is named in a complaint."""
    return str(path.relative_to(ROOT))
