"""Places that mail arrives at: a list, and an SMTP server on loopback."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from parshall.auth.mail import Letter


@dataclass(kw_only=True)
class Basket:
    """Keeps the letters; fails as often as it is told to before it takes one."""

    letters: list[Letter] = field(default_factory=list)
    failures: int = 0

    def send(self, letter: Letter) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionRefusedError
        self.letters.append(letter)


def code_in(text: str) -> str:
    """The code that a letter brings, on a line of its own."""
    found = re.search(r"^([A-Za-z0-9_-]{43})\s*$", text, re.MULTILINE)
    assert found, text
    return found[1]


@dataclass(kw_only=True)
class SmtpServer:
    """What a client said to it, and the messages."""

    port: int = 0
    said: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers = {"EHLO": "250-here\r\n250 AUTH PLAIN", "AUTH": "235 ok", "DATA": "354 go on", "QUIT": "221 bye"}
        writer.write(b"220 here\r\n")
        while line := (await reader.readline()).decode():
            self.said.append(line.strip())
            verb = line.split()[0].upper()
            writer.write(f"{answers.get(verb, '250 ok')}\r\n".encode())
            if verb == "DATA":
                self.messages.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                writer.write(b"250 ok\r\n")
            if verb == "QUIT":
                break
        writer.close()


@contextlib.asynccontextmanager
async def smtp_server() -> AsyncIterator[SmtpServer]:
    """A mail server without TLS on a free port."""
    made = SmtpServer()
    server = await asyncio.start_server(made._serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made
