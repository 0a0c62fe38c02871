"""Verdicts on time: whether events arrive when the server sends them, to the end, and through silence."""

from parshall.doctor.model import Check, Finding, fault, ok, unchecked, warning
from parshall.doctor.wire import Answer
from parshall.kernel.sse import PING

PACE_SECONDS_MIN = 0.4
"""A server that was faster leaves nothing to measure."""
SPREAD_MIN = 0.5
"""Part of the server's time that the arrivals must span; what is held back arrives at once."""
EVENTS_A_PIECE_MAX = 4
PING_SECONDS = 15.0
TERMINAL = ("done", "error")
LAST = "silence-end"


def of_buffering(answer: Answer, *, server_seconds: float | None) -> Finding:
    """Arrivals against the server's own pace: the seconds from the stream's record to its end."""
    timed = answer.timed()
    if server_seconds is None or len(timed) < 3:
        return unchecked(Check.BUFFERING, f"{len(timed)} events, and the server's own times are not known")
    spread = timed[-1][0] - timed[0][0]
    pieces = len({seconds for seconds, _ in timed})
    seen = (
        f"the server took {server_seconds:.2f} s; its {len(timed)} events arrived in {pieces} pieces within "
        f"{spread:.2f} s, the first {timed[0][0]:.2f} s after the request"
    )
    if server_seconds < PACE_SECONDS_MIN:
        return unchecked(Check.BUFFERING, f"{seen}: too fast to measure; give a --message that takes longer to answer")
    if spread < server_seconds * SPREAD_MIN:
        return fault(Check.BUFFERING, f"{seen}: they were held back")
    if pieces * EVENTS_A_PIECE_MAX < len(timed):
        return warning(Check.BUFFERING, f"{seen}: several at a time, held back in part or made so by the model")
    return ok(Check.BUFFERING, seen)


def of_unknown_pace(answer: Answer) -> Finding:
    """Arrivals where nobody tells the server's pace: only the gross case can be seen."""
    timed = answer.timed()
    if len(timed) < 3 or answer.seconds < PACE_SECONDS_MIN:
        return unchecked(
            Check.BUFFERING, f"{len(timed)} events in {answer.seconds:.2f} s: too few or too fast to measure"
        )
    spread = timed[-1][0] - timed[0][0]
    seen = f"{len(timed)} events within {spread:.2f} s of the {answer.seconds:.2f} s that the request took"
    if spread < answer.seconds * 0.1:
        return warning(Check.BUFFERING, f"{seen}: held back, or the service took its time before it sent anything")
    return ok(Check.BUFFERING, seen)


def of_end(answer: Answer) -> Finding:
    """Whether the stream came whole."""
    events = answer.events()
    last = events[-1].event if events else "nothing"
    if answer.cut is not None:
        return fault(
            Check.COMPLETE, f"cut after {answer.seconds:.1f} s, {len(events)} events and {last!r}: {answer.cut}"
        )
    if last not in TERMINAL:
        return fault(Check.COMPLETE, f"the connection ended in order after {last!r}, without a terminal event")
    return ok(Check.COMPLETE, f"{len(events)} events, the last of them {last!r}")


def of_silence(answer: Answer, *, seconds: float) -> Finding:
    """Whether a connection outlives so many seconds without an event."""
    pings = answer.body.count(PING.strip())
    if answer.status in (400, 404, 405):
        return unchecked(Check.IDLE, f"the server has no silence to offer (status {answer.status}); it is too old")
    if answer.status != 200:
        return unchecked(Check.IDLE, f"the silence was refused with status {answer.status}")
    if not any(event.event == LAST for event in answer.events()):
        why = answer.cut or "ended as if it were whole"
        return fault(Check.IDLE, f"cut after {answer.seconds:.1f} s of {seconds:.0f} s, {pings} pings seen: {why}")
    if seconds > PING_SECONDS and not pings:
        return warning(Check.IDLE, f"{seconds:.0f} s of silence survived, but no ping arrived")
    return ok(Check.IDLE, f"{seconds:.0f} s of silence survived, {pings} pings seen")
