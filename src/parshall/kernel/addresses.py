"""Addresses: of clients, as far as they say who is calling, and of what we call, as far as that is private."""

import ipaddress
from urllib.parse import urlsplit


def network_of(address: str) -> str:
    """The address, or the /64 of an IPv6 one: whoever has one such address has 2⁶⁴ of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))


def is_private(url: str) -> bool:
    """Whether what is posted there is read by nobody on the way: over TLS, or without leaving this machine."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.fragment or not (url.isascii() and url.isprintable()) or " " in url:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _on_this_machine(host))


def _on_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
