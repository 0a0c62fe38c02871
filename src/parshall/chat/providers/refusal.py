"""What a refusal of an OpenAI-compatible server means, and how much of its words may be shown."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from parshall.chat.ports import ProviderFailure
from parshall.chat.providers.openai_stream import TEXT_SHOWN_MAX

BUSY = frozenset({408, 425, 429})
"""Statuses below 500 that pass by themselves."""
ELSEWHERE = frozenset({401, 403, 404})
"""The fault of our key or of the model's name and not of the request: another model may take it."""

_SECRET = re.compile(r"\b(?:sk|pk|gsk|xai|key|Bearer)[-_ ][\w*.-]+", re.IGNORECASE)


def refusal(status: int, body: bytes, *, retry_after: str | None, key: str | None) -> ProviderFailure:
    """The failure that a status other than 200 stands for; our `key` is kept out of its words."""
    if status in BUSY or status >= 500:
        return ProviderFailure(
            f"The model provider is overloaded or out of order (HTTP {status}); try again shortly.",
            code="provider_busy",
            pause_seconds=pause_seconds(retry_after, now=datetime.now(UTC)),
        )
    if status in (401, 403):
        words = "it does not accept our key; ask the operator to check OPENAI_API_KEY"
    elif status < 400:
        words = "it answered with a redirect; ask the operator to correct OPENAI_BASE_URL"
    else:
        words = _safe_words(body, key) or "it gave no reason; choose another model"
    return ProviderFailure(
        f"The model provider refused the request (HTTP {status}): {words}",
        code="provider_refused",
        retryable=False,
        elsewhere=status in ELSEWHERE,
    )


def pause_seconds(retry_after: str | None, *, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110 §10.2.3); None for nonsense."""
    given = (retry_after or "").strip()
    if given.isascii() and given.isdigit() and len(given) < 10:
        return float(given)
    try:
        until = parsedate_to_datetime(given)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds())


def _safe_words(body: bytes, key: str | None) -> str:
    """The message of an error body: one line of TEXT_SHOWN_MAX characters at most, without anything like a key."""
    try:
        error = msgspec.json.decode(body)["error"]
        words = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        return ""
    if not isinstance(words, str):
        return ""
    if key:
        words = words.replace(key, "[redacted]")
    words = _SECRET.sub("[redacted]", words)
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())[:TEXT_SHOWN_MAX]
