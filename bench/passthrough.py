"""The baseline: the least that forwards a stream, Starlette in front and aiohttp behind: `python bench/passthrough.py`.

It keeps nothing, checks nobody, counts nothing and understands nothing of what it forwards.
"""

import argparse
import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route


def application(provider: str) -> Starlette:
    """Forward POST /v1/chat/completions to `provider`."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as client:
            app.state.client = client
            yield

    async def forward(request: Request) -> StreamingResponse:
        response = await request.app.state.client.post(
            f"{provider}/chat/completions",
            data=await request.body(),
            headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
        )
        return StreamingResponse(_bytes(response), response.status, media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])], lifespan=lifespan)


async def _bytes(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    finally:
        response.release()


async def _serve(provider: str) -> None:
    bound = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(application(provider), http="httptools", log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([bound]))
    while not server.started:
        await asyncio.sleep(0.01)
    print(f"The pass-through listens on http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
    await serving


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("provider", help="base URL, such as http://127.0.0.1:9000/v1")
    uvloop.run(_serve(arguments.parse_args().provider))
