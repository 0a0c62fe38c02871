"""Secrets in every place where people put them by mistake, drawn from a seed; and where they must not turn up then."""

import base64
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote

from tests.hostile import Operation

PLACES = ("authorization", "cookie", "query", "path", "header", "body", "raw body")
LOGIN_SHARE = 0.02
"""Of all requests, how many are a login with the secret in a wrong field; each makes the server hash a password."""
HASHING = frozenset(
    (
        "/api/auth/signup",
        "/api/auth/login",
        "/api/change-password",
        "/api/profile",
        "/api/admin/users",
        "/api/admin/users/batch",
        "/api/admin/users/{user_id}/reset-password",
    )
)
"""Paths that make the server hash one too."""
HEADERS = (
    *("X-Api-Key", "Api-Key", "X-Auth-Token", "X-Access-Token", "X-Forwarded-User", "Proxy-Authorization", "From"),
    *("X-Streaming-Session-Id", "Last-Event-ID", "X-User-ID", "X-Answer-Within", "traceparent", "Accept", "Origin"),
    *("Referer", "User-Agent", "Content-Type", "Accept-Language", "If-None-Match", "X-Forwarded-For", "Forwarded"),
)
NAMED_BY_CLIENTS = ("X-Request-Id",)
"""What stands there is an id that the client chose, and is logged as one; but never a token. (An Idempotency-Key is one
too, and is kept as it was sent: it is not among the wrong places.)"""
KEPT_TEXT = frozenset(
    {
        *("title", "message", "initialMessage", "notes", "name", "source", "username", "email", "service", "operation"),
        *("metadata", "modelId", "users", "task"),
    }
)
"""Members whose text is kept as it is: what stands there was put there."""
QUERY = ("access_token", "token", "api_key", "apiKey", "password", "secret", "key", "code", "after", "query", "userId")
COOKIES = ("accessToken", "refreshToken", "session", "token", "JSESSIONID")
TOKEN_CHARACTERS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")  # RFC 9110 §5.6.2


@cache
def forms(secret: str) -> frozenset[str]:
    """A secret as it is and as it may be written: encoded for URLs and JSON, in base64 at any offset, in other case."""
    raw = secret.encode()
    found = {secret, secret.swapcase(), secret.upper(), secret.lower(), secret[::-1]}
    found |= {quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1], raw.hex()}
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * offset + raw).decode().rstrip("=")
            found.add(encoded[(0, 2, 3)[offset] : -1])  # without what neighbours have a part in
    return frozenset(found)


def met(secrets: Iterable[str], text: str) -> list[str]:
    """Those of the secrets that stand in a text in whatever form; told by their beginnings."""
    return [secret[:12] for secret in secrets if any(form in text for form in forms(secret))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One request with a secret in a place where it does not belong."""

    operation: Operation
    place: str
    secret: str
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    content: bytes | None


@dataclass(kw_only=True)
class Mistakes:
    """A sequence of mistakes, the same for the same seed. `there` names what paths need, `tokens` who asks."""

    seed: int
    operations: list[Operation]
    secrets: tuple[str, ...]
    there: Mapping[str, str]
    token_for: Callable[[Operation], str]
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        """Begin at the seed."""
        self.dice = random.Random(self.seed)

    def drawn(self, count: int) -> Iterator[Mistake]:
        """So many: each operation in turn, with any secret in any place; those that hash passwords, which is slow,
        only each fourth time.
        """
        quick = [each for each in self.operations if each.path not in HASHING]
        turns = itertools.cycle([*self.operations, *quick, *quick, *quick])
        for operation in itertools.islice(turns, count):
            yield self._draw(operation)

    def _draw(self, operation: Operation) -> Mistake:
        secret, place = self.dice.choice(self.secrets), self.dice.choice(PLACES)
        place = "login" if self.dice.random() < LOGIN_SHARE else place
        path = re.sub(r"\{(\w+)\}", lambda found: quote(self.there[found[1]], safe=""), operation.path)
        headers = {"Authorization": f"Bearer {self.token_for(operation)}", "Content-Type": "application/json"}
        schema = operation.body()
        body: Any = None if schema is None else operation.example(schema)
        content: bytes | None = None
        match place:
            case "authorization":
                headers["Authorization"] = self._authorization(secret)
            case "cookie":
                headers["Cookie"] = self.dice.choice((f"{self.dice.choice(COOKIES)}={secret}", secret, f"{secret}=1"))
                if self.dice.random() < 0.7:
                    del headers["Authorization"]
            case "query":
                path += self._query(secret)
            case "path":
                path = self._path(path, operation, secret)
            case "header":
                self._put_header(headers, secret)
            case "body":
                body = self._body(body, schema, secret)
            case "raw body":
                content, headers["Content-Type"] = self._raw(secret)
            case "login":
                path, body = "/api/auth/login", self._login(secret)
        if content is None and body is not None:
            content = json.dumps(body).encode()
        method = "POST" if place == "login" else operation.method
        raw = [(name.encode("latin-1", "replace"), value.encode()) for name, value in headers.items()]
        return Mistake(
            operation=operation, place=place, secret=secret, method=method, path=path, headers=raw, content=content
        )

    def _authorization(self, secret: str) -> str:
        basic = base64.b64encode(f"ann:{secret}".encode()).decode()
        words = ("Bearer {}x", "bearer  {}", "{}", "Token {}", "ApiKey {}", "Basic {}", "Bearer {0}, Bearer {0}")
        digest = 'Digest username="ann", response="{}"'
        return self.dice.choice([each.format(secret) for each in (*words, digest)] + [f"Basic {basic}"])

    def _query(self, secret: str) -> str:
        name, text = self.dice.choice(QUERY), quote(secret, safe="")
        return self.dice.choice(
            (f"?{name}={text}", f"?{text}", f"?{text}=1", f"?a=1;{name}={text}", f"?{name}%3D{text}")
        )

    def _path(self, path: str, operation: Operation, secret: str) -> str:
        text = quote(secret, safe="")
        names = operation.parameters("path")
        ways = [f"{path}/{text}", f"/{text}", f"/{text}{path}", f"{path};jsessionid={text}", f"/api/{text}/profile"]
        ways += [f"{path}/{quote(text)}", f"{path}//{text}/", f"/api/auth/login/ann/{text}"]
        for name in names:
            filled = {**self.there, name: text}
            other = operation.path.format(**filled)
            ways += [other] * 3
        return self.dice.choice(ways)

    def _put_header(self, headers: dict[str, str], secret: str) -> None:
        if TOKEN_CHARACTERS.match(secret) and self.dice.random() < 0.2:
            headers[secret] = "1"
            return
        is_token = len(secret) > 40
        name = self.dice.choice(HEADERS + (NAMED_BY_CLIENTS if is_token else ()))
        headers[name] = f"https://{secret}.example" if name in ("Origin", "Referer") else secret

    def _body(self, body: Any, schema: dict[str, Any] | None, secret: str) -> Any:
        members = [name for name in (schema or {}).get("properties", ()) if name not in KEPT_TEXT]
        wrong: list[Any] = [secret, [secret], {secret: secret}, {"a": {"password": secret}}]
        mistaken = self.dice.choice(wrong)
        if body is None or self.dice.random() < 0.15:
            return mistaken
        if members and self.dice.random() < 0.7:
            return body | {self.dice.choice(members): mistaken}
        return body | {self.dice.choice((secret, "password", "authorization")): mistaken}

    def _raw(self, secret: str) -> tuple[bytes, str]:
        text = secret.encode()
        wrong = (
            b'{"password": "' + text,
            text,
            b"password=" + quote(secret).encode() + b"&grant_type=client_credentials",
            b'{"%b": 1, "%b": 2}' % (text, text),
            b"--x\r\nContent-Disposition: form-data; name=" + text + b"\r\n\r\n" + text + b"\r\n--x--",
            b'{"a": "\xff' + text + b'"}',
            b"grant_type=" + quote(secret).encode(),
            b"grant_type=client_credentials&client_id=" + quote(secret).encode() + b"&client_secret=x",
        )
        kinds = (
            "application/json",
            "application/x-www-form-urlencoded",
            "text/plain",
            "multipart/form-data; boundary=x",
        )
        return self.dice.choice(wrong), self.dice.choice(kinds)

    def _login(self, secret: str) -> dict[str, Any]:
        """The wrong field, both fields, and fields that are none."""
        return self.dice.choice(
            (
                {"username": secret, "password": "x"},
                {"username": secret},
                {"username": [secret], "password": [secret]},
                {"user": "ann", "pass": secret},
                {"username": "nobody", "password": secret, "refreshToken": secret},
            )
        )
