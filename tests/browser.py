"""A real Chromium without a window, driven over its DevTools protocol."""

import asyncio
import contextlib
import itertools
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from tests.clients.programs import BROWSERS, had

START_SECONDS_MAX = 30
WAIT_SECONDS_MAX = 40


def binary() -> str | None:
    """The program, where there is one or one can be had."""
    return had(BROWSERS, ("chromium",))


class Page:
    """One page: open an address, run a script in it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self._socket = socket
        self._session = session
        self._numbers = itertools.count(1)
        self.violations: list[str] = []
        """What the browser refused to load or run, and uncaught errors."""

    async def open(self, url: str) -> None:
        """Go there and wait until it is loaded."""
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited where it is a promise."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait for an expression to become true."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not await self.evaluate(condition):
                await asyncio.sleep(0.05)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; its result."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters, "sessionId": self._session})
        while True:
            message = await self._socket.receive_json(timeout=WAIT_SECONDS_MAX)
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Log.entryAdded" if message["params"]["entry"]["source"] == "security":
                self.violations.append(message["params"]["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.violations.append(str(message["params"]))


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """A browser with one page; its profile is kept in the folder."""
    program = binary()
    assert program is not None
    switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
    process = await asyncio.create_subprocess_exec(
        program,
        *switches,
        *quiet,
        f"--user-data-dir={folder}",
        "about:blank",
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        env=os.environ | {"HOME": str(folder)},
    )
    drained = None
    try:
        assert process.stderr is not None
        async with asyncio.timeout(START_SECONDS_MAX):
            while not (found := re.search(rb"listening on (ws://\S+)", await process.stderr.readline())):
                pass
        drained = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as client, client.ws_connect(found[1].decode(), max_msg_size=0) as socket:
            yield Page(socket, await _attach(socket))
    finally:
        process.kill()
        await process.wait()
        if drained is not None:
            await drained


async def _attach(socket: aiohttp.ClientWebSocketResponse) -> str:
    async def call(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        await socket.send_json({"id": number, "method": method, "params": parameters})
        while (message := await socket.receive_json(timeout=WAIT_SECONDS_MAX)).get("id") != number:
            pass
        return dict(message["result"])

    target = await call(1, "Target.createTarget", url="about:blank")
    attached = await call(2, "Target.attachToTarget", targetId=target["targetId"], flatten=True)
    return str(attached["sessionId"])
