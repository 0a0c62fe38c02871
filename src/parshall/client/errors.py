"""What a client of a deployment can meet: a refusal by the server, no server, or a stream that cannot be continued."""

import json
from typing import Any

import httpx2

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


class Unreachable(ClientError):
    """No answer came: nothing listens there, or the connection broke."""


class StreamLost(ClientError):
    """Reconnecting was given up. The server keeps the answer under `stream_id`."""

    def __init__(self, message: str, *, stream_id: StreamId) -> None:
        super().__init__(message)
        self.stream_id = stream_id


def refusal(response: httpx2.Response) -> ApiError:
    """The error that a response which is no success states; its body must have been read.

    An intermediary's answer (a proxy's HTML, say) is no problem document: then the status has to do.
    """
    document = _document(response)
    status = response.status_code
    fallback = f"The server answered {status} {response.reason_phrase}".strip() + " without saying why; try again."
    message = document.get("message") or document.get("detail") or fallback
    return ApiError(
        status=status,
        code=str(document.get("code") or f"http_{status}"),
        message=str(message)[:MESSAGE_CHARS_MAX],
        request_id=str(document.get("requestId") or response.headers.get(REQUEST_ID_HEADER, "")),
        retry_after=_seconds(response.headers.get("Retry-After", "")),
        problem=document,
    )


def unreachable(error: httpx2.RequestError, *, url: str) -> Unreachable:
    """The sentence for a request that got no answer."""
    return Unreachable(f"{url} cannot be reached ({why(error)}); check the address and that the server runs.")


def why(error: httpx2.RequestError) -> str:
    """A few words on what broke."""
    match error:
        case httpx2.ConnectTimeout() | httpx2.ConnectError():
            return "no connection"
        case httpx2.TimeoutException():
            return "no answer in time"
        case httpx2.NetworkError() | httpx2.RemoteProtocolError():
            return "the connection broke"
    return str(error) or type(error).__name__


def _document(response: httpx2.Response) -> dict[str, Any]:
    try:
        document = json.loads(response.content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _seconds(retry_after: str) -> float:
    """Only the delay form (RFC 9110 §10.2.3): that is what Parshall sends."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 7 else 0.0
