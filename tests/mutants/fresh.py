"""Tests run in processes that have every library loaded and nothing of Parshall: each takes the copy it is given."""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest

LIBRARIES = ["aiohttp", "alembic.command", "fastapi", "httpx2", "hypothesis.strategies", "joserfc.jwt", "limits"]
LIBRARIES += ["psutil", "psycopg", "pytest_asyncio.plugin", "redis.asyncio", "sqlalchemy.ext.asyncio", "uvicorn"]
OPTIONS = ["-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:xdist"]

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(LIBRARIES)


def run(folder: Path, root: Path, arguments: list[str], *, seconds_max: float) -> str:
    """Run pytest with `arguments` in `root` on the code in `folder`; what it prints. Raises TimeoutError."""
    output = folder / "output"
    process = forks.Process(target=_tests, args=(folder, root, output, arguments))
    process.start()
    process.join(seconds_max)
    if process.is_alive():
        process.kill()
        raise TimeoutError(output.read_text())
    return output.read_text()


def _tests(folder: Path, root: Path, output: Path, arguments: list[str]) -> None:
    written = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.chdir(root)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}  # for what the tests start
    assert "parshall" not in sys.modules
    sys.exit(pytest.main([*OPTIONS, *arguments]))
