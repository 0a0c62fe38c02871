"""A stand-in for an OpenAI-compatible provider, fast enough not to be what is measured: `python bench/provider.py`.

Each event is a write of its own. Everything but the stamp is rendered once per model name.
"""

import argparse
import asyncio
import json
import time
from functools import cache
from typing import cast

import uvloop

from answers import answer, stamp

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
PROMPT_TOKENS = 11


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def _event(model: str, delta: dict[str, str], **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": more.pop("finish_reason", None)}
    choices = [] if "usage" in more else [choice]
    whole = {"id": "flow", "object": "chat.completion.chunk", "created": 0, "model": model, "choices": choices, **more}
    return _chunk(b"data: " + json.dumps(whole, separators=(",", ":")).encode() + b"\n\n")


@cache
def _rendered(model: str) -> tuple[bytes, list[bytes], bytes]:
    """The opening, the events behind the stamped one, and the end."""
    asked = answer(model)
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": asked.events}
    opening = HEAD + _event(model, {"role": "assistant", "content": ""})
    events = [_event(model, {"content": word}) for word in asked.words]
    end = _event(model, {}, finish_reason="stop") + _event(model, {}, usage=usage)
    return opening, events, end + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _plain(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


class Connection(asyncio.Protocol):
    """One kept-alive connection; it answers one request at a time."""

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self._unread = b""
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is asyncio's
        """Whoever asked has gone."""
        self._closed = True

    def data_received(self, data: bytes) -> None:
        """Answer once the request is there in full."""
        self._unread += data
        head, blank, body = self._unread.partition(b"\r\n\r\n")
        if not blank:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length or 0):
            return
        self._unread = b""
        self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST"):
            self._transport.write(_plain(b"200 OK", b'{"object":"list","data":[]}'))
            return
        try:
            model = json.loads(body)["model"]
            opening, events, end = _rendered(model)
        except (ValueError, KeyError, TypeError) as error:
            self._transport.write(_plain(b"400 Bad Request", json.dumps({"error": {"message": str(error)}}).encode()))
            return
        self._transport.write(opening)
        loop = asyncio.get_running_loop()
        seconds = answer(model).seconds
        if seconds:
            due = loop.time() + seconds
            loop.call_at(due, self._paced, model, [*events, end], -1, due, seconds)
        else:
            loop.call_soon(self._unpaced, model, [*events, end], -1)

    def _paced(self, model: str, events: list[bytes], index: int, due: float, seconds: float) -> None:
        """Write an event when it is due, counted from the beginning: a late one does not delay those behind it."""
        if self._closed:
            return
        self._write(model, events, index)
        index += 1
        if index == len(events) - 1:
            self._transport.write(events[index])
        else:
            asyncio.get_running_loop().call_at(due + seconds, self._paced, model, events, index, due + seconds, seconds)

    def _unpaced(self, model: str, events: list[bytes], index: int) -> None:
        """Write one event a loop turn, so that streams take turns."""
        if self._closed:
            return
        self._write(model, events, index)
        if index + 1 < len(events):
            asyncio.get_running_loop().call_soon(self._unpaced, model, events, index + 1)

    def _write(self, model: str, events: list[bytes], index: int) -> None:
        first = index < 0
        self._transport.write(_event(model, {"content": stamp(time.monotonic_ns())}) if first else events[index])


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=2048)
    print(f"The stand-in provider listens on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, default=0, help="0 takes a free one")
    uvloop.run(_serve(arguments.parse_args().port))
