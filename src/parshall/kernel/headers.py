"""The headers that Parshall relies on: their names, the order of a stream's headers, CORS, and paths fit for logs."""

import re
from collections.abc import Collection, Iterable

from parshall.kernel.ids import STREAM_ID_PATTERN
from parshall.kernel.recording import RawHeaders, header_list

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

_OUR_ID = re.compile(
    r"[0-9a-f]{16}(?:[0-9a-f]{16})?\Z|" + STREAM_ID_PATTERN.removeprefix("^").removesuffix("$") + r"\Z"
)
_SEGMENTS_MAX = 16
LOGGED_PATH = "parshall.logged_path"
"""Where the ASGI scope keeps the path of a request as logs may show it."""
_EVENTS = (b"Content-Type", b"text/event-stream")
_AS_IT_IS = (b"Cache-Control", b"no-cache, no-transform")
_AT_ONCE = (b"X-Accel-Buffering", b"no")
_KEPT_OPEN = (b"Connection", b"keep-alive")


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
    raw = header_list()
    raw.append(_field(STREAM_ID_HEADER, stream_id))
    for name, value in cors_headers(origin, allowed_origins):
        raw.append(_field(name, value))
    raw.append(_EVENTS)
    raw.append(_AS_IT_IS)
    raw.append(_AT_ONCE)
    if http_version == "1.1":  # forbidden in HTTP/2 (RFC 9113 §8.2.2), meaningless before 1.1
        raw.append(_KEPT_OPEN)
    return raw


def loggable(path: str, words: Collection[str]) -> str:
    """The path fit for a log: words of our own paths and ids stay, all else may be a secret and is left out."""
    segments = path.split("/", _SEGMENTS_MAX)
    return "/".join(part if part in words or not part or _OUR_ID.match(part) else "…" for part in segments)


def _field(name: str, value: str) -> tuple[bytes, bytes]:
    return name.encode("latin-1"), value.encode("latin-1")
