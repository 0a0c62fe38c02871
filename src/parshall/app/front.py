"""What faces the network: the proxies whose word on their clients is believed, and how many connections may be open."""

import contextlib
import resource
from ipaddress import ip_network
from typing import Annotated

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import NoDecode

from parshall.kernel.forwarding import Network

DESCRIPTORS_WANTED = 65_536
"""Open files that a process asks for at its start, where the system allows so many."""
DESCRIPTORS_KEPT = 128
"""Of them, those that are for databases, the stream log and files of ours."""
DESCRIPTORS_PER_CONNECTION = 2
"""A stream holds a connection to its reader and one to its model."""
CONNECTIONS_MIN = 16


class Front(BaseModel):
    """The options of what stands in front, and of the connections that come from there."""

    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = Field(
        (),
        description="Addresses and networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, "
        "comma-separated; from all others these headers are ignored.",
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Most connections that this process has open at once; by default as many as its limit on open "
        "files leaves room for.",
    )

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            return value
        return tuple(_network(str(part).strip()) for part in parts if str(part).strip())


def _network(text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither an address nor a network such as 10.0.0.0/8") from error
    if network.prefixlen == 0:
        raise ValueError(f"{text!r} would let every client name any address as its own; name your proxies'")
    return network


def raise_descriptor_limit() -> None:
    """Allow this process as many open files as it wants and the system lets it have: few is a shell's default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_max(options: Front) -> int:
    """How many connections this process may have open."""
    if options.max_connections is not None:
        return options.max_connections
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = DESCRIPTORS_WANTED if soft == resource.RLIM_INFINITY else soft
    return max(CONNECTIONS_MIN, (descriptors - DESCRIPTORS_KEPT) // DESCRIPTORS_PER_CONNECTION)
