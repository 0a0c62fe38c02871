"""The examination of any service that sends Server-Sent Events: what does not need to know its rules."""

import time
from collections.abc import Callable
from itertools import pairwise

from parshall.doctor import cors, headers, http2, pace, resume, transport
from parshall.doctor.model import CannotRun, Check, Finding, Plan, fault, ok, unchecked, warning
from parshall.doctor.ours import COMPRESSIONS, tls
from parshall.doctor.wire import Answer, Pairs, Request, Target, ask
from parshall.kernel.headers import LAST_EVENT_ID_HEADER

BODY_SHOWN_MAX = 200


async def examine(plan: Plan, target: Target, progress: Callable[[str], None]) -> tuple[Answer, list[Finding]]:
    """The stream's answer and every finding. Raises CannotRun where the service gives no success."""
    findings = [await tls(target)]
    progress("a stream")
    answer = await ask(target, _request(plan))
    if answer.status != 200:
        shown = answer.body[:BODY_SHOWN_MAX].decode("utf-8", "replace")
        raise CannotRun(f"{plan.path} is answered with status {answer.status}: {shown}")
    progress("compression")
    offered = await ask(target, _request(plan, encoding=COMPRESSIONS))
    findings += [
        transport.of_clock(answer, token=None, now=time.time()),
        transport.of_version(answer),
        transport.of_connection(answer),
        headers.of_type(answer),
        headers.of_cache_control(answer),
        headers.of_compression(answer, offered),
        resume.of_caching(answer, offered),
        pace.of_unknown_pace(answer),
        _end(answer),
        _silence(answer),
    ]
    progress("resuming")
    findings.append(await _offset(plan, target, answer))
    progress("HTTP/2")
    frames = await http2.ask(target, _request(plan)) if target.is_tls else None
    findings.append(transport.of_http2(frames, with_id=False))
    for origin in plan.origins:
        progress(origin)
        findings += await _origin(plan, target, origin)
    if plan.origins:
        foreign = await ask(target, _request(plan, more=[("Origin", cors.FOREIGN_ORIGIN)]))
        findings.append(cors.of_foreign(foreign))
    return answer, findings


def _request(plan: Plan, *, encoding: str = "identity", more: Pairs = ()) -> Request:
    own = [("Accept", "text/event-stream"), ("Accept-Encoding", encoding)]
    if plan.body is not None:
        own.append(("Content-Type", "application/json"))
    given = {name.lower() for name, _ in plan.headers}
    kept = [(name, value) for name, value in own if name.lower() not in given]
    body = None if plan.body is None else plan.body.encode()
    return Request(method=_method(plan), path=plan.path, headers=[*kept, *plan.headers, *more], body=body)


def _method(plan: Plan) -> str:
    return "GET" if plan.body is None else "POST"


def _end(answer: Answer) -> Finding:
    events = answer.events()
    if answer.cut is not None:
        return fault(Check.COMPLETE, f"cut after {answer.seconds:.1f} s and {len(events)} events: {answer.cut}")
    if not events:
        return fault(Check.COMPLETE, f"{len(answer.body)} bytes and no event among them")
    return ok(Check.COMPLETE, f"{len(events)} events, and the connection ended in order")


def _silence(answer: Answer) -> Finding:
    times = [0.0, *(seconds for seconds, _ in answer.pieces)]
    longest = max((later - sooner for sooner, later in pairwise(times)), default=0.0)
    return unchecked(
        Check.IDLE, f"only the service could fall silent on purpose; the longest silence was {longest:.1f} s"
    )


async def _offset(plan: Plan, target: Target, answer: Answer) -> Finding:
    """A service that gives its events ids should go on after one of them."""
    events = answer.events()
    if len(events) < 2 or not all(event.id for event in events):
        return unchecked(Check.LAST_EVENT_ID, "the events have no ids, so that a client cannot resume")
    middle = events[len(events) // 2]
    again = (await ask(target, _request(plan, more=[(LAST_EVENT_ID_HEADER, middle.id)]))).events()
    if again and again[0].id == events[0].id:
        return warning(
            Check.LAST_EVENT_ID,
            f"sent with Last-Event-ID: {middle.id} the stream begins with {again[0].id} again: the header does not "
            "arrive, or the service takes no notice of it",
        )
    return ok(Check.LAST_EVENT_ID, f"after {middle.id} the stream goes on with {again[0].id if again else 'nothing'}")


async def _origin(plan: Plan, target: Target, origin: str) -> list[Finding]:
    asked = tuple(name.lower() for name, _ in plan.headers) + (("content-type",) if plan.body is not None else ())
    asking = [("Access-Control-Request-Method", _method(plan)), ("Origin", origin)]
    if asked:
        asking.append(("Access-Control-Request-Headers", ",".join(asked)))
    preflight = await ask(target, Request(method="OPTIONS", path=plan.path, headers=asking))
    answer = await ask(target, _request(plan, more=[("Origin", origin)]))
    return [
        cors.of_preflight(preflight, origin=origin, method=_method(plan), asked=asked),
        *cors.of_origin(answer, origin=origin, exposed=None),
    ]
