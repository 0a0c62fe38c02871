"""The examination of a Parshall deployment, step by step."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from parshall.doctor import cors, headers, http2, pace, resume, transport
from parshall.doctor.deployment import STREAM_TYPES, Deployment, amount, document, refusal
from parshall.doctor.front import intermediaries
from parshall.doctor.model import CannotRun, Check, Finding, Plan, Status, fault, unchecked
from parshall.doctor.wire import READ_SECONDS_MAX, Answer, Target, connect
from parshall.kernel.headers import LAST_EVENT_ID_HEADER, STREAM_ID_HEADER
from parshall.kernel.ids import new_stream_id
from parshall.kernel.sse import Event

ANSWER_TOKENS_MAX = 64
SHORT_ANSWER_TOKENS_MAX = 4
COMPRESSIONS = "gzip, deflate, br"
_OF_ORIGIN = (Check.PREFLIGHT, Check.CORS, Check.CORS_CREDENTIALS, Check.CORS_EXPOSE, Check.CORS_VARY)
_OF_STREAMS_END = (Check.LAST_EVENT_ID, Check.RESUME, Check.CHARGED_ONCE, Check.UPDATE_RIGHT, Check.UPDATE_WRONG)

Findings = list[Finding]


@dataclass(kw_only=True)
class Taken:
    """The stream that everything else is asked about."""

    session_id: str
    proposed: str
    body: dict[str, Any]
    answer: Answer
    events: list[Event]
    before: Decimal
    after: Decimal
    state: dict[str, Any]

    @property
    def id(self) -> str:
        """The id under which the server knows it."""
        return headers.told_id(self.events) or self.proposed

    @property
    def text(self) -> str:
        """The answer that the chunks spell."""
        chunks = (_object(event.data) for event in self.events if event.event == "chunk")
        return "".join(str(chunk.get("text", "")) for chunk in chunks)

    @property
    def middle(self) -> str:
        """The id of an event in its midst."""
        return self.events[len(self.events) // 2].id

    @property
    def near_end(self) -> str:
        """The id of the last event but one: what is resumed after it is short."""
        return (self.events[-2].id if len(self.events) > 1 else "") or "0"

    @property
    def server_seconds(self) -> float | None:
        """What the server itself took, from the stream's record to its end; None where it does not say."""
        try:
            began, ended = (datetime.fromisoformat(self.state[name]) for name in ("createdAt", "endedAt"))
        except (KeyError, TypeError, ValueError):
            return None
        return (ended - began).total_seconds()

    @property
    def path(self) -> str:
        """Where it is resumed."""
        return f"/api/chat/streams/{self.id}"


async def examine(plan: Plan, target: Target, progress: Callable[[str], None]) -> tuple[Answer, Findings]:
    """The stream's answer and every finding. Raises CannotRun without a login or a stream."""
    examination = _Examination(plan, Deployment(target, token=plan.token), progress)
    return await examination.run()


class _Examination:
    def __init__(self, plan: Plan, deployment: Deployment, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._deployment = deployment
        self._progress = progress
        self._findings: Findings = []

    async def run(self) -> tuple[Answer, Findings]:
        findings, plan = self._findings, self._plan
        findings.append(await tls(self._deployment.target))
        findings.append(await self._log_in())
        silence = asyncio.create_task(self._silence())
        try:
            self._progress("a stream")
            taken = await self._take()
            findings += self._judge(taken)
            await self._step("resuming", _OF_STREAMS_END, self._after(taken))
            await self._step("compression", (Check.COMPRESSION,), self._compression(taken))
            await self._step("caches", (Check.NOT_CACHED,), self._caches(taken))
            await self._step("HTTP/2", (Check.HTTP2,), self._http2(taken))
            for origin in plan.origins:
                await self._step(origin, _OF_ORIGIN, self._origin(taken, origin), origin)
            await self._step("a foreign origin", (Check.CORS_FOREIGN,), self._foreign(taken))
            self._progress("silence")
            findings.append(await silence)
        finally:
            silence.cancel()
            await asyncio.gather(silence, return_exceptions=True)
        with contextlib.suppress(CannotRun):
            await self._deployment.send("DELETE", f"/api/chat/sessions/{taken.session_id}")
        return taken.answer, findings

    async def _step(
        self,
        words: str,
        checks: Sequence[Check],
        work: Coroutine[Any, Any, Findings],
        origin: str | None = None,
    ) -> None:
        """One step; where it cannot be done, the others still are."""
        self._progress(words)
        try:
            self._findings += await work
        except CannotRun as error:
            self._findings += [unchecked(check, str(error), origin) for check in checks]

    # ── Login and a stream ──────────────────────────────────────────────────────────────────────────────────────────

    async def _log_in(self) -> Finding:
        self._progress("logging in")
        plan, deployment = self._plan, self._deployment
        if plan.token is not None:
            answer = await deployment.send("GET", "/api/version")
        else:
            answer = await deployment.login(plan.username or "", plan.password or "")
        return transport.of_clock(answer, token=deployment.token, now=time.time())

    async def _take(self) -> Taken:
        """Ask for a stream and read it to its end. Raises CannotRun where it is refused."""
        deployment, plan = self._deployment, self._plan
        before, session_id = await deployment.credits(), await deployment.session()
        proposed = new_stream_id(at=time.time_ns() // 1000)
        body: dict[str, Any] = {"message": plan.message, "maxTokens": ANSWER_TOKENS_MAX}
        if plan.model_id is not None:
            body["modelId"] = plan.model_id
        answer = await self._stream(session_id, proposed, body)
        if answer.status != 200:
            raise CannotRun(refusal(answer, "asking for a stream"))
        taken = Taken(
            session_id=session_id,
            proposed=proposed,
            body=body,
            answer=answer,
            events=answer.events(),
            before=before,
            after=before,
            state={},
        )
        await self._complete(taken)
        return taken

    async def _complete(self, taken: Taken) -> None:
        """What the server says of the stream, once it has ended; a stream that was cut may still run."""
        deployment = self._deployment
        taken.state = document(await deployment.send("GET", taken.path))
        if taken.state.get("endedAt") is None:
            await deployment.send("POST", f"{taken.path}/stop")
            taken.state = document(await deployment.send("GET", taken.path))
        taken.after = await deployment.credits()

    async def _stream(
        self, session_id: str, stream_id: str, body: dict[str, Any], *, encoding: str = "identity"
    ) -> Answer:
        return await self._deployment.send(
            "POST",
            f"/api/chat/sessions/{session_id}/stream",
            body,
            headers=[(STREAM_ID_HEADER, stream_id)],
            accept=STREAM_TYPES,
            encoding=encoding,
        )

    def _judge(self, taken: Taken) -> Findings:
        answer = taken.answer
        fronts = intermediaries(answer.headers)
        return [
            transport.of_version(answer),
            transport.of_connection(answer),
            *headers.of_id(answer, taken.events, proposed=taken.proposed, fronts=fronts),
            headers.of_type(answer),
            headers.of_cache_control(answer),
            pace.of_buffering(answer, server_seconds=taken.server_seconds),
            pace.of_end(answer),
        ]

    # ── After the stream ────────────────────────────────────────────────────────────────────────────────────────────

    async def _resumed(self, taken: Taken, after: str, *, by_header: bool, **how: Any) -> Answer:
        position = [(LAST_EVENT_ID_HEADER, after)] if by_header else []
        path = taken.path if by_header else f"{taken.path}?after={after}"
        more = [*position, *how.pop("headers", ())]
        return await self._deployment.send("GET", path, headers=more, accept=STREAM_TYPES, **how)

    async def _after(self, taken: Taken) -> Findings:
        if not taken.events or not all(event.id for event in taken.events):
            raise CannotRun("the stream gave no events with ids")
        by_header = (await self._resumed(taken, taken.middle, by_header=True)).events()
        by_query = (await self._resumed(taken, taken.middle, by_header=False)).events()
        offset = resume.of_offset(by_header, by_query, after=taken.middle)
        resumed = resume.of_resume(taken.events, by_query, after=taken.middle)
        if resumed.status is Status.OK and not await self._repeats(taken):
            resumed = fault(Check.RESUME, "the same request with the same id gave another stream")
        later = await self._deployment.credits()
        return [offset, resumed, self._charge(taken, later), *await self._updates(taken)]

    async def _repeats(self, taken: Taken) -> bool:
        """Whether the same request attaches to the same stream; not asked where ids get lost on the way there."""
        if taken.id != taken.proposed:
            return True
        return (await self._stream(taken.session_id, taken.id, taken.body)).events() == taken.events

    def _charge(self, taken: Taken, later: Decimal) -> Finding:
        found = taken.state.get("receipt")
        receipt = found if isinstance(found, dict) else {}
        return resume.of_charge(
            resume.Money(
                before=taken.before,
                after=taken.after,
                later=later,
                charged=amount(receipt.get("chargedCredits")) if receipt else None,
                is_settled=receipt.get("settlement") == "settled",
            )
        )

    async def _updates(self, taken: Taken) -> Findings:
        path = f"/api/chat/sessions/{taken.session_id}/update-stream"
        body = {"completeResponse": taken.text, "streamingSessionId": taken.id, "tokensUsed": 0}
        right = await self._deployment.send("POST", path, body)
        nobodys = f"stream-{int(time.time())}-{secrets.token_hex(8)}"
        wrong = await self._deployment.send("POST", path, body | {"streamingSessionId": nobodys})
        return [
            resume.of_right_update(right, document(right)),
            resume.of_wrong_update(wrong, document(wrong)),
        ]

    async def _compression(self, taken: Taken) -> Findings:
        body = taken.body | {"maxTokens": SHORT_ANSWER_TOKENS_MAX}
        offered = await self._stream(
            taken.session_id, new_stream_id(at=time.time_ns() // 1000), body, encoding=COMPRESSIONS
        )
        if offered.status != 200:
            raise CannotRun(refusal(offered, "asking for a second stream"))
        return [headers.of_compression(taken.answer, offered)]

    async def _caches(self, taken: Taken) -> Findings:
        first, second = [
            await self._resumed(taken, taken.near_end, by_header=True, may_be_cached=True) for _ in range(2)
        ]
        return [resume.of_caching(first, second)]

    async def _http2(self, taken: Taken) -> Findings:
        if not self._deployment.target.is_tls:
            return [transport.of_http2(None, with_id=True)]
        request = self._deployment.request("GET", taken.path, accept=STREAM_TYPES)
        return [transport.of_http2(await http2.ask(self._deployment.target, request), with_id=True)]

    # ── Other origins ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _origin(self, taken: Taken, origin: str) -> Findings:
        asking = [
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", ",".join(cors.ASKED)),
        ]
        path = f"/api/chat/sessions/{taken.session_id}/stream"
        own = [("Origin", origin)]
        preflight = await self._deployment.send("OPTIONS", path, headers=[*own, *asking], authorization=False)
        bare = await self._resumed(taken, taken.near_end, by_header=True, headers=own)
        cookie = ("Cookie", f"accessToken={self._deployment.token}")
        kept = await self._resumed(taken, taken.near_end, by_header=True, headers=[*own, cookie], authorization=False)
        return [
            cors.of_preflight(preflight, origin=origin, method="POST"),
            *(cors.of_cookie(finding, kept, origin=origin) for finding in cors.of_origin(bare, origin=origin)),
        ]

    async def _foreign(self, taken: Taken) -> Findings:
        origin = [("Origin", cors.FOREIGN_ORIGIN)]
        return [cors.of_foreign(await self._deployment.send("GET", taken.path, headers=origin, accept=STREAM_TYPES))]

    # ── Silence ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _silence(self) -> Finding:
        """Beside everything else, since it takes longest."""
        seconds = self._plan.silence_seconds
        if seconds is None:
            return unchecked(Check.IDLE, "left out (--quick)")
        path = f"/api/chat/streams/silence?seconds={seconds:g}"
        try:
            answer = await self._deployment.send(
                "GET", path, accept=STREAM_TYPES, read_seconds_max=max(seconds + 10, READ_SECONDS_MAX)
            )
        except CannotRun as error:
            return unchecked(Check.IDLE, str(error))
        return pace.of_silence(answer, seconds=seconds)


async def tls(target: Target) -> Finding:
    """The verdict on TLS. Raises CannotRun without a connection."""
    _, writer = await connect(target, "http/1.1")
    try:
        return transport.of_tls(writer.get_extra_info("ssl_object"))
    finally:
        writer.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(writer.wait_closed(), 1)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
