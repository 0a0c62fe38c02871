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
INSTALL_SECONDS_MAX = 600
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")


def chromium() -> str:
    """The path of a Chromium; skips the test where there is none and none can be had."""
    return _program(BROWSERS, ("chromium",))


def node_folder(folder: Path = NODE) -> Path:
    """A folder whose `node_modules` are those of its lock file; skips the test where node or npm cannot be had."""
    _program(("node",), ("nodejs", "npm"))
    _program(("npm",), ("nodejs", "npm"))
    _install_modules(folder)
    return folder


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep out the other processes of this test session."""
    with LOCK.open(encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _install_modules(folder: Path) -> None:
    stamp = folder / "node_modules" / ".package-lock.json"
    with _alone():
        if stamp.is_file() and stamp.stat().st_mtime >= (folder / LOCK.name).stat().st_mtime:
            return
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX)
        if ran.returncode:
            _missing(f"npm ci failed: {ran.stderr[-500:]}", in_ci=True)
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
