"""The clients of one deployment: who is logged in, and one method for each thing to ask of it."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import httpx2

from parshall.client.addresses import Addresses
from parshall.client.awaiting import Awaiting
from parshall.client.blocking import Blocking
from parshall.client.calls_admin import AdminCalls
from parshall.client.calls_chat import ChatCalls
from parshall.client.calls_credits import CreditCalls
from parshall.client.calls_login import LoginCalls
from parshall.client.calls_organisations import OrganisationCalls
from parshall.client.core import Core
from parshall.client.http import options
from parshall.client.login import Login, RefreshHook, Tokens, credential
from parshall.client.outage import Retry


class _Calls(LoginCalls, ChatCalls, CreditCalls, OrganisationCalls, AdminCalls):
    """All that can be asked, and how a client is set up."""

    @property
    def url(self) -> str:
        """Where chat answers."""
        return self._core.addresses.chat

    @property
    def tokens(self) -> Tokens | None:
        """What the requests carry; give both tokens to another client to go on with this login there."""
        return self._core.login.tokens

    def __repr__(self) -> str:
        """Without secrets."""
        return f"{type(self).__name__}({self._core.addresses})"


class Client(_Calls, Blocking):
    """Talks to one deployment as one user, and waits for its answers.

    It may be shared between threads, a stream belongs to one. Every method raises ApiError when the server refuses and
    Unreachable when there is none.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        refresh_token: str | None = None,
        api_key: str | None = None,
        auth_url: str | None = None,
        accounting_url: str | None = None,
        chat_url: str | None = None,
        retry: Retry | None = None,
        on_refresh: RefreshHook | None = None,
        http: Mapping[str, Any] | None = None,
    ) -> None:
        """`url` is where `parshall up` listens; where services are apart, name those that answer elsewhere.

        `token` (with `refresh_token`) or `api_key` are for those who do not log in here; `on_refresh` is called with
        each new pair of tokens. `http` has further options of httpx2's client: `verify`, `proxy`, `headers`, `timeout`.
        Raises ClientError for an address or a token that cannot be one.
        """
        addresses = Addresses.of(url, auth=auth_url, accounting=accounting_url, chat=chat_url)
        given = credential(token=token, api_key=api_key, refresh_token=refresh_token)
        core = _core(addresses, given, retry, on_refresh)
        Blocking.__init__(self, core, httpx2.Client(**options(http)))

    def __enter__(self) -> Self:
        """The client itself; leaving closes its connections."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()


class AsyncClient(_Calls, Awaiting):
    """Talks to one deployment as one user, without blocking: each method of `Client`, to be awaited.

    It may be shared between tasks of one event loop, a stream belongs to one. What is said of `Client` holds here.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        refresh_token: str | None = None,
        api_key: str | None = None,
        auth_url: str | None = None,
        accounting_url: str | None = None,
        chat_url: str | None = None,
        retry: Retry | None = None,
        on_refresh: RefreshHook | None = None,
        http: Mapping[str, Any] | None = None,
    ) -> None:
        """As for `Client`."""
        addresses = Addresses.of(url, auth=auth_url, accounting=accounting_url, chat=chat_url)
        given = credential(token=token, api_key=api_key, refresh_token=refresh_token)
        core = _core(addresses, given, retry, on_refresh)
        Awaiting.__init__(self, core, httpx2.AsyncClient(**options(http)))

    async def __aenter__(self) -> Self:
        """The client itself; leaving closes its connections."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection, once a renewal of the login that is under way is over."""
        await self._settle()
        await self._http.aclose()


def _core(addresses: Addresses, tokens: Tokens | None, retry: Retry | None, on_refresh: RefreshHook | None) -> Core:
    now: Callable[[], float] = time.monotonic
    login = Login(tokens, now=now, on_refresh=on_refresh)
    return Core(addresses, login, retry or Retry(), now=now, chance=random.random)
