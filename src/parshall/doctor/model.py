"""What the doctor is asked, what it checks, and what it finds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SILENCE_SECONDS = 90.0
"""The usual idle timeout of a proxy is 60 s; a connection that outlives this is kept by the pings."""
SILENCE_SECONDS_MAX = 600.0


class Profile(StrEnum):
    """What answers there."""

    PARSHALL = "parshall"
    GENERIC = "generic"


class CannotRun(Exception):
    """The deployment could not be examined at all; the text is one sentence that says what to do."""


class Status(StrEnum):
    """The verdict of a check."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    NOT_CHECKED = "not checked"


class Check(StrEnum):
    """What is checked; the values are stable names for programs."""

    TLS = "tls"
    CLOCK = "clock"
    HTTP_VERSION = "http_version"
    CONNECTION = "connection"
    HTTP2 = "http2"
    ID_PRESENT = "id_present"
    ID_BEFORE_BODY = "id_before_body"
    ID_FIRST = "id_first"
    ID_ONCE = "id_once"
    ID_FORMAT = "id_format"
    ID_UNCHANGED = "id_unchanged"
    ID_PROPOSED = "id_proposed"
    CONTENT_TYPE = "content_type"
    CACHE_CONTROL = "cache_control"
    COMPRESSION = "compression"
    BUFFERING = "buffering"
    COMPLETE = "complete"
    IDLE = "idle"
    LAST_EVENT_ID = "last_event_id"
    RESUME = "resume"
    CHARGED_ONCE = "charged_once"
    UPDATE_RIGHT = "update_right"
    UPDATE_WRONG = "update_wrong"
    NOT_CACHED = "not_cached"
    PREFLIGHT = "cors_preflight"
    CORS = "cors"
    CORS_CREDENTIALS = "cors_credentials"
    CORS_EXPOSE = "cors_expose"
    CORS_VARY = "cors_vary"
    CORS_FOREIGN = "cors_foreign"


TITLES = {
    Check.TLS: "TLS version and certificate",
    Check.CLOCK: "Clock against the lifetime of tokens",
    Check.HTTP_VERSION: "HTTP version",
    Check.CONNECTION: "Connection header",
    Check.HTTP2: "HTTP/2",
    Check.ID_PRESENT: "Id header present",
    Check.ID_BEFORE_BODY: "Id header before the body",
    Check.ID_FIRST: "Id header first",
    Check.ID_ONCE: "Id header exactly once",
    Check.ID_FORMAT: "Form of the id",
    Check.ID_UNCHANGED: "Id header equals the first event's",
    Check.ID_PROPOSED: "Proposed id arrives",
    Check.CONTENT_TYPE: "Content-Type",
    Check.CACHE_CONTROL: "Cache-Control",
    Check.COMPRESSION: "Compression",
    Check.BUFFERING: "Buffering",
    Check.COMPLETE: "Stream ends with its terminal event",
    Check.IDLE: "Silence survives",
    Check.LAST_EVENT_ID: "Last-Event-ID arrives",
    Check.RESUME: "Resume without gap or duplicate",
    Check.CHARGED_ONCE: "Charged once, as the receipt says",
    Check.UPDATE_RIGHT: "Update with the right id",
    Check.UPDATE_WRONG: "Update with a wrong id",
    Check.NOT_CACHED: "Responses not cached",
    Check.PREFLIGHT: "CORS preflight",
    Check.CORS: "CORS without credentials",
    Check.CORS_CREDENTIALS: "CORS with credentials",
    Check.CORS_EXPOSE: "CORS exposes the id header",
    Check.CORS_VARY: "Vary: Origin",
    Check.CORS_FOREIGN: "Foreign origin refused",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The verdict of one check: what was seen, and what to do where it is not right."""

    check: Check
    status: Status
    evidence: str
    remedy: str = ""
    origin: str | None = None

    @property
    def title(self) -> str:
        """The check in words for people."""
        return TITLES[self.check] + (f" ({self.origin})" if self.origin else "")

    def wire(self) -> dict[str, Any]:
        """The finding for programs."""
        members = {
            "check": self.check.value,
            "title": self.title,
            "status": self.status.value,
            "evidence": self.evidence,
            "remedy": self.remedy,
        }
        return members | ({"origin": self.origin} if self.origin else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to examine and as whom. Times are in seconds; `headers`, `path` and `body` are of the generic profile."""

    url: str
    profile: Profile = Profile.PARSHALL
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    origins: Sequence[str] = ()
    message: str = "Count from one to thirty in words."
    model_id: str | None = None
    silence_seconds: float | None = SILENCE_SECONDS
    """None leaves the check of silence out."""
    ca_file: str | None = None
    path: str = "/"
    body: str | None = None
    headers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings on one deployment. `seconds` is how long it took, `at` when it began (RFC 3339)."""

    url: str
    profile: Profile
    at: str
    seconds: float
    front: Sequence[str]
    findings: Sequence[Finding]
    head: str
    """The head of the stream's response as it came over the wire."""

    @property
    def exit_code(self) -> int:
        """0 without a fault, else 1."""
        return int(any(finding.status is Status.FAULT for finding in self.findings))

    def count(self, status: Status) -> int:
        """How many checks have that verdict."""
        return sum(finding.status is status for finding in self.findings)

    def wire(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "url": self.url,
            "profile": self.profile.value,
            "at": self.at,
            "seconds": round(self.seconds, 3),
            "front": list(self.front),
            "exitCode": self.exit_code,
            "counts": {status.value: self.count(status) for status in Status},
            "findings": [finding.wire() for finding in self.findings],
            "head": self.head,
        }


def ok(check: Check, evidence: str, origin: str | None = None) -> Finding:
    """All is well."""
    return Finding(check=check, status=Status.OK, evidence=evidence, origin=origin)


def warning(check: Check, evidence: str, origin: str | None = None) -> Finding:
    """It works, but not under all circumstances."""
    return Finding(check=check, status=Status.WARNING, evidence=evidence, origin=origin)


def fault(check: Check, evidence: str, origin: str | None = None) -> Finding:
    """Clients will fail."""
    return Finding(check=check, status=Status.FAULT, evidence=evidence, origin=origin)


def unchecked(check: Check, why: str, origin: str | None = None) -> Finding:
    """It could not be seen, and why."""
    return Finding(check=check, status=Status.NOT_CHECKED, evidence=why, origin=origin)
