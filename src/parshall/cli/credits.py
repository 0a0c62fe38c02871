"""`parshall credits`: grant credits, and see balances and statements."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from parshall.cli.terminal import AsJson, clean, group, local, say, show
from parshall.kernel import clock
from parshall.kernel.clock import DAY, rfc3339
from parshall.kernel.credits import parse_credits, text, wire

if TYPE_CHECKING:
    from parshall.accounting.model import Balance, Transfer
    from parshall.app.local import Parts

GRANTED_BY = "cli"
LINES_MAX = 500
GRANT_COLUMNS = {
    "credits": "GRANTED",
    "remaining": "REMAINING",
    "priority": "PRIORITY",
    "expiresAt": "EXPIRES",
    "notes": "NOTES",
    "id": "ID",
}
ENTRY_COLUMNS = {
    "id": "NO.",
    "at": "AT",
    "kind": "KIND",
    "debit": "FROM",
    "credit": "TO",
    "credits": "CREDITS",
    "availableAfter": "AVAILABLE",
    "streamingSessionId": "STREAM",
}

app = group("Grant credits, and see balances and statements.")

Who = Annotated[str, typer.Argument(help="Username, e-mail address or id.")]


@app.command()
def grant(
    who: Who,
    amount: Annotated[str, typer.Argument(help="Credits, with at most six decimal places.")],
    days: Annotated[int, typer.Option(min=1, max=36_500, help="Days until the grant expires.")] = 30,
    priority: Annotated[int, typer.Option(min=0, max=1000, help="Lower ones are used first.")] = 0,
    note: Annotated[str, typer.Option(help="Why, for the statement.")] = "",
) -> None:
    """Grant credits to a user.

    Example: parshall credits grant ann 100 --days 90
    """
    credits = parse_credits(amount)
    expires_at = clock.now() + days * DAY

    async def work(parts: "Parts") -> None:
        user_id = await parts.auth.resolve(who)
        await parts.accounting.allocate(
            user_id, credits, expires_at=expires_at, granted_by=GRANTED_BY, priority=priority, notes=clean(note)
        )

    local(work)
    say(f"Granted {text(credits)} credits to {who} until {rfc3339(expires_at)[:10]}.")


@app.command()
def balance(who: Who, as_json: AsJson = False) -> None:
    """Show a user's credits and the grants that they come from.

    Example: parshall credits balance ann
    """

    async def work(parts: "Parts") -> "Balance":
        return await parts.accounting.balance(await parts.auth.resolve(who))

    found = local(work)
    grants = [
        {
            "id": grant.id,
            "credits": wire(grant.amount),
            "remaining": wire(grant.remaining),
            "priority": grant.priority,
            "expiresAt": rfc3339(grant.expires_at),
            "notes": grant.notes,
        }
        for grant in found.grants
    ]
    amounts = {"total": found.total, "available": found.available, "reserved": found.reserved}
    if as_json:
        whole = {f"{name}Credits": wire(value) for name, value in amounts.items()}
        typer.echo(json.dumps({**whole, "grants": grants}, indent=2))
        return
    say(f"{text(found.available)} credits available, {text(found.reserved)} reserved by running streams.")
    show(grants, columns=GRANT_COLUMNS, as_json=False, empty="There are no grants in force.")


@app.command()
def statement(
    who: Who,
    after: Annotated[int, typer.Option(min=0, help="Begin behind the entry of this number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=LINES_MAX, help="At most so many entries.")] = LINES_MAX,
    as_json: AsJson = False,
) -> None:
    """Show every movement of a user's credits, oldest first, each with the balance behind it.

    Example: parshall credits statement ann --json
    """

    async def work(parts: "Parts") -> "list[Transfer]":
        return await parts.accounting.statement(await parts.auth.resolve(who), after=after, limit=limit)

    from parshall.accounting.model import FLOWS

    rows = [
        {
            "id": transfer.number,
            "at": rfc3339(transfer.at),
            "kind": transfer.kind.value,
            "debit": FLOWS[transfer.kind][0].value,
            "credit": FLOWS[transfer.kind][1].value,
            "credits": wire(transfer.amount),
            "availableAfter": wire(transfer.available_after),
            "streamingSessionId": transfer.reservation_id,
            "grantId": transfer.grant_id,
            "note": transfer.note,
        }
        for transfer in local(work)
    ]
    show(rows, columns=ENTRY_COLUMNS, as_json=as_json, empty="There are no entries.")
