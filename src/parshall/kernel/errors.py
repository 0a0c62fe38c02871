"""The one tree of errors that callers can meet; each class carries its wire code, status and what to do about it."""

from collections.abc import Mapping
from typing import Any, ClassVar


class ParshallError(Exception):
    """A refusal with a stable code. `detail` is one sentence for people: what happened and what to do.

    `extra` holds further members of the RFC 9457 problem document; values must be JSON-serialisable.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    default: ClassVar[str] = "Something went wrong on our side; try again, and report the request id if it persists."

    def __init__(self, detail: str | None = None, /, *, headers: Mapping[str, str] | None = None, **extra: Any) -> None:
        self.detail = detail or self.default
        self.headers = dict(headers or {})
        self.extra = extra
        super().__init__(self.detail)


class Invalid(ParshallError):
    """The request itself is wrong; sending it again unchanged cannot help."""

    status = 400
    code = "invalid_request"
    title = "Invalid request"
    default = "The request is not valid; correct it and send it again."


class Unauthenticated(ParshallError):
    """No credential, or one that does not verify. Answers carry `WWW-Authenticate: Bearer` (RFC 6750)."""

    status = 401
    code = "unauthenticated"
    title = "Authentication required"
    default = "Log in and send the access token as `Authorization: Bearer <token>`."

    def __init__(self, detail: str | None = None, /, **extra: Any) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"}, **extra)


class TokenRefused(Unauthenticated):
    """A token was presented and does not hold; the challenge says so (RFC 6750 §3.1)."""

    title = "Token refused"
    default = "The access token does not hold any more; log in again."

    def __init__(self, detail: str | None = None, /, **extra: Any) -> None:
        super().__init__(detail, **extra)
        self.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'


class Forbidden(ParshallError):
    """The caller is known and lacks the role or scope."""

    status = 403
    code = "forbidden"
    title = "Forbidden"
    default = "Your role does not allow this; ask an administrator."


class NotFound(ParshallError):
    """Nothing is there for this caller; someone else's resource answers the same."""

    status = 404
    code = "not_found"
    title = "Not found"
    default = "There is nothing here by that name, or it is not yours."


class Conflict(ParshallError):
    """The request contradicts what is already recorded."""

    status = 409
    code = "conflict"
    title = "Conflict"
    default = "The request contradicts what is already recorded."


class KeyReused(Conflict):
    """The same id or idempotency key with another body (M4)."""

    code = "id_reused"
    title = "Id already used"
    default = "This id was already used for another request; make a new one."


class UnsupportedMediaType(ParshallError):
    """The body is in a form that this path does not read."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"
    default = "Send the body as JSON, with Content-Type: application/json."


class InsufficientCredits(ParshallError):
    """The balance does not cover the request. `extra` gives requiredCredits, availableCredits and reservedCredits."""

    status = 402
    code = "insufficient_credits"
    title = "Insufficient credits"
    default = "There are not enough available credits; ask for a grant or wait until running streams settle."


class TooManyRequests(ParshallError):
    """The caller goes too fast; `Retry-After` says when to come back, in whole seconds."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"
    default = "Too many requests; wait as long as Retry-After says."

    def __init__(self, detail: str | None = None, /, *, retry_after: int = 1, **extra: Any) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)}, **extra)


class Unavailable(ParshallError):
    """Something this answer needs cannot be reached now; nothing was kept of the request."""

    status = 503
    code = "unavailable"
    title = "Service unavailable"
    default = "The service cannot answer now; try again shortly."

    def __init__(self, detail: str | None = None, /, *, retry_after: int = 1, **extra: Any) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)}, **extra)


class StartupError(Exception):
    """The program cannot start as configured; its message is the one sentence that the operator reads."""
