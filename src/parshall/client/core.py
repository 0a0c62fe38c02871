"""The rules of every request: the credential that it carries, what is repeated, and what a refusal becomes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from parshall.client.addresses import Addresses
from parshall.client.errors import ApiError, Unreachable, foreign, refusal, unreachable
from parshall.client.login import Login, Tokens
from parshall.client.outage import CALL_ATTEMPTS_MAX, RETRIED_STATUSES, Retry
from parshall.client.records import Unlimited
from parshall.client.steps import Alone, Answer, Broken, Pause, Read, Send, Steps

T = TypeVar("T")
REFUSAL_BYTES_MAX = 1024 * 1024
"""So much of a refusal is read where an event stream was asked for."""
Members = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request before it has an address and a credential. `body` members that are None are left out."""

    method: str
    path: str
    body: Members | None = None
    query: dict[str, object] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False
    """Carries no credential: it is there to get one."""
    stream: bool = False


class Core:
    """What clients share, whether they block or await: addresses, login, and how requests are made."""

    def __init__(
        self,
        addresses: Addresses,
        login: Login,
        retry: Retry,
        *,
        now: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        """`now` gives seconds that never run backwards, `chance` a number in [0, 1)."""
        self.addresses = addresses
        self.login = login
        self.retry = retry
        self.now = now
        self.chance = chance

    def call(self, ask: Ask, read: Callable[[Members], T], *, repeatable: bool | None = None) -> Steps[T]:
        """Make a request, and read the JSON object that it is answered with.

        One that is `repeatable` (a GET is) is made again a few times where it got no answer or only for a moment; any
        other only where it certainly never left.
        """
        again = ask.method == "GET" if repeatable is None else repeatable
        for attempt in range(1, CALL_ATTEMPTS_MAX + 1):
            try:
                answer = yield from self.request(ask)
            except Broken as error:
                failure: ApiError | Unreachable = unreachable(error, url=self.addresses.serving(ask.path))
                rest, hopeful = 0.0, again or not error.sent
            except ApiError as error:
                failure, rest, hopeful = error, error.retry_after, again and error.status in RETRIED_STATUSES
            else:
                return read(_object(answer))
            if not hopeful or attempt == CALL_ATTEMPTS_MAX or rest > self.retry.pause_seconds_max:
                raise failure
            yield Pause(seconds=self.retry.pause(attempt, at_least=rest, chance=self.chance()))
        raise AssertionError("the last attempt returns or raises")

    def request(self, ask: Ask) -> Steps[Answer]:
        """Make a request once, with a credential that is good or made good. Raises ApiError, Broken, Unreachable."""
        if self.login.is_due and not ask.anonymous:
            yield Alone(steps=self._renewed_in_time())
        seen = self.login.tokens
        answer: Answer = yield self._sent(ask)
        if answer.status == 401 and not ask.anonymous and self.login.can_renew:
            yield Alone(steps=self._renewed(seen))
            answer = yield self._sent(ask)
        if not answer.is_success:
            raise refusal((yield from _whole(answer)) if ask.stream else answer)
        return answer

    def renew(self) -> Steps[None]:
        """Exchange the refresh token for a new pair, whatever the age of this one."""
        if self.login.can_renew:
            yield Alone(steps=self._renewed(self.login.tokens))

    def _renewed_in_time(self) -> Steps[None]:
        """Renew ahead of expiry; where auth is away, the token is good for a while yet."""
        if not self.login.is_due:
            return  # somebody else has renewed it while this one waited for its turn
        try:
            yield from self._renewed(self.login.tokens)
        except (Unreachable, ApiError) as error:
            passing = isinstance(error, Unreachable) or error.status >= 500 or error.status == 429
            if not passing or not self.login.still_holds:
                raise
            self.login.postpone()

    def _renewed(self, seen: Tokens | None) -> Steps[None]:
        """Renew once for all that saw the same tokens: a refresh token works once, and a second use ends the login."""
        if self.login.tokens is not seen or seen is None or seen.refresh is None:
            return
        ask = Ask(method="POST", path="/auth/refresh", body={"refreshToken": seen.refresh}, anonymous=True)
        self.login.keep((yield from self.call(ask, Tokens.read)))

    def _sent(self, ask: Ask) -> Send:
        headers = dict(ask.headers)
        tokens = self.login.tokens
        if tokens is not None and tokens.access and not ask.anonymous:
            headers["Authorization"] = f"Bearer {tokens.access}"
        if ask.body is not None:
            headers["Content-Type"] = "application/json"
        return Send(
            method=ask.method,
            url=self.addresses.at(ask.path, ask.query),
            headers=headers,
            content=None if ask.body is None else _encoded(ask.body),
            stream=ask.stream,
        )


def _whole(answer: Answer) -> Steps[Answer]:
    """The answer with its body."""
    body = b""
    while len(body) < REFUSAL_BYTES_MAX and (chunk := (yield Read())):
        body += chunk
    return Answer(status=answer.status, headers=answer.headers, phrase=answer.phrase, body=body)


def _encoded(body: Members) -> bytes:
    """ASCII-escaped, so that no text whatever fails on our side: the server judges it."""
    return json.dumps({name: value for name, value in body.items() if value is not None}, default=_number).encode()


def _number(value: object) -> float | None:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Unlimited):
        return None
    raise TypeError(f"{type(value).__name__} is not JSON")


def _object(answer: Answer) -> dict[str, Any]:
    """The JSON object that the answer is; a bare list is taken for its member `items`."""
    try:
        document = json.loads(answer.body, parse_float=Decimal)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, list):
        return {"items": document}
    if not isinstance(document, dict):
        raise foreign(answer.status)
    return document
