"""What the OpenAPI document says of refusals: each is an RFC 9457 problem document."""

from typing import Any

PROBLEM_JSON = "application/problem+json"
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "message"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what happened and what to do, for people"},
        "code": {"type": "string", "description": "what happened, for programs"},
        "instance": {"type": "string"},
        "message": {"type": "string"},
        "error": {"type": "string"},
        "requestId": {"type": "string"},
    },
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": {PROBLEM_JSON: {"schema": _PROBLEM}}}
    for status, words in (("4XX", "Refused; `code` says why (RFC 9457)"), ("5XX", "It cannot be answered now"))
}
"""What every operation may answer instead, for the OpenAPI document."""
