"""How many requests a caller may make in a minute, and the header fields that tell them.

The fields are those of draft-ietf-httpapi-ratelimit-headers-11.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from starlette.requests import Request

from parshall.kernel.addresses import network_of
from parshall.kernel.errors import ParshallError, TooManyRequests
from parshall.kernel.tokens import TokenVerifier, presented_token
from parshall.kernel.windows import WINDOW_SECONDS, Count, Windows

Pairs = tuple[tuple[str, str], ...]
REFUSED_CALLER = "parshall.refused_caller"
"""Where the ASGI scope keeps why the token of a request does not verify."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Whether a request goes on (`refusal` is None then), and the header fields of its response."""

    fields: Pairs = ()
    refusal: TooManyRequests | None = None


class RateLimit:
    """Counts users by their id and everybody else by address. Services are not counted: their callers were."""

    def __init__(
        self, windows: Windows, *, verifier: TokenVerifier, per_user: int, per_address: int, exempt: Collection[str]
    ) -> None:
        """`per_user` and `per_address` are requests a window, 0 for any number; `exempt` are paths never counted."""
        self._windows = windows
        self._verifier = verifier
        self._most = {"user": per_user, "address": per_address}
        self._exempt = exempt

    async def admit(self, request: Request) -> Admission:
        """Count a request."""
        if request.scope["path"] in self._exempt:
            return Admission()
        policy, caller = await self._caller(request)
        most = self._most.get(policy, 0)
        count = await self._windows.hit(f"{policy}:{caller}", most) if most else None
        return Admission() if count is None else _admission(policy, most, count)

    async def _caller(self, request: Request) -> tuple[str, str]:
        """The policy that holds for a caller, and who it is; a token that does not verify names nobody."""
        token = presented_token(request)
        address = request.client.host if request.client else "unknown"
        if token:
            try:
                principal = await self._verifier.verify(token, address)
            except ParshallError as error:  # whoever needs the caller refuses it, with these words
                request.scope[REFUSED_CALLER] = error
            else:
                return "service" if principal.is_service else "user", principal.user_id
        return "address", network_of(address)


def _admission(policy: str, most: int, count: Count) -> Admission:
    seconds = max(1, math.ceil(count.seconds))
    fields = (
        ("RateLimit-Policy", f'"{policy}";q={most};w={WINDOW_SECONDS}'),
        ("RateLimit", f'"{policy}";r={count.left};t={seconds}'),
    )
    if count.fits:
        return Admission(fields=fields)
    detail = f"More than {most} requests within {WINDOW_SECONDS} s; go on in {seconds} s, and more slowly."
    return Admission(fields=fields, refusal=TooManyRequests(detail, retry_after=seconds))
