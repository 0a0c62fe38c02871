"""The headers that Parshall relies on: their names, the order of a stream's headers, CORS, and redaction for logs."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable, Mapping

from parshall.kernel.ids import STREAM_ID_PATTERN

STREAM_ID_HEADER = "X-Streaming-Session-Id"
REQUEST_ID_HEADER = "X-Request-Id"
USER_ID_HEADER = "X-User-ID"
LAST_EVENT_ID_HEADER = "Last-Event-ID"

EXPOSED = (STREAM_ID_HEADER, REQUEST_ID_HEADER, "Retry-After", "RateLimit", "RateLimit-Policy")
"""Response headers that a page of an allowed origin may read (Fetch §3.3.4); `*` is refused with credentials."""

ALLOWED = (
    "Authorization",
    "Content-Type",
    LAST_EVENT_ID_HEADER,
    STREAM_ID_HEADER,
    USER_ID_HEADER,
    "Idempotency-Key",
    "traceparent",
)
"""Request headers that a preflight permits."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_SECRET = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "api-key"})
_OUR_ID = re.compile(
    r"[0-9a-f]{16}(?:[0-9a-f]{16})?\Z|" + STREAM_ID_PATTERN.removeprefix("^").removesuffix("$") + r"\Z"
)
_SEGMENTS_MAX = 16
LOGGED_PATH = "parshall.logged_path"
"""Where the ASGI scope keeps the path of a request as logs may show it."""
_FINGERPRINT_KEY = secrets.token_bytes(32)

RawHeaders = list[tuple[bytes, bytes]]


def cors_headers(origin: str | None, allowed: Iterable[str]) -> list[tuple[str, str]]:
    """The CORS response headers for a request's Origin; none where it is absent or not allowed."""
    if origin is None or origin not in allowed:
        return []
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Credentials", "true"),
        ("Access-Control-Expose-Headers", ", ".join(EXPOSED)),
        ("Vary", "Origin"),
    ]


def stream_headers(
    stream_id: str, *, origin: str | None, allowed_origins: Iterable[str], http_version: str
) -> RawHeaders:
    """The headers of a stream response, in the order in which they must go out: the id before any other (H1)."""
    pairs = [
        (STREAM_ID_HEADER, stream_id),
        *cors_headers(origin, allowed_origins),
        ("Content-Type", "text/event-stream"),
        ("Cache-Control", "no-cache, no-transform"),
        ("X-Accel-Buffering", "no"),
    ]
    if http_version == "1.1":  # forbidden in HTTP/2 (RFC 9113 §8.2.2), meaningless before 1.1
        pairs.append(("Connection", "keep-alive"))
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]


def redact(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers fit for a log: a secret becomes a keyed fingerprint, equal only for equal values in this process."""
    return {name: _fingerprint(value) if name.lower() in _SECRET else value for name, value in headers.items()}


def loggable(path: str, words: Collection[str]) -> str:
    """The path fit for a log: words of our own paths and ids stay, all else may be a secret and is left out."""
    segments = path.split("/", _SEGMENTS_MAX)
    return "/".join(part if part in words or not part or _OUR_ID.match(part) else "…" for part in segments)


def _fingerprint(value: str) -> str:
    digest = hmac.new(_FINGERPRINT_KEY, value.encode("utf-8", "backslashreplace"), hashlib.sha256).hexdigest()
    return f"redacted:{digest[:12]}"
