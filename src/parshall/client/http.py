"""What both drivers share of httpx2: limits of connections, and its answers and failures in the client's own words."""

from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2

from parshall import __version__
from parshall.client.steps import Answer, Broken

AGENT = f"parshall-python/{__version__}"

READ_SECONDS_MAX = 45.0
"""Three of the server's pings (15 s) may be missed before a silent connection counts as dead."""
CONNECTIONS_MAX = 1000
"""At once; each stream holds one."""


def options(own: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a client of httpx2 is made with; `own` options count where they are given, headers beside ours.

    Idle connections are dropped well below the 5 s after which servers do, so that a request never meets one being
    closed. No cookie is kept: the header is what counts, and two ways to say it could contradict each other.
    """
    return {
        "timeout": httpx2.Timeout(connect=5.0, read=READ_SECONDS_MAX, write=10.0, pool=5.0),
        "limits": httpx2.Limits(keepalive_expiry=2.0, max_connections=CONNECTIONS_MAX, max_keepalive_connections=20),
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        **(own or {}),
        "headers": {"Accept": "application/json", "User-Agent": AGENT, **(own or {}).get("headers", {})},
    }


def answered(response: httpx2.Response, *, body: bytes) -> Answer:
    """The answer without its connection."""
    return Answer(status=response.status_code, headers=response.headers, phrase=response.reason_phrase, body=body)


def broken(error: httpx2.HTTPError) -> Broken:
    """The failure in a few words."""
    match error:
        case httpx2.ConnectTimeout() | httpx2.ConnectError():
            return Broken("no connection", sent=False)
        case httpx2.PoolTimeout():
            return Broken("too many connections at once", sent=False)
        case httpx2.TimeoutException():
            return Broken("no answer in time")
        case httpx2.NetworkError() | httpx2.RemoteProtocolError():
            return Broken("the connection broke")
    return Broken(str(error) or type(error).__name__)
