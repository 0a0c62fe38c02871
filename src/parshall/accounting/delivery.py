"""Delivers what waits in the outbox: claims a few, posts them at once, and writes down what became of each."""

import asyncio
import random
from collections.abc import Collection

from parshall.accounting.outbox import Delivery, Outbox, Verdict
from parshall.accounting.webhook import Answer, Webhook
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.telemetry import log

ROUND_MAX = 16
"""Deliveries under way at once in one process."""
POLL_SECONDS = 1.0
PAUSE_SECONDS_MAX = 60.0
"""Between rounds while the receiver takes nothing."""
BACKOFF_SECONDS = 5
BACKOFF_SECONDS_MAX = 3600
RETRY_AFTER_SECONDS_MAX = 3600
JITTER = 0.2
"""Delays differ by up to so much, so that what failed together does not come back together."""
ATTEMPTS_MIN = 8
RETRY_DAYS = 3
"""Given up is what has been tried at least ATTEMPTS_MIN times and is older than RETRY_DAYS."""
GONE = 410

_logger = log("webhook")


class Deliverer:
    """Runs rounds until it is cancelled. Several replicas may: a claim keeps a delivery for one of them.

    It holds ROUND_MAX deliveries at most, and no transaction while the receiver is awaited. A receiver that takes
    nothing is asked with single deliveries and at growing intervals, so that a long outbox costs the ledger nothing.
    """

    def __init__(self, outbox: Outbox, webhook: Webhook) -> None:
        """From `outbox` to `webhook`."""
        self._outbox = outbox
        self._webhook = webhook
        self._failures = 0

    async def run(self) -> None:
        """Deliver for ever; a round that fails is logged and the next one tries again."""
        while True:
            try:
                pause = await self.round()
            except Exception:
                _logger.exception("delivery_failed")
                pause = POLL_SECONDS
            await asyncio.sleep(pause)

    async def round(self) -> float:
        """Deliver what is due, a few at most; how many seconds to wait before the next round."""
        room = 1 if self._failures else ROUND_MAX
        claimed = await self._outbox.claim(room)
        if not claimed:
            return POLL_SECONDS
        answers: dict[str, Answer] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for delivery in claimed:
                    group.create_task(self._post(delivery, answers))
        finally:  # of a round that is stopped, what was delivered is written down and the rest handed back
            await self._outbox.record([self._judged(each, answers.get(each.id)) for each in claimed])
        return self._pause(answers.values(), more=len(claimed) == room)

    async def _post(self, delivery: Delivery, answers: dict[str, Answer]) -> None:
        try:
            answers[delivery.id] = await self._webhook.post(delivery)
        except Exception as error:  # one that cannot even be tried must not stay due for ever
            _logger.exception("delivery_failed", id=delivery.id)
            answers[delivery.id] = Answer(status=None, problem=f"not sent ({type(error).__name__})")

    def _judged(self, delivery: Delivery, answer: Answer | None) -> Verdict:
        jitter = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        verdict = judge(delivery, answer, jitter=jitter)
        if not verdict.delivered and answer is not None:
            told = _logger.error if verdict.delay is None else _logger.warning
            event = "webhook_given_up" if verdict.delay is None else "webhook_failed"
            told(event, id=delivery.id, type=delivery.topic, attempts=delivery.attempts, problem=verdict.problem)
        return verdict

    def _pause(self, answers: Collection[Answer], *, more: bool) -> float:
        """None where there is more and the receiver takes it; growing ones while it does not; at least what it asks."""
        self._failures = 0 if any(each.accepted for each in answers) else self._failures + 1
        asked = min(max(each.retry_after_seconds for each in answers), RETRY_AFTER_SECONDS_MAX)
        if self._failures:
            return max(asked, min(2.0 ** min(self._failures, 10), PAUSE_SECONDS_MAX))
        return max(asked, 0 if more else POLL_SECONDS)


def judge(delivery: Delivery, answer: Answer | None, *, jitter: float) -> Verdict:
    """What an answer means for a delivery; without one the attempt was broken off, and it is due again at once."""
    if answer is None:
        return Verdict(delivery=delivery, problem="broken off by a stop", delay=0)
    if answer.accepted:
        return Verdict(delivery=delivery, delivered=True)
    if answer.status == GONE or _hopeless(delivery):
        return Verdict(delivery=delivery, problem=answer.problem)
    backoff = min(BACKOFF_SECONDS * 2 ** min(delivery.attempts - 1, 20), BACKOFF_SECONDS_MAX) * jitter
    seconds = max(backoff, min(answer.retry_after_seconds, RETRY_AFTER_SECONDS_MAX))
    return Verdict(delivery=delivery, problem=answer.problem, delay=round(seconds * SECOND))


def _hopeless(delivery: Delivery) -> bool:
    """Both: an old one may have waited for a server that was off, and many attempts may lie within one bad hour."""
    assert delivery.due_at is not None, "it is claimed"
    return delivery.attempts >= ATTEMPTS_MIN and delivery.due_at - delivery.at > RETRY_DAYS * DAY
