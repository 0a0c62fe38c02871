"""The client of one deployment: who is logged in, and one method for each thing to ask of it."""

import json
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Self
from urllib.parse import quote

import httpx2

from parshall.client.errors import ApiError, ClientError, refusal, unreachable
from parshall.client.model import Account, Balance, Receipt
from parshall.client.stream import Answer, ReconnectHook, Retry, Stream
from parshall.kernel import clock
from parshall.kernel.headers import LAST_EVENT_ID_HEADER, STREAM_ID_HEADER
from parshall.kernel.ids import StreamId, new_stream_id, parse_stream_id

READ_SECONDS_MAX = 45.0
"""Three of the server's pings (15 s) may be missed before a silent connection counts as dead."""
REFRESH_AHEAD_SECONDS = 60.0
LIMITS = httpx2.Limits(keepalive_expiry=2.0)
"""Well below the 5 s after which servers drop idle connections, so that a request never meets one being closed."""
TIMEOUT = httpx2.Timeout(connect=5.0, read=READ_SECONDS_MAX, write=10.0, pool=5.0)


class Client:
    """Talks to one deployment as one user. Synchronous; for one thread at a time.

    Every method raises ApiError when the server refuses and Unreachable when there is none.
    """

    def __init__(self, url: str, *, token: str | None = None, retry: Retry | None = None) -> None:
        """`url` is where `parshall up` listens; `token` an access token for those who do not log in here.

        Raises ClientError for an address or a token that cannot be one.
        """
        self.url = _address(url)
        self._access_token = _token(token)
        self._retry = retry or Retry()
        self._http = httpx2.Client(timeout=TIMEOUT, limits=LIMITS, headers={"Accept": "application/json"})
        self._refresh_token: str | None = None
        self._refresh_at = 0.0

    def __enter__(self) -> Self:
        """The client itself; leaving closes its connections."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    # ── Login ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def login(self, username: str, password: str) -> Account:
        """Log in by username or e-mail address; later calls act as this user."""
        answer = self._send("POST", "/auth/login", {"username": username, "password": password}, login=False)
        self._keep(answer)
        return Account.read(answer.get("user") or {})

    def refresh(self) -> None:
        """Exchange the refresh token for a new pair; nothing happens without one."""
        if self._refresh_token is not None:
            self._keep(self._send("POST", "/auth/refresh", {"refreshToken": self._refresh_token}, login=False))

    def logout(self) -> None:
        """Give the refresh token up, so that nobody can use it."""
        if self._refresh_token is not None:
            self._send("POST", "/auth/logout", {"refreshToken": self._refresh_token})
            self._refresh_token = self._access_token = None

    # ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def balance(self) -> Balance:
        """The user's credits."""
        return Balance.read(self._send("GET", "/credits/balance"))

    def price(self, model_id: str, *, input_tokens: int = 0, output_tokens: int = 0) -> Decimal:
        """What so many tokens of a model cost now, in credits."""
        body = {"modelId": model_id, "inputTokens": input_tokens, "outputTokens": output_tokens}
        return Decimal(str(self._send("POST", "/credits/calculate", body).get("credits") or 0))

    # ── Chat ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def models(self) -> list[dict[str, Any]]:
        """The models on offer, as the server describes them."""
        return list(self._send("GET", "/models").get("models") or [])

    def create_session(self, *, title: str | None = None, model_id: str | None = None) -> str:
        """Open a chat session; its id."""
        given = {"title": title, "modelId": model_id}
        body = {name: value for name, value in given.items() if value is not None}
        return _member(self._send("POST", "/chat/sessions", body), "sessionId")

    def session(self, session_id: str) -> dict[str, Any]:
        """A chat session with its messages. Raises ApiError (404) for one that is not the user's."""
        return self._send("GET", f"/chat/sessions/{_segment(session_id)}")

    def stream(
        self,
        session_id: str,
        message: str,
        *,
        model_id: str | None = None,
        on_reconnect: ReconnectHook | None = None,
    ) -> Stream:
        """Ask, and read the answer as it comes. Nothing is sent before the first event is asked for.

        The streaming session id is made here: whatever is lost on the way, the same id again can neither start a
        second generation nor be charged twice.
        """
        stream_id = new_stream_id(at=clock.now())
        given = {"message": message, "modelId": model_id}
        body = {name: value for name, value in given.items() if value is not None}
        path = f"/chat/sessions/{_segment(session_id)}/stream"
        return Stream(
            stream_id,
            start=lambda: self._open("POST", path, body, {STREAM_ID_HEADER: stream_id}),
            resume=lambda after: self._resume(stream_id, after),
            retry=self._retry,
            on_reconnect=on_reconnect,
        )

    def stop(self, stream_id: str) -> Receipt | None:
        """End a running stream where it stands; what was generated is charged."""
        answer = self._send("POST", f"/chat/streams/{parse_stream_id(stream_id)}/stop")
        return Receipt.read(answer.get("receipt")) or Receipt.read(answer)

    def receipt(self, stream_id: str) -> Receipt | None:
        """The receipt of a stream that has ended; None while it runs."""
        return Receipt.read(self._send("GET", f"/chat/streams/{parse_stream_id(stream_id)}").get("receipt"))

    # ── Requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _resume(self, stream_id: StreamId, after: int) -> Answer:
        # Without Last-Event-ID the server starts at the first event; offset 0 is nobody's id.
        position = {LAST_EVENT_ID_HEADER: str(after)} if after else {}
        return self._open("GET", f"/chat/streams/{stream_id}", None, position)

    @contextmanager
    def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> Generator[httpx2.Response, None, None]:
        """An event stream, asked for again with a fresh token where the server no longer takes this one."""
        asked = {**headers, "Accept": "text/event-stream, application/problem+json", "Accept-Encoding": "identity"}
        self._refresh_if_due()
        with self._http.stream(method, self._at(path), **self._request(body, asked)) as response:
            if response.status_code != 401 or self._refresh_token is None:
                yield response
                return
        self.refresh()
        with self._http.stream(method, self._at(path), **self._request(body, asked)) as response:
            yield response

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, login: bool = True
    ) -> dict[str, Any]:
        """One request and its JSON answer. With `login` it carries a token that is good, or made good once."""
        if login:
            self._refresh_if_due()
        response = self._exchange(method, path, body, login=login)
        if response.status_code == 401 and login and self._refresh_token is not None:
            self.refresh()
            response = self._exchange(method, path, body, login=login)
        if not response.is_success:
            raise refusal(response)
        return _object(response)

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None, *, login: bool) -> httpx2.Response:
        try:
            return self._http.request(method, self._at(path), **self._request(body, {}, login=login))
        except httpx2.RequestError as error:
            raise unreachable(error, url=self.url) from error

    def _request(
        self, body: Mapping[str, Any] | None, headers: Mapping[str, str], *, login: bool = True
    ) -> dict[str, Any]:
        sent = dict(headers)
        if login and self._access_token is not None:
            sent["Authorization"] = f"Bearer {self._access_token}"
        if body is None:
            return {"headers": sent}
        # ASCII-escaped, so that no text whatever fails on our side: the server judges it.
        return {"headers": {**sent, "Content-Type": "application/json"}, "content": json.dumps(body).encode("ascii")}

    def _at(self, path: str) -> str:
        return f"{self.url}/api{path}"

    def _refresh_if_due(self) -> None:
        if self._refresh_token is not None and time.monotonic() >= self._refresh_at:
            self.refresh()

    def _keep(self, answer: Mapping[str, Any]) -> None:
        """Remember a pair of tokens; a short-lived one is renewed after two thirds of its life."""
        life = float(answer.get("expiresIn") or "inf")
        self._access_token = _member(answer, "accessToken")
        self._refresh_token = answer.get("refreshToken")
        self._refresh_at = time.monotonic() + max(life - REFRESH_AHEAD_SECONDS, life * 2 / 3)
        self._http.cookies.clear()  # the header is what counts; two ways to say it could contradict each other


def _segment(text: str) -> str:
    """`text` as one segment of a path."""
    return quote(text, safe="", errors="replace")


def _address(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ClientError(f"{url!r} is no address of a server; give one such as http://127.0.0.1:8000.")
    return url.rstrip("/")


def _token(token: str | None) -> str | None:
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise ClientError("The access token has characters that no token has; give the accessToken of a login.")
    return token and token.strip()


def _object(response: httpx2.Response) -> dict[str, Any]:
    try:
        document = json.loads(response.content, parse_float=Decimal)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _foreign(response.status_code)
    return document


def _member(answer: Mapping[str, Any], name: str) -> str:
    if not isinstance(answer.get(name), str):
        raise _foreign(200)
    return str(answer[name])


def _foreign(status: int) -> ApiError:
    return ApiError(
        status=status, code="not_parshall", message="What answers there is not Parshall; check the address."
    )
