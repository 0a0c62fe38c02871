"""`parshall events`: what waits for the webhook or was given up, another try, and a test of the receiver."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from parshall.cli.terminal import AsJson, Refused, group, local, say, show
from parshall.kernel import clock
from parshall.kernel.clock import rfc3339
from parshall.kernel.ids import new_id

if TYPE_CHECKING:
    from parshall.accounting.outbox import Delivery
    from parshall.accounting.webhook import Answer, Webhook

LINES_MAX = 500
COLUMNS = {
    "id": "ID",
    "type": "TYPE",
    "subject": "SUBJECT",
    "time": "TIME",
    "state": "STATE",
    "attempts": "ATTEMPTS",
    "dueAt": "DUE",
    "lastError": "LAST ERROR",
}

app = group("Events for the webhook: those that wait, another try for those given up, a test.")


@app.command("list")
def list_events(
    limit: Annotated[int, typer.Option(min=1, max=LINES_MAX, help="At most so many events.")] = LINES_MAX,
    as_json: AsJson = False,
) -> None:
    """List the events that are not delivered: those given up first, then those that wait, oldest first.

    Example: parshall events list
    """
    rows = [
        {
            "id": each.id,
            "type": each.topic,
            "subject": each.subject,
            "time": rfc3339(each.at),
            "state": "given up" if each.due_at is None else "waits",
            "attempts": each.attempts,
            "dueAt": None if each.due_at is None else rfc3339(each.due_at),
            "lastError": each.last_error,
        }
        for each in local(lambda parts: parts.accounting.outbox.all(limit=limit))
    ]
    show(rows, columns=COLUMNS, as_json=as_json, empty="There are no events that wait or were given up.")


@app.command()
def retry(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of events given up (default: all of them).")] = None,
) -> None:
    """Have events that were given up tried again; a running server does so within seconds.

    Example: parshall events retry
    """
    count = local(lambda parts: parts.accounting.outbox.retry(ids or None))
    if ids and not count:
        raise Refused("None of these events was given up; `parshall events list` shows which were.")
    say(f"{count} {'event is' if count == 1 else 'events are'} due again.")


@app.command()
def test() -> None:
    """Post a signed event of the type dev.parshall.test to the webhook, and say what the receiver answers.

    Example: parshall events test
    """
    from parshall.app import config
    from parshall.app.local import webhook

    hook = webhook(config.load())
    if hook is None:
        raise Refused("There is no webhook; set PARSHALL_WEBHOOK_URL and PARSHALL_WEBHOOK_SECRET.")
    answer = asyncio.run(_posted(hook))
    if not answer.accepted:
        raise Refused(f"The receiver did not take it: {answer.problem}; it must answer with a status from 200 to 299.")
    say(f"The receiver took it: {answer.problem}.")


async def _posted(hook: "Webhook") -> "Answer":
    try:
        return await hook.post(_sample())
    finally:
        await hook.close()


def _sample() -> "Delivery":
    from parshall.accounting.outbox import Delivery

    return Delivery(
        id=new_id(), topic="test", subject="test", at=clock.now(), body="{}", attempts=1, due_at=None, last_error=""
    )
