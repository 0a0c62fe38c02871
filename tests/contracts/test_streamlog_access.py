"""Where the shared stream log is, who may use it, and who may listen in."""

import asyncio
import re
import ssl
import time as seconds
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.contracts.streamlogs import NEVER, STREAM, Time, frames, next_of, opened, take
from tests.valkey import Valkey, unused_port

from parshall.chat.streams.address import Address
from parshall.chat.streams.engine import Engine
from parshall.kernel.clock import SECOND
from parshall.kernel.errors import StartupError


async def test_a_password_is_asked_for_and_given(time: Time) -> None:
    with Valkey.start(durable=False, password="p@ss/word:1") as server:
        url = f"valkey://default:p%40ss%2Fword%3A1@127.0.0.1:{server.port}/3"
        async with opened(url, time) as log:
            lease = await take(log, time=time)
            tail = await log.tail(STREAM, after=0, silence_seconds=60)
            await log.append(lease, frames(1, 1), first_offset=1)
            assert await next_of(tail) == frames(1, 1)
        for wrong in ("", "default:wrong@"):
            with pytest.raises(StartupError) as refused:
                await Engine.connect(Address.parse(f"valkey://{wrong}127.0.0.1:{server.port}"))
            assert "PARSHALL_STREAM_LOG_URL" in str(refused.value) and "wrong" not in str(refused.value)


GUIDE = Path(__file__).parents[2] / "docs" / "OPERATIONS.md"
RIGHTS = re.compile(r"`(~parshall[^`]*)`")


async def test_a_user_with_the_rights_that_the_guide_names_can_do_all_that_is_needed(
    server: Valkey, time: Time
) -> None:
    found = RIGHTS.search(GUIDE.read_text(encoding="utf-8"))
    assert found is not None
    server.ask("ACL", "SETUSER", "ann", "reset", "on", ">secret", *found[1].split())
    url = server.url.replace("127", "ann:secret@127")
    async with opened(url, time) as log, opened(url, time) as elsewhere:
        lease = await take(log, time=time)
        tail = await elsewhere.tail(STREAM, after=0, silence_seconds=60)
        await log.append(lease, frames(1, 1), first_offset=1)
        assert await next_of(tail) == frames(1, 1)
        await log.renew(lease, until=NEVER)
        await log.check()
        await log.close_stream(lease)
        time.now += SECOND
        assert await log.trim(closed_before=time()) == 1


async def test_over_tls_the_servers_certificate_is_verified(valkey: Valkey, time: Time, tmp_path: Path) -> None:
    """The server of the wheel has no TLS: a front of ours ends it before the server, for both kinds of connection."""
    own, foreign = certificate(tmp_path / "own"), certificate(tmp_path / "foreign")
    async with tls_front(own, valkey.port) as port:
        url = f"valkeys://127.0.0.1:{port}?ca={own[0]}"
        async with opened(url, time) as log, opened(url, time) as elsewhere:
            lease = await take(log, time=time)
            tail = await elsewhere.tail(STREAM, after=0, silence_seconds=60)
            await log.append(lease, frames(1, 1), first_offset=1)
            assert await next_of(tail) == frames(1, 1)
            tail.close()
        for stranger in (f"valkeys://127.0.0.1:{port}", f"rediss://127.0.0.1:{port}?ca={foreign[0]}"):
            with pytest.raises(StartupError, match="certificate"):
                await Engine.connect(Address.parse(stranger))


async def test_an_engine_that_is_not_there_is_one_sentence() -> None:
    began = seconds.monotonic()
    with pytest.raises(
        StartupError, match=r"^The stream log at 127\.0\.0\.1:\d+ cannot be used \(.*PARSHALL_STREAM_LOG_URL\.$"
    ):
        await Engine.connect(Address.parse(f"valkey://127.0.0.1:{unused_port()}"))
    assert seconds.monotonic() - began < 5


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1",
        "valkey://",
        "valkey://host/name",
        "valkey://host:port",
        "valkey://host?ssl_cert_reqs=none",
        "valkeys://host?ssl_cert_reqs=none",
        "valkeys://host?ca=",
        "valkeys://host?ca=/nowhere.pem",
        "valkey://host?ca=/etc/hosts",
    ],
)
def test_an_address_says_only_what_is_meant(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Address.parse(url)


def test_an_address_is_shown_without_its_password() -> None:
    address = Address.parse("valkey://ann:se%40cret@[::1]:7000/2")
    assert (address.username, address.password, address.database) == ("ann", "se@cret", 2)
    assert str(address) == "[::1]:7000"


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder.mkdir()
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder / "certificate.pem", folder / "key.pem"


@asynccontextmanager
async def tls_front(own: tuple[Path, Path], port: int) -> AsyncIterator[int]:
    """A port that speaks TLS and passes on to a plain one."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, behind_writer), carry(behind_reader, writer))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*own)
    front = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield front.sockets[0].getsockname()[1]
    finally:
        front.close()
