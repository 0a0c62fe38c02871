"""What the settings ask of a URL, so that a wrong one is refused at the start and none shows a password."""

import re
from urllib.parse import parse_qs, urlsplit

STORE_SCHEMES = ("valkey", "valkeys", "redis", "rediss")


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
