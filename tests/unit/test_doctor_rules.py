"""The doctor's verdicts, on answers as no proxy in the tests gives them: pure rules."""

import asyncio
import base64
import json
import time
from decimal import Decimal
from email.utils import formatdate

import pytest

from parshall.chat.http_silence import Silence
from parshall.doctor import cors, headers, pace, resume, transport
from parshall.doctor.examine import _advised
from parshall.doctor.front import Front, intermediaries, recognised
from parshall.doctor.http2 import Frames
from parshall.doctor.model import CannotRun, Check, Finding, Profile, Report, Status, fault, ok
from parshall.doctor.page import html
from parshall.doctor.remedies import remedy
from parshall.doctor.resume import Money
from parshall.doctor.wire import Answer, Target
from parshall.kernel.sse import Event, frame, notice

ID = "stream-1800000000-0123456789abcdef0123456789abcdef"
ORIGIN = "https://page.example.org"


def answer(*fields: tuple[str, str], status: int = 200, pieces: list[tuple[float, bytes]] | None = None) -> Answer:
    return Answer(version="1.1", status=status, headers=list(fields), pieces=pieces or [], seconds=2.0)


def session(told: str = ID) -> list[Event]:
    return [Event(id="1", event="session", data=json.dumps({"streamingSessionId": told}))]


def paced(*times: float) -> Answer:
    return answer(pieces=[(at, frame(number, "chunk", {})) for number, at in enumerate(times, start=1)])


@pytest.mark.parametrize(
    ("times", "server_seconds", "status"),
    [
        ([0.0, 0.5, 1.0], 1.0, Status.OK),
        ([0.0, 0.25, 0.5], 1.0, Status.OK),
        ([0.9, 0.95, 1.0], 1.0, Status.FAULT),
        ([1.0, 1.0, 1.0], 1.0, Status.FAULT),
        ([0.0] * 8 + [1.0] * 8, 1.0, Status.WARNING),
        ([0.0, 0.0, 0.0], 0.39, Status.NOT_CHECKED),
        ([0.0, 1.0], 1.0, Status.NOT_CHECKED),
        ([0.0, 0.5, 1.0], None, Status.NOT_CHECKED),
    ],
)
def test_events_that_span_less_than_half_of_the_servers_time_were_held_back(
    times: list[float], server_seconds: float | None, status: Status
) -> None:
    assert pace.of_buffering(paced(*times), server_seconds=server_seconds).status is status


def test_a_silence_must_end_with_its_event_and_a_long_one_must_have_pings() -> None:
    end, ping = notice("silence-end", {"seconds": 90}), b": ping\n\n"
    for body, seconds, status in (
        (ping * 5 + end, 90, Status.OK),
        (end, 10, Status.OK),
        (end, 90, Status.WARNING),
        (ping * 3, 90, Status.FAULT),
        (b"", 5, Status.FAULT),
    ):
        assert pace.of_silence(answer(pieces=[(1.0, body)]), seconds=seconds).status is status
    assert pace.of_silence(answer(status=404), seconds=90).status is Status.NOT_CHECKED


def test_a_stream_without_its_terminal_event_is_not_complete_though_it_ended_in_order() -> None:
    done = answer(pieces=[(0.1, frame(1, "done", {}))])
    assert pace.of_end(done).status is Status.OK
    assert pace.of_end(paced(0.1)).status is pace.of_end(answer()).status is Status.FAULT
    done.cut = "the connection was closed"
    assert pace.of_end(done).status is Status.FAULT


def test_an_id_in_a_trailer_or_behind_other_headers_is_told_from_one_that_is_missing() -> None:
    late = answer(("Content-Type", "text/event-stream"))
    late.trailers = [("X-Streaming-Session-Id", ID)]
    (missing,) = [f for f in headers.of_id(late, session(), proposed=ID, fronts=[]) if f.status is Status.FAULT]
    assert missing.check is Check.ID_PRESENT and "trailer" in missing.evidence
    behind = answer(("Server", "nginx"), ("x-streaming-session-id", ID))
    for fronts, status in (([], Status.WARNING), (["nginx"], Status.OK)):
        verdicts = {f.check: f.status for f in headers.of_id(behind, session(), proposed=ID, fronts=fronts)}
        assert verdicts[Check.ID_FIRST] is status
        assert Status.FAULT not in verdicts.values()


def test_an_id_of_the_servers_own_that_has_not_the_documented_form_is_a_fault() -> None:
    odd = answer(("X-Streaming-Session-Id", "stream-1"))
    verdicts = {f.check: f.status for f in headers.of_id(odd, session("stream-1"), proposed=ID, fronts=[])}
    assert verdicts[Check.ID_FORMAT] is verdicts[Check.ID_PROPOSED] is Status.FAULT
    assert verdicts[Check.ID_UNCHANGED] is Status.OK


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("no-cache, no-transform", Status.OK),
        ("No-Store, No-Transform", Status.OK),
        ("no-cache", Status.WARNING),
        ("max-age=60, no-transform", Status.FAULT),
        ("public, no-cache, no-transform", Status.FAULT),
        ("", Status.FAULT),
    ],
)
def test_a_stream_must_not_be_kept_and_should_not_be_transformed(value: str, status: Status) -> None:
    assert headers.of_cache_control(answer(("Cache-Control", value))).status is status


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("text/event-stream", Status.OK),
        ("text/event-stream; charset=UTF-8", Status.OK),
        ("text/event-stream; charset=latin-1", Status.WARNING),
        ("text/html", Status.FAULT),
        ("", Status.FAULT),
    ],
)
def test_browsers_take_one_content_type(value: str, status: Status) -> None:
    assert headers.of_type(answer(("Content-Type", value))).status is status


def token(**claims: float) -> str:
    part = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{part}.x"


@pytest.mark.parametrize(
    ("skew", "claims", "status"),
    [
        (0, {"iat": 0, "exp": 900}, Status.OK),
        (59, {}, Status.OK),
        (-90, {"iat": -90, "exp": 800}, Status.WARNING),
        (90, {}, Status.WARNING),
        (0, {"iat": 90, "exp": 990}, Status.FAULT),
        (0, {"iat": -900, "exp": -1}, Status.FAULT),
        (0, {"exp": "never"}, Status.OK),
    ],
)
def test_clocks_must_agree_within_the_leeway_of_tokens(skew: int, claims: dict[str, float], status: Status) -> None:
    now = float(int(time.time()))
    dated = answer(("Date", formatdate(now + skew, usegmt=True)))
    given = {name: now + value if isinstance(value, int) else value for name, value in claims.items()}
    assert transport.of_clock(dated, token=token(**given), now=now).status is status
    assert transport.of_clock(answer(), token="no.jwt", now=now).status is Status.NOT_CHECKED


class Certified:
    def __init__(self, version: str, days: float) -> None:
        self._version, self._days = version, days

    def version(self) -> str:
        return self._version

    def getpeercert(self) -> dict[str, str]:
        return {"notAfter": time.strftime("%b %d %H:%M:%S %Y GMT", time.gmtime(time.time() + self._days * 86_400))}


@pytest.mark.parametrize(
    ("version", "days", "status"),
    [("TLSv1.3", 90, Status.OK), ("TLSv1.2", 13, Status.WARNING), ("TLSv1.1", 90, Status.FAULT)],
)
def test_a_certificate_that_ends_soon_is_a_warning_and_old_tls_a_fault(
    version: str, days: float, status: Status
) -> None:
    assert transport.of_tls(Certified(version, days)).status is status  # type: ignore[arg-type]


def test_a_header_that_http_2_forbids_is_a_fault_there() -> None:
    right = [(":status", "200"), ("x-streaming-session-id", ID)]
    for more, status in (([], Status.OK), ([("connection", "keep-alive")], Status.FAULT), (right[1:], Status.FAULT)):
        frames = Frames(chosen="h2", status=200, headers=[*right, *more])
        assert transport.of_http2(frames, with_id=True).status is status
    assert transport.of_http2(Frames(chosen="http/1.1"), with_id=True).status is Status.NOT_CHECKED
    assert transport.of_http2(Frames(chosen="h2", error="reset"), with_id=True).status is Status.FAULT


@pytest.mark.parametrize(
    ("status", "origin", "methods", "allowed", "verdict"),
    [
        (204, ORIGIN, "GET, POST", "authorization, content-type, last-event-id, x-streaming-session-id", Status.OK),
        (200, "*", "", "Authorization, *", Status.OK),
        (204, ORIGIN, "", "*", Status.FAULT),
        (204, ORIGIN, "", "authorization, content-type, x-streaming-session-id", Status.FAULT),
        (301, ORIGIN, "", "authorization, *", Status.FAULT),
        (204, "https://other.example.org", "", "authorization, *", Status.FAULT),
    ],
)
def test_a_preflight_must_allow_the_origin_and_every_header(
    status: int, origin: str, methods: str, allowed: str, verdict: Status
) -> None:
    fields = [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Methods", methods),
        ("Access-Control-Allow-Headers", allowed),
    ]
    assert cors.of_preflight(answer(*fields, status=status), origin=ORIGIN, method="POST").status is verdict


def test_an_origin_that_nobody_allowed_must_not_be_repeated() -> None:
    for value, status in ((cors.FOREIGN_ORIGIN, Status.FAULT), ("*", Status.WARNING), (ORIGIN, Status.OK)):
        assert cors.of_foreign(answer(("Access-Control-Allow-Origin", value))).status is status
    assert cors.of_foreign(answer()).status is Status.OK


def test_two_origins_in_one_answer_are_none() -> None:
    twice = answer(("Access-Control-Allow-Origin", ORIGIN), ("Access-Control-Allow-Origin", ORIGIN))
    assert cors.of_origin(twice, origin=ORIGIN)[0].status is Status.FAULT


def test_a_gap_a_duplicate_and_a_change_are_found_in_what_is_resumed() -> None:
    whole = [Event(id=str(number), event="chunk", data=f"{number}") for number in range(1, 7)]
    for rest, status in (
        (whole[3:], Status.OK),
        (whole[4:], Status.FAULT),
        (whole[2:], Status.FAULT),
        ([*whole[3:], whole[5]], Status.FAULT),
        ([whole[4], whole[3], whole[5]], Status.FAULT),
        ([], Status.FAULT),
    ):
        assert resume.of_resume(whole, rest, after="3").status is status


@pytest.mark.parametrize(
    ("after", "later", "charged", "settled", "status"),
    [
        ("9", "9", "1", True, Status.OK),
        ("9", "8", "1", True, Status.FAULT),
        ("8", "8", "1", True, Status.FAULT),
        ("10", "10", "1", True, Status.WARNING),
        ("10", "10", "0", True, Status.OK),
        ("9", "9", "1", False, Status.NOT_CHECKED),
        ("9", "9", None, True, Status.FAULT),
    ],
)
def test_the_balance_moves_once_and_by_what_the_receipt_says(
    after: str, later: str, charged: str | None, settled: bool, status: Status
) -> None:
    money = Money(
        before=Decimal(10),
        after=Decimal(after),
        later=Decimal(later),
        charged=None if charged is None else Decimal(charged),
        is_settled=settled,
    )
    assert resume.of_charge(money).status is status


@pytest.mark.parametrize(
    ("second", "status"),
    [
        ([("X-Request-Id", "b")], Status.OK),
        ([("X-Request-Id", "a")], Status.FAULT),
        ([("X-Request-Id", "b"), ("CF-Cache-Status", "HIT")], Status.FAULT),
        ([("X-Request-Id", "b"), ("Age", "7")], Status.FAULT),
        ([("X-Request-Id", "b"), ("Age", "0"), ("X-Cache", "MISS")], Status.OK),
    ],
)
def test_an_answer_that_comes_twice_was_cached(second: list[tuple[str, str]], status: Status) -> None:
    assert resume.of_caching(answer(("X-Request-Id", "a")), answer(*second)).status is status


@pytest.mark.parametrize(
    ("fields", "fronts"),
    [
        ([("Server", "nginx/1.22.1")], [Front.NGINX]),
        ([("Server", "openresty")], [Front.NGINX]),
        ([("Server", "Caddy")], [Front.CADDY]),
        ([("Via", "1.1 Caddy")], [Front.CADDY]),
        ([("server", "istio-envoy"), ("x-envoy-upstream-service-time", "3")], [Front.ENVOY]),
        ([("Server", "cloudflare"), ("CF-RAY", "8f-AMS")], [Front.CLOUDFLARE]),
        ([("Set-Cookie", "AWSALB=x"), ("Server", "nginx")], [Front.AWS_ALB, Front.NGINX]),
        ([("Apigw-Requestid", "x")], [Front.API_GATEWAY]),
        ([("Via", "1.1 abc.cloudfront.net (CloudFront)")], [Front.CLOUDFRONT]),
        ([("Server", "uvicorn")], []),
    ],
)
def test_what_stands_in_front_is_known_by_its_headers(fields: list[tuple[str, str]], fronts: list[Front]) -> None:
    assert recognised(fields) == fronts
    assert intermediaries([("Via", "1.1 somebody")]) == ["Via: 1.1 somebody"]


@pytest.mark.parametrize("check", Check)
def test_every_check_has_a_remedy_whatever_is_in_front(check: Check) -> None:
    for fronts in ([], [Front.NGINX], list(Front)):
        assert (
            remedy(check, fronts).endswith((".", ";", "…", "on", "}", "1", "8 s).")) or len(remedy(check, fronts)) > 20
        )


def test_only_what_is_wrong_gets_a_remedy_and_in_the_words_of_what_is_in_front() -> None:
    stream = answer(("Server", "nginx"))
    wrong, right = _advised([fault(Check.BUFFERING, "x"), ok(Check.TLS, "x")], stream)
    assert wrong.remedy.startswith("nginx: proxy_buffering off") and right.remedy == ""


def test_a_report_shows_what_a_deployment_said_as_text() -> None:
    evil = "<script>alert(1)</script>"
    finding = Finding(check=Check.CORS, status=Status.FAULT, evidence=evil, origin=evil)
    report = Report(
        url=evil, profile=Profile.PARSHALL, at="now", seconds=1, front=[evil], findings=[finding], head=evil
    )
    assert "<script" not in html(report) and "&lt;script&gt;" in html(report)
    assert report.exit_code == 1


def test_an_address_that_cannot_be_one_is_refused_and_a_path_stays_before_every_path() -> None:
    assert Target.of("https://a.example.org/below/").prefix == "/below"
    assert Target.of("http://[::1]:8000").authority == "[::1]:8000"
    for wrong in ("a.example.org", "ftp://a", "http://", "http://a:99999", "https://a:b"):
        with pytest.raises(CannotRun):
            Target.of(wrong)


async def test_a_silence_is_ended_by_whoever_interrupts_it() -> None:
    silence = Silence(seconds=600)
    assert (await anext(silence)).startswith(b"event: silence\n")
    waiting = asyncio.create_task(anext(silence))
    await asyncio.sleep(0)
    silence.interrupt()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert not silence.ended
