"""Idempotency keys: a change and its rendered answer are kept in one transaction, and a replay gets that text."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from parshall.accounting import queries
from parshall.accounting.books import Books
from parshall.accounting.combine import Operation
from parshall.kernel.ids import UserId

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """An idempotency key as one caller uses it for one operation, and the fingerprint of what is asked under it."""

    scope: str
    key: str
    fingerprint: str

    @classmethod
    def of(cls, *request: object, caller: UserId, operation: str, key: str) -> "Once":
        """`request` is all that the answer depends on, as plain JSON values."""
        asked = json.dumps((operation, *request), sort_keys=True).encode()
        return cls(scope=f"{operation}:{caller}", key=key, fingerprint=hashlib.sha256(asked).hexdigest())


def answering(operation: Operation[T], *, render: Callable[[T], str], status: int, once: Once | None) -> Operation[str]:
    """The operation with its answer rendered and, under an idempotency key, kept; a replay gets that text.

    Without a key every call is a new request, and a refused one leaves its key unused. It raises KeyReused for the same
    key with another request (M4).
    """

    def apply(books: Books) -> str:
        if once is None:
            return render(operation.apply(books))
        known = queries.answered(books.connection, once.scope, once.key, fingerprint=once.fingerprint, at=books.at)
        if known is not None:
            return known
        body = render(operation.apply(books))
        kept = {"fingerprint": once.fingerprint, "status": status, "body": body, "at": books.at}
        queries.keep_answer(books.connection, once.scope, once.key, **kept)  # type: ignore[arg-type]
        return body

    return cast("Operation[str]", replace(operation, apply=apply))  # type: ignore[arg-type]
