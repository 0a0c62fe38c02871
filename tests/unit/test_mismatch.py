"""Why an id is refused: rules of time and form, and the page that has a section for each reason."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.chat.mismatch import PAGE, Reason, malformation, named_id, of_forgotten, of_unknown, sentence, told
from parshall.chat.model import Ending, Outcome, Stream
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.ids import MalformedStreamId, SessionId, StreamId, UserId
from parshall.kernel.metering import Usage, UsageSource

NOW = 1_800_000_000 * SECOND
HOURS_24 = 24 * 3600
GUIDE = (Path(__file__).parents[2] / "docs" / "TROUBLESHOOTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stream-1620847252", Reason.MADE_UP),
        ("stream-1620847252123", Reason.MADE_UP),
        ("stream-1620847252-k3x9zq1ab", Reason.MADE_UP),
        ("fallback-1620847252", Reason.MADE_UP),
        ("undefined", Reason.NOT_RECEIVED),
        ("null", Reason.NOT_RECEIVED),
        ("None", Reason.NOT_RECEIVED),
        (" ", Reason.NOT_RECEIVED),
        ("STREAM-x", Reason.MALFORMED),
        ("stream-1620847252-ABCDEF01", Reason.MALFORMED),
        ('"stream-1620847252-abcdef0123456789"', Reason.MALFORMED),
        ("stream-1620847252-abcdef0123456789, stream-1620847252-abcdef0123456789", Reason.MALFORMED),
    ],
)
def test_what_is_no_id_is_told_from_what_a_client_made_up(text: str, reason: Reason) -> None:
    assert malformation(text) is reason
    with pytest.raises(MalformedStreamId) as refusal:
        named_id(text)
    assert refusal.value.extra["reason"] == reason.value
    assert not text.strip() or text not in refusal.value.detail


def test_an_unknown_id_is_judged_by_its_own_time() -> None:
    for made_at, reason in (
        (NOW, Reason.UNKNOWN),
        (NOW - 24 * 3600 * SECOND, Reason.UNKNOWN),
        (NOW - 25 * 3600 * SECOND, Reason.OLDER_THAN_RETENTION),
        (NOW + DAY, Reason.UNKNOWN),
        (NOW + DAY + SECOND, Reason.MADE_UP),
    ):
        for digits in (made_at // SECOND, made_at // 1000):
            named = StreamId(f"stream-{digits}-0123456789abcdef")
            assert of_unknown(named, at=NOW, retention_seconds=HOURS_24) is reason
    assert of_unknown(StreamId("stream-18000000000-01234567"), at=NOW, retention_seconds=HOURS_24) is Reason.MADE_UP


def test_a_forgotten_stream_ended_long_ago_or_was_lost() -> None:
    for hours, reason in ((25, Reason.FINISHED_LONG_AGO), (1, Reason.LOG_LOST)):
        stream = ended(NOW - hours * 3600 * SECOND)
        assert of_forgotten(stream, at=NOW, retention_seconds=HOURS_24) is reason


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_way_out_and_a_section_on_the_page_that_it_links(reason: Reason) -> None:
    members = told(reason)
    assert members["help"] == f"{PAGE}#{reason.value}"
    assert members["wayOut"].rstrip(".").lower() in sentence(reason).lower()
    assert re.search(rf"^### {reason.value}$", GUIDE, re.MULTILINE)


@given(st.text(max_size=80))
def test_any_text_is_an_id_or_is_refused_with_a_reason(text: str) -> None:
    try:
        assert named_id(text) == text
    except MalformedStreamId as error:
        assert error.extra["reason"] in set(Reason)


def ended(at: int) -> Stream:
    ending = Ending(
        outcome=Outcome.COMPLETED,
        finish_reason="stop",
        usage=Usage(input_tokens=1, output_tokens=1),
        usage_source=UsageSource.COUNTED,
        delivered_tokens=1,
        ended_at=at,
    )
    return Stream(
        id=StreamId("stream-1800000000-0123456789abcdef"),
        session_id=SessionId("0" * 32),
        user_id=UserId("u"),
        fingerprint="",
        requested_model=None,
        model_id="fake",
        fallback_applied=False,
        on_disconnect="continue",
        input_tokens=1,
        epoch=1,
        created_at=at,
        ending=ending,
    )
