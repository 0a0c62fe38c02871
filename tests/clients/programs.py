"""Programs that tests of foreign clients need: found, or installed where that may be, or else missed loudly."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

NODE = Path(__file__).parent / "node"
POSTMAN = Path(__file__).parent / "postman"
LOCK = NODE / "package-lock.json"
TYPESCRIPT = Path(__file__).parents[2] / "frontend" / "client"
NODE_MIN = 20
"""As `engines` in its package.json says."""
INSTALL_SECONDS_MAX = 600
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")


def chromium() -> str:
    """The path of a Chromium; skips the test where there is none and none can be had."""
    return _program(BROWSERS, ("chromium",))


def node_folder(folder: Path = NODE) -> Path:
    """A folder whose `node_modules` are those of its lock file; skips the test where node or npm cannot be had."""
    _install_modules(folder)
    return folder


def typescript_client() -> Path:
    """The folder of the TypeScript client, compiled: `dist`, and its tests in `build`; fails where it does not compile.

    Skips the test where node or npm cannot be had, or are too old.
    """
    _install_modules(TYPESCRIPT)
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=60).stdout
    if int(version.lstrip("v").partition(".")[0]) < NODE_MIN:
        _missing(f"Node {version.strip()} is older than {NODE_MIN}", in_ci=False)
    with _alone():
        _compile()
    return TYPESCRIPT


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep out the other processes of this test session."""
    with LOCK.open(encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _install_modules(folder: Path) -> None:
    """The packages of a lock file, unless they are there."""
    _program(("node",), ("nodejs", "npm"))
    _program(("npm",), ("nodejs", "npm"))
    lock, stamp = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    with _alone():
        if stamp.is_file() and stamp.stat().st_mtime >= lock.stat().st_mtime:
            return
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX)
        if ran.returncode:
            _missing(f"npm ci failed: {ran.stderr[-500:]}", in_ci=True)
        stamp.touch()


def _compile() -> None:
    """Compile what has changed since it was last compiled, under the strict rules of its tsconfig files."""
    stamp = TYPESCRIPT / "build" / ".compiled"
    sources = [*TYPESCRIPT.glob("src/*"), *TYPESCRIPT.glob("tests/*"), *TYPESCRIPT.glob("*.json")]
    if stamp.is_file() and stamp.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return
    for folder, project in (("dist", "tsconfig.build.json"), ("build", "tsconfig.json")):
        shutil.rmtree(TYPESCRIPT / folder, ignore_errors=True)
        command = ["node", "node_modules/typescript/bin/tsc", "--project", project]
        ran = subprocess.run(command, cwd=TYPESCRIPT, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    stamp.touch()


def had(names: tuple[str, ...], packages: tuple[str, ...]) -> str | None:
    """The path of a program; installed from the distribution's packages where that may be; None where it is not."""
    found = _find(names)
    if found is None and _may_install():
        with _alone():
            found = _find(names)
            if found is None:
                _install(packages)
                found = _find(names)
    return found


def _program(names: tuple[str, ...], packages: tuple[str, ...]) -> str:
    found = had(names, packages)
    if found is None:
        _missing(f"{' or '.join(names)} is not here", in_ci=_may_install())
    assert found is not None
    return found


def _find(names: tuple[str, ...]) -> str | None:
    folders = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    return next((path for name in names if (path := shutil.which(name, path=folders))), None)


def _may_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def _install(packages: tuple[str, ...]) -> None:
    """Install Debian packages, waiting for whoever else installs; what fails is found missing afterwards."""
    options = ["-o", "DPkg::Lock::Timeout=300", "-qq"]
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        command = ["apt-get", *options, *words]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=quiet, capture_output=True, timeout=INSTALL_SECONDS_MAX)


def _missing(reason: str, *, in_ci: bool) -> None:
    """Skip with a warning that stands in the summary; where CI could have had it, fail."""
    if in_ci and os.environ.get("CI"):
        pytest.fail(reason)
    warnings.warn(f"Clients are not tested: {reason}.", stacklevel=2)
    pytest.skip(reason)
