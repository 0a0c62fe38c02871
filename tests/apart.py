"""Services on real ports of the test's own process, as other services meet them, and a wire that loses answers."""

import asyncio
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn
from fastapi import APIRouter, FastAPI
from joserfc import jwt
from joserfc.jwk import KeySet, OKPKey

from parshall.kernel import clock
from parshall.kernel.clock import SECOND
from parshall.kernel.deadlines import Deadlines
from parshall.kernel.http import Edge
from parshall.kernel.ids import new_id
from parshall.kernel.refusals import install_errors
from parshall.kernel.tokens import ALGORITHM, TOKEN_TYPE, TokenVerifier

ISSUER = "http://issuer.example.org"
KEY = OKPKey.import_key({**OKPKey.generate_key("Ed25519").as_dict(private=True), "kid": "one"})


def signed(name: str, role: str, scope: str = "") -> str:
    """An access token for a user or a service of that name, which is its id as well."""
    seconds = clock.now() // SECOND
    claims = {
        "iss": ISSUER,
        "sub": name,
        "aud": "parshall",
        "iat": seconds,
        "exp": seconds + 900,
        "type": "access",
        "username": name,
        "email": "",
        "role": role,
        "scope": scope,
        "jti": new_id(),
        "client_id": name if role == "service" else "parshall",
        **({} if role == "service" else {"sid": new_id()}),
    }
    return jwt.encode({"alg": ALGORITHM, "typ": TOKEN_TYPE, "kid": "one"}, claims, KEY, algorithms=[ALGORITHM])


class Signed:
    """The Tokens of a service that auth has let settle."""

    def __init__(self) -> None:
        self.given = 0

    async def token(self) -> str:
        self.given += 1
        return signed("chat", "service", "accounting:settle auth:read")

    def refused(self, token: str) -> None:
        raise AssertionError("a right token was refused")


async def _keys() -> KeySet:
    return KeySet([KEY])


@asynccontextmanager
async def served(*routers: APIRouter, **state: object) -> AsyncIterator[str]:
    """The URL of an application with these routes, as `parshall serve` puts one together."""
    app = FastAPI()
    install_errors(app)
    for router in routers:
        app.include_router(router, prefix="" if router.prefix in ("", "/api") else "/api")
    for name, value in ({"verifier": TokenVerifier(_keys, issuer=ISSUER, clock=clock.now)} | state).items():
        setattr(app.state, name, value)
    with socket.socket(proto=socket.IPPROTO_TCP) as bound:  # else asyncio leaves Nagle on, which costs 40 ms an answer
        bound.bind(("127.0.0.1", 0))
        config = uvicorn.Config(Edge(Deadlines(app)), lifespan="off", log_config=None, access_log=False)
        server = _Quiet(config)
        serving = asyncio.create_task(server.serve([bound]))
        while not server.started:
            await asyncio.sleep(0.002)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            await serving


class _Quiet(uvicorn.Server):
    """Leaves the signals to the test."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Wire:
    """A TCP proxy in front of a service, which can swallow answers, hold them back, or be cut."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self.lose = 0
        self.delay_seconds = 0.0
        self.requests = 0
        self.is_cut = False
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return "http://{}:{}".format(*self._server.sockets[0].getsockname()[:2])

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def cut(self) -> None:
        """From now on, and for those that are connected: nobody answers."""
        self.is_cut = True
        for task in self._open:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        with suppress(OSError, asyncio.CancelledError):
            if not self.is_cut:
                await self._relay(reader, writer)
        self._open.discard(task)
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            while request := await reader.read(1 << 16):
                self.requests += request.startswith((b"POST", b"GET"))
                far_writer.write(request)
                answer = await self._answer(far_reader)
                if self.lose:
                    self.lose -= 1
                    return
                await asyncio.sleep(self.delay_seconds)
                writer.write(answer)
        finally:
            far_writer.close()

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return head + await reader.readexactly(int(length.partition(b":")[2]))
