"""Every announcement reaches a real receiver at least once, whatever that does; on both engines."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Callable

import pytest
from tests.announcing import ANN, BRIEF_SECONDS, LOW, PATIENT_SECONDS, SECRET, Deployment, deployment, only
from tests.postgres import Engine
from tests.receiver import CUT, FLOOD, HANG, Receiver, Sent, Step, receiving, verified

from parshall.accounting import delivery, webhook
from parshall.accounting.delivery import ATTEMPTS_MIN, BACKOFF_SECONDS, POLL_SECONDS, ROUND_MAX
from parshall.accounting.outbox import LEASE_SECONDS, Delivery
from parshall.kernel.clock import DAY, SECOND

BAD: list[Step] = [500, 503, 404, 301, HANG, CUT, (429, {"Retry-After": "7"}), (302, {"Location": "/elsewhere"})]


@pytest.fixture
async def made(engine: Engine) -> AsyncIterator[Deployment]:
    async with deployment(engine) as made:
        await made.grant(1_000_000)
        yield made


async def test_an_event_arrives_signed_and_is_gone_from_the_outbox(made: Deployment) -> None:
    with receiving() as receiver:
        (stream,) = await made.streams(1)
        await made.deliverer(receiver.url).round()
        sent = only(receiver.sent)
    assert await made.waiting() == []
    assert verified(sent, SECRET)
    assert sent.headers["content-type"] == "application/cloudevents+json"
    assert sent.headers["webhook-timestamp"] == str(made.at // SECOND)
    assert (sent.event["id"], sent.event["subject"], sent.event["specversion"]) == (sent.id, stream, "1.0")
    assert sent.event["data"]["chargedCredits"] == 0.00002


async def test_while_secrets_change_both_of_them_verify(made: Deployment) -> None:
    with receiving() as receiver:
        await made.streams(1)
        await made.deliverer(receiver.url, keys=(b"new", b"old")).round()
        sent = only(receiver.sent)
    assert verified(sent, b"new", place=0) and verified(sent, b"old", place=1)
    assert not verified(sent, b"old", place=0)


@pytest.mark.parametrize("step", BAD, ids=str)
async def test_whatever_a_receiver_does_the_event_comes_again_under_the_same_id_and_with_the_same_body(
    made: Deployment, step: Step
) -> None:
    with receiving(step, step) as receiver:
        await made.streams(1)
        seconds = BRIEF_SECONDS if step == HANG else PATIENT_SECONDS
        await made.drained(made.deliverer(receiver.url, seconds=seconds))
        sent = receiver.sent
    assert len(sent) >= 3 and len(receiver.accepted) >= 1
    assert len({(each.id, each.body) for each in sent}) == 1
    assert all(verified(each, SECRET) for each in sent)
    assert not [each for each in sent if b"redirect" in each.body]


async def test_no_event_is_lost_to_a_receiver_that_behaves_at_random(
    made: Deployment, record_property: Callable[[str, object], None]
) -> None:
    seed = random.randrange(10**6)
    record_property("seed", seed)
    chance = random.Random(seed)
    plan = [chance.choice([*BAD, 204, 204, 204, FLOOD]) for _ in range(40)]
    with receiving(*plan) as receiver:
        streams = await made.streams(12)
        await made.drained(made.deliverer(receiver.url, seconds=BRIEF_SECONDS), rounds=400)
        assert sorted({each.event["subject"] for each in receiver.accepted}) == sorted(streams), seed
        assert len({each.id for each in receiver.sent}) == 12, seed


async def test_an_endless_answer_is_not_read(made: Deployment) -> None:
    with receiving(FLOOD) as receiver:
        await made.streams(1)
        await made.deliverer(receiver.url).round()
    assert len(receiver.sent) == 1 and await made.waiting() == []


async def test_a_receiver_that_cannot_be_reached_gets_all_of_it_later(made: Deployment) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        deliverer = made.deliverer(f"http://127.0.0.1:{nobody.getsockname()[1]}/")
        streams = await made.streams(5)
        await deliverer.round()
    assert {(each.attempts, each.last_error) for each in await made.waiting()} == {
        (1, "no answer (ClientConnectorError)")
    }
    with receiving() as receiver:
        await made.drained(made.deliverer(receiver.url))
    assert sorted(each.event["subject"] for each in receiver.accepted) == streams


async def test_a_receiver_that_is_gone_is_asked_once_and_the_event_kept(made: Deployment) -> None:
    with receiving(410) as receiver:
        await made.streams(1)
        await made.drained(made.deliverer(receiver.url))
        assert len(receiver.sent) == 1
        kept = only(await made.waiting())
        assert (kept.due_at, kept.last_error) == (None, "HTTP 410")
        assert await made.accounting.outbox.retry(None) == 1
        await made.drained(made.deliverer(receiver.url))
        assert await made.waiting() == [] and receiver.sent[1].id == kept.id


async def test_what_fails_for_days_is_given_up_and_kept(made: Deployment) -> None:
    with receiving(then=500) as receiver:
        await made.streams(1)
        began = made.at
        await made.drained(made.deliverer(receiver.url), rounds=300)
        kept = only(await made.waiting())
    assert (kept.due_at, kept.attempts) == (None, len(receiver.sent))
    assert kept.attempts >= ATTEMPTS_MIN
    assert 3 * DAY < made.at - began < 4 * DAY


# ── Pauses ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_failed_event_is_due_again_after_its_backoff_or_when_the_receiver_wants_it(made: Deployment) -> None:
    with receiving(500, (503, {"Retry-After": "900"})) as receiver:
        await made.streams(1)
        deliverer = made.deliverer(receiver.url)
        await deliverer.round()
        due = only(await made.waiting()).due_at or 0
        assert 0.8 * BACKOFF_SECONDS <= (due - made.at) / SECOND <= 1.2 * BACKOFF_SECONDS
        made.at = due
        assert await deliverer.round() == 900, "the receiver is left alone for as long"
        assert (only(await made.waiting()).due_at or 0) - made.at == 900 * SECOND


async def test_a_receiver_that_takes_nothing_is_asked_ever_more_rarely_and_with_single_events(
    made: Deployment,
) -> None:
    with receiving(then=500) as receiver:
        await made.streams(ROUND_MAX + 8)
        deliverer = made.deliverer(receiver.url)
        pauses = [await deliverer.round() for _ in range(8)]
        assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
        assert len(receiver.sent) == ROUND_MAX + 7
        receiver.then = 204
        assert await deliverer.round() == 0, "one that takes something again gets the rest without delay"
        made.later(3600)
        assert await deliverer.round() == 0
        assert len(receiver.accepted) == 1 + ROUND_MAX


async def test_an_empty_outbox_is_looked_at_at_leisure(made: Deployment) -> None:
    with receiving() as receiver:
        deliverer = made.deliverer(receiver.url)
        assert await deliverer.round() == POLL_SECONDS
        await made.streams(1)
        assert await deliverer.round() == POLL_SECONDS
    assert len(receiver.sent) == 1


# ── Replicas, stops, crashes ────────────────────────────────────────────────────────────────────────────────────────


async def test_replicas_that_deliver_at_once_send_each_event_once(made: Deployment) -> None:
    with receiving() as receiver:
        streams = await made.streams(50)
        replicas = [made.deliverer(receiver.url, outbox=made.replica()) for _ in range(3)]

        async def work(deliverer: delivery.Deliverer) -> None:
            for _ in range(10):
                await deliverer.round()

        await asyncio.gather(*map(work, replicas))
    assert sorted(each.event["subject"] for each in receiver.sent) == sorted(streams)


async def test_a_crash_between_delivery_and_deletion_delivers_again_under_the_same_id(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    async def dead(_verdicts: object) -> None:
        raise Died

    with receiving() as receiver:
        await made.streams(1)
        mortal = made.replica()
        monkeypatch.setattr(mortal, "record", dead)
        with pytest.raises(Died):
            await made.deliverer(receiver.url, outbox=mortal).round()
        other = made.deliverer(receiver.url, outbox=made.replica())
        await other.round()
        assert len(receiver.sent) == 1, "its lease holds"
        made.later(LEASE_SECONDS)
        await other.round()
        first, second = receiver.sent
    assert (first.id, first.body) == (second.id, second.body)
    assert await made.waiting() == []


async def test_a_stop_in_mid_round_writes_down_what_was_delivered_and_hands_the_rest_back(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving(204, 204, HANG) as receiver:
        await made.streams(3)
        deliverer = made.deliverer(receiver.url)
        post, answered = made.hooks[0].post, asyncio.Semaphore(0)

        async def watched(each: Delivery) -> webhook.Answer:
            answer = await post(each)
            answered.release()
            return answer

        monkeypatch.setattr(made.hooks[0], "post", watched)
        running = asyncio.create_task(deliverer.run())
        for _ in range(2):
            await asyncio.wait_for(answered.acquire(), 20)
        await asyncio.to_thread(receiver.expect, 3, accepted=False)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        left = only(await made.waiting())
        assert left.due_at == made.at, "due at once for whoever starts next"
        await made.deliverer(receiver.url).round()
        assert [each.id for each in receiver.sent].count(left.id) == 2 and len(receiver.sent) == 4


async def test_a_round_that_fails_does_not_end_the_deliveries(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = made.replica()
    claim, failures = outbox.claim, [ConnectionError("database"), ConnectionError("database")]

    async def sometimes(limit: int) -> list[Delivery]:
        if failures:
            raise failures.pop()
        return await claim(limit)

    monkeypatch.setattr(outbox, "claim", sometimes)
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.01)
    with receiving() as receiver:
        await made.streams(1)
        running = asyncio.create_task(made.deliverer(receiver.url, outbox=outbox).run())
        await asyncio.to_thread(receiver.expect, 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert failures == []


async def test_an_event_that_cannot_be_sent_at_all_takes_no_other_with_it(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = await made.streams(2)
    whole = webhook.cloud_event

    def fragile(each: Delivery, *, source: str) -> bytes:
        if each.subject == bad:
            raise ValueError("broken")
        return whole(each, source=source)

    monkeypatch.setattr(webhook, "cloud_event", fragile)
    with receiving() as receiver:
        await made.deliverer(receiver.url).round()
        left = only(await made.waiting())
    assert only(receiver.accepted).event["subject"] == good
    assert (left.subject, left.last_error) == (bad, "not sent (ValueError)")
    assert (left.due_at or 0) > made.at


# ── The ledger beside it ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_receiver_that_hangs_holds_no_transaction_and_the_ledger_goes_on(made: Deployment) -> None:
    with receiving(then=HANG) as receiver:
        await made.streams(ROUND_MAX)
        round_ = asyncio.create_task(made.deliverer(receiver.url, seconds=2).round())
        await asyncio.to_thread(receiver.expect, ROUND_MAX, accepted=False)
        async with asyncio.timeout(20):
            await made.streams(10, first=ROUND_MAX + 1)
        await round_
    assert len(await made.waiting()) == ROUND_MAX + 10


async def test_all_three_topics_arrive_with_what_they_say(made: Deployment) -> None:
    soon = await made.grant(7, seconds=60)
    await made.accounting.outbox.announce_expiring()
    (stream,) = await made.streams(1)
    await made.accounting.deduct(ANN, (await made.accounting.balance(ANN)).available - LOW + 1)  # type: ignore[arg-type]
    with receiving() as receiver:
        await made.drained(made.deliverer(receiver.url))
    data = {each.event["type"]: each.event["data"] for each in receiver.accepted}
    assert sorted(data) == [
        "dev.parshall.balance.low",
        "dev.parshall.grant.expiring",
        "dev.parshall.stream.settled",
    ]
    assert data["dev.parshall.balance.low"]["availableCredits"] == 0.000099
    assert data["dev.parshall.grant.expiring"] == {
        "allocationId": soon,
        "accountId": ANN,
        "totalCredits": 0.000007,
        "remainingCredits": 0.000007,
        "expiresAt": "2027-01-15T08:01:00.000000Z",
    }
    assert data["dev.parshall.stream.settled"]["streamingSessionId"] == stream
    assert json.loads(receiver.accepted[0].body) == receiver.accepted[0].event


def test_a_receiver_of_the_tests_tells_a_wrong_signature() -> None:
    sent = Sent({"webhook-id": "e", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}, b"{}")
    assert not verified(sent, SECRET) and Receiver().types() == []
