"""Usage beside and across streams: what services record, and reports of what was used."""

import asyncio
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from parshall.accounting import queries_usage
from parshall.accounting.activity import AHEAD_SECONDS_MAX, Record, Recorded, Report, Span
from parshall.accounting.books import Books
from parshall.accounting.combine import Operation
from parshall.kernel.clock import SECOND
from parshall.kernel.database import Database
from parshall.kernel.errors import Invalid
from parshall.kernel.ids import UserId, new_id

REPORTS_AT_ONCE = 1
"""Of everybody's use, in one process: such a report reads much, and must leave connections to those who read little."""


class UsageRecords:
    """The use of one deployment. Recording charges nothing: what a use cost is charged by whoever records it."""

    def __init__(self, database: Database) -> None:
        """Read from `database`; what is recorded is written by the operation that `recording` gives."""
        self._database = database
        self._room = asyncio.Semaphore(REPORTS_AT_ONCE)

    def recording(
        self,
        user_id: UserId,
        *,
        service: str,
        operation: str,
        model_id: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        credits: int = 0,
        at: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Operation[Recorded]:
        """Keep a use, now or at the instant `at`. Raises Invalid for one in the future."""

        def apply(books: Books) -> Recorded:
            if at is not None and at > books.at + AHEAD_SECONDS_MAX * SECOND:
                raise Invalid("The timestamp lies in the future; leave it out, or send when the use took place.")
            record = Record(
                id=new_id(),
                user_id=user_id,
                service=service,
                operation=operation,
                model_id=model_id,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                credits=credits,
                at=books.at if at is None else at,
            )
            recorded = Recorded(record=record, metadata=metadata or {})
            queries_usage.add_record(books.connection, recorded)
            return recorded

        return Operation(apply)

    async def of_user(self, user_id: UserId, *, since: int | None, until: int | None) -> Report:
        """What a user has used, whoever paid for it. Raises Invalid for a span that cannot be."""
        return await self._database.read(lambda c: self._report(c, user_id, since, until))

    async def of_all(self, *, since: int | None, until: int | None) -> Report:
        """What everybody has used. Raises Invalid for a span that cannot be."""
        async with self._room:
            return await self._database.read(lambda c: self._report(c, None, since, until))

    def _report(self, connection: Connection, user_id: UserId | None, since: int | None, until: int | None) -> Report:
        span = Span.of(since, until, at=self._database.instant(connection))
        return queries_usage.report(connection, user_id, span)
