"""Every call of the Python client, blocking and asynchronous, against a real server."""

import itertools
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.clients.sdk import KINDS, Kind, client_of, text_of
from tests.scripted import Script
from tests.serving import ADMIN_PASSWORD, Server, serving, upstream

from parshall.client import UNLIMITED, ApiError, Client, ClientError, InsufficientCredits, NewUser, new_id
from parshall.client.asked import asked, opened

SCRIPT = "fake-n6-ms1"
SLOW = "fake-n2000-ms20"
NUMBERS = itertools.count()
Connect = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake,*"}
    with upstream() as url, serving(tmp_path_factory.mktemp("home"), OPENAI_BASE_URL=url, **options) as running:
        yield running


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def people(server: Server) -> dict[str, str]:
    """Access tokens: passwords are slow to check, so most tests share one customer."""
    found = {}
    with Client(server.url, **server.elsewhere) as client:
        client.login("admin", ADMIN_PASSWORD)
        found["admin"] = token(client)
        client.create_user("reader", "reader@example.org", "reader-password")
        client.allocate("reader", 100)
        client.login("reader", "reader-password")
        found["reader"] = token(client)
    return found


def token(client: Client) -> str:
    assert client.tokens is not None
    return client.tokens.access


@pytest.fixture
def admin(server: Server, kind: Kind, people: dict[str, str]) -> Iterator[Any]:
    with client_of(kind, server.url, **server.elsewhere, token=people["admin"]) as client:
        yield client


@pytest.fixture
def reader(server: Server, kind: Kind, people: dict[str, str]) -> Iterator[Any]:
    with client_of(kind, server.url, **server.elsewhere, token=people["reader"]) as client:
        yield client


@pytest.fixture
def name() -> str:
    return f"ann{next(NUMBERS)}"


@pytest.fixture
def user(server: Server, kind: Kind, admin: Any, name: str) -> Iterator[Any]:
    """A customer with credits of their own, logged in."""
    admin.create_user(name, f"{name}@example.org", "ann-password")
    admin.allocate(name, 100)
    with client_of(kind, server.url, **server.elsewhere) as client:
        assert client.login(name, "ann-password").username == name
        yield client


def test_every_call_is_tried_here() -> None:
    calls = [call for call in dir(Client) if isinstance(getattr(Client, call), asked | opened)]
    text = Path(__file__).read_text(encoding="utf-8")
    assert len(calls) > 50
    assert [call for call in calls if not re.search(rf"\.{call}\b", text)] == []


def test_a_user_signs_up_and_looks_after_the_own_account(server: Server, kind: Kind, name: str) -> None:
    with client_of(kind, server.url, **server.elsewhere) as client:
        user_id = client.sign_up(name, f"{name}@example.org", "ann-password")
        assert client.login(f"{name}@example.org", "ann-password").id == user_id
        assert (client.profile().username, client.profile().created_at is None) == (name, False)
        assert client.update_profile(email=f"{name}@example.com").email == f"{name}@example.com"
        assert client.export_profile()["user"]["email"] == f"{name}@example.com"
        before = client.tokens
        client.refresh()
        assert client.tokens != before
        client.change_password("ann-password", "ann-other-password")
        assert client.profile().id == user_id
        with pytest.raises(ApiError) as refused:
            client.login(name, "ann-password")
        assert (refused.value.status, refused.value.code) == (401, "wrong_credentials")
        client.logout_everywhere()
        assert client.tokens is None
        client.login(name, "ann-other-password")
        client.logout()
        with pytest.raises(ApiError, match=r"[Ll]og in"):
            client.profile()
        client.login(name, "ann-other-password")
        client.delete_profile("ann-other-password")
        with pytest.raises(ApiError):
            client.login(name, "ann-other-password")


def test_an_api_key_does_what_its_scopes_allow(server: Server, kind: Kind, reader: Any) -> None:
    made = reader.create_api_key(
        f"ci-{kind}", scopes=["credits:read"], expires_at=datetime.now(UTC) + timedelta(days=1)
    )
    assert made.key and made.key not in repr(made)
    assert [(key.id, key.key) for key in reader.api_keys()] == [(made.id, None)]
    with client_of(kind, server.url, **server.elsewhere, api_key=made.key) as holder:
        assert holder.balance() == reader.balance()
        with pytest.raises(ApiError) as refused:
            holder.create_session()
        assert refused.value.status == 403
        assert made.key not in repr(holder)
    reader.revoke_api_key(made.id)
    assert reader.api_keys() == []


def test_administrators_look_after_users(admin: Any, name: str) -> None:
    first = NewUser(username=name, email=f"{name}@example.org", password="ann-password")
    assert "ann-password" not in repr(first)
    made, twin = admin.create_users([first, first])
    assert (made.success, twin.success, twin.code) == (True, False, "username_taken")
    found = admin.users(name)
    assert ([each.id for each in found.items], found.total, found.pages) == ([made.user_id], 1, 1)
    assert admin.user(f"{name}@example.org").id == made.user_id
    assert admin.set_role(name, "supervisor").role == "supervisor"
    assert [each.username for each in admin.search_users(name)] == [name]
    admin.reset_password(name, "another-password")
    assert admin.export_user(name)["sessions"] == []
    admin.delete_user(name)
    with pytest.raises(ApiError) as gone:
        admin.user(name)
    assert gone.value.status == 404


def test_credits_are_given_taken_and_accounted_for(admin: Any, user: Any, name: str) -> None:
    granted = admin.allocate(name, Decimal("0.5"), expiry_days=3, notes="a gift", idempotency_key=f"{name}-1")
    again = admin.allocate(name, Decimal("0.5"), expiry_days=3, notes="a gift", idempotency_key=f"{name}-1")
    assert (granted.id, granted.total_credits) == (again.id, Decimal("0.5"))
    with pytest.raises(ApiError) as reused:
        admin.allocate(name, 7, idempotency_key=f"{name}-1")
    assert (reused.value.status, reused.value.code) == (409, "id_reused")
    assert granted.id in [each.id for page in pages(admin.grants) for each in page.items]
    assert user.balance() == admin.balance(name)
    assert user.balance().total == Decimal("100.5")
    assert user.deduct(Decimal("0.000001"), notes="stamp") == Decimal("100.499999")
    changed = admin.set_credits(name, 50)
    assert (changed.previous_credits, changed.new_credits) == (Decimal("100.499999"), 50)
    assert admin.adjust(name, -10).new_credits == 40
    assert admin.remove_credits(name, 20).new_credits == 20
    assert (user.check(20).sufficient, user.check(Decimal("20.1")).sufficient, user.check(1).credits) == (1, 0, 20)
    with pytest.raises(InsufficientCredits) as short:
        user.deduct(21)
    assert (short.value.status, short.value.required, short.value.available) == (402, 21, 20)
    entries = [entry for page in pages(user.statement) for entry in page.items]
    assert entries == list(admin.statement(name, limit=500).items)
    assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
    assert entries[-1].balance_after == 20


def pages(call: Callable[..., Any]) -> Iterator[Any]:
    page = call(limit=2)
    while True:
        yield page
        if page.next is None:
            return
        page = call(after=page.next, limit=2)


def test_organisations_pay_for_their_members_within_limits(admin: Any, user: Any, name: str) -> None:
    made = admin.found_organisation(f"{name} & co")
    assert made.id in [each.id for page in pages(admin.organisations) for each in page.items]
    assert admin.rename_organisation(made.id, name).name == name
    assert admin.allocate_to_organisation(made.id, 10, notes="a start").user_id == made.id
    assert admin.adjust_organisation(made.id, Decimal("-2.5")).new_credits == Decimal("7.5")
    joined = admin.set_member(made.id, name, role="manager", limit_per_day=Decimal("0.5"), limit_total=3)
    assert (joined.role, joined.limit_per_day, joined.limit_total) == ("manager", Decimal("0.5"), 3)
    lifted = admin.set_member(made.id, name, limit_total=UNLIMITED)
    assert (lifted.role, lifted.limit_per_day, lifted.limit_total) == ("manager", Decimal("0.5"), None)
    mine = user.my_organisation()
    assert (mine.organisation, mine.available_credits) == (user.organisation(made.id), Decimal("0.5"))
    stream = user.stream(user.create_session(), SCRIPT)
    list(stream)
    assert user.organisation_balance(made.id).total == Decimal("7.5") - stream.receipt.charged
    assert stream.id in [each.streaming_session_id for each in user.organisation_statement(made.id).items]
    assert [each.used_total for each in user.members(made.id).items] == [stream.receipt.charged]
    admin.remove_member(made.id, name)
    with pytest.raises(ApiError) as left:
        user.my_organisation()
    assert left.value.status == 404


def test_prices_and_models(admin: Any, reader: Any, name: str) -> None:
    later = datetime.now(UTC) + timedelta(days=30)
    put = admin.set_price(name, input=Decimal("1.5"), output=3, effective_from=later)
    assert (put.cached_input, put.reasoning, put.effective_from) == (Decimal("1.5"), 3, later)
    assert put in reader.prices()
    admin.set_price(name, input=100, output=400)
    assert reader.price(name, input_tokens=3, output_tokens=10) == Decimal("0.0043")
    assert "fake" in [model["id"] for model in reader.models()]
    advised = reader.recommend("summarise", priority="speed")
    assert advised.model_details.id == advised.recommended_model and advised.reason


def test_chat_sessions_are_kept_found_renamed_and_forgotten(reader: Any) -> None:
    first = reader.create_session(title="Weirs & flumes", source="test")
    second = reader.create_session()
    assert [each.id for each in reader.sessions(limit=1).items] == [second]
    found = reader.sessions("flumes")
    assert ([each.id for each in found.items], found.total) == ([first], 1)
    assert reader.change_session(first, title="Flumes alone").title == "Flumes alone"
    assert reader.session(first)["title"] == "Flumes alone"
    assert reader.messages(first) == []
    reader.delete_session(first)
    with pytest.raises(ApiError) as gone:
        reader.session(first)
    assert gone.value.status == 404


def test_a_stream_from_the_question_to_the_receipt(user: Any) -> None:
    chat = user.create_session()
    stream = user.stream(chat, f"{SCRIPT} hello", temperature=0.1, on_disconnect="continue")
    events = list(stream)
    assert [event.event for event in events][:2] == ["session", "model"]
    assert (events[-1].event, stream.offset) == ("done", len(events))
    assert text_of(events) == Script.of("", SCRIPT).text()
    assert events[0].data["streamingSessionId"] == stream.id
    assert stream.receipt == user.receipt(stream.id) == user.stop(stream.id)
    assert stream.receipt.charged > 0 and stream.receipt.output_tokens == 6
    state = user.state(stream.id)
    assert (state.state, state.outcome, state.session_id) == ("ended", "completed", chat)
    question, answer = user.messages(chat)
    assert (question.role, answer.content, answer.streaming_session_id) == ("user", text_of(events), stream.id)
    assert user.usage(since=datetime.now(UTC).date()).total_credits == stream.receipt.charged
    for text, matches in ((text_of(events), True), (text_of(events)[:3], True), ("something else", False)):
        assert user.acknowledge(chat, stream.id, text, tokens_used=6).matches is matches
    assert list(user.resume(stream.id)) == events
    assert list(user.resume(stream.id, after=3)) == events[3:]


def test_resuming_after_the_last_event_ends_at_once(reader: Any) -> None:
    stream = reader.stream(reader.create_session(), SCRIPT)
    events = list(stream)
    rest = reader.resume(stream.id, after=len(events))
    assert (list(rest), rest.offset) == ([], len(events))


def test_the_answer_ends_at_the_tokens_that_were_allowed(reader: Any) -> None:
    events = list(reader.stream(reader.create_session(), SCRIPT, max_tokens=3, model_id="fake"))
    assert (events[-1].data["finishReason"], events[-1].receipt.output_tokens) == ("length", 3)


def test_a_running_stream_is_observed_listed_and_stopped(admin: Any, user: Any, name: str) -> None:
    chat = user.create_session()
    stream = user.stream(chat, SLOW)
    assert [next(stream).event for _ in range(4)] == ["session", "model", "chunk", "chunk"]
    looking = admin.observe(chat)
    seen = [next(looking) for _ in range(6)]
    assert [event.event for event in seen[:4]] == ["observer", "history-start", "session", "model"]
    assert looking.id == stream.id
    assert stream.id in [each.session_id for each in admin.running_of_all()]
    assert [each.session_id for each in user.running()] == [stream.id]
    assert user.running() == admin.running(name)
    assert admin.stop(stream.id).outcome == "stopped"
    rest = [*seen, *looking]
    assert rest[-1].event == "done" and "history-end" in [event.event for event in rest]
    of_the_log = [event for event in rest if event.event not in ("observer", "history-start", "history-end")]
    assert of_the_log == list(user.resume(stream.id))
    assert [each.id for each in admin.sessions_of(name).items] == [chat]
    assert admin.session_of(name, chat)["id"] == chat
    kinds = {each.kind for each in admin.observations(user=name).items}
    assert kinds == {"stream", "session"}
    assert admin.usage(name).total_records == 1
    assert admin.usage_of_all().by_user
    with pytest.raises(ApiError) as nobody:
        list(admin.observe(user.create_session()))
    assert (nobody.value.code, nobody.value.status) == ("session_not_active", 404)


def test_a_refused_id_says_why_and_what_to_do(reader: Any) -> None:
    with pytest.raises(ApiError) as unknown:
        list(reader.resume(new_id()))
    error = unknown.value
    assert (error.status, error.reason) == (404, "unknown")
    assert error.help == "/documentation/TROUBLESHOOTING.md#unknown"
    assert error.request_id and error.remedy != error.message
    with pytest.raises(ApiError) as made_up:
        reader.acknowledge(reader.create_session(), "session-1699999999999", "text")
    assert (made_up.value.code, made_up.value.reason) == ("stream_id_mismatch", "made_up")
    with pytest.raises(ClientError, match="no streaming session id"):
        reader.resume("session-1")


def test_a_question_without_credits_is_refused_with_what_it_takes(admin: Any, user: Any, name: str) -> None:
    admin.set_credits(name, 0)
    with pytest.raises(InsufficientCredits) as short:
        list(user.stream(user.create_session(), SCRIPT))
    assert short.value.required > short.value.available == 0


def test_one_id_is_one_stream_and_another_question_is_refused(reader: Any) -> None:
    chat, stream_id = reader.create_session(), new_id()
    events = list(reader.stream(chat, SCRIPT, stream_id=stream_id))
    assert list(reader.stream(chat, SCRIPT, stream_id=stream_id)) == events
    with pytest.raises(ApiError) as reused:
        list(reader.stream(chat, "fake-n7", stream_id=stream_id))
    assert (reused.value.status, reused.value.code) == (409, "id_reused")
