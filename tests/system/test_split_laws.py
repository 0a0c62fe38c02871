"""The most telling laws of other files on one deployment that is served apart; the rest of them: `--topology split`."""

import itertools
from collections.abc import Iterator

import httpx2
import pytest
from tests.serving import Caller, Server, serving, upstream
from tests.system import test_api_keys as keys
from tests.system import test_limits as limits
from tests.system import test_observe as watching
from tests.system import test_streams as streams

pytestmark = pytest.mark.apart

NAMES = (f"apart{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the settings that the files of these laws give theirs."""
    options = {
        "EMBEDDED_MODEL": "off",
        "OPENAI_MODELS": "fake,*",
        "ALLOWED_ORIGINS": streams.ORIGIN,
        "DISCONNECT_GRACE_SECONDS": "0.3",
        "MAX_STREAMS_PER_USER": str(limits.STREAMS),
        "MAX_STREAMS": str(limits.STREAMS + 1),
    }
    home = tmp_path_factory.mktemp("home")
    with upstream() as url, serving(home, split=True, OPENAI_BASE_URL=url, **options) as running:
        yield running


@pytest.fixture
def caller(server: Server) -> Iterator[Caller]:
    made = server.customer(next(NAMES))
    yield made
    made.close()


@pytest.fixture
def owner(caller: Caller) -> Caller:
    return caller


@pytest.fixture
def session(caller: Caller) -> str:
    return caller.session()


@pytest.fixture
def admin(server: Server) -> Iterator[Caller]:
    made = server.user()
    yield made
    made.close()


@pytest.fixture
def supervisor(server: Server, admin: Caller) -> Iterator[Caller]:
    made = watching.a_supervisor(server, admin)
    yield made
    made.close()


@pytest.fixture
def holder(server: Server, owner: Caller) -> Iterator[Caller]:
    made = server.caller(keys.made(owner)["key"])
    yield made
    made.close()


# ── What each offers ────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_service_says_who_it_is_and_serves_its_own_routes_alone(server: Server) -> None:
    own = {"auth": "/api/auth/login", "accounting": "/api/credits/balance", "chat": "/api/chat/sessions"}
    for name in own:
        url = server.services[name]
        for path in ("/health", "/api/health", "/api/version"):
            assert httpx2.get(url + path).json()["service"] == name
        paths = httpx2.get(f"{url}/openapi.json").json()["paths"]
        assert [each for each, path in own.items() if path in paths] == [name]
        assert httpx2.get(f"{url}/docs").status_code == 200


# ── Streams, their end and their way back ───────────────────────────────────────────────────────────────────────────

test_the_id_header_is_first = streams.test_the_id_header_is_first_on_the_wire_and_equals_the_first_event
test_a_proposed_id_attaches = streams.test_a_proposed_id_is_used_and_a_repeated_request_attaches
test_someone_elses_id_leaks_nothing = streams.test_someone_elses_id_leaks_nothing
test_resuming_is_byte_identical = streams.test_resuming_at_every_offset_is_byte_identical
test_stop_ends_the_stream_for_everybody = streams.test_stop_ends_the_stream_for_everybody_and_charges_what_was_logged
test_an_update_agrees_or_says_why = streams.test_an_update_with_the_right_id_agrees_and_with_a_wrong_one_says_why
test_deleting_a_session_settles_first = streams.test_deleting_a_session_settles_its_stream_first

# ── Credits and refusals ────────────────────────────────────────────────────────────────────────────────────────────

test_the_receipt_is_what_left_the_balance = streams.test_the_receipt_is_what_left_the_balance
test_without_credits_the_answer_is_402 = streams.test_without_credits_the_answer_is_402_with_the_figures
test_a_failing_provider_is_one_error = streams.test_a_failing_provider_is_one_error_event_or_one_503
test_a_second_stream_is_409 = streams.test_a_second_stream_of_a_session_is_409_and_names_the_first
test_without_a_token_every_route_is_401 = streams.test_without_a_token_every_stream_route_is_401

# ── API keys and supervisors ────────────────────────────────────────────────────────────────────────────────────────

test_a_key_opens_its_scope_alone = keys.test_a_key_opens_the_routes_of_its_scope_and_no_other
test_a_program_with_a_key_chats = keys.test_a_program_with_a_key_chats_and_sees_what_it_cost
test_an_admins_key_is_an_endusers = keys.test_an_admins_key_has_the_rights_of_an_enduser
test_observers_see_what_the_reader_sees = (
    watching.test_several_observers_see_the_history_then_every_event_as_the_reader_does
)
test_a_supervisor_reads_on_record = watching.test_a_supervisor_finds_a_user_and_reads_the_users_chats_on_record

# ── Limits; last, for its streams go on ─────────────────────────────────────────────────────────────────────────────

test_as_many_streams_begin_as_may = (
    limits.test_of_ten_parallel_requests_as_many_streams_begin_as_may_and_the_rest_hold_nothing
)
