"""Identifiers: the streaming session id and the types that keep one id from being passed for another."""

import re
import secrets
from typing import NewType

from parshall.kernel.errors import Invalid

StreamId = NewType("StreamId", str)
UserId = NewType("UserId", str)
SessionId = NewType("SessionId", str)

STREAM_ID_PATTERN = r"^stream-[0-9]{10,13}-[0-9a-f]{8,32}$"
_STREAM_ID = re.compile(STREAM_ID_PATTERN.removesuffix("$") + r"\Z")
_NAMED = re.compile(r"(?:^|/)(" + STREAM_ID_PATTERN.strip("^$") + r")(?=/|\Z)")


USER_ID_PATTERN = r"^[0-9a-f]{32}$"
_USER_ID = re.compile(USER_ID_PATTERN.removesuffix("$") + r"\Z")


class MalformedStreamId(Invalid):
    """A streaming session id that does not match STREAM_ID_PATTERN; it is never echoed."""

    code = "malformed_stream_id"
    title = "Malformed streaming session id"
    default = (
        "The streaming session id must look like stream-<unix seconds>-<8 to 32 lower-case hex digits>; "
        "leave the header out and the server makes one."
    )


def new_stream_id(*, at: int) -> StreamId:
    """A fresh streaming session id for the instant `at` (microseconds since the epoch).

    Its digits are a UUID of version 7 (RFC 9562 section 5.7, with the microseconds in rand_a): ids made one after
    another stand side by side in an index, so that many new ones change few of its pages.
    """
    millisecond, rest = divmod(at, 1000)
    parts = (millisecond << 80) | (7 << 76) | (rest * 4096 // 1000 << 64) | (2 << 62) | secrets.randbits(62)
    return StreamId(f"stream-{at // 1_000_000}-{parts:032x}")


def parse_stream_id(text: str) -> StreamId:
    """`text` as a streaming session id. Raises MalformedStreamId."""
    if not _STREAM_ID.match(text):
        raise MalformedStreamId
    return StreamId(text)


def stream_id_in(path: str) -> StreamId | None:
    """The streaming session id that is a part of a path; None without one."""
    found = _NAMED.search(path)
    return StreamId(found[1]) if found else None


def is_user_id(who: str) -> bool:
    """Whether `who` has the form of a user's id, which no username and no e-mail address has."""
    return _USER_ID.match(who) is not None


def new_id() -> str:
    """32 random hex digits, for rows that need no order."""
    return secrets.token_hex(16)
