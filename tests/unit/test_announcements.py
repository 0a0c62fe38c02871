"""Laws of what is announced, how it is signed, and what an answer of the receiver means; without I/O."""

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.accounting.announcements import Policy, Topic
from parshall.accounting.books import Books, HeldAccount
from parshall.accounting.delivery import (
    ATTEMPTS_MIN,
    BACKOFF_SECONDS,
    BACKOFF_SECONDS_MAX,
    JITTER,
    RETRY_AFTER_SECONDS_MAX,
    RETRY_DAYS,
    judge,
)
from parshall.accounting.outbox import Delivery
from parshall.accounting.signing import read_secrets, signatures
from parshall.accounting.webhook import Answer, cloud_event, retry_after_seconds, source_of
from parshall.app.config import Settings, WebhookEvent, load
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.errors import StartupError

AT = 1_800_000_000 * SECOND
REFUSED = Answer(status=500, problem="HTTP 500")
HOOK = {"webhook_url": "https://example.org/hook", "webhook_secret": "a secret"}


def delivery(*, attempts: int = 1, age: int = 0) -> Delivery:
    return Delivery("e1", "stream.settled", "stream-1", AT, '{"a":1}', attempts, AT + age, "")


# ── Crossings ───────────────────────────────────────────────────────────────────────────────────────────────────────


def announced(*changes: tuple[int, int], threshold: int, topics: frozenset[Topic] = frozenset(Topic)) -> list[str]:
    """Accounts announced by a batch that took each from its first balance to its second."""
    books = Books(cast(Any, None), at=AT, versions=cast(Any, None))
    for number, (before, after) in enumerate(changes):
        account = HeldAccount(id=str(number), before=before, available=after)
        books.accounts[account.id] = account
        if before != after:
            books.changed_accounts[account.id] = account
    policy = Policy(topics=topics, low_balance=threshold, notice=DAY)
    return [each.subject for each in policy.of(books)]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_a_balance_is_announced_by_the_batch_that_takes_it_over_the_threshold_and_no_other(
    before: int, after: int, threshold: int
) -> None:
    crossed = before >= threshold and after < threshold
    assert announced((before, after), threshold=threshold) == (["0"] if crossed else [])


def test_each_account_of_a_batch_is_announced_for_itself() -> None:
    assert announced((10, 9), (10, 10), (9, 8), (30, 0), (0, 30), threshold=10) == ["0", "3"]


def test_without_a_threshold_no_balance_is_low() -> None:
    assert announced((10, 0), threshold=0) == []


def test_what_is_not_asked_for_is_not_announced() -> None:
    assert announced((10, 0), threshold=5, topics=frozenset({Topic.STREAM_SETTLED})) == []


# ── Bodies and signatures ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_is_a_cloud_event_in_structured_mode_and_the_same_bytes_each_time() -> None:
    body = cloud_event(delivery(), source="parshall/accounting")
    assert json.loads(body) == {
        "specversion": "1.0",
        "id": "e1",
        "source": "parshall/accounting",
        "type": "dev.parshall.stream.settled",
        "subject": "stream-1",
        "time": "2027-01-15T08:00:00.000000Z",
        "datacontenttype": "application/json",
        "data": {"a": 1},
    }
    assert cloud_event(delivery(attempts=7, age=99), source="parshall/accounting") == body


@pytest.mark.parametrize(
    ("issuer", "source"),
    [
        ("parshall", "parshall/accounting"),
        ("https://chat.example.org/", "https://chat.example.org/accounting"),
        ("our team", "our%20team/accounting"),
    ],
)
def test_the_source_is_a_uri_reference_below_the_issuer(issuer: str, source: str) -> None:
    assert source_of(issuer) == source


def test_a_signature_is_that_of_the_example_of_standard_webhooks() -> None:
    (key,) = read_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    signed = signatures((key,), id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, body=body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.text(st.characters(exclude_characters=",", codec="utf-8"), min_size=1), st.binary())
def test_any_text_is_a_secret(text: str, body: bytes) -> None:
    if not text.strip() or text.strip().startswith("whsec_"):
        return
    (key,) = read_secrets(text)
    digest = hmac.new(text.strip().encode(), b"e1.5." + body, hashlib.sha256).digest()
    assert signatures((key,), id="e1", timestamp=5, body=body) == f"v1,{base64.b64encode(digest).decode()}"


def test_of_two_secrets_each_signs() -> None:
    keys = read_secrets("new, old")
    both = signatures(keys, id="e1", timestamp=5, body=b"{}")
    assert both.split(" ") == [signatures((key,), id="e1", timestamp=5, body=b"{}") for key in (b"new", b"old")]


@pytest.mark.parametrize("text", ["", " ", "a,", "a,b,c", "whsec_", "whsec_!!!!", "whsec_MfKQ9", "whsec_ümläut"])
def test_a_secret_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        read_secrets(text)


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_status_of_success_is_a_delivery(status: int) -> None:
    assert judge(delivery(), Answer(status=status), jitter=1).delivered


@pytest.mark.parametrize("status", [None, 100, 301, 307, 400, 401, 404, 408, 429, 500, 503])
def test_anything_else_is_tried_again(status: int | None) -> None:
    verdict = judge(delivery(), Answer(status=status, problem="why"), jitter=1)
    assert (verdict.delivered, verdict.problem, verdict.delay) == (False, "why", BACKOFF_SECONDS * SECOND)


def test_a_receiver_that_is_gone_is_not_asked_again() -> None:
    verdict = judge(delivery(), Answer(status=410), jitter=1)
    assert not verdict.delivered and verdict.delay is None


@given(st.integers(1, 10_000), st.floats(1 - JITTER, 1 + JITTER))
def test_delays_double_up_to_a_limit(attempts: int, jitter: float) -> None:
    verdict = judge(delivery(attempts=attempts), REFUSED, jitter=jitter)
    assert verdict.delay is not None
    expected = min(BACKOFF_SECONDS * 2 ** (attempts - 1), BACKOFF_SECONDS_MAX)
    assert verdict.delay == round(expected * jitter * SECOND)


@given(st.integers(0, 10**9))
def test_a_receiver_is_left_alone_as_long_as_it_asks_within_limits(seconds: int) -> None:
    verdict = judge(delivery(), replace(REFUSED, status=429, retry_after_seconds=seconds), jitter=1)
    assert verdict.delay == max(BACKOFF_SECONDS, min(seconds, RETRY_AFTER_SECONDS_MAX)) * SECOND


@pytest.mark.parametrize(
    ("attempts", "age", "given_up"),
    [
        (ATTEMPTS_MIN, RETRY_DAYS * DAY + 1, True),
        (ATTEMPTS_MIN - 1, 100 * DAY, False),
        (10_000, RETRY_DAYS * DAY, False),
    ],
)
def test_only_what_is_old_and_was_tried_often_is_given_up(attempts: int, age: int, given_up: bool) -> None:
    assert (judge(delivery(attempts=attempts, age=age), REFUSED, jitter=1).delay is None) == given_up


def test_an_attempt_that_was_broken_off_is_due_again_at_once() -> None:
    verdict = judge(delivery(attempts=10_000, age=100 * DAY), None, jitter=1)
    assert (verdict.delivered, verdict.delay) == (False, 0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0),
        ("0", 0),
        ("120", 120),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("9" * 5000, 999_999_999),
        ("٣", 0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("Fri, 15 Jan 2027 07:01:00 GMT", 0),
        ("Fri, 99 Jan 2027 07:01:00 GMT", 0),
    ],
)
def test_a_wish_to_be_asked_later_is_read_as_seconds_or_as_a_date(value: str, seconds: int) -> None:
    assert retry_after_seconds(value, at=AT) == seconds


# ── Configuration ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_events_of_the_configuration_are_the_topics() -> None:
    assert set(get_args(WebhookEvent)) == set(Settings.model_fields["webhook_events"].default) == set(Topic)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/hook?token=x",
        "https://1password.example:8443/",
        "http://localhost/hook",
        "http://127.3.2.1:80/",
        "http://[::1]:9000/hook",
    ],
)
def test_a_webhook_is_reached_over_tls_or_on_this_machine(url: str) -> None:
    assert load(**HOOK | {"webhook_url": url}).webhook_url == url


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.org/hook", "http://10.0.0.1/", "http://169.254.169.254/", "http://localhost.example.org/"),
        *(
            "ftp://127.0.0.1/",
            "https:///hook",
            "https://",
            "https://exa mple.org/",
            "https://example.org/#part",
            "hook",
        ),
        *("http://127.0.0.1@example.org/", "https://example.org:99999/", "https://[::1/", "https://é.example/", ""),
    ],
)
def test_any_other_webhook_is_refused(url: str) -> None:
    with pytest.raises(StartupError, match="PARSHALL_WEBHOOK_URL"):
        load(**HOOK | {"webhook_url": url})


def test_a_webhook_needs_a_secret() -> None:
    with pytest.raises(StartupError, match="WEBHOOK_SECRET"):
        load(webhook_url="https://example.org/hook")


def test_a_secret_that_cannot_be_used_stops_the_start_and_is_not_shown() -> None:
    with pytest.raises(StartupError) as refused:
        load(**HOOK | {"webhook_secret": "whsec_notbase64!"})
    assert "PARSHALL_WEBHOOK_SECRET" in str(refused.value) and "notbase64" not in str(refused.value)


def test_a_threshold_is_exact_and_an_unknown_event_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARSHALL_LOW_BALANCE_CREDITS", "0.1")
    monkeypatch.setenv("PARSHALL_WEBHOOK_EVENTS", "balance.low, stream.settled")
    settings = load()
    assert settings.low_balance_credits == Decimal("0.1")
    assert settings.webhook_events == ("balance.low", "stream.settled")
    for name, value in (("LOW_BALANCE_CREDITS", "0.0000001"), ("LOW_BALANCE_CREDITS", "NaN"), ("WEBHOOK_EVENTS", "x")):
        with monkeypatch.context() as patched, pytest.raises(StartupError, match=name):
            patched.setenv(f"PARSHALL_{name}", value)
            load()
