"""The deployment as one of its users meets it: requests with a token, each with an id of its own."""

import json
import secrets
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from parshall.doctor.model import CannotRun
from parshall.doctor.wire import READ_SECONDS_MAX, Answer, Pairs, Request, Target, ask
from parshall.kernel.headers import REQUEST_ID_HEADER

STREAM_TYPES = "text/event-stream, application/problem+json"
JSON_TYPES = "application/json, application/problem+json"
MESSAGE_CHARS_MAX = 300


class Deployment:
    """Requests to one deployment as one user."""

    def __init__(self, target: Target, *, token: str | None) -> None:
        """`token` is an access token or an API key; without one `login` must come first."""
        self.target = target
        self.token = token

    async def login(self, username: str, password: str) -> Answer:
        """Log in; later requests carry the token. Raises CannotRun where that is refused."""
        body = {"username": username, "password": password}
        answer = await self.send("POST", "/api/auth/login", body, authorization=False)
        self.token = _text(expected(answer, "logging in"), "accessToken", "logging in")
        return answer

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Pairs = (),
        accept: str = JSON_TYPES,
        encoding: str = "identity",
        authorization: bool = True,
        may_be_cached: bool = False,
        read_seconds_max: float = READ_SECONDS_MAX,
    ) -> Request:
        """A request of this user. A GET names itself in its query, so that no cache hides what comes behind it."""
        sent = [
            ("Accept", accept),
            ("Accept-Encoding", encoding),
            (REQUEST_ID_HEADER, f"doctor-{secrets.token_hex(8)}"),
        ]
        if authorization and self.token is not None:
            sent.append(("Authorization", f"Bearer {self.token}"))
        if body is not None:
            sent.append(("Content-Type", "application/json"))
        if method == "GET" and not may_be_cached:
            path += ("&" if "?" in path else "?") + f"doctor={secrets.token_hex(4)}"
        return Request(
            method=method,
            path=path,
            headers=[*sent, *headers],
            body=None if body is None else json.dumps(body).encode("ascii"),
            read_seconds_max=read_seconds_max,
        )

    async def send(self, method: str, path: str, body: Mapping[str, Any] | None = None, **how: Any) -> Answer:
        """One request, as `request` makes it, and its answer."""
        return await ask(self.target, self.request(method, path, body, **how))

    async def session(self) -> str:
        """A new chat session; its id. Raises CannotRun."""
        made = await self.send("POST", "/api/chat/sessions", {"title": "parshall doctor"})
        return _text(expected(made, "opening a chat session"), "sessionId", "opening a chat session")

    async def credits(self) -> Decimal:
        """What the user has now. Raises CannotRun."""
        doing = "reading the balance"
        total = amount(expected(await self.send("GET", "/api/credits/balance"), doing).get("totalCredits"))
        if total is None:
            raise CannotRun(
                f"The doctor could not go on: the answer to {doing} has no totalCredits; check the address."
            )
        return total


def document(answer: Answer) -> dict[str, Any]:
    """The JSON object of an answer; empty for anything else."""
    try:
        found = json.loads(answer.body, parse_float=Decimal)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def amount(value: object) -> Decimal | None:
    """Credits on the wire; None for what is no amount."""
    try:
        return Decimal(str(value))
    except InvalidOperation:
        return None


def expected(answer: Answer, doing: str) -> dict[str, Any]:
    """The JSON object of a success. Raises CannotRun for any other answer."""
    found = document(answer)
    if not 200 <= answer.status < 300 or not found:
        raise CannotRun(refusal(answer, doing))
    return found


def refusal(answer: Answer, doing: str) -> str:
    """A sentence on an answer that is no success."""
    moved = f"it redirects to {answer.one('Location')}; give that address" if 300 <= answer.status < 400 else ""
    why = document(answer).get("message") or moved or "what answers there is not Parshall; check the address"
    return f"The doctor could not go on: {doing} was answered with status {answer.status} ({why})"[:MESSAGE_CHARS_MAX]


def _text(found: Mapping[str, Any], name: str, doing: str) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise CannotRun(_lacking(name, doing))
    return value


def _lacking(name: str, doing: str) -> str:
    return f"The doctor could not go on: the answer to {doing} has no {name}; check the address."
