"""What the shared stream log owes to its other processes, to an engine that goes away, and to who may listen in."""

import asyncio
import re
import ssl
import time as seconds
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.contracts.test_streamlog_contract import NEVER, OTHER, STREAM, Time, drain, frames, take
from tests.valkey import Valkey, unused_port

from parshall.chat.ports import Lease, LeaseLost, LogAway, LogLost, LogUnavailable, Tail
from parshall.chat.streams import scripts
from parshall.chat.streams.address import Address
from parshall.chat.streams.engine import Engine
from parshall.chat.streams.shared import SharedStreamLog
from parshall.chat.streams.tail import FRAMES_IN_MEMORY_MAX
from parshall.kernel.clock import SECOND
from parshall.kernel.errors import StartupError

MOMENT = 1.0
"""Within this many seconds a tail must have woken, on a busy machine."""


@pytest.fixture
def time() -> Time:
    return Time()


@asynccontextmanager
async def opened(url: str, time: Time) -> AsyncIterator[SharedStreamLog]:
    log = SharedStreamLog(await Engine.connect(Address.parse(url)), clock=time)
    try:
        yield log
    finally:
        await log.close()


@pytest.fixture(params=["single", "cluster"])
def server(request: pytest.FixtureRequest) -> Valkey:
    found: Valkey = request.getfixturevalue("valkey_server" if request.param == "single" else "valkey_cluster")
    found.ask("FLUSHALL")
    return found


@pytest.fixture
async def producer(server: Valkey, time: Time) -> AsyncIterator[SharedStreamLog]:
    async with opened(server.url, time) as log:
        yield log


@pytest.fixture
async def other(server: Valkey, time: Time) -> AsyncIterator[SharedStreamLog]:
    """The log of another process."""
    async with opened(server.url, time) as log:
        yield log


async def next_of(tail: Tail) -> list[bytes]:
    return list(await asyncio.wait_for(anext(tail), MOMENT))


# ── Readers elsewhere ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reader_in_another_process_sees_everything_as_it_comes(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 3), first_offset=1)
    tail = await other.tail(STREAM, after=1, silence_seconds=60)
    assert await next_of(tail) == frames(2, 2)
    for offset in range(4, 30):
        await producer.append(lease, frames(offset, 1), first_offset=offset)
        assert await next_of(tail) == frames(offset, 1)
    await producer.close_stream(lease)
    assert await asyncio.wait_for(drain(tail), MOMENT) == [] and tail.ended


async def test_readers_elsewhere_at_every_offset_get_exactly_the_rest(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 10), first_offset=1)
    tails = [await other.tail(STREAM, after=after, silence_seconds=60) for after in range(21)]
    reading = [asyncio.create_task(drain(tail)) for tail in tails]
    for offset in range(11, 21):
        await producer.append(lease, frames(offset, 1), first_offset=offset)
    await producer.close_stream(lease)
    for after, seen in enumerate(await asyncio.wait_for(asyncio.gather(*reading), 5)):
        assert seen == frames(after + 1, 20 - after)


async def test_a_reader_elsewhere_may_come_before_the_first_event_and_be_far_behind(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    tail = await other.tail(STREAM, after=0, silence_seconds=60)
    count = FRAMES_IN_MEMORY_MAX + 700
    for first in range(1, count, 100):
        await producer.append(lease, frames(first, 100), first_offset=first)
    await producer.close_stream(lease)
    seen = await asyncio.wait_for(drain(tail), 5)
    assert seen == frames(1, len(seen)) and len(seen) >= count


async def test_an_unknown_stream_ends_at_once(other: SharedStreamLog) -> None:
    tail = await other.tail(STREAM, after=0, silence_seconds=60)
    assert await asyncio.wait_for(drain(tail), MOMENT) == [] and tail.ended


async def test_readers_follow_a_stream_from_one_process_to_another(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    """Those of the process that lost it, and those of the one that took it."""
    lease = await take(producer, time=time, until=time() + SECOND)
    await producer.append(lease, frames(1, 2), first_offset=1)
    reading = [
        asyncio.create_task(drain(await log.tail(STREAM, after=0, silence_seconds=60))) for log in (producer, other)
    ]
    await asyncio.sleep(0.05)
    time.now += SECOND
    fresh = await take(other, time=time)
    await other.append(fresh, frames(3, 1), first_offset=3)
    with pytest.raises(LeaseLost):
        await producer.renew(lease, until=NEVER)  # this is how the first one learns of it
    await other.append(fresh, frames(4, 1), first_offset=4)
    await other.close_stream(fresh)
    for seen in await asyncio.wait_for(asyncio.gather(*reading), 5):
        assert seen == frames(1, 4)


async def test_readers_that_wait_cost_the_engine_nothing(
    server: Valkey, producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    """Nobody polls, and all readers of a process share one connection that waits."""
    leases = [await take(producer, stream, time=time) for stream in (STREAM, OTHER)]
    tails = [await other.tail(lease.stream_id, after=0, silence_seconds=60) for lease in leases for _ in range(20)]
    reading = [asyncio.create_task(drain(tail)) for tail in tails]
    await asyncio.sleep(0.1)
    assert sum(int(client["ssub"]) > 0 for client in clients(server)) == 1
    looks = [commands(server), commands(server)]
    await asyncio.sleep(0.5)
    looks.append(commands(server))
    assert looks[2] - looks[1] == looks[1] - looks[0], "all that the engine was asked is for its counters"
    for lease in leases:
        await producer.close_stream(lease)
    await asyncio.wait_for(asyncio.gather(*reading), MOMENT)


async def test_a_stream_that_nobody_reads_any_more_is_no_longer_followed(
    server: Valkey, producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    tail = await other.tail(STREAM, after=0, silence_seconds=60)
    tail.close()
    await producer.append(lease, frames(1, 1), first_offset=1)
    await asyncio.sleep(0.1)
    assert all(client["ssub"] == "0" for client in clients(server))
    again = await other.tail(STREAM, after=0, silence_seconds=60)
    await producer.append(lease, frames(2, 1), first_offset=2)
    assert (await next_of(again))[:1] == frames(1, 1)
    again.close()


def commands(server: Valkey) -> int:
    return int(server.ask("INFO", "stats")["total_commands_processed"])


def clients(server: Valkey) -> list[dict[str, str]]:
    lines = server.ask("CLIENT", "LIST").decode().splitlines()
    return [dict(word.partition("=")[::2] for word in line.split()) for line in lines]


# ── Fencing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_two_producers_that_race_exactly_one_follows(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    """Both believe that they hold the stream, and append at once: from the adoption on every event is the adopter's."""
    stale = await take(producer, time=time, until=time() + SECOND)

    async def produce(log: SharedStreamLog, lease: Lease, name: bytes, first: int) -> int:
        offset = first
        try:
            while offset < first + 200:
                await log.append(lease, [b"%s %d" % (name, offset)], first_offset=offset)
                offset += 1
        except LeaseLost:
            pass
        return offset - first

    racing = asyncio.create_task(produce(producer, stale, b"stale", 1))
    await asyncio.sleep(0.01)
    time.now += SECOND
    fresh = await take(other, time=time)
    kept, _ = await other.read(STREAM, after=0, limit=512)
    assert await produce(other, fresh, b"fresh", len(kept) + 1) == 200
    assert await racing == len(kept)
    logged, _ = await other.read(STREAM, after=0, limit=512)
    expected = [b"stale %d" % n for n in range(1, len(kept) + 1)]
    expected += [b"fresh %d" % n for n in range(len(kept) + 1, len(kept) + 201)]
    assert logged == expected


async def test_of_many_that_adopt_at_once_one_does(server: Valkey, time: Time) -> None:
    async with opened(server.url, time) as one, opened(server.url, time) as two:
        answers = await asyncio.gather(
            *(
                log.acquire(STREAM, owner=f"{n}", at=time(), until=NEVER)
                for n in range(10)
                for log in (one, two)
                if (n % 2 == 0) == (log is one)
            )
        )
        assert len([lease for lease in answers if lease is not None]) == 1


async def test_a_lease_whose_grant_was_lost_is_granted_to_its_owner_again(
    producer: SharedStreamLog, time: Time
) -> None:
    await producer.append(await take(producer, time=time), [b"session of an opening that failed"], first_offset=1)
    again = await take(producer, time=time)
    assert again.epoch == 2
    await producer.append(again, frames(1, 2), first_offset=1)
    await producer.append(again, frames(3, 1), first_offset=3)
    assert await producer.read(STREAM, after=0, limit=10) == (frames(1, 3), False)
    with pytest.raises(LogUnavailable):
        await producer.append(again, frames(1, 2), first_offset=1)


# ── An engine that goes away ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def mortal() -> AsyncIterator[Valkey]:
    """A server that the test may kill."""
    with Valkey.start() as server:
        yield server


async def test_when_the_engine_dies_readers_are_sent_away_and_nothing_unlogged_was_shown(
    mortal: Valkey, time: Time
) -> None:
    async with opened(mortal.url, time) as log, opened(mortal.url, time) as elsewhere:
        lease = await take(log, time=time)
        await log.append(lease, frames(1, 3), first_offset=1)
        tails = [await each.tail(STREAM, after=0, silence_seconds=60) for each in (log, elsewhere)]
        assert [await next_of(tail) for tail in tails] == [frames(1, 3)] * 2
        mortal.kill()
        with pytest.raises(LogAway):
            await log.append(lease, frames(4, 1), first_offset=4)
        for tail in tails:
            with pytest.raises(LogUnavailable):
                await next_of(tail)
        late = await log.tail(STREAM, after=0, silence_seconds=60)
        with pytest.raises(LogUnavailable):
            await next_of(late)
        mortal.restart()
        await asyncio.sleep(0.3)
        await log.append(lease, frames(4, 2), first_offset=4)
        assert await log.read(STREAM, after=0, limit=10) == (frames(1, 5), False)
        assert await next_of(await elsewhere.tail(STREAM, after=2, silence_seconds=60)) == frames(3, 3)


async def test_an_append_whose_answer_was_lost_is_repeated_without_a_trace(mortal: Valkey, time: Time) -> None:
    async with opened(mortal.url, time) as log:
        lease = await take(log, time=time)
        await log.append(lease, frames(1, 1), first_offset=1)
        mortal.freeze()
        with pytest.raises(LogAway):
            await log.append(lease, frames(2, 3), first_offset=2)
        mortal.thaw()  # now it carries out what nobody waits for any more
        await asyncio.sleep(0.3)
        assert await log.read(STREAM, after=0, limit=10) == (frames(1, 4), False)
        await log.append(lease, frames(2, 5), first_offset=2)
        assert await log.read(STREAM, after=0, limit=10) == (frames(1, 6), False)


async def test_what_the_engine_forgot_of_a_live_stream_is_kept_again(mortal: Valkey, time: Time) -> None:
    async with opened(mortal.url, time) as log:
        lease = await take(log, time=time)
        await log.append(lease, frames(1, 5), first_offset=1)
        mortal.kill()
        mortal.forget()
        mortal.restart()
        await log.append(lease, frames(6, 1), first_offset=6)
        assert await log.read(STREAM, after=0, limit=10) == (frames(1, 6), False)
        tail = await log.tail(STREAM, after=3, silence_seconds=60)
        assert await next_of(tail) == frames(4, 3)


async def test_the_last_moments_that_an_engine_lost_are_kept_again(
    producer: SharedStreamLog, server: Valkey, time: Time
) -> None:
    """As after a failover to a replica that lagged behind."""
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 5), first_offset=1)
    key, events, _ = scripts.keys(STREAM)
    server.ask("XTRIM", events, "MAXLEN", 0)
    server.ask("DEL", events)
    for frame in range(1, 3):
        server.ask("XADD", events, f"{frame}-0", "f", frames(frame, 1)[0])
    server.ask("HSET", key, "last", 2)
    await producer.append(lease, frames(6, 1), first_offset=6)
    assert await producer.read(STREAM, after=0, limit=10) == (frames(1, 6), False)


async def test_a_stream_that_was_lost_beyond_what_is_at_hand_is_lost(
    producer: SharedStreamLog, server: Valkey, time: Time
) -> None:
    lease = await take(producer, time=time)
    for first in range(1, FRAMES_IN_MEMORY_MAX + 200, 100):
        await producer.append(lease, frames(first, 100), first_offset=first)
    server.ask("FLUSHALL")
    held = producer._held[STREAM]
    with pytest.raises(LogLost):
        await producer.append(lease, frames(held.expected, 1), first_offset=held.expected)


async def test_a_stale_producer_does_not_begin_a_lost_stream_anew(
    producer: SharedStreamLog, server: Valkey, time: Time
) -> None:
    lease = await take(producer, time=time, until=time() + SECOND)
    await producer.append(lease, frames(1, 2), first_offset=1)
    server.ask("FLUSHALL")
    time.now += SECOND
    with pytest.raises(LogLost):
        await producer.append(lease, frames(3, 1), first_offset=3)


async def test_an_engine_that_is_full_keeps_what_it_has_and_takes_more_later(
    producer: SharedStreamLog, server: Valkey, time: Time
) -> None:
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 1), first_offset=1)
    server.ask("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(LogAway):
            await producer.append(lease, frames(2, 2), first_offset=2)
    finally:
        server.ask("CONFIG", "SET", "maxmemory", 0)
    await producer.append(lease, frames(2, 2), first_offset=2)
    assert await producer.read(STREAM, after=0, limit=10) == (frames(1, 3), False)


async def test_a_half_open_line_is_given_up(mortal: Valkey, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parshall.chat.streams.following.HEARTBEAT_SECONDS", 0.2)
    async with opened(mortal.url, time) as log, opened(mortal.url, time) as elsewhere:
        await take(log, time=time)
        tail = await elsewhere.tail(STREAM, after=0, silence_seconds=60)
        reading = asyncio.create_task(drain(tail))
        await asyncio.sleep(0.5)
        assert not reading.done(), "an engine that answers is not given up"
        mortal.freeze()
        with pytest.raises(LogUnavailable):
            await asyncio.wait_for(reading, 3)
        mortal.thaw()


# ── What is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_key_of_a_stream_is_in_one_slot_and_goes_by_itself(
    server: Valkey, producer: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 2), first_offset=1)
    names = scripts.keys(STREAM)
    assert {name[name.index("{") : name.index("}")] for name in names} == {"{" + STREAM}
    day = 24 * 3600 * 1000
    assert all(day < server.ask("PTTL", name) <= 3 * day for name in names[:2])
    await producer.close_stream(lease)
    assert all(day < server.ask("PTTL", name) <= 3 * day for name in names[:2])


async def test_appends_of_one_loop_turn_share_a_round_trip(
    server: Valkey, producer: SharedStreamLog, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips: list[int] = []
    send = producer._engine._send

    async def counted(calls: Any, **how: Any) -> Any:
        trips.append(len(calls))
        return await send(calls, **how)

    leases = [
        await producer.acquire(f"stream-1620847252-{n:08x}", owner="x", at=time(), until=NEVER) for n in range(50)
    ]  # type: ignore[arg-type]
    for lease in leases:
        assert lease is not None
        await producer.append(lease, frames(1, 1), first_offset=1)
    monkeypatch.setattr(producer._engine, "_send", counted)
    await asyncio.gather(*(producer.append(lease, frames(2, 1), first_offset=2) for lease in leases))
    assert trips == [50]


# ── Who may listen in ───────────────────────────────────────────────────────────────────────────────────────────────


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
