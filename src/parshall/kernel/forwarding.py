"""Who a request comes from when it comes through proxies: what trusted ones say of it is believed, and nothing else."""

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_FOR = b"x-forwarded-for"
_PROTO = b"x-forwarded-proto"
_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?\Z")
_IPV4_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}\Z")
_SCHEMES = {b"http": "http", b"https": "https"}


class Forwarding:
    """An ASGI layer that puts the client's address and scheme in the place of a trusted proxy's.

    Read are `X-Forwarded-For` and `X-Forwarded-Proto`, and not `Forwarded` (RFC 7239): a proxy that writes the ones
    passes the other on as the client has sent it, so that whoever believes both believes the client.
    """

    def __init__(self, app: ASGIApp, *, trusted: Sequence[Network]) -> None:
        """`trusted` are the networks that proxies of ours have their addresses in."""
        self._app = app
        self._trusted = tuple(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope.get("client"):
            self._correct(scope)
        await self._app(scope, receive, send)

    def _correct(self, scope: Scope) -> None:
        peer = parsed(scope["client"][0])
        if peer is None or not is_within(peer, self._trusted):
            return
        client = origin(peer, _named(scope, _FOR), trusted=self._trusted)
        if client != peer:
            scope["client"] = (str(client), 0)
        schemes = _named(scope, _PROTO)
        if len(schemes) == 1:
            scope["scheme"] = _SCHEMES.get(schemes[0].strip().lower(), scope["scheme"])


def origin(peer: Address, fields: Iterable[bytes], *, trusted: Sequence[Network]) -> Address:
    """The last address, from the end of the `X-Forwarded-For` fields on, that a trusted proxy vouches for.

    Each proxy adds whom it was asked by to the end; so what stands left of the first address that is none of ours was
    written by somebody else, and so was all that is left of something that is no address.
    """
    found = peer
    for part in reversed(b",".join(fields).split(b",")):
        named = parsed(part.decode("latin-1").strip())
        if named is None:
            break
        found = named
        if not is_within(found, trusted):
            break
    return found


def parsed(text: str) -> Address | None:
    """The address, which may have a port behind it, and be in brackets if it is an IPv6 one; None for all else."""
    bracketed = _BRACKETED.match(text)
    with_port = bracketed or _IPV4_WITH_PORT.match(text)
    try:
        found = ip_address(with_port[1] if with_port else text)
    except ValueError:
        return None
    if isinstance(found, IPv4Address):
        return None if bracketed else found
    if found.scope_id is not None:  # free text, and of no use to another machine
        return None
    return found.ipv4_mapped or found


def is_within(address: Address, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of these networks."""
    return any(address in network for network in networks)


def _named(scope: Scope, wanted: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == wanted]
