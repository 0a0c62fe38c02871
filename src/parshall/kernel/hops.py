"""From service to service: what of a call's headers was added, lost or changed between them, told by the receiver.

The receiver's report is one response header, which only the token of a service evokes. It names fields and gives
fingerprints under a key that both ends have and no log holds: that of the token which asked for the report.
"""

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from parshall.kernel.exchange import FIELDS_MAX, Document, Pairs, shortened

REPORT_HEADER = "X-Debug-Headers-Report"
REPORT_BYTES_MAX = 6000
"""Below the 8190 that clients take for one field."""
REPORTED_NAME_CHARS_MAX = 64
_DIGITS = 10
_OWN_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"})
"""Fields that hold for one connection (RFC 9110 §7.6.1): whoever passes a message on makes its own."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the receiver saw and set, as names and fingerprints; `left` fields had no room."""

    received: list[tuple[str, str]]
    sent: list[tuple[str, str]]
    left: int = 0


def report(received: Pairs, sent: Pairs, *, voucher: str) -> bytes:
    """The value of REPORT_HEADER for whoever presented that voucher; no longer than REPORT_BYTES_MAX."""
    told, given = _named(received, voucher), _named(sent, voucher)
    most = max(len(told), len(given))
    while True:
        left = max(0, len(received) - most) + max(0, len(sent) - most)
        value = msgspec.json.encode(Report(received=told[:most], sent=given[:most], left=left))
        if len(value) <= REPORT_BYTES_MAX:
            return value
        most = most * 9 // 10


def read_report(value: str) -> Report | None:
    """The report of a receiver; None where it cannot be one."""
    try:
        return msgspec.json.decode(value[: 2 * REPORT_BYTES_MAX], type=Report)
    except msgspec.MsgspecError:
        return None


def compared(sent: Pairs, received: Pairs, told: Report, *, voucher: str) -> Document:
    """What happened between the two ends to the request that was `sent` and the response that was `received`."""
    own = [(name, value) for name, value in received if name.lower() != REPORT_HEADER.lower()]
    return {
        "request": difference(_named(sent, voucher), told.received),
        "response": difference(told.sent, _named(own, voucher)),
        "left": told.left,
    }


def difference(before: Iterable[tuple[str, str]], after: Iterable[tuple[str, str]]) -> Document:
    """The names that were added, lost, or arrived with another value, or another number of times."""
    one, other = _by_name(before), _by_name(after)
    return {
        "added": sorted(other.keys() - one.keys()),
        "lost": sorted(one.keys() - other.keys()),
        "changed": sorted(name for name in one.keys() & other.keys() if one[name] != other[name]),
    }


def _by_name(fields: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, fingerprint in fields:
        if name not in _OWN_HOP:
            found[name].append(fingerprint)
    return found


def _named(fields: Pairs, voucher: str) -> list[tuple[str, str]]:
    key = hashlib.sha256(b"parshall hop report\0" + voucher.encode("utf-8", "backslashreplace")).digest()

    def fingerprint(value: str) -> str:
        return hmac.new(key, value.encode("utf-8", "backslashreplace"), hashlib.sha256).hexdigest()[:_DIGITS]

    return [
        (_ascii(shortened(name.lower(), REPORTED_NAME_CHARS_MAX)), fingerprint(value.strip(" \t")))
        for name, value in fields[:FIELDS_MAX]
    ]


def _ascii(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()
