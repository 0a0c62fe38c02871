"""The TypeScript client in Node: compiled strictly, its own tests, and its streams through networks that fail."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.badproxy import ID, BadProxy, Head, Wrong, bad_proxies
from tests.clients.programs import typescript_client
from tests.clients.proof import CUTS, Run, check_once, snippet
from tests.clients.relay import relay
from tests.clients.typescript import given, play
from tests.ledgers import check_ledger
from tests.serving import Caller, Server, serving, text_of, upstream

import parshall

pytestmark = pytest.mark.timeout(600)  # the first of these tests may have to install what it runs


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture(scope="module")
def server(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    options = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": provider, "OPENAI_MODELS": "fake,*"}
    with serving(home, **options) as running:
        yield running
        running.kill()
    check_ledger(home / "accounting.db")


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[Caller]:
    made = server.customer("reader", credits=1000)
    yield made
    made.close()


@pytest.fixture(scope="module")
def proxies(server: Server) -> Iterator[BadProxy]:
    with bad_proxies(server.url) as opened:
        yield opened


def check_read(read: dict[str, Any], run: Run, provider: str) -> None:
    """A whole stream: every offset once, the stored text, one charge, and nothing left to go on with."""
    run = Run(caller=run.caller, session=run.session, stream=read["id"], message=run.message)
    events = run.caller.resume(run.stream)
    assert read["offsets"] == list(range(1, len(events) + 1))
    assert read["last"]["data"] == events[-1].json()
    assert read["text"] == check_once(run, provider)
    assert read["unfinished"] == []


def test_the_laws_of_the_client_hold() -> None:
    """Compiled by the strict rules of its tsconfig, the types of its tests included, and run by Node's own runner."""
    folder = typescript_client()
    laws = sorted(str(path) for path in folder.glob("build/*.test.js"))
    assert len(laws) == len(list(folder.glob("tests/*.test.ts"))) >= 5
    ran = subprocess.run(["node", "--test", *laws], cwd=folder, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout[-5000:]


def test_the_package_holds_what_it_exports_and_depends_on_nothing() -> None:
    folder = typescript_client()
    package = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    assert package["version"] == parshall.__version__
    assert not {"dependencies", "peerDependencies", "optionalDependencies"} & package.keys()
    command = ["npm", "pack", "--dry-run", "--ignore-scripts", "--json"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    packed = {file["path"] for file in json.loads(ran.stdout)[0]["files"]}
    assert {path.removeprefix("./") for path in package["exports"]["."].values()} <= packed
    assert {path.name for path in folder.glob("dist/*")} == {Path(path).name for path in packed if "dist" in path}
    assert "resolved" not in (folder / "package-lock.json").read_text(encoding="utf-8")


def test_a_client_whose_connections_are_reset_ends_with_the_stored_text_charged_once(
    caller: Caller, server: Server, provider: str
) -> None:
    run = Run.of(caller)
    with relay(server.port, CUTS) as cutting:
        read = play("ask", given(run, cutting.url))
        assert not cutting.cuts, "every cut was met"
    assert len(read["reconnects"]) == len(CUTS)
    check_read(read, run, provider)


def lost(when: Callable[[Head], bool]) -> Callable[[Head], None]:
    """Breaks the first connection whose head is such a one."""
    left = [True]

    def lose(head: Head) -> None:
        if left and when(head):
            left.clear()
            raise ConnectionResetError

    return lose


def losing_request() -> Wrong:
    return Wrong(request=lost(lambda head: "/stream " in head.line))


def losing_response() -> Wrong:
    lose = lost(lambda head: head.is_stream)
    return Wrong(response=lambda _asked, head: lose(head))


def stripping() -> Wrong:
    return Wrong(response=lambda _asked, head: head.drop(ID))


@pytest.mark.parametrize("wrong", [losing_request, losing_response, stripping], ids=lambda wrong: wrong.__name__)
def test_whatever_is_lost_at_the_beginning_the_id_is_known_and_the_answer_is_charged_once(
    wrong: Callable[[], Wrong], caller: Caller, proxies: BadProxy, provider: str
) -> None:
    run = Run.of(caller, "fake-hard-n20-ms5")
    result = play("ids", given(run, proxies.open(wrong())))
    assert result["session"] == result["read"]["id"]
    assert (result["header"] is None) == (wrong is stripping)
    assert len(result["read"]["reconnects"]) == (0 if wrong is stripping else 1)
    check_read(result["read"], run, provider)


def test_a_proxy_that_drops_the_proposal_is_told_and_the_answer_can_be_had(
    caller: Caller, proxies: BadProxy, provider: str
) -> None:
    run = Run.of(caller, "fake-hard-n20-ms5")
    result = play("mismatched", given(run, proxies.open(Wrong(request=lambda head: head.drop(ID)))))
    assert result["expected"] == result["id"] != result["received"]
    found = Run(caller=caller, session=run.session, stream=result["received"], message=run.message)
    assert result["text"] == check_once(found, provider)


def test_a_server_that_is_killed_and_started_again_ends_the_stream_with_what_was_logged(
    caller: Caller, server: Server
) -> None:
    def restart() -> None:
        server.kill()
        server.start()

    run = Run.of(caller, "fake-n400-ms20")
    read = play("ask", given(run), begun=restart)
    events, receipt = caller.resume(read["id"]), caller.ended(read["id"])["receipt"]
    assert read["reconnects"] and read["unfinished"] == []
    assert read["offsets"] == list(range(1, len(events) + 1))
    assert (read["last"]["event"], read["last"]["data"]["code"]) == ("error", "interrupted")
    assert read["text"] == text_of(events) != ""
    assert receipt["chargedCredits"] > 0 and receipt["outputTokens"] < 400


def test_aborting_leaves_the_stream_running_and_its_note_leads_to_the_rest(caller: Caller, provider: str) -> None:
    run = Run.of(caller)
    result = play("abort", given(run))
    note, rest = result["note"], result["rest"]
    assert result["name"] == "AbortError"
    assert (note["sessionId"], "question" in note) == (run.session, False)
    events = caller.resume(rest["id"])
    assert rest["offsets"] == list(range(note["offset"] + 1, len(events) + 1))
    assert note["text"] == text_of(events[: note["offset"]])
    check_read({**rest, "offsets": list(range(1, len(events) + 1))}, run, provider)


def test_a_stop_ends_the_stream_and_its_reader_gets_the_receipt(caller: Caller) -> None:
    run = Run.of(caller, "fake-n900-ms10")
    result = play("stop", given(run))
    read = result["read"]
    assert read["last"]["data"]["finishReason"] == "stopped"
    assert result["receipt"] == result["stored"] == read["last"]["data"]["receipt"]
    assert read["text"] == text_of(caller.resume(read["id"])) and read["unfinished"] == []
    assert 0 < result["receipt"]["outputTokens"] < 900


def test_the_rest_after_any_offset_is_what_followed(caller: Caller) -> None:
    run = Run.of(caller, "fake-hard-n20-ms10")
    after = [0, 1, 2, 7]
    result = play("resume", given(run, after=after))
    events = caller.resume(result["id"])
    *rests, behind = result["rests"]
    assert rests == [text_of(events[offset:]) for offset in after]
    assert behind == "", "nothing comes, and its reader does not wait for it"


def test_tokens_that_run_out_in_mid_stream_are_renewed_once_each_and_nothing_is_lost(
    caller: Caller, server: Server, provider: str
) -> None:
    """A second use of a refresh token would end the session, and with it this test."""
    run = Run.of(caller)
    login = {"username": "reader", "password": "reader-password"}
    with relay(server.port, CUTS) as cutting:
        result = play("restless", given(run, cutting.url, **login))
        assert not cutting.cuts, "every cut was met"
    check_read(result["read"], run, provider)
    assert result["renewed"] > 5 and result["balances"] > 20


def test_every_refusal_is_told_by_its_status_code_reason_and_what_to_do(caller: Caller, server: Server) -> None:
    poor = server.customer("poor", credits=0)
    run, busy = Run.of(caller, "fake-n2"), Run.of(caller, "fake-n900-ms20")
    headers = {"X-Streaming-Session-Id": busy.stream}
    path = f"/api/chat/sessions/{busy.session}/stream"
    with caller.streaming("POST", path, {"message": busy.message}, headers):
        without = {"token": poor.token, "session": poor.session()}
        told = play("refusals", given(run, poor=without, busy=busy.session, username="poor"))
    caller.post(f"/api/chat/streams/{busy.stream}/stop")
    assert told.pop("unfinished") == 0, "what was refused leaves nothing to go on with"
    assert {name: (each["status"], each["code"], each["reason"]) for name, each in told.items()} == {
        "poor": (402, "insufficient_credits", None),
        "foreign": (404, "not_found", None),
        "busy": (409, "stream_active", None),
        "unknown": (404, "not_found", "older_than_retention"),
        "resumed": (404, "not_found", "older_than_retention"),
        "mismatch": (400, "stream_id_mismatch", "older_than_retention"),
        "stranger": (401, "unauthenticated", None),
        "password": (401, "wrong_credentials", None),
        "invalid": (400, "validation_failed", None),
    }
    assert {"requiredCredits", "availableCredits"} <= set(told["poor"]["members"])
    assert all(each["hasRequestId"] and each["message"] for each in told.values())


def test_a_chat_session_can_be_made_named_read_and_removed(caller: Caller, provider: str) -> None:
    run = Run.of(caller, "fake-hard-n20")
    result = play("housekeeping", given(run))
    assert (result["titles"], result["models"]) == (["first", "second"], ["fake", "fake-n3"])
    assert (result["listed"], result["active"], result["state"]) == ([result["session"]], None, "ended")
    assert result["messages"] == [run.message, result["read"]["text"]]
    assert result["receipt"] == result["read"]["last"]["data"]["receipt"]
    assert result["comparison"] == "exact"
    assert result["available"] == result["receipt"]["balanceAfter"]
    assert result["gone"]["status"] == 404


def test_a_supervisor_sees_each_event_once_through_resets(caller: Caller, server: Server) -> None:
    run = Run.of(caller, "fake-hard-n64-ms20")
    with relay(server.port, [10_000, 1500, 300]) as cutting:
        result = play("observe", given(run, cutting.url, supervisor=server.user().token))
    events = caller.resume(result["read"]["id"])
    notices = {"observer", "history-start", "history-end"}
    assert [name for name in result["names"] if name not in notices] == [event.event for event in events]
    assert sorted(name for name in result["names"] if name in notices) == sorted(notices)
    assert result["text"] == text_of(events)


def test_the_lines_of_the_documentation_print_the_stored_text(
    caller: Caller, server: Server, provider: str, tmp_path: Path
) -> None:
    run = Run.of(caller, "fake-hard-n20-ms5")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "parshall-client").symlink_to(typescript_client())
    (tmp_path / "client.mjs").write_text(snippet("TypeScript and JavaScript", run.message), encoding="utf-8")
    told = {"URL": server.url, "TOKEN": caller.token, "SESSION": run.session, "STREAM": run.stream, "AFTER": "0"}
    with relay(server.port, CUTS[:1]) as cutting:
        variables = {"PATH": "/usr/bin:/bin:/usr/local/bin", **told, "URL": cutting.url}
        ran = subprocess.run(["node", "client.mjs"], cwd=tmp_path, env=variables, capture_output=True, timeout=60)
    assert ran.returncode == 0, ran.stderr[-2000:]
    asked = caller.get(f"/api/chat/sessions/{run.session}")["metadata"]["streamingSessionId"]
    found = Run(caller=caller, session=run.session, stream=asked, message=run.message)
    assert ran.stdout.decode() == check_once(found, provider)
