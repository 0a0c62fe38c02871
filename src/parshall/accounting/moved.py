"""What a batch moved for streams, as the metrics count it: once it is durable, a sum a batch."""

from collections.abc import Mapping

from parshall.accounting.books import Books
from parshall.accounting.model import Kind, State
from parshall.kernel import metrics
from parshall.kernel.credits import MICRO

Moved = Mapping[str, int]
"""Microcredits by the name of their counter."""
UNUSED = frozenset({State.VOIDED, State.EXPIRED})
_COUNTERS = {
    "reserved": metrics.credits_reserved,
    "settled": metrics.credits_settled,
    "returned": metrics.credits_returned,
    "voided": metrics.credits_voided,
}
_NAMES = {Kind.RESERVE.value: "reserved", Kind.CHARGE.value: "settled", Kind.RELEASE.value: "returned"}


def moved(books: Books) -> Moved:
    """The sums of a batch. Reserved is always settled, returned, voided, or still held."""
    unused = {each.id for each in books.ended.values() if each.state in UNUSED}
    sums = dict.fromkeys(_COUNTERS, 0)
    for _, _, kind, amount, _, stream_id, _, _, _, _ in books.transfers:
        name = _NAMES.get(kind)
        if name is not None:
            sums["voided" if name == "returned" and stream_id in unused else name] += amount
    return sums


def count(sums: Moved) -> None:
    """Add what a batch moved to the counters, in credits."""
    for name, amount in sums.items():
        _COUNTERS[name].inc(amount / MICRO)
