"""Scenarios of the TypeScript client (frontend/client/tests/scenarios.ts), run by Node against real servers."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from tests.clients.programs import typescript_client
from tests.clients.proof import Run

SCENARIO_SECONDS_MAX = 60


def given(run: Run, url: str = "", **more: Any) -> dict[str, Any]:
    """What a scenario is told of a run; `url` where not the server, or chat where it is apart, is asked itself."""
    return {
        **{f"{name}Url": where for name, where in run.caller.services.items() if name != "chat"},
        "url": url or run.caller.url,
        "token": run.caller.token,
        "session": run.session,
        "message": run.message,
        **more,
    }


def play(scenario: str, told: dict[str, Any], *, begun: Callable[[], None] | None = None) -> Any:
    """What comes of a scenario; `begun` is called once while it reads, after the first text."""
    folder = typescript_client()
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = ["node", "build/run.js", scenario, json.dumps(told)]
    process = subprocess.Popen(
        command, cwd=folder, env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    try:
        last = _last(process, begun)
        _, errors = process.communicate(timeout=SCENARIO_SECONDS_MAX)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 0, errors[-2000:]
    return last["result"]


def _last(process: "subprocess.Popen[str]", begun: Callable[[], None] | None) -> dict[str, Any]:
    """The last line that it prints."""
    line: dict[str, Any] = {}
    for line in _lines(process):
        if begun is not None and line.get("shown"):
            begun()
            begun = None
    return line


def _lines(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for text in process.stdout:
        yield json.loads(text)
