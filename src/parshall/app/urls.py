"""What the settings ask of a URL, so that a wrong one is refused at the start and none shows a password."""

import ipaddress
import re
from urllib.parse import parse_qs, urlsplit

STORE_SCHEMES = ("valkey", "valkeys", "redis", "rediss")


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


def check_password_is_apart(url: str) -> None:
    """Refuse a URL whose password could be taken for another part of it, and so be shown. Raises ValueError."""
    parts = urlsplit(url)
    rest = url.partition("://")[2].removeprefix(parts.netloc)
    if parts.netloc.count("@") > 1 or "@" in rest or any(map(str.isspace, url)):
        raise ValueError("percent-encode the special characters of its user and password")
    if any("password" in name.lower() for name in parse_qs(parts.query)):
        raise ValueError("give the password before the host, as user:password@host, or in a .pgpass file")


def check_store(url: str) -> None:
    """Refuse what is no address of a Valkey. Raises ValueError, in words that do not repeat the URL."""
    parts = urlsplit(url)
    try:
        known = parts.scheme in STORE_SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known or parts.query or parts.fragment or not re.fullmatch(r"/?[0-9]{0,5}", parts.path):
        raise ValueError("give valkey://user:password@host:port/database, or valkeys:// for TLS")
