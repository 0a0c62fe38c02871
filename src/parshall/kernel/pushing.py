"""Sending a piece of a response at once, from wherever it comes to be, where the server can take it without waiting."""

from collections.abc import Callable

from starlette.types import Scope, Send

TAKES = "parshall.takes"
"""The ASGI extension of a server that tells whether a `send` would go through at once: `{"now": a function}`."""


class Push:
    """Writes pieces of the body of one response that has begun. What it refuses goes the way of `await send`."""

    def __init__(self, send: Send, takes: Callable[[], bool]) -> None:
        """`takes` says whether the connection takes more without waiting."""
        self._send = send
        self._takes = takes

    def __call__(self, body: bytes) -> bool:
        """Send a piece; False where it has to be waited for, or failed, and nothing was sent."""
        if not self._takes():
            return False
        sending = self._send({"type": "http.response.body", "body": body, "more_body": True})
        try:
            sending.send(None)  # type: ignore[attr-defined]
        except StopIteration:
            return True
        except Exception:  # a connection that is just closing: whoever awaits `send` next is told
            return False
        sending.close()  # type: ignore[attr-defined]  # it waits before it writes, so that nothing has gone out
        return False


def push_of(scope: Scope, send: Send) -> Push | None:
    """The way to write at once, where the server has one."""
    extension = scope.get("extensions", {}).get(TAKES)
    return None if extension is None else Push(send, extension["now"])
