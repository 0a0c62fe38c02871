"""What a client of a deployment can meet: a refusal by the server, no server, or a stream that cannot be continued."""

import json
from decimal import Decimal
from typing import Any

from parshall.client.steps import Answer, Broken
from parshall.kernel.headers import REQUEST_ID_HEADER
from parshall.kernel.ids import StreamId

MESSAGE_CHARS_MAX = 500


class ClientError(Exception):
    """Base of all that this package raises; its text is one sentence for people."""


class ApiError(ClientError):
    """The server refused: its status, stable code, sentence and the request id to quote when reporting it.

    `retry_after` is in seconds, zero where the server named none; `problem` is the whole RFC 9457 document.
    """

    def __init__(
        self,
        *,
        status: int,
        code: str,
        message: str,
        request_id: str = "",
        retry_after: float = 0,
        problem: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id
        self.retry_after = retry_after
        self.problem = problem or {}

    @property
    def reason(self) -> str:
        """Why an id or a token is refused, in one stable word (docs/TROUBLESHOOTING.md); else empty."""
        details = self.problem.get("details")
        within = details.get("reason") if isinstance(details, dict) else None
        return str(self.problem.get("reason") or within or "")

    @property
    def remedy(self) -> str:
        """What to do about it: the way out that the server names, else its sentence."""
        return str(self.problem.get("wayOut") or self.message)

    @property
    def help(self) -> str:
        """Where the deployment explains the reason: a path below its address, or empty."""
        return str(self.problem.get("help") or "")


class InsufficientCredits(ApiError):
    """The balance does not cover what was asked for (402)."""

    @property
    def required(self) -> Decimal:
        """Credits that it takes."""
        return _credits(self.problem.get("requiredCredits"))

    @property
    def available(self) -> Decimal:
        """Credits that are free to use."""
        return _credits(self.problem.get("availableCredits"))

    @property
    def reserved(self) -> Decimal:
        """Credits that running streams hold."""
        return _credits(self.problem.get("reservedCredits"))


class Unreachable(ClientError):
    """No answer came: nothing listens there, or the connection broke."""


class StreamLost(ClientError):
    """Reconnecting was given up. The server keeps the answer under `stream_id`; `offset` is the last one delivered."""

    def __init__(self, message: str, *, stream_id: StreamId, offset: int = 0) -> None:
        super().__init__(message)
        self.stream_id = stream_id
        self.offset = offset


class WrongStream(ClientError):
    """What answers is another stream than the one asked for: something in between mixes up answers or their headers."""


def refusal(answer: Answer) -> ApiError:
    """The error that an answer which is no success states.

    An intermediary's answer (a proxy's HTML, say) is no problem document: then the status has to do.
    """
    document = _document(answer.body)
    fallback = f"The server answered {answer.status} {answer.phrase}".strip() + " without saying why; try again."
    kind = InsufficientCredits if document.get("code") == "insufficient_credits" else ApiError
    return kind(
        status=answer.status,
        code=str(document.get("code") or f"http_{answer.status}"),
        message=str(document.get("message") or document.get("detail") or fallback)[:MESSAGE_CHARS_MAX],
        request_id=str(document.get("requestId") or answer.headers.get(REQUEST_ID_HEADER, "")),
        retry_after=_seconds(answer.headers.get("Retry-After", "")),
        problem=document,
    )


def foreign(status: int) -> ApiError:
    """The error for an answer that Parshall never gives."""
    return ApiError(
        status=status, code="not_parshall", message="What answers there is not Parshall; check the address."
    )


def unreachable(error: Broken, *, url: str) -> Unreachable:
    """The sentence for a request that got no answer."""
    return Unreachable(f"{url} cannot be reached ({error}); check the address and that the server runs.")


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body, parse_float=Decimal)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _credits(value: object) -> Decimal:
    return Decimal(value) if isinstance(value, int | Decimal) else Decimal(0)


def _seconds(retry_after: str) -> float:
    """Only the delay form (RFC 9110 §10.2.3): that is what Parshall sends."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 7 else 0.0
