"""What the project promises about itself: its errors, options, links, make targets, layers and change log."""

import importlib
import pkgutil
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tidy.repository import ROOT, SOURCE, files, name, texts

import parshall
from parshall.app.config import FILE_VARIABLE, PREFIX, Settings
from parshall.app.secrets import FOLDER_VARIABLE
from parshall.kernel.errors import ParshallError

DOCS = [path for path in files() if path.suffix == ".md"]
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
FOLDERS = "|".join(("wo" + "rk", "tm" + "p", "ro" + "ot", "ho" + "me"))
MACHINE_PATH = re.compile(rf"(?<![\w.~}}>/-])/(?:{FOLDERS})/\w")
REGISTRIES = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.", "debian" + ".org", "crates" + ".io")


def tree_of(cls: type[ParshallError]) -> Iterator[type[ParshallError]]:
    yield cls
    for below in cls.__subclasses__():
        yield from tree_of(below)


def errors() -> list[type[ParshallError]]:
    for module in pkgutil.walk_packages(parshall.__path__, "parshall."):
        if ".migrations" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return [cls for cls in tree_of(ParshallError) if cls.__module__.startswith("parshall.")]


def test_every_error_has_a_code_a_status_a_title_and_a_sentence_that_says_what_to_do() -> None:
    for cls in errors():
        assert "default" in vars(cls), f"{cls.__qualname__} says nothing of its own"
        assert cls is ParshallError or (cls.code, cls.title) != (ParshallError.code, ParshallError.title), cls
        assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", cls.code) and cls.title, cls
        assert 400 <= cls.status < 600, cls
        assert cls.default.endswith((".", ">`.")) and len(cls.default.split()) > 4, cls


def test_no_two_errors_claim_the_same_code() -> None:
    """One that leaves the code to its parent is the same refusal in other words."""
    codes = Counter(cls.code for cls in errors() if "code" in vars(cls))
    assert {code: count for code, count in codes.items() if count > 1} == {}


@pytest.mark.parametrize("option", sorted(Settings.model_fields))
def test_every_option_is_documented(option: str) -> None:
    page = (ROOT / "docs" / "CONFIGURATION.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{PREFIX}{option.upper()}\b", page)


def test_every_documented_option_exists() -> None:
    known = {PREFIX + option.upper() for option in Settings.model_fields} | {FILE_VARIABLE, FOLDER_VARIABLE}
    page = (ROOT / "docs" / "CONFIGURATION.md").read_text(encoding="utf-8")
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", page)) - known == set()


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [link.partition("#")[0] for link in LINK.findall(prose) if "://" not in link and "mailto:" not in link]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    fenced = "\n".join(block[0] for block in FENCE.finditer(text))
    named = {*re.findall(r"`make ([a-z]+)", text), *re.findall(r"^\$? *make ([a-z]+)", fenced, re.MULTILINE)}
    assert named <= targets


def test_no_file_names_a_package_registry_or_a_folder_of_one_machine() -> None:
    found = [
        f"{name(path)}: {hit}"
        for path, text in texts()
        for hit in [*MACHINE_PATH.findall(text), *(registry for registry in REGISTRIES if registry in text)]
    ]
    assert found == []


def test_the_change_log_has_an_entry_for_this_version() -> None:
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entry = re.search(
        rf"^## \[{re.escape(parshall.__version__)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", log, re.M | re.S
    )
    assert entry and re.search(r"^- \w", entry[1], re.MULTILINE)


def test_every_service_stands_under_the_layer_contracts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    top = {part.strip() for layer in contracts[0]["layers"] for part in layer.split("|")}
    inner = {container for contract in contracts[1:] for container in contract.get("containers", ())}
    packages = {f"parshall.{path.parent.name}" for path in SOURCE.glob("*/__init__.py")}
    services = {f"parshall.{path.parent.name}" for path in SOURCE.glob("*/migrations")}
    assert packages <= top
    assert services <= inner


@pytest.mark.parametrize("lock", ["dev", "run"])
def test_every_locked_package_has_hashes_and_no_source_of_its_own(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    assert [line[:60] for line in lines if "--hash=sha256:" not in line or "://" in line] == []


def test_what_runs_is_tested_in_the_same_versions() -> None:
    pins = {
        lock: set(re.findall(r"^[a-z].*==[^ ]+", (ROOT / "requirements" / f"{lock}.txt").read_text(), re.MULTILINE))
        for lock in ("dev", "run")
    }
    assert pins["run"] <= pins["dev"]
