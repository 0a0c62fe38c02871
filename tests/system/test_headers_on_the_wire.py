"""Headers of running servers: whose are traced, what is told of each hop, and that no secret is in any of it."""

import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests import quick
from tests.badproxy import Head, Wrong, bad_proxies
from tests.har import check_har
from tests.hostile import Line
from tests.replicas import WHOLE, replicas
from tests.serving import ADMIN_PASSWORD, PARSHALL, Caller, Server, serving, stream_id_of, upstream
from tests.valkey import Valkey
from typer.testing import CliRunner

from parshall.app.config import Settings
from parshall.app.local import local
from parshall.app.split import SCOPES
from parshall.chat.debugging import LOOK_SECONDS
from parshall.cli.main import app

PROVIDER_KEY = "sk-the-providers-own-key"
SETTINGS = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*", "OPENAI_API_KEY": PROVIDER_KEY}
DEBUG = "/api/debug/headers"
SECONDS_MAX = 15


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Everything in one process, traced on demand."""
    with (
        upstream() as url,
        serving(tmp_path_factory.mktemp("home"), OPENAI_BASE_URL=url, **SETTINGS) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def admin(server: Server) -> Caller:
    return server.user()


@pytest.fixture
def ann(server: Server, request: pytest.FixtureRequest) -> Iterator[Caller]:
    made = server.customer(f"ann{abs(hash(request.node.name)) % 10**9}")
    yield made
    made.close()


def traced(admin: Caller, stream_id: str, *, exchanges: int = 1, calls: int = 0) -> Any:
    """The trace of a stream once it has so many requests and calls: it is written behind the responses."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        answer = admin.http.get(f"{admin.url}{DEBUG}/{stream_id}", headers=admin.headers())
        found = answer.json()
        if answer.status_code == 200:
            made = sum(len(each["calls"]) for each in (found, *found["exchanges"]))
            if len(found["exchanges"]) >= exchanges and made >= calls:
                return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def user_id_of(caller: Caller) -> str:
    found: str = caller.get("/api/profile")["user"]["id"]
    return found


def debug_token(admin: Caller, minutes: int = 1) -> str:
    made: str = admin.post(f"{DEBUG}/token", {"minutes": minutes}, expect=201)["token"]
    return made


def name_of(number: int) -> str:
    return f"stream-1620847252-{number:012x}"


# ── Whose ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_user_is_traced_for_a_while_and_nobody_else(server: Server, admin: Caller, ann: Caller) -> None:
    bob = server.customer("bob")
    made = admin.post(DEBUG, {"userId": user_id_of(ann), "minutes": 5}, expect=201)
    theirs, his = (stream_id_of(caller.ask(caller.session(), "fake-n3")) for caller in (ann, bob))
    assert bob.get(f"/api/chat/streams/{theirs}", expect=404)
    called = {"openai", "accounting"} if server.split else {"openai"}
    told = traced(admin, theirs, calls=len(called))
    assert [(each["role"], each["userId"], each["reason"]) for each in told["exchanges"]] == [
        ("start", user_id_of(ann), "user")
    ]
    assert {each["to"] for each in told["exchanges"][0]["calls"]} - {"auth"} == called
    assert admin.get(f"{DEBUG}/{his}", expect=404)["code"] == "not_found"
    listed = admin.get(DEBUG)
    assert [each["id"] for each in listed["switches"]] == [made["id"]]
    assert theirs in [each["streamingSessionId"] for each in listed["recent"]]
    admin.request("DELETE", f"{DEBUG}/{user_id_of(ann)}")
    later = stream_id_of(ann.ask(ann.session(), "fake-n1"))
    time.sleep(0.2)
    admin.get(f"{DEBUG}/{later}", expect=404)
    admin.request("DELETE", f"{DEBUG}/{made['id']}", expect=404)
    looks = [each for each in admin.get("/api/chat/observations")["observations"] if each["kind"] == "headers"]
    assert {(each["streamingSessionId"], each["observer"]) for each in looks} == {(theirs, "admin")}
    bob.close()


def test_a_stream_announced_before_it_exists_is_traced_with_every_request_about_it(
    server: Server, admin: Caller, ann: Caller
) -> None:
    stream_id, session = name_of(1), ann.session()
    admin.post(DEBUG, {"streamingSessionId": stream_id, "minutes": 1}, expect=201)
    mallory = server.customer("mallory")
    named = {"X-Streaming-Session-Id": stream_id}
    ann.post(f"/api/chat/sessions/{'0' * 32}/stream", {"message": "fake-n1"}, expect=404, headers=named)
    ann.ask(session, "fake-n5", headers=named)
    ann.ask(ann.session(), "fake-n1")
    ann.resume(stream_id, 2)
    with admin.streaming("GET", f"/api/chat/sessions/{session}/observe") as (_, events):
        list(events)
    mallory.get(f"/api/chat/streams/{stream_id}", expect=404)
    ann.post(f"/api/chat/streams/{stream_id}/stop")
    update = {"completeResponse": "no", "streamingSessionId": stream_id, "tokensUsed": 1}
    ann.post(f"/api/chat/sessions/{session}/update-stream", update)
    told = traced(admin, stream_id, exchanges=7)
    seen = [(each["role"], each["response"]["status"]) for each in told["exchanges"]]
    assert seen == [
        ("start", 404),
        ("start", 200),
        ("resume", 200),
        ("observe", 200),
        ("resume", 404),
        ("stop", 200),
        ("update-stream", 200),
    ]
    assert {each["streamingSessionId"] for each in told["exchanges"]} == {stream_id}
    mallory.close()


def test_a_signed_header_has_one_request_traced(admin: Caller, ann: Caller) -> None:
    session, token = ann.session(), debug_token(admin)
    one = stream_id_of(ann.ask(session, "fake-n2", headers={"X-Debug-Headers": token}))
    other = stream_id_of(ann.ask(session, "fake-n2", headers={"X-Debug-Headers": token[:-4] + "AAAA"}))
    assert traced(admin, one)["exchanges"][0]["reason"] == "token"
    time.sleep(0.2)
    admin.get(f"{DEBUG}/{other}", expect=404)
    assert ann.get("/api/profile", expect=401, headers={"Authorization": f"Bearer {token}"})


def test_only_administrators_see_or_switch_anything(server: Server, ann: Caller) -> None:
    admin = server.user()
    admin.post("/api/admin/users", {"username": "sue", "email": "s@x.org", "password": "sue-password"}, expect=201)
    sue_id = next(each["id"] for each in admin.get("/api/admin/users")["users"] if each["username"] == "sue")
    admin.request("PUT", f"/api/admin/users/{sue_id}/role", {"role": "supervisor"})
    key = server.caller()
    key.token = admin.post("/api/auth/api-keys", {"name": "of an admin"}, expect=201)["key"]
    for caller in (ann, server.user("sue", "sue-password"), key):
        caller.get(DEBUG, expect=403)
        caller.get(f"{DEBUG}/{name_of(9)}", expect=403)
        caller.request("DELETE", f"{DEBUG}/{name_of(9)}", expect=403)
        caller.post(DEBUG, {"streamingSessionId": name_of(9), "minutes": 1}, expect=403)
        caller.post(f"{DEBUG}/token", {}, expect=403)
    key.close()
    assert httpx2.get(f"{server.url}{DEBUG}").status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"userId": "ann", "streamingSessionId": name_of(2)},
        {"streamingSessionId": "stream-1-x"},
        {"streamingSessionId": name_of(2), "minutes": 0},
        {"streamingSessionId": name_of(2), "minutes": 1441},
    ],
)
def test_a_switch_that_says_nothing_right_is_refused(admin: Caller, body: dict[str, Any]) -> None:
    admin.post(DEBUG, body, expect=400)


def test_nobody_by_that_name_can_be_traced(admin: Caller) -> None:
    admin.post(DEBUG, {"userId": "nobody-at-all"}, expect=404)


# ── What is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_secret_is_in_the_trace_the_archive_the_records_or_the_log(
    server: Server, admin: Caller, ann: Caller
) -> None:
    session, token = ann.session(), debug_token(admin)
    hidden = {
        "X-Debug-Headers": token,
        "Cookie": "accessToken=hidden-in-a-cookie; other=hidden-too",
        "X-Api-Key": "hidden-in-a-key",
        "X-Own": "Bearer hidden-in-a-field",
    }
    stream_id = stream_id_of(ann.ask(session, "fake-n2", headers=hidden))
    path = f"/api/chat/streams/{stream_id}?access_token=hidden-in-a-query&after=2"
    with ann.streaming("GET", path, None, {"X-Debug-Headers": token}) as (_, events):
        list(events)
    told = traced(admin, stream_id, exchanges=2, calls=1)
    archive = admin.get(f"{DEBUG}/{stream_id}?format=har")
    check_har(archive)
    start, resumed = told["exchanges"]
    values = {each["name"]: each["value"] for each in start["request"]["headers"]}
    again = {each["name"]: each["value"] for each in resumed["request"]["headers"]}
    assert values["authorization"] == again["authorization"], "equal secrets can be told to be equal"
    assert values["x-debug-headers"] == again["x-debug-headers"] != values["x-api-key"]
    assert re.fullmatch(r"Bearer redacted:[0-9a-f]{12}", values["authorization"])
    provider = {each["name"].lower(): each["value"] for each in start["calls"][0]["request"]["headers"]}
    assert provider["authorization"].startswith("Bearer redacted:")
    secrets = [ann.token, admin.token, token, PROVIDER_KEY, *re.findall(r"hidden[a-z-]+", str(hidden) + path)]
    kept = b"".join(file.read_bytes() for file in server.home.glob("chat.db*"))
    texts = [json.dumps(told), json.dumps(archive), "".join(server.output), kept.decode("latin-1")]
    assert stream_id in texts[-1]
    assert [secret[:12] for secret in secrets for text in texts if secret in text] == []


def test_a_hundred_headers_are_told_in_bounds(server: Server, admin: Caller, ann: Caller) -> None:
    stream_id, filler = name_of(3), "".join(f"X-F{number}: {'v ' * 120}\r\n" for number in range(94))
    line = Line(server.url)
    line.own.sendall(
        f"GET /api/chat/streams/{stream_id} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ann.token}\r\n"
        f"X-Debug-Headers: {debug_token(admin)}\r\n{filler}Connection: close\r\n\r\n".encode()
    )
    assert b" 404 " in line.own.recv(100)
    line.own.close()
    told = traced(admin, stream_id)["exchanges"][0]
    assert len(told["request"]["headers"]) == 98
    assert len(json.dumps(told)) < 70_000


def test_a_stream_that_is_stopped_in_the_middle_is_told_with_its_end(admin: Caller, ann: Caller) -> None:
    stream_id, session = name_of(4), ann.session()
    admin.post(DEBUG, {"streamingSessionId": stream_id, "minutes": 1}, expect=201)
    path = f"/api/chat/sessions/{session}/stream"
    headers = {"X-Streaming-Session-Id": stream_id}
    with ann.streaming("POST", path, {"message": "fake-n900-ms10"}, headers) as (_, events):
        next(events)
        ann.post(f"/api/chat/streams/{stream_id}/stop")
        list(events)
    told = traced(admin, stream_id, exchanges=2)
    start = next(each for each in told["exchanges"] if each["role"] == "start")
    assert start["firstByteMilliseconds"] < start["endedMilliseconds"]
    assert [event["event"] for event in told["timeline"] if event["exchange"] == start["id"]][-1] == "end"


def test_the_command_switches_shows_and_writes_an_archive_beside_a_running_server(
    server: Server, admin: Caller, ann: Caller, tmp_path: Path
) -> None:
    def headers(*arguments: str, code: int = 0) -> str:
        ran = CliRunner().invoke(app, ["headers", *arguments], env=server.environment())
        assert ran.exit_code == code, ran.output
        return str(ran.stdout if code == 0 else ran.stderr)

    stream_id = name_of(5)
    assert "are traced until" in headers("on", "--stream", stream_id, "--minutes", "5")
    assert stream_id in [each["streamingSessionId"] for each in json.loads(headers("list", "--json"))]
    time.sleep(LOOK_SECONDS + 0.2)
    ann.ask(ann.session(), "fake-n2", headers={"X-Streaming-Session-Id": stream_id})
    traced(admin, stream_id, calls=1)
    shown = headers(stream_id)
    lines = [line.split() for line in shown.splitlines()]
    assert ["start", "POST"] in [line[1:3] for line in lines]
    assert next(line[2:] for line in lines if ">" in line) == ["X-Streaming-Session-Id:", stream_id]
    assert "-> openai: POST" in shown and "<- openai: 200" in shown and ann.token not in shown
    assert json.loads(headers("show", stream_id, "--json"))["exchanges"][0]["role"] == "start"
    headers(stream_id, "--har", str(tmp_path / "stream.har"))
    check_har(json.loads((tmp_path / "stream.har").read_text()))
    one = stream_id_of(ann.ask(ann.session(), "fake-n1", headers={"X-Debug-Headers": headers("token").strip()}))
    assert traced(admin, one)["exchanges"][0]["reason"] == "token"
    assert "switch is off" in headers("off", "--stream", stream_id)
    assert "No headers were traced" in headers(name_of(6), code=1)
    assert "Name one of" in headers("on", code=2)


# ── Services apart, with something in between ───────────────────────────────────────────────────────────────────────


def meddle(head: Head) -> None:
    head.drop("traceparent")
    head.fields.append(("X-Proxy", "was here"))
    head.replace("user-agent", "changed")


def meddle_back(_asked: Head, head: Head) -> None:
    head.drop("x-request-id")
    head.fields.append(("Via", "1.1 bad"))


@contextmanager
def serving_alone(service: str, home: Path, **settings: str) -> Iterator[str]:
    """`parshall serve` of one service; its URL."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARSHALL_")}
    own = {f"PARSHALL_{name}": value for name, value in settings.items()}
    process = quick.Popen(
        [str(PARSHALL), "serve", service, "--port", "0"],
        env=kept | own | {"PARSHALL_HOME_DIR": str(home), "PARSHALL_ADMIN_PASSWORD": ADMIN_PASSWORD},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "it names its address first"
        yield found[0]
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()


async def secrets_of_services(home: Path) -> dict[str, str]:
    async with local(Settings(home_dir=home)) as parts:
        return {name.value: await parts.auth.add_service(name.value, scopes) for name, scopes in SCOPES.items()}


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caller, Caller]]:
    """An administrator and a user of three services, of which chat reaches the others through proxies that meddle."""
    home, wrong = tmp_path_factory.mktemp("home"), Wrong(request=meddle, response=meddle_back)
    secrets = asyncio.run(secrets_of_services(home))
    with ExitStack() as stack:
        start = stack.enter_context
        settings = SETTINGS | {"OPENAI_BASE_URL": start(upstream())}
        auth = start(serving_alone("auth", home))
        services = {"auth": auth}
        services["accounting"] = start(
            serving_alone("accounting", home, AUTH_URL=auth, SERVICE_SECRET=secrets["accounting"])
        )
        own = {f"{name.upper()}_URL": start(bad_proxies(url)).open(wrong) for name, url in services.items()}
        own |= {"SERVICE_SECRET": secrets["chat"], "HEADER_TRACE": "development"}
        chat = start(serving_alone("chat", home, **settings, **own))
        boss, caller = (start(closing(Caller(chat, services=services))) for _ in range(2))
        boss.login("admin", ADMIN_PASSWORD)
        boss.add_customer("alice", credits=100)
        caller.login("alice", "alice-password")
        yield boss, caller


def test_what_each_hop_added_lost_or_changed_is_told(apart: tuple[Caller, Caller]) -> None:
    boss, alice = apart
    session = alice.session()
    first = boss.get(DEBUG)["recent"]
    stream_id = stream_id_of(alice.ask(session, "fake-n3"))
    told = traced(boss, stream_id, calls=3)
    calls = {each["request"]["target"].rpartition("/")[2]: each for each in told["exchanges"][0]["calls"]}
    assert calls.keys() >= {"initialize", "completions", "finalize"}
    expected = {
        "request": {"added": ["x-proxy"], "lost": ["traceparent"], "changed": ["user-agent"]},
        "response": {"added": ["via"], "lost": ["x-request-id"], "changed": []},
        "left": 0,
    }
    assert calls["initialize"]["hop"] == calls["finalize"]["hop"] == expected
    assert calls["completions"]["hop"] is None, "a provider tells nothing"
    assert calls["initialize"]["response"]["status"] == 201
    assert "X-Debug-Headers-Report" not in json.dumps(told)
    began = traced(boss, first[-1]["id"] if first else boss.get(DEBUG)["recent"][-1]["id"])
    keys = [each for each in began["exchanges"][0]["calls"] if each["request"]["target"].endswith("jwks.json")]
    assert [each["hop"]["request"]["added"] for each in keys] == [["x-proxy"]]


def test_every_header_of_a_stream_is_told_in_order_with_its_line(apart: tuple[Caller, Caller]) -> None:
    boss, alice = apart
    path, body = f"/api/chat/sessions/{alice.session()}/stream", {"message": "fake-n3"}
    with alice.streaming("POST", path, body, {"X-MiXed": "case"}) as (response, events):
        wire, stream_id = [name.decode().lower() for name, _ in response.headers.raw], stream_id_of(list(events))
    start = traced(boss, stream_id)["exchanges"][0]
    fields = start["response"]["headers"]
    in_order = [each["name"].lower() for each in sorted(fields, key=lambda each: each["position"])]
    assert in_order == [name for name in wire if name != "transfer-encoding"], "the server adds that one itself"
    assert fields[0]["name"].lower() == "x-streaming-session-id" and fields[0]["position"] == 0
    lines = source_lines()
    for each in fields:
        file, _, line = each["place"].split()[0].partition(":")
        assert lines(file, int(line)), each
        assert each["beforeBody"] > 0
    assert "X-MiXed" in [each["name"] for each in start["request"]["headers"]], "in the case in which it came"
    assert start["faults"] == []


def source_lines() -> Callable[[str, int], bool]:
    """Whether a line of a file of ours writes to a list of headers."""
    root = Path(__file__).parents[2] / "src"

    def writes(file: str, line: int) -> bool:
        return "raw.append(" in (root / file).read_text().splitlines()[line - 1]

    return writes


# ── Several processes ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.one_process(WHOLE)
def test_a_switch_holds_for_every_replica_within_a_second_and_fingerprints_agree(
    tmp_path: Path, postgres_url: str, valkey: Valkey
) -> None:
    secret = {"FINGERPRINT_SECRET": "the same for all of them"}
    with replicas(2, tmp_path, postgres_url, valkey, **secret) as world:
        one, two = (world.user(replica=replica) for replica in range(2))
        alice = world.customer("alice", replica=0)
        one.post(DEBUG, {"userId": "alice", "minutes": 5}, expect=201)
        time.sleep(1.2)
        elsewhere = world.user("alice", replica=1)
        elsewhere.token = alice.token
        stream_id = stream_id_of(alice.ask(alice.session(), "fake-n3"))
        elsewhere.resume(stream_id)
        told = traced(two, stream_id, exchanges=2)
        assert [each["role"] for each in told["exchanges"]] == ["start", "resume"]
        seen = [{field["name"]: field["value"] for field in each["request"]["headers"]} for each in told["exchanges"]]
        assert seen[0]["authorization"] == seen[1]["authorization"]
        two.request("DELETE", f"{DEBUG}/{user_id_of(alice)}")
        time.sleep(1.2)
        later = stream_id_of(alice.ask(alice.session(), "fake-n1"))
        time.sleep(0.3)
        two.get(f"{DEBUG}/{later}", expect=404)
