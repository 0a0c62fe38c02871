"""`parshall audit`: rebuild every balance from its transfers and say what does not agree."""

import asyncio
import json
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parshall.cli.terminal import AsJson, Usage, clean, complain, say, show
from parshall.kernel.credits import text, wire
from parshall.kernel.errors import ParshallError, StartupError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from parshall.accounting.audit import Report
    from parshall.app.config import Settings
    from parshall.kernel.database import Database

FINDINGS_SHOWN_MAX = 50
FOUND, NOT_DONE = 1, 2
"""Exit codes beside 0: something does not agree; the audit could not be done and says nothing either way."""
BOOK_COLUMNS = {"book": "BOOK", "credits": "CREDITS"}


class _Stopped(Exception):
    """Somebody pressed Ctrl-C; the reading thread learns of it between two rows."""


def audit(
    account: Annotated[
        str | None, typer.Option(help="Only the account of this user (name, e-mail address, id) or organisation.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write an anchor to this file, if all agrees.")] = None,
    against: Annotated[Path | None, typer.Option(help="Hold the past against an anchor that was saved before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild every balance from its transfers and say what does not agree. Safe beside a running server; only reads.

    Exit code 0: all agrees. 1: something does not. 2: the audit could not be done.

    Example: parshall audit --against anchor.2026-11-23 --save anchor.2026-11-24
    """
    if account is not None and (save or against):
        raise Usage("An anchor is about all accounts; leave --account out, or --save and --against.")
    report = _done(lambda: _audit(None if account is None else clean(account), save, against))
    if as_json:
        typer.echo(json.dumps(_wire(report), indent=2))
    else:
        _tell(report, saved=save)
    if not report.clean:
        raise typer.Exit(FOUND)


def _done(work: Callable[[], "Report"]) -> "Report":
    """The report. Whatever keeps it from being made is told in a sentence, and is not taken for a finding."""
    from sqlalchemy.exc import SQLAlchemyError

    from parshall.kernel import telemetry

    telemetry.configure(level="warning", json=False)
    try:
        return work()
    except ParshallError as error:
        complain(error.detail)
    except StartupError as error:
        complain(str(error))
    except SQLAlchemyError as error:
        complain(f"The database cannot be read ({getattr(error, 'orig', error)}); check it and try again.")
    except OSError as error:
        complain(f"{error.filename or 'A file'} cannot be used ({error.strerror or error}); name another one.")
    except KeyboardInterrupt:
        complain("Stopped before the end; run it again to know.")
    except Exception:  # a fault of ours: Python's own exit code for it would say that something was found
        traceback.print_exc()
    raise typer.Exit(NOT_DONE)


def _audit(who: str | None, save: Path | None, against: Path | None) -> "Report":
    from parshall.accounting.audit import audit
    from parshall.app import config
    from parshall.app.local import existing_database

    settings = config.load()

    async def run() -> "Report":
        async with existing_database(settings, "accounting") as database:
            account_id = None if who is None else await _find(settings, database, who)
            with _progress() as (progress, stop):

                def work(connection: "Connection") -> "Report":
                    return audit(connection, account_id=account_id, save=save, against=against, progress=progress)

                reading = asyncio.create_task(database.read(work))
                try:
                    return await asyncio.shield(reading)
                except asyncio.CancelledError:
                    stop()
                    with suppress(_Stopped):
                        await reading
                    raise

    return asyncio.run(run())


async def _find(settings: "Settings", database: "Database", who: str) -> str:
    """The account of a user or of an organisation. Raises NotFound."""
    from parshall.accounting.audit import find_account_id
    from parshall.app.local import local

    found = await database.read(lambda connection: find_account_id(connection, who))
    if found is not None:
        return found
    async with local(settings) as parts:
        return await parts.auth.resolve(who)


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[], None]]]:
    """A bar with the time that is left, where standard error is a terminal, and what makes the next report the last."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stopped = threading.Event()
    shown = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with shown:
        task = shown.add_task("Transfers", total=None)

        def progress(done: int, total: int) -> None:
            if stopped.is_set():
                raise _Stopped
            shown.update(task, completed=done, total=total)

        yield progress, stopped.set


# ── Telling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tell(report: "Report", *, saved: Path | None) -> None:
    say(
        f"{report.transfers:,} transfers of {report.accounts:,} accounts, {report.grants:,} grants and "
        f"{report.reservations:,} reservations."
    )
    rows = [{"book": book.value, "credits": text(amount)} for book, amount in report.books.items()]
    rows.append({"book": "sum", "credits": text(sum(report.books.values()))})
    show(rows, columns=BOOK_COLUMNS, as_json=False, empty="")
    if report.anchor is not None:
        say(f"Anchor: {report.anchor}")
    if report.against is not None:
        say(f"Held against the anchor {report.against}")
    if report.clean:
        say("All agrees." if saved is None else f"All agrees; the anchor is saved to {saved}.")
    else:
        _tell_findings(report, saved=saved)


def _tell_findings(report: "Report", *, saved: Path | None) -> None:
    shown = report.findings.kept[:FINDINGS_SHOWN_MAX]
    for finding in shown:
        say(f"{finding.account_id or 'all accounts'}: {finding.sentence} ({finding.rule.law})")
    if more := report.findings.count - len(shown):
        say(f"… and {more:,} more.")
    for advice in dict.fromkeys(finding.rule.advice for finding in shown):
        say(f"→ {advice}")
    if saved is not None:
        say("No anchor was saved, because not all agrees.")


def _wire(report: "Report") -> dict[str, Any]:
    findings = report.findings
    counts = {name: getattr(report, name) for name in ("accounts", "transfers", "grants", "reservations")}
    return {
        "clean": report.clean,
        **counts,
        "books": {book.value: wire(amount) for book, amount in report.books.items()},
        "anchor": report.anchor,
        "against": report.against,
        "findingCount": findings.count,
        "findings": [finding.wire() for finding in findings.kept],
    }
