"""A fake OpenAI-compatible server that plays scripts over HTTP: `python tests/upstream.py --port N`, or in a test."""

import argparse
import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from scripted import Script

BURST_BYTES = 1_000_000
KEY = "sk-test-0123456789abcdef"


@dataclass(slots=True)
class Asked:
    """One request, and what became of it."""

    body: dict[str, Any]
    headers: dict[str, str]
    sent: int = 0
    hung_up: bool = False
    """Whether the client left before the answer was over."""
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Upstream:
    """The server and its memory: `async with Upstream() as upstream:` listens on a free loopback port."""

    def __init__(self, *, port: int = 0) -> None:
        """Nothing listens before `start`."""
        self._port = port
        self._runner: web.AppRunner | None = None
        self.requests: list[Asked] = []
        self.connections: set[Any] = set()
        self.models_asked = 0

    async def start(self) -> "Upstream":
        """Listen."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/asked", self._asked)
        app.router.add_get("/v1/traces", self._traces)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        assert self._runner is not None
        await self._runner.cleanup()

    async def __aenter__(self) -> "Upstream":
        """Start."""
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    @property
    def base_url(self) -> str:
        """What a client is configured with."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def _models(self, _request: web.Request) -> web.Response:
        self.models_asked += 1
        listed: list[dict[str, Any]] = [{"id": "fake"}, {"id": "fake-n3", "max_model_len": 2048}, {"id": ""}, {"id": 7}]
        return web.json_response({"object": "list", "data": [{"object": "model", **entry} for entry in listed]})

    async def _asked(self, _request: web.Request) -> web.Response:
        """The last message of every request so far, for tests that run this in another process."""
        return web.json_response([_last_text(asked.body) for asked in self.requests])

    async def _traces(self, _request: web.Request) -> web.Response:
        """The `traceparent` of every request so far, likewise."""
        return web.json_response([asked.headers.get("traceparent", "") for asked in self.requests])

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked = Asked(body=body, headers=dict(request.headers))
        self.requests.append(asked)
        self.connections.add(request.transport)
        script = Script.of(str(body["model"]), _last_text(body))
        try:
            return await self._answer(request, asked, script)
        except (asyncio.CancelledError, ConnectionError):
            asked.hung_up = True
            raise
        finally:
            asked.over.set()

    async def _answer(self, request: web.Request, asked: Asked, script: Script) -> web.StreamResponse:
        if "redirect" in script.flags:
            raise web.HTTPTemporaryRedirect("/v1/elsewhere")
        if "newlimit" in script.flags and "max_tokens" in asked.body:
            return _error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        same = [each for each in self.requests if _last_text(each.body) == _last_text(asked.body)]
        status = 503 if len(same) <= script.busy else script.status
        if status != 200:
            words = f"no: {asked.headers.get('Authorization')}\n\x07" + "x" * 5000
            return _error(status, words, after=script.after)
        if not asked.body.get("stream") or "json" in script.flags:
            return web.json_response(_plain(asked.body, script))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await asyncio.sleep(script.ttft / 1000)
        await response.prepare(request)
        if await self._play(request, response, asked, script):
            await asyncio.sleep(0.005 if "late" in script.flags else 0)
            await response.write_eof()
        return response

    async def _play(self, request: web.Request, response: web.StreamResponse, asked: Asked, script: Script) -> bool:
        """Send the events; False where the connection was cut."""
        limit = _limit(asked.body)
        pen = _Pen(response, script)
        if "noise" in script.flags:
            await pen.write(bytes(range(256)) * 16)
        await pen.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        chunks = script.chunks(limit)
        for index in range(len(chunks) + 1):
            if index == script.stall:
                await asyncio.Event().wait()
            if index == script.die:
                assert request.transport is not None
                request.transport.abort()
                return False
            if index == script.garbage:
                await response.write(b"data: {nonsense\n\n")
            if index == script.error:
                await pen.event({"error": {"message": "overloaded", "code": 503}})
            if index < len(chunks):
                if script.ms or "burst" not in script.flags:
                    await asyncio.sleep(script.ms / 1000)
                name = "reasoning_content" if script.thinks(index) else "content"
                await pen.event({"choices": [{"index": 0, "delta": {name: chunks[index]}, "finish_reason": None}]})
                asked.sent += 1
        await self._finish(pen, asked, script, limit)
        return True

    async def _finish(self, pen: "_Pen", asked: Asked, script: Script, limit: int) -> None:
        if "nofinish" not in script.flags:
            await pen.event({"choices": [{"index": 0, "delta": {}, "finish_reason": script.finish(limit)}]})
        if asked.body.get("stream_options", {}).get("include_usage") and "nousage" not in script.flags:
            await pen.event({"choices": [], "usage": _usage(asked.body, script)})
        if "hang" in script.flags:
            await asyncio.Event().wait()
        if not script.flags & {"nodone", "nofinish"}:
            await pen.write(b"data: [DONE]\n\n")


class _Pen:
    """Writes events the way the script wants them cut."""

    def __init__(self, response: web.StreamResponse, script: Script) -> None:
        self._response = response
        self._flags = script.flags
        self._held = bytearray()

    async def event(self, body: dict[str, Any]) -> None:
        """One chunk; `split` adds a comment and writes characters raw, so that the cuts go through them."""
        whole = {"id": "chatcmpl-1", "object": "chat.completion.chunk", **body}
        text = json.dumps(whole, ensure_ascii="hard" in self._flags)
        head = ": keep-alive\n\ndata:" if "split" in self._flags else "data: "
        await self.write(f"{head}{text}\n\n".encode())

    async def write(self, frame: bytes) -> None:
        """The bytes, with the line ends and the cuts of the script."""
        if "crlf" in self._flags:
            frame = frame.replace(b"\n", b"\r\n")
        if "burst" in self._flags and len(self._held) < BURST_BYTES and not frame.endswith(b"[DONE]\n\n"):
            self._held += frame
            return
        if "split" not in self._flags:
            await self._response.write(bytes(self._held) + frame)
            self._held.clear()
            return
        for index in range(0, len(frame), 3):
            await self._response.write(frame[index : index + 3])
            await asyncio.sleep(0)


def _last_text(body: dict[str, Any]) -> str:
    messages = body.get("messages") or [{}]
    return str(messages[-1].get("content", ""))


def _limit(body: dict[str, Any]) -> int:
    return int(body.get("max_completion_tokens") or body.get("max_tokens") or 1_000_000)


def _usage(body: dict[str, Any], script: Script) -> dict[str, Any]:
    if "badusage" in script.flags:
        return {"prompt_tokens": -5, "completion_tokens": 10**30, "prompt_tokens_details": 3}
    if "zerousage" in script.flags:
        return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    if "nanusage" in script.flags:
        return {"prompt_tokens": float("nan"), "completion_tokens": float("inf")}
    if "textusage" in script.flags:
        return {"prompt_tokens": "11", "completion_tokens": "many"}
    if "manyusage" in script.flags:
        return {"prompt_tokens": 11, "completion_tokens": 900}
    words = sum(1 + len(str(message["content"]).split()) for message in body["messages"])
    written = len(script.chunks(_limit(body)))
    return {
        "prompt_tokens": words,
        "completion_tokens": written,
        "total_tokens": words + written,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": sum(map(script.thinks, range(written)))},
    }


def _plain(body: dict[str, Any], script: Script) -> dict[str, Any]:
    message = {"role": "assistant", "content": script.text(_limit(body))}
    choice = {"index": 0, "message": message, "finish_reason": script.finish(_limit(body))}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": _usage(body, script)}


def _error(status: int, message: str, *, after: int | None = None) -> web.Response:
    headers = {} if after is None else {"Retry-After": str(after)}
    return web.json_response({"error": {"message": message, "type": "fake"}}, status=status, headers=headers)


async def _serve(port: int) -> None:
    async with Upstream(port=port) as upstream:
        print(upstream.base_url, flush=True)  # noqa: T201 - the one line that a caller waits for
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    try:
        asyncio.run(_serve(parser.parse_args().port))
    except KeyboardInterrupt:
        pass
