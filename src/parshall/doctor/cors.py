"""Verdicts on what a page of another origin may do and read (Fetch §3.3)."""

from parshall.doctor.model import Check, Finding, Status, fault, ok, unchecked, warning
from parshall.doctor.wire import Answer
from parshall.kernel.headers import LAST_EVENT_ID_HEADER, STREAM_ID_HEADER

FOREIGN_ORIGIN = "https://parshall-doctor.invalid"
"""An origin that nobody can have allowed (RFC 2606)."""
ASKED = ("authorization", "content-type", LAST_EVENT_ID_HEADER.lower(), STREAM_ID_HEADER.lower())
ALLOW_ORIGIN = "Access-Control-Allow-Origin"
ALLOW_CREDENTIALS = "Access-Control-Allow-Credentials"
_NO_ORIGIN = "no origin is allowed, so there is nothing to judge"


def of_preflight(answer: Answer, *, origin: str, method: str, asked: tuple[str, ...] = ASKED) -> Finding:
    """Whether the browser may send the request at all."""
    allowed = answer.one(ALLOW_ORIGIN)
    if not 200 <= answer.status < 300:
        return fault(Check.PREFLIGHT, f"OPTIONS is answered with status {answer.status}; browsers want 2xx", origin)
    if allowed not in (origin, "*"):
        return fault(Check.PREFLIGHT, f"{ALLOW_ORIGIN} is {allowed!r}", origin)
    methods = _words(answer, "Access-Control-Allow-Methods")
    if method.lower() not in methods | {"get", "post", "head"}:
        return fault(Check.PREFLIGHT, f"the method {method} is not allowed, only {', '.join(sorted(methods))}", origin)
    headers = _words(answer, "Access-Control-Allow-Headers")
    # `*` never covers Authorization (Fetch, CORS-non-wildcard request-header name).
    missing = [name for name in asked if name not in headers and ("*" not in headers or name == "authorization")]
    if missing:
        return fault(Check.PREFLIGHT, f"these request headers are not allowed: {', '.join(missing)}", origin)
    return ok(Check.PREFLIGHT, f"status {answer.status}; {method} and {', '.join(asked)} are allowed", origin)


def of_origin(answer: Answer, *, origin: str, exposed: str | None = STREAM_ID_HEADER) -> list[Finding]:
    """Whether the page may read the answer, with and without credentials, and the id in its header."""
    values = answer.all(ALLOW_ORIGIN)
    allowed = ", ".join(values)
    if allowed not in (origin, "*"):
        rest = (Check.CORS_CREDENTIALS, Check.CORS_EXPOSE, Check.CORS_VARY)
        why = "it is missing" if not values else f"it is {allowed!r}, which is not this origin"
        return [fault(Check.CORS, f"{ALLOW_ORIGIN}: {why}", origin), *(unchecked(c, _NO_ORIGIN, origin) for c in rest)]
    return [
        ok(Check.CORS, f"{ALLOW_ORIGIN}: {allowed}", origin),
        _credentials(answer, allowed, origin),
        *([] if exposed is None else [_exposed(answer, allowed, exposed, origin)]),
        _vary(answer, allowed, origin),
    ]


def of_cookie(finding: Finding, answer: Answer, *, origin: str) -> Finding:
    """The verdict with credentials, completed by a request that had none but the cookie."""
    if finding.check is Check.CORS_CREDENTIALS and finding.status is Status.OK and answer.status == 401:
        return warning(Check.CORS_CREDENTIALS, f"{finding.evidence}; but the cookie of a login does not arrive", origin)
    return finding


def of_foreign(answer: Answer) -> Finding:
    """What an origin gets that nobody allowed."""
    allowed = answer.one(ALLOW_ORIGIN)
    if allowed == FOREIGN_ORIGIN:
        return fault(Check.CORS_FOREIGN, f"{ALLOW_ORIGIN} repeats whatever origin asks, here {FOREIGN_ORIGIN}")
    if allowed == "*":
        return warning(Check.CORS_FOREIGN, f"{ALLOW_ORIGIN}: * lets pages of every origin read answers")
    return ok(Check.CORS_FOREIGN, f"{FOREIGN_ORIGIN} gets {allowed or 'no ' + ALLOW_ORIGIN}")


def _credentials(answer: Answer, allowed: str, origin: str) -> Finding:
    value = answer.one(ALLOW_CREDENTIALS)
    if allowed == "*" and value == "true":
        return fault(
            Check.CORS_CREDENTIALS, f"{ALLOW_ORIGIN}: * with {ALLOW_CREDENTIALS}: true; browsers refuse it", origin
        )
    if allowed == "*" or value != "true":
        return fault(
            Check.CORS_CREDENTIALS, f"{ALLOW_ORIGIN}: {allowed}, {ALLOW_CREDENTIALS}: {value or '(none)'}", origin
        )
    return ok(Check.CORS_CREDENTIALS, f"{ALLOW_ORIGIN}: {allowed} with {ALLOW_CREDENTIALS}: true", origin)


def _exposed(answer: Answer, allowed: str, wanted: str, origin: str) -> Finding:
    names = _words(answer, "Access-Control-Expose-Headers")
    value = answer.one("Access-Control-Expose-Headers")
    if wanted.lower() in names:
        return ok(Check.CORS_EXPOSE, f"Access-Control-Expose-Headers: {value}", origin)
    if "*" in names and allowed == "*":
        return warning(Check.CORS_EXPOSE, "Access-Control-Expose-Headers: * holds without credentials only", origin)
    return fault(
        Check.CORS_EXPOSE, f"{wanted} is not exposed: scripts read null (exposed: {value or 'nothing'})", origin
    )


def _vary(answer: Answer, allowed: str, origin: str) -> Finding:
    if allowed == "*":
        return ok(Check.CORS_VARY, "not needed, since every origin gets the same", origin)
    if _words(answer, "Vary") & {"origin", "*"}:
        return ok(Check.CORS_VARY, f"Vary: {answer.one('Vary')}", origin)
    return fault(
        Check.CORS_VARY, f"Vary is {answer.one('Vary')!r}: a cache gives one origin's answer to another", origin
    )


def _words(answer: Answer, name: str) -> set[str]:
    return {word.strip().lower() for word in answer.one(name).split(",") if word.strip()}
