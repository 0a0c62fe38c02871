"""`parshall organisations`: groups with a balance of their own, and limits for each of their members."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from parshall.cli.terminal import AsJson, Refused, clean, group, local, say, show
from parshall.kernel import clock
from parshall.kernel.clock import DAY, rfc3339
from parshall.kernel.credits import parse_credits, text

if TYPE_CHECKING:
    from parshall.accounting.membership import Limit
    from parshall.accounting.model import Balance
    from parshall.accounting.organisation import Member, Organisation
    from parshall.app.local import Parts

BY = "cli"
NO_LIMIT = "none"
LINES_MAX = 500
NAME_CHARACTERS_MAX = 100
COLUMNS = {"name": "NAME", "createdAt": "CREATED", "id": "ID"}
MEMBER_COLUMNS = {
    "userId": "USER",
    "role": "ROLE",
    "limitPerDay": "PER DAY",
    "usedToday": "USED",
    "limitPerMonth": "PER MONTH",
    "usedThisMonth": "USED",
    "limitTotal": "TOTAL",
    "usedTotal": "USED",
}

app = group("Groups with credits of their own, and limits for each member.")

Named = Annotated[str, typer.Argument(metavar="ORGANISATION", help="Name or id.")]
Who = Annotated[str, typer.Argument(help="Username, e-mail address or id.")]
After = Annotated[str, typer.Option(help="Begin behind this one, the last of the list before.")]
Lines = Annotated[int, typer.Option(min=1, max=LINES_MAX, help="At most so many.")]


@app.command()
def add(name: Annotated[str, typer.Argument(help="A name that no other organisation has.")]) -> None:
    """Add an organisation, with an empty account.

    Example: parshall organisations add Physics
    """
    wanted = clean(name).strip()
    if not wanted.isprintable() or not 0 < len(wanted) <= NAME_CHARACTERS_MAX:
        raise Refused(f"A name has 1 to {NAME_CHARACTERS_MAX} printable characters; choose another one.")

    async def work(parts: "Parts") -> "Organisation":
        organisations = parts.accounting.organisations
        return await organisations.run(organisations.founding(wanted, created_by=BY))

    say(f"Added {wanted} with the id {local(work).id}.")


@app.command("list")
def list_organisations(after: After = "", limit: Lines = LINES_MAX, as_json: AsJson = False) -> None:
    """List organisations by name.

    Example: parshall organisations list
    """
    from parshall.accounting.wire_organisations import organisation_wire

    found = local(lambda parts: parts.accounting.organisations.all(after=clean(after), limit=limit))
    rows = [organisation_wire(each) for each in found]
    show(rows, columns=COLUMNS, as_json=as_json, empty="There are none; `parshall organisations add NAME` adds one.")


@app.command("show")
def show_organisation(organisation: Named, as_json: AsJson = False) -> None:
    """Show an organisation and its credits.

    Example: parshall organisations show Physics
    """
    from parshall.accounting.wire import balance_wire
    from parshall.accounting.wire_organisations import of_group, organisation_wire

    async def work(parts: "Parts") -> "tuple[Organisation, Balance]":
        found = await parts.accounting.organisations.resolve(clean(organisation))
        return found, await parts.accounting.balance(found.id)

    found, held = local(work)
    if as_json:
        typer.echo(json.dumps(organisation_wire(found) | of_group(balance_wire(held)), indent=2))
        return
    say(
        f"{found.name} ({found.id}): {text(held.available)} credits available, "
        f"{text(held.reserved)} reserved by running streams."
    )


@app.command()
def grant(
    organisation: Named,
    amount: Annotated[str, typer.Argument(help="Credits, with at most six decimal places.")],
    days: Annotated[int, typer.Option(min=1, max=36_500, help="Days until the grant expires.")] = 30,
    note: Annotated[str, typer.Option(help="Why, for the statement.")] = "",
) -> None:
    """Grant credits to an organisation.

    Example: parshall organisations grant Physics 1000 --days 90
    """
    credits = parse_credits(amount)
    expires_at = clock.now() + days * DAY

    async def work(parts: "Parts") -> None:
        found = await parts.accounting.organisations.resolve(clean(organisation))
        await parts.accounting.allocate(found.id, credits, expires_at=expires_at, granted_by=BY, notes=clean(note))

    local(work)
    say(f"Granted {text(credits)} credits to {organisation} until {rfc3339(expires_at)[:10]}.")


@app.command()
def members(organisation: Named, after: After = "", limit: Lines = LINES_MAX, as_json: AsJson = False) -> None:
    """List an organisation's members with their limits and what they have used.

    Example: parshall organisations members Physics
    """
    from parshall.accounting.wire_organisations import member_wire

    async def work(parts: "Parts") -> "list[Member]":
        organisations = parts.accounting.organisations
        found = await organisations.resolve(clean(organisation))
        return await organisations.members(found.id, after=clean(after), limit=limit)

    rows = [member_wire(each) for each in local(work)]
    show(rows, columns=MEMBER_COLUMNS, as_json=as_json, empty="There are no members.")


@app.command()
def join(
    organisation: Named,
    who: Who,
    role: Annotated[Literal["member", "manager"] | None, typer.Option(help="What the member may do.")] = None,
    per_day: Annotated[str | None, typer.Option(help="Credits a day (UTC), or none.")] = None,
    per_month: Annotated[str | None, typer.Option(help="Credits a month (UTC), or none.")] = None,
    total: Annotated[str | None, typer.Option(help="Credits in all, or none.")] = None,
) -> None:
    """Let a user join an organisation, or change role and limits there. What is left out stays as it is.

    Example: parshall organisations join Physics ann --per-day 10 --per-month none
    """
    from parshall.accounting.membership import Change
    from parshall.accounting.organisation import MemberRole

    given: dict[Limit, str | None] = {"limit_day": per_day, "limit_month": per_month, "limit_total": total}
    limits = {name: _limit(amount) for name, amount in given.items() if amount is not None}
    change = Change(role=MemberRole(role) if role else None, limits=limits)

    async def work(parts: "Parts") -> "Member":
        organisations = parts.accounting.organisations
        found = await organisations.resolve(clean(organisation))
        return await organisations.run(organisations.putting(found.id, await parts.auth.resolve(who), change))

    say(f"{who} is a {local(work).role.value} of {organisation}.")


@app.command()
def leave(organisation: Named, who: Who) -> None:
    """End a user's membership; running streams keep what they hold and get nothing more.

    Example: parshall organisations leave Physics ann
    """

    async def work(parts: "Parts") -> None:
        organisations = parts.accounting.organisations
        found = await organisations.resolve(clean(organisation))
        await organisations.run(organisations.removing(found.id, await parts.auth.resolve(who)))

    local(work)
    say(f"{who} has left {organisation}.")


def _limit(amount: str) -> int | None:
    return None if amount == NO_LIMIT else parse_credits(amount, allow_zero=True)
