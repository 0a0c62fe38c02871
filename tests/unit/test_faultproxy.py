"""The faulty network that other tests rely on: each fault is the one that it says."""

import errno
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.faultproxy import FaultProxy
from tests.valkey import unused_port


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says everything back."""

    def serve(connection: socket.socket) -> None:
        with connection:
            while chunk := connection.recv(65536):
                connection.sendall(chunk)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_quietly, args=(serve, connection), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _quietly(serve: object, connection: socket.socket) -> None:
    try:
        serve(connection)  # type: ignore[operator]
    except OSError:
        pass


def call(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def said(connection: socket.socket, words: bytes) -> bytes:
    connection.sendall(words)
    return heard(connection, len(words))


def heard(connection: socket.socket, length: int) -> bytes:
    answer = b""
    while len(answer) < length and (chunk := connection.recv(65536)):
        answer += chunk
    return answer


def test_without_a_fault_everything_passes_both_ways_and_ends_in_order(echo: int) -> None:
    with FaultProxy.to(echo) as proxy, call(proxy) as near:
        large = bytes(range(256)) * 4096
        threading.Thread(target=near.sendall, args=(large,)).start()
        assert heard(near, len(large)) == large
        near.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
        assert proxy.accepted == 1


def test_a_slow_network_delays_and_keeps_the_order(echo: int) -> None:
    with FaultProxy.to(echo) as proxy, call(proxy) as near:
        proxy.slow(0.05, jitter=0.04)
        began = time.monotonic()
        for number in range(20):
            near.sendall(b"%04d" % number)
            time.sleep(0.002)
        assert heard(near, 80) == b"".join(b"%04d" % number for number in range(20))
        assert 0.02 < time.monotonic() - began < 1, "chunks travel at the same time"


def test_a_narrow_network_passes_so_many_bytes_a_second(echo: int) -> None:
    with FaultProxy.to(echo) as proxy, call(proxy) as near:
        proxy.slow(0, bytes_per_second=100_000)
        began = time.monotonic()
        assert len(said(near, bytes(30_000))) == 30_000
        assert time.monotonic() - began > 0.3


def test_a_cut_connection_ends_in_order_and_the_next_one_passes(echo: int) -> None:
    with FaultProxy.to(echo) as proxy, call(proxy) as near:
        assert said(near, b"one") == b"one"
        proxy.cut()
        assert near.recv(1) == b""
        with call(proxy) as again:
            assert said(again, b"two") == b"two"


def test_a_reset_connection_breaks_and_the_next_one_passes(echo: int) -> None:
    with FaultProxy.to(echo) as proxy, call(proxy) as near:
        assert said(near, b"one") == b"one"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        with call(proxy) as again:
            assert said(again, b"two") == b"two"


def test_a_black_hole_is_silent_and_gives_back_what_it_took(echo: int) -> None:
    with FaultProxy.to(echo) as proxy, call(proxy) as near:
        assert said(near, b"one") == b"one"
        proxy.blackhole()
        with call(proxy) as other:
            for connection in (near, other):
                connection.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    said(connection, b"two")
            proxy.heal()
            assert heard(near, 3) == heard(other, 3) == b"two"


def test_who_refuses_breaks_open_connections_and_takes_none_until_healed(echo: int) -> None:
    with FaultProxy.to(echo) as proxy, call(proxy) as near:
        assert said(near, b"one") == b"one"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        with pytest.raises(OSError) as refused:
            call(proxy)
        assert refused.value.errno == errno.ECONNREFUSED
        proxy.heal()
        with call(proxy) as again:
            assert said(again, b"two") == b"two"


def test_a_connection_goes_to_the_first_target_that_takes_it_and_to_none_breaks(echo: int) -> None:
    targets = [unused_port(), echo]
    with FaultProxy(lambda: targets).running() as proxy:
        with call(proxy) as near:
            assert said(near, b"one") == b"one"
        targets.pop()
        for _ in range(2):
            with (
                pytest.raises(ConnectionResetError),
                call(proxy) as near,
            ):  # the reset may come before the connection stands
                near.recv(1)
