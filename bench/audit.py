"""Measures the audit: transfers a second, CPU and memory of `parshall audit` on both engines: `python bench/audit.py`.

Each ledger is built first (bench/history.py), which takes longer than to audit it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.history import PACKAGE, SQLITE, build
from tests.postgres import Server

ENGINES = ("sqlite", "postgres")


@contextmanager
def ledger(engine: str, folder: Path) -> Iterator[str]:
    """The address of an empty database."""
    if engine == "sqlite":
        yield f"{SQLITE}{folder / 'accounting.db'}"
        return
    with Server.start() as server:
        yield server.url(server.create_for(PACKAGE))


def measure(url: str, folder: Path, transfers: int) -> dict[str, float]:
    """What one audit of the ledger takes; the program runs as an operator runs it."""
    settings = {"PARSHALL_ACCOUNTING_DATABASE_URL": url, "PARSHALL_HOME_DIR": str(folder)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "parshall", "audit", "--json"],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout)
    assert report["clean"] and report["transfers"] >= transfers
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "transfers": report["transfers"],
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rate": report["transfers"] / seconds,
    }


def turn(engine: str, folder: Path, transfers: int, rounds: int) -> list[dict[str, object]]:
    """Build a ledger and audit it, so often."""
    with ledger(engine, folder) as url:
        began = time.perf_counter()
        build(url, transfers)
        print(f"{engine}: built in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        return [{"engine": engine, **measure(url, folder, transfers)} for _ in range(rounds)]


def main() -> None:
    """Build, audit, print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--transfers", type=int, default=10_000_000)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    arguments.add_argument("--folder", type=Path, help="put SQLite's file on the disk that this folder is on")
    arguments.add_argument("--out", type=Path, help="keep the raw results in this JSON file")
    given = arguments.parse_args()
    results: list[dict[str, object]] = []
    for engine in given.engines:
        with tempfile.TemporaryDirectory(prefix="parshall-bench-", dir=given.folder) as folder:
            results += turn(engine, Path(folder), given.transfers, given.rounds)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1))
    print("| engine | transfers | seconds | CPU s of the program | transfers/s |\n|---|---|---|---|---|")
    for each in results:
        print("| {engine} | {transfers} | {seconds:.1f} | {cpu_seconds:.1f} | {rate:.0f} |".format(**each))


if __name__ == "__main__":
    main()
