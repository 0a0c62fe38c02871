"""Supervisors over real ports: they see what the reader sees, hold nothing open, and every look is on record."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests import postgres
from tests.scripted import Script
from tests.serving import Caller, Server, serving, text_of, upstream

from parshall.kernel.sse import Event

NAMES = (f"observe{number}" for number in itertools.count())
FRAMING = {"observer", "history-start", "history-end", "observer-end"}


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.soak)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*", "DISCONNECT_GRACE_SECONDS": "0.3"}
    if request.param == "postgres":
        database: postgres.Server = request.getfixturevalue("postgres_server")
        settings["DATABASE_URL"] = database.url(database.create())
    home = tmp_path_factory.mktemp("home")
    with upstream() as url, serving(home, OPENAI_BASE_URL=url, **settings) as running:
        yield running


@pytest.fixture
def admin(server: Server) -> Iterator[Caller]:
    made = server.user()
    yield made
    made.close()


@pytest.fixture
def owner(server: Server) -> Iterator[Caller]:
    made = server.customer(next(NAMES))
    yield made
    made.close()


@pytest.fixture
def supervisor(server: Server, admin: Caller) -> Iterator[Caller]:
    made = a_supervisor(server, admin)
    yield made
    made.close()


def a_supervisor(server: Server, admin: Caller) -> Caller:
    name = next(NAMES)
    server.customer(name, credits=0).close()
    admin.request("PUT", f"/api/admin/users/{name}/role", {"role": "supervisor"})
    return server.user(name, f"{name}-password")


def me(caller: Caller) -> str:
    user: str = caller.get("/api/profile")["user"]["id"]
    return user


def observe(caller: Caller, session: str, *, after: int = 0) -> list[Event]:
    """All that an observer is sent, to the end of it."""
    with caller.streaming("GET", f"/api/chat/sessions/{session}/observe", None, {"Last-Event-ID": str(after)}) as (
        _,
        events,
    ):
        return list(events)


def of_the_stream(events: list[Event]) -> list[Event]:
    return [each for each in events if each.event not in FRAMING]


def looks(admin: Caller, owner: Caller, count: int) -> list[dict[str, Any]]:
    """The looks at a user, newest first, once so many have ended."""
    deadline = time.monotonic() + 20
    while True:
        found: list[dict[str, Any]] = admin.get(f"/api/chat/observations?userId={me(owner)}")["observations"]
        if len([each for each in found if each["endedAt"]]) == count:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def begin(owner: Caller, session: str, message: str, **body: Any) -> "tuple[threading.Thread, list[Event], str]":
    """An answer that is being read in a thread, once its first chunk has come; its events as they do, and its id."""
    got: list[Event] = []
    chunk = threading.Event()

    def read() -> None:
        path = f"/api/chat/sessions/{session}/stream"
        with owner.streaming("POST", path, {"message": message, **body}) as (_, events):
            for event in events:
                got.append(event)
                if event.event == "chunk":
                    chunk.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert chunk.wait(20)
    return thread, got, got[0].json()["streamingSessionId"]


def test_several_observers_see_the_history_then_every_event_as_the_reader_does(
    server: Server, admin: Caller, owner: Caller
) -> None:
    session = owner.session()
    observers = [a_supervisor(server, admin) for _ in range(3)]
    reading, read, stream_id = begin(owner, session, "fake-n80-ms10")
    with ThreadPoolExecutor(3) as pool:
        seen = list(pool.map(lambda each: observe(each, session), observers))
    reading.join()
    for events in seen:
        kinds = [each.event for each in events]
        assert kinds[:2] == ["observer", "history-start"]
        assert events[0].json()["streamingSessionId"] == stream_id and events[0].json()["userId"] == me(owner)
        assert of_the_stream(events) == read
        border = kinds.index("history-end")
        assert 2 < border < len(events) - 2, "some of it was history, and some of it was not"
        assert events[border].json()["lastEventId"] == int(events[border - 1].id)
        assert kinds.count("history-end") == 1 and kinds[-1] == "done"
    assert text_of(of_the_stream(seen[0])) == Script(n=80).text()
    found = looks(admin, owner, 3)
    assert {each["observerId"] for each in found} == {me(each) for each in observers}
    assert {(each["end"], each["shownAfter"], each["shownTo"], each["kind"]) for each in found} == {
        ("stream_ended", 0, int(read[-1].id), "stream")
    }
    for each in observers:
        each.close()


def test_an_observer_that_was_cut_off_goes_on_behind_the_last_event(owner: Caller, supervisor: Caller) -> None:
    session = owner.session()
    reading, read, _ = begin(owner, session, "fake-n30-ms5")
    again = observe(supervisor, session, after=7)
    reading.join()
    assert of_the_stream(again) == read[7:]
    assert again[1].json()["after"] == 7


def test_a_stream_that_has_just_ended_is_replayed_and_closed(owner: Caller, supervisor: Caller) -> None:
    session = owner.session()
    read = owner.ask(session, "fake-n5")
    events = observe(supervisor, session)
    assert of_the_stream(events) == read
    assert events[-1].event == "history-end"


def test_where_nothing_runs_the_answer_says_where_something_does(owner: Caller, supervisor: Caller) -> None:
    idle, busy = owner.session(), owner.session()
    reading, _, stream_id = begin(owner, busy, "fake-n60-ms10")
    problem = supervisor.get(f"/api/chat/sessions/{idle}/observe", expect=404)
    assert problem["code"] == "session_not_active"
    assert {"sessionId": busy, "userId": me(owner), "streamingSessionId": stream_id} in problem["availableSessions"]
    reading.join()
    ended = supervisor.get(f"/api/chat/sessions/{idle}/observe", expect=404)
    assert stream_id not in str(ended)


def test_what_was_deleted_is_not_shown_again(owner: Caller, supervisor: Caller) -> None:
    session = owner.session()
    owner.ask(session, "fake-n3")
    owner.request("DELETE", f"/api/chat/sessions/{session}")
    assert supervisor.get(f"/api/chat/sessions/{session}/observe", expect=404)["code"] == "session_not_active"


def test_an_observer_does_not_hold_open_what_nobody_reads(owner: Caller, supervisor: Caller) -> None:
    session = owner.session()
    path, body = f"/api/chat/sessions/{session}/stream", {"message": "fake-n900-ms5", "onDisconnect": "stop"}
    with owner.streaming("POST", path, body) as (_, events):
        assert next(events).event == "session"
        with ThreadPoolExecutor(1) as pool:
            observing = pool.submit(observe, supervisor, session)
            next(event for event in events if event.event == "chunk")
            owner.http.close()  # the reader has gone, the observer stays
            seen = observing.result(30)
    assert seen[-1].event == "done" and seen[-1].json()["receipt"]["outcome"] == "abandoned"


def test_an_observer_that_leaves_is_noted_and_stops_nothing(owner: Caller, supervisor: Caller, admin: Caller) -> None:
    session = owner.session()
    reading, read, _ = begin(owner, session, "fake-n60-ms10", onDisconnect="stop")
    with supervisor.streaming("GET", f"/api/chat/sessions/{session}/observe") as (_, events):
        next(event for event in events if event.event == "history-end")
    supervisor.http.close()
    reading.join()
    assert read[-1].json()["receipt"]["outcome"] == "completed"
    (look,) = looks(admin, owner, 1)
    assert look["end"] == "left" and 0 < look["shownTo"] < int(read[-1].id)


def test_who_may_no_longer_observe_sees_no_more_whatever_the_token_says(
    owner: Caller, supervisor: Caller, admin: Caller
) -> None:
    session = owner.session()
    reading, read, _ = begin(owner, session, "fake-n900-ms20")
    observer = me(supervisor)
    with supervisor.streaming("GET", f"/api/chat/sessions/{session}/observe") as (_, events):
        next(event for event in events if event.event == "history-end")
        admin.request("PUT", f"/api/admin/users/{observer}/role", {"role": "enduser"})
        rest = list(events)
    assert rest[-1].event == "observer-end"
    assert supervisor.get(f"/api/chat/sessions/{session}/observe", expect=403)["code"] == "forbidden"
    owner.post(f"/api/chat/streams/{read[0].json()['streamingSessionId']}/stop")
    reading.join()
    assert int(rest[-2].id) < int(read[-1].id)
    (look,) = looks(admin, owner, 1)
    assert look["end"] == "not_allowed" and look["shownTo"] == int(rest[-2].id)


def test_users_observe_nobody_and_only_administrators_read_the_log(
    server: Server, owner: Caller, supervisor: Caller
) -> None:
    session = owner.session()
    owner.ask(session, "fake-n3")
    other = server.customer(next(NAMES), credits=0)
    for caller, path in (
        (other, f"/api/chat/sessions/{session}/observe"),
        (owner, f"/api/chat/sessions/{session}/observe"),
        (other, "/api/chat/users/search?query=user"),
        (other, f"/api/chat/users/{me(owner)}/sessions"),
        (other, f"/api/chat/users/{me(owner)}/sessions/{session}"),
        (other, "/api/chat/observations"),
        (supervisor, "/api/chat/observations"),
    ):
        assert caller.get(path, expect=403)["code"] == "forbidden"
    other.token = ""
    other.http.cookies.clear()
    assert other.get(f"/api/chat/sessions/{session}/observe", expect=401)["code"] == "unauthenticated"


def test_a_key_that_may_chat_does_not_observe(server: Server, owner: Caller, supervisor: Caller) -> None:
    session = owner.session()
    owner.ask(session, "fake-n3")
    key = supervisor.post("/api/auth/api-keys", {"name": "script", "scopes": ["chat"]}, expect=201)["key"]
    script = server.caller()
    script.token = key
    assert script.get("/api/chat/sessions")["sessions"] == []
    for path in (f"sessions/{session}/observe", "users/search?query=user", f"users/{me(owner)}/sessions/{session}"):
        assert script.get(f"/api/chat/{path}", expect=403)["code"] == "forbidden"
    script.close()


def test_a_supervisor_finds_a_user_and_reads_the_users_chats_on_record(
    owner: Caller, supervisor: Caller, admin: Caller
) -> None:
    session = owner.session(title="about rivers")
    owner.ask(session, "fake-n3")
    profile = owner.get("/api/profile")["user"]
    (found,) = supervisor.get(f"/api/chat/users/search?query={profile['email']}")["users"]
    assert found == {name: profile[name] for name in ("id", "username", "email", "role")}
    for who in (profile["id"], profile["username"], profile["email"]):
        assert supervisor.get(f"/api/chat/users/{who}/sessions") == owner.get("/api/chat/sessions")
    assert supervisor.get(f"/api/chat/users/{profile['id']}/sessions?query=lakes")["sessions"] == []
    read = supervisor.get(f"/api/chat/users/{profile['username']}/sessions/{session}")
    assert read == owner.get(f"/api/chat/sessions/{session}")
    other = supervisor.session()
    supervisor.get(f"/api/chat/users/{profile['id']}/sessions/{other}", expect=404)
    supervisor.get("/api/chat/users/nobody/sessions", expect=404)
    (look,) = admin.get(f"/api/chat/observations?userId={profile['id']}&observerId={me(supervisor)}")["observations"]
    assert (look["kind"], look["sessionId"], look["streamingSessionId"]) == ("session", session, None)


def test_the_log_is_read_in_pages_newest_first(owner: Caller, supervisor: Caller, admin: Caller) -> None:
    sessions = [owner.session() for _ in range(5)]
    for session in sessions:
        supervisor.get(f"/api/chat/users/{me(owner)}/sessions/{session}")
    pages: list[str] = []
    after = ""
    while True:
        page = admin.get(f"/api/chat/observations?userId={me(owner)}&limit=2{after}")
        pages += [each["sessionId"] for each in page["observations"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert pages == sessions[::-1]
    assert admin.get(f"/api/chat/observations?after={'0' * 32}", expect=404)["code"] == "not_found"


def test_a_look_is_kept_before_anything_is_shown(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The process dies while somebody looks: the log says that somebody did."""
    with (
        upstream() as url,
        serving(
            tmp_path_factory.mktemp("home"), EMBEDDED_MODEL="off", OPENAI_BASE_URL=url, OPENAI_MODELS="fake,*"
        ) as server,
    ):
        admin, owner = server.user(), server.customer("ann")
        session = owner.session()
        path = f"/api/chat/sessions/{session}"
        with owner.streaming("POST", f"{path}/stream", {"message": "fake-n900-ms20"}) as (_, read):
            next(read)
            with admin.streaming("GET", f"{path}/observe") as (_, events):
                next(event for event in events if event.event == "history-end")
                server.kill()
        server.start()
        (look,) = server.user().get("/api/chat/observations")["observations"]
        assert (look["observer"], look["sessionId"], look["endedAt"]) == ("admin", session, None)
