"""API keys over HTTP: made, listed and revoked by their owner, who must have logged in."""

from datetime import datetime

from fastapi import APIRouter

from parshall.auth.edge import Document, Present, Service
from parshall.auth.wire import key_document
from parshall.kernel.bodies import StrictRoute
from parshall.kernel.clock import instant
from parshall.kernel.http import WireModel
from parshall.kernel.tokens import KEY_SCOPES

router = APIRouter(prefix="/auth/api-keys", route_class=StrictRoute)


class KeyBody(WireModel):
    """An API key as its owner wants it."""

    name: str
    scopes: list[str] | None = None
    expires_at: datetime | None = None


@router.post("", status_code=201)
async def create_key(body: KeyBody, caller: Present, auth: Service) -> Document:
    """Make an API key; `key` is shown this once. Without `scopes` it has all, without `expiresAt` it lives 90 days."""
    scopes = KEY_SCOPES if body.scopes is None else frozenset(body.scopes)
    expires_at = None if body.expires_at is None else instant(body.expires_at)
    made = await auth.api_keys.create(caller.id, body.name, scopes=scopes, expires_at=expires_at)
    return {"message": "Keep the key now; it cannot be shown again.", "key": made.text, **key_document(made.key)}


@router.get("")
async def list_keys(caller: Present, auth: Service) -> Document:
    """The own API keys, eldest first, with those that have expired."""
    return {"keys": [key_document(key) for key in await auth.api_keys.keys_of(caller.id)]}


@router.delete("/{key_id}")
async def revoke_key(key_id: str, caller: Present, auth: Service) -> Document:
    """Revoke an API key by its id or prefix: auth refuses it at once, other services within half a minute."""
    await auth.api_keys.revoke(caller.id, key_id)
    return {"message": "The API key is revoked."}
