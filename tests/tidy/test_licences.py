"""What Parshall depends on may be used with it: the licences that installed packages declare."""

import re
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from tests.tidy.repository import ROOT

ALLOWED = frozenset(
    tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["parshall"]["licences"]["allowed"]
)
CLASSIFIER = "License :: OSI Approved :: "


def locked(lock: str) -> set[str]:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    return {normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licences_of(package: Distribution) -> set[str]:
    """The licences that it declares: an SPDX expression (PEP 639), else classifiers, else the old free text."""
    found = package.metadata
    if expression := found.get("License-Expression"):
        return set(re.split(r" AND | OR |[()]", expression)) - {""}
    if named := {
        each.removeprefix(CLASSIFIER) for each in found.get_all("Classifier", []) if each.startswith(CLASSIFIER)
    }:
        return named
    text = (found.get("License") or "").strip().partition("\n")[0]
    return {text} if text else set()


INSTALLED = {normal(each.metadata["Name"]): each for each in distributions()}


@pytest.mark.parametrize("name", sorted(locked("dev") & INSTALLED.keys()))
def test_every_package_has_a_licence_that_goes_with_ours(name: str) -> None:
    declared = licences_of(INSTALLED[name]) or {"nothing"}
    assert declared <= ALLOWED, f"{name} declares {declared}: allow it in pyproject.toml, or do without the package"


def test_what_is_locked_is_installed_and_so_is_read() -> None:
    """But for what only other systems and other Pythons need."""
    assert len(locked("dev") - INSTALLED.keys()) < 12, locked("dev") - INSTALLED.keys()
    assert Path(ROOT / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")
