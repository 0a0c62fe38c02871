"""W3C Trace Context: the trace that a request belongs to, taken from the caller and handed to the next service."""

import re
import secrets
from contextvars import ContextVar

TRACEPARENT_HEADER = "traceparent"
_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-[!-~]{0,400})?\Z"
)

_current: ContextVar[tuple[str, str] | None] = ContextVar("trace", default=None)
"""The trace id and its flags, for a request and every task that it starts."""


def begin(header: str) -> str:
    """Take part in the trace of a `traceparent`, or begin one where that says nothing valid; the trace id."""
    found = _PARENT.match(header)
    trace_id, flags = (found[1], found[2]) if found else (secrets.token_hex(16), "00")
    _current.set((trace_id, flags))
    return trace_id


def traceparent() -> str:
    """What the next service is told: the trace of this task, which is a new one outside of any request."""
    trace_id, flags = _current.get() or (secrets.token_hex(16), "00")
    return f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"
