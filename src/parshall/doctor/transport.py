"""Verdicts on what carries a stream: HTTP version, connection, HTTP/2, TLS and clocks."""

import base64
import json
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from parshall.doctor.http2 import PROTOCOL, Frames
from parshall.doctor.model import Check, Finding, fault, ok, unchecked, warning
from parshall.doctor.wire import Answer
from parshall.kernel.headers import STREAM_ID_HEADER

CERTIFICATE_DAYS_MIN = 14
SKEW_SECONDS_MAX = 60
"""The leeway that verifiers grant (RFC 8725); more than this and fresh tokens are refused."""
_FORBIDDEN_IN_2 = ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")


def of_version(answer: Answer) -> Finding:
    """The version of HTTP that answers, and whether the end of a stream can be told from a cut."""
    cut = "without chunks a stream that was cut looks like one that has ended"
    if answer.version == "1.0":
        return fault(Check.HTTP_VERSION, f"HTTP/1.0: {cut}")
    if not answer.all("Transfer-Encoding") and not answer.all("Content-Length"):
        return fault(Check.HTTP_VERSION, f"HTTP/{answer.version}, but no Transfer-Encoding: {cut}")
    return ok(Check.HTTP_VERSION, f"HTTP/{answer.version}")


def of_connection(answer: Answer) -> Finding:
    """The header Connection."""
    if answer.version == "1.0":
        return unchecked(Check.CONNECTION, "the answer is HTTP/1.0")
    words = {word.strip() for word in answer.one("Connection").lower().split(",")}
    if "close" in words:
        return warning(Check.CONNECTION, "Connection: close; every stream costs a connection of its own")
    return ok(Check.CONNECTION, f"Connection: {answer.one('Connection') or '(none)'}, which is right for HTTP/1.1")


def of_http2(frames: Frames | None, *, with_id: bool) -> Finding:
    """The same stream over HTTP/2, where the server offers it."""
    if frames is None:
        return unchecked(Check.HTTP2, "it is agreed on within TLS, and this address has none")
    if frames.chosen != PROTOCOL:
        return unchecked(Check.HTTP2, "the server does not offer it")
    if frames.error is not None:
        return fault(Check.HTTP2, f"offered, but the stream failed: {frames.error}")
    forbidden = [name for name in _FORBIDDEN_IN_2 if frames.all(name)]
    if forbidden:
        return fault(Check.HTTP2, f"the answer carries {', '.join(forbidden)}, which HTTP/2 forbids: clients refuse it")
    if with_id and len(frames.all(STREAM_ID_HEADER)) != 1:
        return fault(Check.HTTP2, f"the id header is there {len(frames.all(STREAM_ID_HEADER))} times over HTTP/2")
    return ok(Check.HTTP2, f"status {frames.status}, the id header in lower case as it must be, no Connection")


def of_tls(connection: ssl.SSLObject | None, *, now: float | None = None) -> Finding:
    """The version of TLS and what is left of the certificate's life."""
    if connection is None:
        return unchecked(Check.TLS, "the address is not https: tokens and answers can be read on the way")
    version, certificate = connection.version(), connection.getpeercert() or {}
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - (now or time.time())) / 86_400
    seen = f"{version}, the certificate is good for {days:.0f} more days"
    if version not in ("TLSv1.2", "TLSv1.3"):
        return fault(Check.TLS, f"{seen}; this version is not safe any more")
    return warning(Check.TLS, seen) if days < CERTIFICATE_DAYS_MIN else ok(Check.TLS, seen)


def of_clock(answer: Answer, *, token: str | None, now: float) -> Finding:
    """The server's clock (Date) against ours, and against the lifetime of the token that it has just given."""
    date = answer.one("Date")
    try:
        server = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return unchecked(Check.CLOCK, f"the answer has no Date that can be read ({date[:40]!r})")
    skew = server - now
    seen = f"the server's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} ours"
    claims = _claims(token)
    if "exp" in claims:
        life = claims["exp"] - server
        seen += f"; the token lives {life:.0f} s more by it"
        if life <= 0 or claims.get("iat", server) > server + SKEW_SECONDS_MAX:
            return fault(Check.CLOCK, f"{seen}: what issues tokens and what answers do not agree on the time")
    if abs(skew) > SKEW_SECONDS_MAX:
        return warning(Check.CLOCK, f"{seen}: clients that look at `exp` renew too late or too often")
    return ok(Check.CLOCK, seen)


def _claims(token: str | None) -> Mapping[str, Any]:
    """The numbers of a token's claims, unverified; empty for what is no JWT."""
    try:
        part = (token or "").split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        return {}
    if not isinstance(claims, dict):
        return {}
    return {name: value for name, value in claims.items() if isinstance(value, int | float)}
