"""The hash chain that makes an account's transfers tamper-evident."""

from hashlib import sha256

import msgspec

GENESIS = ""
"""The head of an account without transfers."""

_encode = msgspec.json.encode

Entry = tuple[str, int, str, int, str | None, str | None, int, int, str]
"""A transfer as its hash covers it: account id, number, kind, amount (microcredits), grant id, reservation id, at
(microseconds), available after (microcredits), note."""


def link(head: str, entry: Entry) -> str:
    """The hash of `entry` behind `head`: SHA-256 of the head's hex digits and the entry as a compact JSON array.

    The array is UTF-8 without blanks and without escapes that JSON does not demand, so that any program can redo it.
    """
    return sha256(head.encode() + _encode(entry)).hexdigest()
