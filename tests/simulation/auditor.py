"""Watches a ledger from step to step: what was once there stays, what was answered is true, replays repeat it."""

from typing import Any

from tests.simulation.records import Records, ceiling, check_records
from tests.simulation.requested import RESERVES, Request

from parshall.accounting.model import BelowZero, PriceConflict, ReservationEnded, StepOutOfOrder
from parshall.kernel.clock import SECOND
from parshall.kernel.credits import MICRO
from parshall.kernel.errors import InsufficientCredits, Invalid, KeyReused, ParshallError, Unavailable
from parshall.kernel.metering import Settlement, Slice

FINAL = ("settled", "voided", "expired")
UNKNOWN = (Unavailable,)
"""Answers that leave open what has happened; the client asks again."""


class Auditor:
    """What has been asked and answered so far, and the records as they were after the last step."""

    def __init__(self, records: Records, *, reservation_seconds: int) -> None:
        self.records = records
        self.before = records
        self.asked: set[tuple[str, str]] = set()
        self.changes: dict[str, Request] = {}
        self.first: dict[str, tuple[Request, Any]] = {}
        self._reservation_seconds = reservation_seconds

    # ── Records ──

    def observe(self, records: Records, *, at: int) -> None:
        """Take the records after a step at the instant `at`: the laws hold in them, and from those before to them."""
        self.at = at
        self.before, self.records = self.records, records
        check_records(records)
        self._check_kept()
        self._check_ends()
        for key in {row.note.rpartition(" ")[2] for row in self.new_transfers()} - {""}:
            self._check_effects(key)
        for row in self.new_transfers():
            known = row.reservation_id is None or any((kind, row.reservation_id) in self.asked for kind in RESERVES)
            assert known, "a transfer for a stream that nobody has asked for"

    def new_transfers(self) -> list[Any]:
        """What the last step has booked."""
        seen = {name: account.number for name, account in self.before.books.accounts.items()}
        return [row for row in self.records.books.transfers if row.number > seen.get(row.account_id, 0)]

    def _check_kept(self) -> None:
        """M5, M8: nothing that was once committed is lost or rewritten."""
        before, after = self.before, self.records
        kept = {(row.account_id, row.number): row for row in after.books.transfers}
        assert all(kept.get((row.account_id, row.number)) == row for row in before.books.transfers), "M5, M8: transfers"
        for name in ("slices", "keys", "prices"):
            now = getattr(after, name)
            assert all(now.get(key) == row for key, row in getattr(before, name).items()), f"M8: {name} are kept"
        assert before.grants.keys() <= after.grants.keys(), "M8: grants are kept"
        assert before.streams.keys() <= after.streams.keys(), "M8: reservations are kept"

    def _check_ends(self) -> None:
        """M3: what has ended stays as it ended, but for the one late report to an expired reservation."""
        for stream_id, was in self.before.streams.items():
            now = self.records.streams[stream_id]
            if was.state in FINAL and now != was:
                late = was.state == now.state == "expired" and was.usage_source is None and now.usage_source is not None
                assert late, f"M3: {stream_id} ended twice: {was.state}, then {now.state}"
            asked = {"settled": "settle", "voided": "void"}.get(now.state)
            assert asked is None or (asked, stream_id) in self.asked, f"nobody asked that it be {now.state}"

    def _check_effects(self, key: str) -> None:
        """A keyed change is done once or not at all."""
        request = self.changes[key]
        rows, amount = self.records.effects(key), request.arguments["amount"]
        kinds = {row.kind for row in rows}
        total = sum(row.amount for row in rows)
        if request.kind == "allocate" or (request.kind == "adjust" and amount > 0):
            assert (len(rows), kinds, total) == (1, {"grant"}, amount), f"{request} was done more than once"
        elif request.kind == "deduct":
            assert (kinds, total) == ({"deduct"}, amount), f"{request} was done more than once"
        elif request.kind in ("adjust", "remove"):
            assert (kinds, total) == ({"revoke"}, abs(amount)), f"{request} was done more than once"
        else:
            assert kinds in ({"grant"}, {"revoke"})
        numbers = sorted(row.number for row in rows)
        assert numbers == list(range(numbers[0], numbers[0] + len(rows))), f"{request} was done in one go"
        assert key in self.records.keys, f"the answer of {request} is kept with it"

    # ── Answers ──

    def asking(self, request: Request) -> None:
        """Know that a request is on its way: what nobody asks for must not happen."""
        self.asked.add((request.kind, request.id))
        if request.keyed:
            self.changes.setdefault(request.id, request)

    def answered(self, request: Request, answer: Any) -> None:
        """Hold an answer that the ledger gave to a request as its client sends it."""
        if isinstance(answer, UNKNOWN):
            return
        if isinstance(answer, ParshallError):
            self._check_refusal(request, answer)
            return
        if request.kind == "sweep":
            return
        if request.kind == "void":
            self._check_void(request, answer)
            return
        _, first = self.first.setdefault(request.stored(), (request, answer))
        assert answer == first, f"M3: a replay of {request} gives the first answer"
        if request.keyed:
            assert self.records.keys[request.id].body == answer, f"M8: {request} was answered and is kept"
        elif request.kind == "settle":
            self._check_settlement(request, answer)
        else:
            self._check_slice(request, answer)

    def _check_slice(self, request: Request, answer: Slice) -> None:
        stream = self.records.streams.get(request.id)
        assert stream is not None, f"M8: {request} was answered and is lost"
        if request.kind == "extend":
            kept = self.records.slices.get((request.id, request.arguments["step"]))
            assert kept is not None, f"M8: {request} was answered and is lost"
            found = (kept.reserved, kept.output_tokens, kept.expires_at, bool(kept.final))
            assert kept.asked == request.arguments["output_tokens"]
        else:
            first = (stream.first_reserved, stream.first_output_tokens, stream.first_expires_at)
            found = (*first, bool(stream.first_final))
            assert stream.first_expires_at == stream.created_at + self._reservation_seconds * SECOND
            assert stream.user_id == request.arguments["user_id"]
        assert found == (answer.reserved, answer.output_tokens, answer.expires_at, answer.final), f"M8: {request}"
        price = self.records.prices[stream.price_version]
        paid = ceiling(price, input_tokens=stream.input_tokens, output_tokens=answer.output_tokens)
        assert answer.reserved == paid, "M7: what may be generated is what is reserved, to the microcredit"
        assert answer.output_tokens <= stream.output_tokens_max

    def _check_settlement(self, request: Request, answer: Settlement) -> None:
        stream = self.records.streams.get(request.id)
        assert stream is not None and stream.usage_source is not None, f"M8: {request} was answered and is lost"
        assert reported(stream) == request.arguments["usage"], "the usage that was answered is the one that is kept"
        assert settlement(stream) == answer, f"M8: {request} was answered otherwise than it is kept"

    def _check_void(self, request: Request, answer: Settlement | None) -> None:
        if answer is None:
            assert request.id not in self.before.streams, "M8: a reservation that was known is known no more"
            return
        known = [each.streams[request.id] for each in (self.before, self.records) if request.id in each.streams]
        told = [settlement(stream) for stream in known]
        assert answer in told, "M3: who comes too late to void is told how it ended"

    # ── Refusals ──

    def _check_refusal(self, request: Request, refusal: ParshallError) -> None:
        """Every refusal is one that the records justify."""
        stream = self.records.streams.get(request.id)
        match refusal:
            case InsufficientCredits():
                self._check_shortage(request, refusal)
            case ReservationEnded():
                allowed = ("voided",) if request.kind == "settle" else FINAL
                assert stream is not None and stream.state in allowed, f"{request} was refused though it runs"
            case KeyReused() if request.kind == "settle":
                assert stream is not None and reported(stream) != request.arguments["usage"], "M3: a replay was refused"
            case KeyReused() if request.kind == "extend":
                kept = self.records.slices.get((request.id, request.arguments["step"]))
                assert kept is not None and kept.asked != request.arguments["output_tokens"], "M3: a replay was refused"
            case BelowZero():
                assert request.kind in ("set", "adjust", "remove")
            case PriceConflict():
                assert request.kind == "price"
            case Invalid(code=Invalid.code):
                late = request.arguments.get("expires_at", self.at + 1) <= self.at
                assert late, f"{request} was refused for no reason: {refusal.detail}"
            case StepOutOfOrder():
                assert request.kind == "extend" and request.arguments["step"] > 1, f"M8: {request} lost its forerunner"
            case _:
                raise AssertionError(f"{request} was refused for no reason: {refusal.code}, {refusal.detail}")

    def _check_shortage(self, request: Request, refusal: InsufficientCredits) -> None:
        """402 only where it is short, with a balance that there was at some moment of this step."""
        required, available = (micro(refusal.extra[name]) for name in ("requiredCredits", "availableCredits"))
        assert required > available, f"{request} was covered"
        shown = {0, *(row.available for row in self.before.books.accounts.values())}
        shown |= {row.available_after for row in self.new_transfers()}
        stream = self.records.streams.get(request.id)
        if stream is not None and stream.member_id:  # what the limit leaves, at some moment of this step
            shown.update(range(max(member.limit_total for member in self.records.members.values()) + 1))
        assert available in shown, f"{request} was refused for a balance that never was"


def micro(amount: float) -> int:
    return round(amount * MICRO)


def reported(stream: Any) -> dict[str, int] | None:
    if stream.usage_source is None:
        return None
    names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
    return {name: getattr(stream, f"used_{name}") for name in names}


def settlement(stream: Any) -> Settlement | None:
    """How an ended reservation ended, put together from its row."""
    if stream.state == "active":
        return None
    return Settlement(
        outcome=stream.outcome,
        reserved=stream.reserved,
        charged=stream.charged,
        returned=stream.reserved - stream.charged,
        uncollected=stream.uncollected or 0,
        balance_after=stream.balance_after,
        price_version=stream.price_version,
        transfers=tuple(range(stream.transfers_from, stream.transfers_to)),
    )
