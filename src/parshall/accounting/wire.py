"""How balances, grants, transfers, reservations and prices look to clients: decimal credits, RFC 3339 times."""

import json
from collections.abc import Mapping
from typing import Any

from parshall.accounting.model import FLOWS, Balance, Changed, Grant, Reservation, State, Transfer
from parshall.accounting.pricing import PriceVersion
from parshall.kernel.clock import rfc3339
from parshall.kernel.credits import wire
from parshall.kernel.metering import Slice, Usage


def rendered(body: Mapping[str, Any]) -> str:
    """A body as text that can be kept and repeated byte for byte."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False)


def balance_wire(balance: Balance) -> dict[str, Any]:
    """What one holds."""
    return {
        "userId": balance.account_id,
        "totalCredits": wire(balance.total),
        "availableCredits": wire(balance.available),
        "reservedCredits": wire(balance.reserved),
        "activeAllocations": [
            {
                "id": grant.id,
                "credits": wire(grant.amount),
                "remaining": wire(grant.remaining),
                "expiresAt": rfc3339(grant.expires_at),
                "allocatedAt": rfc3339(grant.created_at),
            }
            for grant in balance.grants
        ],
    }


def grant_wire(grant: Grant) -> dict[str, Any]:
    """One grant."""
    return {
        "id": grant.id,
        "userId": grant.account_id,
        "totalCredits": wire(grant.amount),
        "remainingCredits": wire(grant.remaining),
        "expiresAt": rfc3339(grant.expires_at),
        "allocatedAt": rfc3339(grant.created_at),
        "allocatedBy": grant.granted_by,
        "priority": grant.priority,
        "notes": grant.notes,
    }


def changed_wire(changed: Changed, message: str) -> dict[str, Any]:
    """What an administrator's change did."""
    allocation = {} if changed.grant is None else {"allocation": grant_wire(changed.grant)}
    return {
        "userId": changed.account_id,
        "previousCredits": wire(changed.previous),
        "newCredits": wire(changed.new),
        "message": message,
        **allocation,
    }


def entry_wire(transfer: Transfer) -> dict[str, Any]:
    """One line of a statement. `credits` never has a sign: `debit` and `credit` say between which books it moved."""
    debit, credit = FLOWS[transfer.kind]
    return {
        "id": transfer.number,
        "at": rfc3339(transfer.at),
        "kind": transfer.kind.value,
        "credits": wire(transfer.amount),
        "debit": debit.value,
        "credit": credit.value,
        "balanceAfter": wire(transfer.available_after),
        "allocationId": transfer.grant_id,
        "streamingSessionId": transfer.reservation_id,
        "notes": transfer.note,
        "hash": transfer.hash,
    }


def slice_wire(session_id: str, granted: Slice) -> dict[str, Any]:
    """What a stream may spend so far."""
    return {
        "sessionId": session_id,
        "allocatedCredits": wire(granted.reserved),
        "grantedOutputTokens": granted.output_tokens,
        "expiresAt": rfc3339(granted.expires_at),
        "final": granted.final,
        "status": "active",
    }


def session_wire(reservation: Reservation) -> dict[str, Any]:
    """A stream in a list."""
    ended = reservation.settlement
    return {
        "sessionId": reservation.id,
        "userId": reservation.user_id,
        "modelId": reservation.model_id,
        "status": reservation.state.value,
        "allocatedCredits": wire(reservation.reserved),
        "usedCredits": wire(ended.charged) if ended else 0,
        "grantedOutputTokens": reservation.output_tokens,
        "startedAt": rfc3339(reservation.created_at),
        "expiresAt": rfc3339(reservation.expires_at),
        "endedAt": None if reservation.ended_at is None else rfc3339(reservation.ended_at),
    }


def receipt_wire(reservation: Reservation) -> dict[str, Any]:
    """A stream's receipt; `settlement: pending` until the reservation has ended."""
    head = {
        "streamingSessionId": reservation.id,
        "accountId": reservation.account_id,
        "outcome": None,
        "modelId": reservation.model_id,
        **(reservation.usage or Usage()).wire(),
        "usageSource": reservation.usage_source,
        "reservedCredits": wire(reservation.reserved),
    }
    ended = reservation.settlement
    if ended is None:
        assert reservation.state is State.ACTIVE
        return head | {"settlement": "pending", "priceVersion": reservation.price_version, "transfers": []}
    return head | {
        "outcome": ended.outcome,
        "chargedCredits": wire(ended.charged),
        "returnedCredits": wire(ended.returned),
        "uncollectedCredits": wire(ended.uncollected),
        "balanceAfter": wire(ended.balance_after),
        "settlement": "settled",
        "priceVersion": ended.price_version,
        "transfers": list(ended.transfers),
    }


def price_wire(version: PriceVersion) -> dict[str, Any]:
    """One version of a model's price, in credits per million tokens."""
    return {
        "modelId": version.model_id,
        "input": wire(version.price.input),
        "cachedInput": wire(version.price.cached_input),
        "output": wire(version.price.output),
        "reasoning": wire(version.price.reasoning),
        "effectiveFrom": rfc3339(version.effective_from),
        "version": version.version,
    }
