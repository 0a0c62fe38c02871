"""The doctor on a real deployment: all green where it is right, and each fault named where something is wrong."""

import asyncio
import json
import os
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests import quick
from tests.badproxy import ID, IDLE_SECONDS, Head, Wrong, bad_proxies
from tests.front import addresses, one_address
from tests.nginx import binary, nginx
from tests.serving import PARSHALL, Server, serving, upstream

from parshall.doctor.examine import examine
from parshall.doctor.model import CannotRun, Check, Plan, Profile, Report, Status

ORIGIN = "https://page.example.org"
MESSAGE = "fake-n40-ms30"
DOCTORS = 8
"""Examinations at a time, each with a user of its own, since it looks at the user's balance."""
SILENCE_SECONDS = 2.0
CORS_HEADERS = "access-control-"


def on_answers(*, drop: str) -> Wrong:
    """Loses headers of everything but preflights, which many proxies answer by another rule."""
    return Wrong(response=lambda asked, head: None if asked.is_preflight else head.drop(drop))


def renamed(_asked: Head, head: Head) -> None:
    head.fields = [("x-stream-id" if name.lower() == ID else name, value) for name, value in head.fields]


def doubled(_asked: Head, head: Head) -> None:
    head.fields += [(name, value) for name, value in head.fields if name.lower() == ID]


def recased(_asked: Head, head: Head) -> None:
    head.fields = [(name.title() if name.islower() else name.lower(), value) for name, value in head.fields]


def lower(_asked: Head, head: Head) -> None:
    head.fields = [(name.lower(), value) for name, value in head.fields]


def unwanted_star(_asked: Head, head: Head) -> None:
    head.replace("access-control-allow-origin", "*")


BAD: dict[str, tuple[Wrong, set[Check]]] = {
    "nothing": (Wrong(), set()),
    "buffering": (Wrong(holds=True), {Check.BUFFERING}),
    "stripped": (Wrong(response=lambda _asked, head: head.drop(ID)), {Check.ID_PRESENT}),
    "renamed": (Wrong(response=renamed), {Check.ID_PRESENT}),
    "doubled": (Wrong(response=doubled), {Check.ID_ONCE}),
    "lower-cased": (Wrong(response=lower), set()),
    "capitalised": (Wrong(response=recased), set()),
    "changed": (Wrong(response=lambda _asked, head: head.replace(ID, "req-0b8f")), {Check.ID_UNCHANGED}),
    "proposal stripped": (Wrong(request=lambda head: head.drop(ID)), {Check.ID_PROPOSED}),
    "gzip": (Wrong(gzips=True), {Check.COMPRESSION}),
    "no CORS": (on_answers(drop=CORS_HEADERS), {Check.CORS}),
    "star": (Wrong(response=unwanted_star), {Check.CORS_CREDENTIALS}),
    "not exposed": (on_answers(drop="access-control-expose"), {Check.CORS_EXPOSE}),
    "no vary": (on_answers(drop="vary"), {Check.CORS_VARY}),
    "idle": (Wrong(idle_seconds=IDLE_SECONDS), {Check.IDLE}),
    "old HTTP": (Wrong(is_old=True), {Check.HTTP_VERSION}),
    "cached": (Wrong(caches=True), {Check.NOT_CACHED}),
    "Last-Event-ID stripped": (Wrong(request=lambda head: head.drop("last-event-id")), {Check.LAST_EVENT_ID}),
}
HIDE_ID = "proxy_hide_header X-Streaming-Session-Id;"
TOLD_ID = "$upstream_http_x_streaming_session_id"
HOLD = "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"
KEEP = "proxy_cache kept; proxy_cache_valid 200 1m; proxy_ignore_headers Cache-Control Vary Expires X-Accel-Buffering;"
NGINX: dict[str, tuple[str, set[Check]]] = {
    "buffering": (f"proxy_pass http://INNER; {HOLD} proxy_http_version 1.0;", {Check.BUFFERING}),
    "buffering without effect": (HOLD, set()),
    "stripped": (HIDE_ID, {Check.ID_PRESENT}),
    "renamed": (f"{HIDE_ID} add_header X-Stream-Id {TOLD_ID};", {Check.ID_PRESENT}),
    "doubled": (f"add_header X-Streaming-Session-Id {TOLD_ID};", {Check.ID_ONCE}),
    "changed": (f'{HIDE_ID} add_header X-Streaming-Session-Id "req-$request_id";', {Check.ID_UNCHANGED}),
    "gzip": ("gzip on; gzip_types text/event-stream; gzip_proxied any; gzip_min_length 0;", {Check.COMPRESSION}),
    "no CORS": ("proxy_hide_header Access-Control-Allow-Origin;", {Check.PREFLIGHT, Check.CORS}),
    "star": (
        "proxy_hide_header Access-Control-Allow-Origin; add_header Access-Control-Allow-Origin * always;",
        {Check.CORS_CREDENTIALS},
    ),
    "not exposed": ("proxy_hide_header Access-Control-Expose-Headers;", {Check.CORS_EXPOSE}),
    "idle": (f"proxy_read_timeout {IDLE_SECONDS:.0f}s;", {Check.IDLE}),
    "no chunks": ("chunked_transfer_encoding off;", {Check.HTTP_VERSION}),
    "cached": (f"proxy_buffering on; {KEEP}", {Check.NOT_CACHED}),
    "Last-Event-ID stripped": ('proxy_set_header Last-Event-ID "";', {Check.LAST_EVENT_ID}),
}
GENERIC = {name: BAD[name][1] for name in ("nothing", "gzip", "old HTTP", "no CORS", "star")}
HAS_NGINX = binary() is not None
if not HAS_NGINX:
    warnings.warn("nginx is not there and could not be installed: its configuration is NOT tested", stacklevel=1)
needs_nginx = pytest.mark.skipif(not HAS_NGINX, reason="nginx is not there: the committed configuration is NOT tested")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with upstream() as base, serving(home, OPENAI_BASE_URL=base, EMBEDDED_MODEL="off", ALLOWED_ORIGINS=ORIGIN) as built:
        yield built


@pytest.fixture(scope="module")
def url(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The one address that the doctor examines."""
    with one_address(server, tmp_path_factory.mktemp("front") / "nginx") as found:
        yield found


@pytest.fixture(scope="module")
def reports(server: Server, url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """Every examination, several at a time."""
    with ExitStack() as stack:
        proxies = stack.enter_context(bad_proxies(url))
        plans = {"direct": Plan(url=url)}
        if HAS_NGINX:
            wrong = {name: directives for name, (directives, _) in NGINX.items()}
            front = stack.enter_context(nginx(tmp_path_factory.mktemp("nginx"), addresses(server), wrong))
            for name, url in front.urls.items():
                plans[f"nginx {name}"] = Plan(url=url, ca_file=front.ca_file)
        plans |= {f"bad {name}": Plan(url=proxies.open(each)) for name, (each, _) in BAD.items()}
        for name in GENERIC:
            plans[f"generic {name}"] = replace(plans[f"bad {name}"], profile=Profile.GENERIC)
        return asyncio.run(examined(server, {name: timed(name, plan) for name, plan in plans.items()}))


def timed(name: str, plan: Plan) -> Plan:
    """Silence where it is what the examination is about: the others need not wait for it."""
    seconds = {"direct": SILENCE_SECONDS, "nginx right": SILENCE_SECONDS}.get(name)
    if name.endswith(" idle"):
        seconds = IDLE_SECONDS + 2
    return replace(plan, silence_seconds=seconds, origins=[ORIGIN], message=MESSAGE)


async def examined(server: Server, plans: dict[str, Plan]) -> dict[str, Report]:
    waiting, done = list(plans.items()), {}
    callers = [server.customer(f"patient{number}", credits=1000) for number in range(DOCTORS)]
    sessions = [caller.session() for caller in callers]

    async def work(token: str, session: str) -> None:
        while waiting:
            name, plan = waiting.pop(0)
            if plan.profile is Profile.GENERIC:
                done[name] = await examine(as_if_foreign(plan, token, session))
            else:
                done[name] = await examine(replace(plan, token=token))

    await asyncio.gather(*(work(caller.token, session) for caller, session in zip(callers, sessions, strict=True)))
    return done


def as_if_foreign(plan: Plan, token: str, session: str) -> Plan:
    """The same stream as any service's: a path, a body and a header."""
    body = json.dumps({"message": MESSAGE, "maxTokens": 40})
    headers = [("Authorization", f"Bearer {token}")]
    return replace(plan, path=f"/api/chat/sessions/{session}/stream", body=body, headers=headers)


def with_status(report: Report, *wanted: Status) -> dict[Check, str]:
    return {finding.check: finding.evidence for finding in report.findings if finding.status in wanted}


def check_green(report: Report, *, unchecked: set[Check]) -> None:
    assert with_status(report, Status.FAULT, Status.WARNING) == {}
    assert set(with_status(report, Status.NOT_CHECKED)) == unchecked
    assert report.exit_code == 0
    assert {finding.check for finding in report.findings} == set(Check)


@pytest.mark.one_process("services apart have something in front: the doctor examines one address")
def test_a_deployment_without_anything_in_front_is_all_green(reports: dict[str, Report]) -> None:
    report = reports["direct"]
    check_green(report, unchecked={Check.TLS, Check.HTTP2})
    assert report.head.lower().startswith("http/1.1 200 ok\r\nx-streaming-session-id: stream-")


@needs_nginx
def test_the_committed_configuration_of_nginx_is_all_green_over_tls_and_http_2(reports: dict[str, Report]) -> None:
    report = reports["nginx right"]
    check_green(report, unchecked=set())
    assert report.front == ["nginx"]


@needs_nginx
@pytest.mark.soak
@pytest.mark.timeout(200)
def test_ninety_seconds_of_silence_survive_nginx_and_every_ping_is_seen(server: Server, tmp_path: Path) -> None:
    caller = server.customer("patient", credits=1000)
    with nginx(tmp_path, addresses(server), {}) as front:
        plan = Plan(url=front.urls["right"], ca_file=front.ca_file, token=caller.token, message=MESSAGE)
        report = asyncio.run(examine(plan))
    assert with_status(report, Status.OK)[Check.IDLE] == "90 s of silence survived, 5 pings seen"


@pytest.mark.parametrize("name", BAD)
def test_the_doctor_names_what_a_proxy_does_wrong_and_nothing_else(name: str, reports: dict[str, Report]) -> None:
    faults = with_status(reports[f"bad {name}"], Status.FAULT)
    assert set(faults) == BAD[name][1], faults
    assert reports[f"bad {name}"].exit_code == bool(BAD[name][1])


@needs_nginx
@pytest.mark.parametrize("name", NGINX)
def test_the_doctor_names_what_nginx_does_wrong_and_the_directive_to_change(
    name: str, reports: dict[str, Report]
) -> None:
    report = reports[f"nginx {name}"]
    faults = with_status(report, Status.FAULT)
    assert set(faults) == NGINX[name][1], faults
    assert all(f.remedy.startswith("nginx: ") for f in report.findings if f.status is Status.FAULT)


def test_the_evidence_says_what_was_seen(reports: dict[str, Report]) -> None:
    def seen(name: str, check: Check) -> str:
        return with_status(reports[name], Status.FAULT)[check]

    assert "x-stream-id" in seen("bad renamed", Check.ID_PRESENT)
    assert "not among" in seen("bad stripped", Check.ID_PRESENT)
    assert "req-0b8f" in seen("bad changed", Check.ID_UNCHANGED)
    assert "0 pings seen" in seen("bad idle", Check.IDLE)
    assert "held back" in seen("bad buffering", Check.BUFFERING)


@needs_nginx
def test_buffering_is_measured_and_not_guessed_from_the_configuration(reports: dict[str, Report]) -> None:
    """nginx that is told to buffer passes chunks on as they come; it holds back what comes without them."""
    assert Check.BUFFERING in with_status(reports["nginx buffering without effect"], Status.OK)
    assert "held back" in with_status(reports["nginx buffering"], Status.FAULT)[Check.BUFFERING]


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def run(*arguments: str, password: str = "patient0-password") -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PARSHALL_")}
    command = [str(PARSHALL), "doctor", *arguments]
    environment = own | {"PARSHALL_PASSWORD": password}
    return quick.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_logs_in_tells_writes_the_report_and_exits_by_what_it_found(
    url: str, reports: dict[str, Report], tmp_path: Path
) -> None:
    assert reports
    how = ("--username", "patient0", "--quick", "--message", MESSAGE)
    html, foreign = tmp_path / "report.html", "https://<b>.example.org"
    told = run(url, *how, "--origin", foreign, "--html", str(html))
    assert told.returncode == 1 and "2 faults found." in told.stdout, told.stdout + told.stderr
    page = html.read_text(encoding="utf-8")
    assert "2 faults found." in page and "https://&lt;b&gt;.example.org" in page
    assert foreign not in page and "src=" not in page and "href=" not in page
    good = run(url, *how, "--origin", ORIGIN, "--json")
    report = json.loads(good.stdout)
    assert good.returncode == report["exitCode"] == 0, good.stdout + good.stderr
    assert {finding["check"] for finding in report["findings"]} == {check.value for check in Check}
    assert "patient0-password" not in good.stdout + told.stdout + page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://127.0.0.1:1", "-u", "a"], "cannot be reached"),
        (["127.0.0.1", "-u", "a"], "no address"),
        (["URL", "-u", "patient0"], "status 401"),
        (["URL", "-u", "patient0", "--origin", "https://a.example.org/path"], "is no origin"),
        (["URL"], "--username NAME"),
        (["URL/elsewhere", "--token", "x"], "status 404"),
    ],
)
def test_what_cannot_be_examined_is_said_in_a_sentence_and_is_no_verdict(
    arguments: list[str], words: str, url: str
) -> None:
    told = run(*(word.replace("URL", url) for word in arguments), password="wrong-password")
    assert told.returncode == 2 and words in told.stderr and told.stdout == "", told.stdout + told.stderr
    assert "Traceback" not in told.stderr


def test_silence_needs_a_login_has_bounds_and_is_no_stream_of_anybody(server: Server) -> None:
    caller = server.user()
    with caller.streaming("GET", "/api/chat/streams/silence?seconds=1") as (response, events):
        assert "X-Streaming-Session-Id" not in response.headers
        assert [(event.event, event.id) for event in events] == [("silence", ""), ("silence-end", "")]
    for wrong in ("0", "601", "nan", "inf", "x"):
        caller.get(f"/api/chat/streams/silence?seconds={wrong}", expect=400)
    caller.token = ""
    caller.http.cookies.clear()
    caller.get("/api/chat/streams/silence?seconds=1", expect=401)


NONSENSE = {
    "closes": b"",
    "speaks something else": b"220 mail.example.org ESMTP\r\n",
    "cuts the head": b"HTTP/1.1 200 OK\r\nContent-",
    "redirects": b"HTTP/1.1 308 Moved\r\nLocation: https://a.example.org\r\nContent-Length: 0\r\n\r\n",
    "is no service": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "answers with a list": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    "has no token": b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}',
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_whatever_answers_there_is_told_in_a_sentence(name: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(NONSENSE[name])
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        for plan in (Plan(url="", username="a", password="b"), Plan(url="", token="b")):
            with pytest.raises(CannotRun) as told:
                await examine(replace(plan, url=f"http://127.0.0.1:{port}"))
            assert str(told.value)
    if name == "redirects":
        assert "https://a.example.org" in str(told.value)


def test_a_header_that_cannot_be_sent_is_told_in_a_sentence(url: str) -> None:
    for token in ("a\nb", "ä"):
        with pytest.raises(CannotRun, match="cannot be sent"):
            asyncio.run(examine(Plan(url=url, token=token)))


# ── Other services ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", GENERIC)
def test_any_service_that_sends_events_is_examined_without_knowing_its_rules(
    name: str, reports: dict[str, Report]
) -> None:
    report = reports[f"generic {name}"]
    assert set(with_status(report, Status.FAULT)) == GENERIC[name]
    assert not {Check.CHARGED_ONCE, Check.ID_PRESENT} & {finding.check for finding in report.findings}


def test_a_service_that_answers_something_else_cannot_be_examined(url: str) -> None:
    with pytest.raises(CannotRun, match="status 404"):
        asyncio.run(examine(Plan(url=url, profile=Profile.GENERIC, path="/nothing")))
    report = asyncio.run(examine(Plan(url=url, profile=Profile.GENERIC, path="/health")))
    assert {Check.CONTENT_TYPE, Check.COMPLETE} <= set(with_status(report, Status.FAULT))
