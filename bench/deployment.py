"""A Parshall to be measured: `parshall up` on a data folder of its own, a user with credits, new chat sessions."""

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from processes import Process, running

PASSWORD = "a password for one benchmark"
CREDITS = 100_000_000
SESSIONS_AT_ONCE = 16
_START = ("-c", "from parshall.cli import main; main()", "up", "--port", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A running Parshall and what a user needs to ask it."""

    process: Process
    token: str

    def new_sessions(self, count: int) -> list[str]:
        """Ids of that many new chat sessions: one runs one stream at a time, and its history makes prompts longer."""
        return asyncio.run(_new_sessions(self, count))


@contextlib.contextmanager
def deployed(provider: str, settings: Mapping[str, str] | None = None) -> Iterator[Deployment]:
    """Run Parshall in front of an OpenAI-compatible `provider`.

    All else but one user's limits and what `settings` add to the environment is as it is by default.
    """
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as home:
        environment = {
            "PARSHALL_HOME_DIR": home,
            "PARSHALL_ADMIN_PASSWORD": PASSWORD,
            "PARSHALL_EMBEDDED_MODEL": "off",
            "PARSHALL_OPENAI_BASE_URL": provider,
            "PARSHALL_OPENAI_MODELS": "*",
            "PARSHALL_ACCESS_TOKEN_SECONDS": "3600",
            "PARSHALL_MAX_STREAMS_PER_USER": "1000",  # one user makes the whole load
            "PARSHALL_REQUESTS_PER_MINUTE": "1000000",
            **(settings or {}),
        }
        with running(_START, environment=environment) as process:
            yield Deployment(process=process, token=asyncio.run(_user_with_credits(process.url)))


async def _user_with_credits(url: str) -> str:
    """The access token of a new user."""
    async with aiohttp.ClientSession(f"{url}/api/") as client:
        admin = await _login(client, "admin")
        user = {"username": "bench", "email": "bench@localhost.example", "password": PASSWORD, "role": "enduser"}
        await _post(client, "admin/users", user, token=admin)
        await _post(client, "credits/allocate", {"userId": "bench", "credits": CREDITS}, token=admin)
        return await _login(client, "bench")


async def _login(client: aiohttp.ClientSession, username: str) -> str:
    answered = await _post(client, "auth/login", {"username": username, "password": PASSWORD})
    return str(answered["accessToken"])


async def _post(client: aiohttp.ClientSession, path: str, body: dict[str, Any], *, token: str = "") -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with client.post(path, json=body, headers=headers) as response:
        answered: dict[str, Any] = await response.json(content_type=None)
        if response.status >= 300:
            raise RuntimeError(f"{path} answered {response.status}: {answered}")
        return answered


async def _new_sessions(deployment: Deployment, count: int) -> list[str]:
    connector = aiohttp.TCPConnector(limit=SESSIONS_AT_ONCE)
    async with aiohttp.ClientSession(f"{deployment.process.url}/api/", connector=connector) as client:
        asked = (_post(client, "chat/sessions", {"title": "bench"}, token=deployment.token) for _ in range(count))
        return [str(session["sessionId"]) for session in await asyncio.gather(*asked)]
