"""Secrets in headers and URLs made fit to be kept: each becomes a keyed fingerprint, equal only for equal secrets."""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from parshall.kernel.errors import StartupError

FINGERPRINT_DIGITS = 12
"""48 bits: enough to tell the secrets of one deployment apart, too few to stand for one."""
SECRET_BYTES_MIN = 16
KEY_FILE = "fingerprint.key"
DEBUG_HEADER = "X-Debug-Headers"
"""What asks for a trace of its request; its value is a signed token and so a secret."""

_SECRET_NAME = re.compile(
    r"token|secret|passw|api-?key|-key$|authori[sz]ation|authentication|cookie|credential|signature|jwt|csrf|xsrf"
    rf"|x-auth|session|^{DEBUG_HEADER}$",
    re.IGNORECASE,
)
_SECRET_PARAMETER = re.compile(r"token|secret|passw|key|auth|code|credential|signature|^sig$|jwt|csrf", re.IGNORECASE)
_SCHEMES = frozenset({"bearer", "basic", "digest", "negotiate", "token", "apikey"})
_NAMED_LIKE_ONE = frozenset({"x-streaming-session-id", "idempotency-key"})
_NO_SECRET = frozenset(
    {
        "traceparent",
        "content-security-policy",
        "content-type",
        "user-agent",
        "accept",
        "x-answer-within",
    }
)
"""Fields whose values are long or look like tokens and are none."""
_URLS = frozenset({"referer", "location", "content-location", "link", "refresh"})
_LONG = re.compile(r"(?<![\w.~+/=-])(?!stream-[0-9]{10})[\w.~+/=-]{40,}")
"""As long as tokens, keys and codes are; ids of streams are none."""
_LONG_PART = re.compile(r"(?<![\w.~+=-])(?!stream-[0-9]{10})[\w.~+=-]{40,}")
"""The same within a URL, whose slashes divide it."""
_KNOWN_FORM = re.compile(r"\beyJ[\w.-]+|\bparshall_[^\s,;]+|(?i:\b(?:bearer|basic)\s+)[^\s,;]+")
_USER = re.compile(r"(?<=://)[^/@?#\s]+(?=@)")
"""Name and password before the host of a URL."""
_PARAMETER = re.compile(r"[?&;#]([^=&;?#\s]+)=")
_VALUE = re.compile(r"[^&#\s>\"]*")


class Fingerprints:
    """Redaction under one key: two logs of a deployment can be compared, and nobody can search for the secret."""

    def __init__(self, secret: bytes) -> None:
        """`secret` is the deployment's; the key is derived from it for this use alone."""
        self._key = hmac.new(secret, b"parshall header fingerprints, version 1", hashlib.sha256).digest()

    def of(self, secret: str) -> str:
        """What is kept of a secret."""
        digest = hmac.new(self._key, secret.encode("utf-8", "backslashreplace"), hashlib.sha256).hexdigest()
        return f"redacted:{digest[:FINGERPRINT_DIGITS]}"

    def field(self, name: str, value: str) -> str:
        """The value of a header field as it may be kept."""
        lower = name.lower()
        if lower in ("authorization", "proxy-authorization"):
            return self._credentials(value)
        if lower in ("cookie", "set-cookie"):
            return self._cookies(value, only_first=lower == "set-cookie")
        if _SECRET_NAME.search(lower) and lower not in _NAMED_LIKE_ONE:
            return self.of(value)
        if lower in _URLS:
            return self.target(value)
        plain = value if lower == "www-authenticate" else _KNOWN_FORM.sub(self._form, value)
        return plain if lower in _NO_SECRET else _LONG.sub(self._found, plain)

    def target(self, url: str) -> str:
        """A URL, or the path and query of one, without what its parameters and long parts hold in secret."""
        plain = "".join(self._parameters(_USER.sub(self._found, url)))
        return _LONG_PART.sub(self._found, _KNOWN_FORM.sub(self._form, plain))

    def _credentials(self, value: str) -> str:
        """The scheme stays where it is one: that it is missing or twice there is what people look for."""
        scheme, _, credentials = value.partition(" ")
        is_known = scheme.lower() in _SCHEMES and credentials.strip()
        return f"{scheme} {self.of(credentials.strip())}" if is_known else self.of(value)

    def _found(self, found: re.Match[str]) -> str:
        return self.of(found[0])

    def _form(self, found: re.Match[str]) -> str:
        return self._credentials(found[0])

    def _parameters(self, url: str) -> Iterator[str]:
        """The URL in pieces. What is no secret is looked through for parameters of its own: it may be a URL."""
        place = 0
        while (found := _PARAMETER.search(url, place)) is not None:
            yield url[place : found.end()]
            place = found.end()
            if _SECRET_PARAMETER.search(unquote(found[1])):
                value = _VALUE.match(url, place)
                assert value is not None, "it may be empty"
                yield self.of(unquote(value[0])) if value[0] else ""
                place = value.end()
        yield url[place:]

    def _cookies(self, value: str, *, only_first: bool) -> str:
        """Names and attributes stay, values go: it is they that log somebody in."""
        first, *rest = value.split(";")
        kept = [self._cookie(first), *(rest if only_first else map(self._cookie, rest))]
        return ";".join(kept)

    def _cookie(self, pair: str) -> str:
        name, equals, secret = pair.partition("=")
        return f"{name}={self.of(secret)}" if equals else self.of(pair)


def deployment_secret(given: str | None, home: Path) -> bytes:
    """What fingerprints are keyed with: as configured, else a random one that all processes of a data folder share.

    Raises StartupError where the file cannot be read or made, or holds too little.
    """
    if given is not None:
        return given.encode()
    path = home / KEY_FILE
    try:
        secret = path.read_bytes() if path.exists() else _made(path)
    except OSError as error:
        raise StartupError(f"{path} cannot be used ({error.strerror}); set PARSHALL_FINGERPRINT_SECRET.") from error
    if len(secret) < SECRET_BYTES_MIN:
        raise StartupError(f"{path} holds no secret; remove it, and the next start makes another.")
    return secret


def _made(path: Path) -> bytes:
    """A new secret, or that of another process which was faster: a link appears whole, or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_bytes()
