"""Whoever is removed is removed everywhere, on one process and on three: chats, credits, tokens; whatever dies."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from tests.ledgers import check_ledger
from tests.serving import Caller, Server, serving, stream_id_of, upstream

SECONDS_MAX = 20


@pytest.fixture(scope="module", params=["together", "apart"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with (
        upstream() as url,
        serving(
            tmp_path_factory.mktemp("home"),
            split=request.param == "apart",
            EMBEDDED_MODEL="off",
            OPENAI_BASE_URL=url,
            OPENAI_MODELS="fake",
        ) as running,
    ):
        yield running


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not done():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


def held(server: Server, user_id: str) -> tuple[int, int]:
    """Available and reserved in the account of somebody who is gone, whom nobody can ask for any more."""
    with closing(sqlite3.connect(server.home / "accounting.db")) as books:
        query = "SELECT available, reserved FROM accounts WHERE id = ?"
        found: tuple[int, int] = books.execute(query, (user_id,)).fetchone()
    return found


def test_removing_oneself_takes_chats_credits_and_tokens_along(server: Server) -> None:
    admin, ann = server.user(), server.customer("ann")
    user_id = ann.get("/api/profile")["user"]["id"]
    session = ann.session(title="private")
    stream_id = stream_id_of(ann.ask(session, "fake-n3"))
    assert ann.ended(stream_id)
    assert admin.get(f"/api/chat/users/{user_id}/sessions")["sessions"]
    ann.request("DELETE", "/api/profile", {"currentPassword": "ann-password"})
    for path in ("/api/chat/sessions", "/api/credits/balance", "/api/profile"):
        until(lambda path=path: ann.http.get(ann.at(path), headers=ann.headers()).status_code == 401)
    until(lambda: log_is_gone(admin, stream_id))
    state = admin.state(stream_id)
    assert state["receipt"]["settlement"] == "settled", "the books keep what was used, without a person"
    until(lambda: held(server, user_id) == (0, 0))
    until(lambda: said(server, session) == 0)


def test_an_export_is_all_that_is_kept_in_one_document(server: Server) -> None:
    eve = server.customer("eve", credits=7)
    sessions = [eve.session(title=f"talk {number}") for number in range(3)]
    for session in sessions:
        eve.ask(session, "fake-n2")
    answer = eve.http.get(eve.at("/api/profile/export"), headers=eve.headers())
    assert answer.headers["content-type"] == "application/json"
    export = answer.json()
    assert export["user"]["username"] == "eve"
    kept = {each["id"]: each for each in export["chat"]["sessions"]}
    assert kept.keys() == set(sessions)
    assert [each["role"] for each in kept[sessions[0]]["messages"]] == ["user", "assistant"]
    credits = export["credits"]
    assert credits["balance"] == eve.balance()
    assert credits["organisation"] is None
    statement = eve.get("/api/credits/statement?limit=500")["entries"]
    assert credits["statement"] == statement
    assert credits["usage"]["totalRecords"] == 3
    other = server.customer("mallory")
    assert other.get("/api/profile/export")["chat"]["sessions"] == []
    key = other.post("/api/auth/api-keys", {"name": "x"}, expect=201)["key"]
    other.token = key
    other.get("/api/profile/export", expect=403)


def test_a_running_stream_is_stopped_and_settled_before_its_account_is_closed(server: Server) -> None:
    admin, bob = server.user(), server.customer("bob")
    user_id, session = bob.get("/api/profile")["user"]["id"], bob.session()
    with bob.streaming("POST", f"/api/chat/sessions/{session}/stream", {"message": "fake-n2000-ms50"}) as (_, events):
        stream_id = stream_id_of([next(events)])
        admin.request("DELETE", "/api/admin/users/bob")
        assert [event.event for event in events][-1] == "done"
    receipt = admin.ended(stream_id)["receipt"]
    assert receipt["outcome"] in ("stopped", "credit_limit"), "chat stops it, or accounting gives no more, as they hear"
    assert receipt["outputTokens"] < 1024
    until(lambda: held(server, user_id) == (0, 0))


@pytest.mark.parametrize("server", ["together"], indirect=True)
def test_what_dies_in_between_is_made_up_for(server: Server) -> None:
    names = [f"carl{number}" for number in range(4)]
    people = [server.customer(name) for name in names]
    ids = [each.get("/api/profile")["user"]["id"] for each in people]
    streams = [stream_id_of(each.ask(each.session(), "fake-n2")) for each in people]
    for name, each in zip(names, people, strict=True):
        each.request("DELETE", "/api/profile", {"currentPassword": f"{name}-password"})
    server.kill()
    server.start()
    admin = server.user()
    for user_id in ids:
        until(lambda user_id=user_id: held(server, user_id) == (0, 0))
    for stream_id in streams:
        until(lambda stream_id=stream_id: log_is_gone(admin, stream_id))


def said(server: Server, session: str) -> int:
    """How many messages are kept of a chat session."""
    with closing(sqlite3.connect(server.home / "chat.db")) as records:
        return int(records.execute("SELECT count(*) FROM messages WHERE session_id = ?", (session,)).fetchone()[0])


def log_is_gone(admin: Caller, stream_id: str) -> bool:
    return admin.http.get(admin.at(f"/api/chat/streams/{stream_id}"), headers=admin.headers()).status_code == 404


def test_the_books_of_whoever_left_still_rebuild(server: Server) -> None:
    server.stop()
    check_ledger(server.home / "accounting.db")
