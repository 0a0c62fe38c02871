"""The laws of forwarding headers: a trusted proxy is believed as far as it vouches, and nobody else at all."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.kernel.forwarding import Forwarding, Network, origin, parsed

PROXIES: tuple[Network, ...] = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
PEER = ip_address("10.0.0.1")
CLIENT = "203.0.113.7"


async def seen(peer: str | None, *fields: tuple[str, str]) -> tuple[str | None, str]:
    """The address and scheme that the application sees of a request."""
    kept: dict[str, Any] = {}

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        kept.update(scope)

    headers = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    scope = {"type": "http", "scheme": "http", "client": (peer, 4711) if peer else None, "headers": headers}
    await Forwarding(app, trusted=PROXIES)(scope, Any, Any)  # type: ignore[arg-type]
    return (kept["client"][0] if kept["client"] else None), kept["scheme"]


async def test_a_trusted_proxy_says_whom_it_was_asked_by_and_how() -> None:
    told = ("x-forwarded-for", CLIENT), ("x-forwarded-proto", "https")
    for peer in ("10.0.0.1", "::ffff:10.0.0.1", "fd00::1"):
        assert await seen(peer, *told) == (CLIENT, "https")


async def test_anybody_else_may_say_what_they_like() -> None:
    told = ("x-forwarded-for", "198.51.100.1"), ("x-forwarded-proto", "https"), ("forwarded", "for=198.51.100.1")
    for peer in (CLIENT, "11.0.0.1", "::1", "not an address", None):
        assert await seen(peer, *told) == (peer, "http")


async def test_the_header_that_our_proxies_do_not_write_is_not_believed() -> None:
    assert await seen("10.0.0.1", ("forwarded", "for=198.51.100.1;proto=https")) == ("10.0.0.1", "http")


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        ([], "10.0.0.1"),
        ([f"198.51.100.1, {CLIENT}"], CLIENT),
        ([f"198.51.100.1,{CLIENT} ,\t10.9.9.9"], CLIENT),
        (["198.51.100.1", CLIENT, "10.9.9.9"], CLIENT),
        ([CLIENT, ""], "10.0.0.1"),
        ([f"{CLIENT}, unknown"], "10.0.0.1"),
        ([f"{CLIENT}, _hidden, 10.9.9.9"], "10.9.9.9"),
        (["10.7.7.7, 10.9.9.9"], "10.7.7.7"),
        ([f"{CLIENT}:55123"], CLIENT),
        (["[2001:db8::7]:55123, 10.9.9.9:80"], "2001:db8::7"),
        (["2001:DB8:0::7"], "2001:db8::7"),
        (["::ffff:203.0.113.7"], CLIENT),
    ],
)
def test_the_client_is_the_last_address_that_is_none_of_ours(fields: list[str], client: str) -> None:
    assert str(origin(PEER, [field.encode() for field in fields], trusted=PROXIES)) == client


NO_ADDRESSES = (
    *("", "a", "1.2.3", "1.2.3.4:", "1.2.3.4:x", "1.2.3.4:123456", "[::1", "[::1]x", "[::1]:", "[1.2.3.4]"),
    *("fe80::1%<b>", "01.2.3.4", "1.2.3.4:١", '"1.2.3.4"', "::1]:80", "0x7f000001", "2130706433", "1.2.3.4/8", "::1\n"),
)


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_no_address_is_none(text: str) -> None:
    assert parsed(text) is None


@pytest.mark.parametrize("value", ["ftp", "https, http", "", "https;", "\xff", "wss"])
async def test_a_scheme_that_is_none_changes_nothing(value: str) -> None:
    assert (await seen("10.0.0.1", ("x-forwarded-proto", value)))[1] == "http"


async def test_two_schemes_are_none() -> None:
    assert (await seen("10.0.0.1", ("x-forwarded-proto", "https"), ("x-forwarded-proto", "https")))[1] == "http"


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_whatever_a_client_writes_the_proxy_adds_the_truth_behind_it(written: list[bytes]) -> None:
    assert str(origin(PEER, [*written, CLIENT.encode()], trusted=PROXIES)) == CLIENT


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_whatever_a_proxy_sends_there_is_an_address(sent: list[bytes]) -> None:
    assert str(ip_address(str(origin(PEER, sent, trusted=PROXIES))))
