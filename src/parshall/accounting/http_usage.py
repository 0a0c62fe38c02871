"""Accounting over HTTP for usage: services record what is no stream; people see what was used."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from parshall.accounting.activity import Groups, Record, Recorded, Report, Sum
from parshall.accounting.bodies import Who
from parshall.accounting.bodies_usage import RecordBody, Since, Until
from parshall.accounting.edge import OPEN, Key, Ledger, OnBehalfOf, Settler, json_text, once_of
from parshall.accounting.service import Accounting
from parshall.accounting.wire import rendered
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.clock import rfc3339
from parshall.kernel.credits import wire
from parshall.kernel.errors import Invalid
from parshall.kernel.headers import USER_ID_HEADER
from parshall.kernel.http import Admin, Supervisor, User
from parshall.kernel.ids import UserId

router = APIRouter(prefix="/usage", route_class=StrictRoute)

From = Annotated[Since | None, Query(alias="startDate", description="a date or date-time; 30 days before the end")]
To = Annotated[Until | None, Query(alias="endDate", description="a date, included, or a date-time, excluded; now")]


@router.post("/record", status_code=201)
async def record(
    body: RecordBody, accounting: Ledger, service: Settler, key: Key, named: OnBehalfOf = None
) -> Response:
    """Record a use that is no stream, of the user in X-User-ID or `userId`. It charges nothing. For services."""
    user_id = await _who(accounting, body.user_id, named)
    once = once_of(key, service, "usage", user_id, body)
    work = accounting.usage.recording(
        user_id,
        service=body.service,
        operation=body.operation,
        model_id=body.model_id,
        input_tokens=body.input_tokens,
        output_tokens=body.output_tokens,
        credits=body.credits,
        at=body.timestamp,
        metadata=body.metadata,
    )
    return json_text(await accounting.answer_once(work, render=_recorded, status=201, once=once), 201)


async def _who(accounting: Accounting, in_body: str | None, in_header: str | None) -> UserId:
    named = [name for name in (in_body, in_header) if name is not None]
    if not named:
        raise Invalid(f"Name the user whose use this is, as userId or in the header {USER_ID_HEADER}.")
    found = {await accounting.directory.resolve(name) for name in named}
    if len(found) > 1:
        raise Invalid(f"userId and {USER_ID_HEADER} name two users; send one of them.")
    return found.pop()


@router.get("/stats", dependencies=OPEN)
async def my_stats(accounting: Ledger, user: User, since: From = None, until: To = None) -> dict[str, Any]:
    """What I have used, whoever paid for it."""
    return _report(await accounting.usage.of_user(user.user_id, since=since, until=until), user.user_id)


@router.get("/stats/{user_id}")
async def stats_of(
    user_id: Who, accounting: Ledger, _caller: Supervisor, since: From = None, until: To = None
) -> dict[str, Any]:
    """What a user has used, whoever paid for it. For supervisors."""
    found = await accounting.directory.resolve(user_id)
    return _report(await accounting.usage.of_user(found, since=since, until=until), found)


@router.get("/system-stats")
async def system_stats(accounting: Ledger, _caller: Admin, since: From = None, until: To = None) -> dict[str, Any]:
    """What everybody has used. For administrators."""
    return _report(await accounting.usage.of_all(since=since, until=until), None)


# ── Wire ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _recorded(recorded: Recorded) -> str:
    shown = _record(recorded.record)
    return rendered({**shown, "metadata": recorded.metadata, "message": "The use was recorded; nothing was charged."})


def _record(each: Record) -> dict[str, Any]:
    return {
        "id": each.id,
        "userId": each.user_id,
        "service": each.service,
        "operation": each.operation,
        "modelId": each.model_id,
        "inputTokens": each.input_tokens,
        "outputTokens": each.output_tokens,
        "credits": wire(each.credits),
        "timestamp": rfc3339(each.at),
    }


def _report(report: Report, user_id: UserId | None) -> dict[str, Any]:
    """Credits by each thing, as clients read them; `details` has the same with records and tokens."""
    groups = {"byService": report.by_service, "byDay": report.by_day, "byModel": report.by_model}
    if report.by_user is not None:
        groups["byUser"] = report.by_user
    return {
        "userId": user_id,
        "startDate": rfc3339(report.span.since),
        "endDate": rfc3339(report.span.until),
        "totalRecords": report.total.records,
        "totalCredits": wire(report.total.credits),
        "totalInputTokens": report.total.input_tokens,
        "totalOutputTokens": report.total.output_tokens,
        **{name: {key: wire(each.credits) for key, each in group.named.items()} for name, group in groups.items()},
        "rest": {name: _sum(group.rest) for name, group in groups.items() if group.rest is not None},
        "details": _details(groups),
        "recentActivity": [_record(each) | _stream(each) for each in report.recent],
    }


def _details(groups: Mapping[str, Groups]) -> dict[str, Any]:
    return {name: {key: _sum(each) for key, each in group.named.items()} for name, group in groups.items()}


def _sum(added: Sum) -> dict[str, Any]:
    return {
        "records": added.records,
        "credits": wire(added.credits),
        "inputTokens": added.input_tokens,
        "outputTokens": added.output_tokens,
    }


def _stream(each: Record) -> dict[str, Any]:
    """The stream that a record is about, which has a receipt."""
    return {"streamingSessionId": each.id if each.id.startswith("stream-") else None}
