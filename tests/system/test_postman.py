"""The documents of the API: the same from the command line as from a server, and a collection that others can run."""

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx2
import jsonschema_rs
import pytest
from tests import quick
from tests.clients.programs import POSTMAN, node_folder
from tests.serving import ADMIN_PASSWORD, PARSHALL, Server, serving, upstream
from typer.testing import CliRunner

from parshall.app.apart import ALL, ServiceName
from parshall.app.examples import BODIES
from parshall.app.openapi import operations
from parshall.app.postman import APART, FIRST_STEPS, collection
from parshall.app.surface import surface, words_of
from parshall.cli.main import app
from parshall.kernel.headers import STREAM_ID_HEADER, loggable

RUN_SECONDS_MAX = 100
SHARED = {"/health", "/api/health", "/api/version", "/metrics"}
"""What every service answers."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with (
        upstream() as url,
        serving(
            tmp_path_factory.mktemp("home"), EMBEDDED_MODEL="off", OPENAI_BASE_URL=url, MAIL_URL="mailbox:"
        ) as made,
    ):
        admin = made.user()
        admin.post("/api/credits/allocate", {"userId": "admin", "credits": 100}, expect=201)
        yield made


@cache
def whole() -> dict[str, Any]:
    """The document of all services together."""
    return surface(ALL).openapi()


@cache
def parts() -> dict[ServiceName, dict[str, Any]]:
    """That of each service apart."""
    return {service: surface(frozenset({service})).openapi() for service in ServiceName}


def items(folder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for each in folder["item"]:
        yield from items(each) if "item" in each else (each,)


# ── The document ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("path", "arguments"), [("/openapi.json", []), ("/postman.json", ["--postman"])])
def test_the_command_and_a_server_give_the_same_documents(path: str, arguments: list[str], server: Server) -> None:
    for url in server.urls:
        whose = ["--service", httpx2.get(f"{url}/api/version").json()["service"]] if server.split else []
        shown = CliRunner().invoke(app, ["openapi", *arguments, *whose])
        assert json.loads(shown.stdout) == httpx2.get(url + path).json()
        assert f'href="{path}"' in httpx2.get(url).text
    assert "(/postman.json)" in whole()["info"]["description"], "which /docs shows"


def test_each_service_has_its_part_and_together_they_are_all() -> None:
    found = [path for part in parts().values() for path in part["paths"] if path not in SHARED]
    assert len(found) == len(set(found)) and {*found, *SHARED} == set(whole()["paths"])
    for service, part in parts().items():
        made = collection(part, name=service.value)
        assert len(list(items(made))) == len(operations(part))
        (base,) = [each["value"] for each in made["variable"] if each["key"].endswith("Url")]
        assert base == f"http://127.0.0.1:{3000 + list(ServiceName).index(service)}"


def test_every_operation_is_described_and_every_body_has_an_example_that_fits() -> None:
    wanting, used = [], set()
    for method, path, described in operations(whole()):
        named = [
            each for each in described.get("parameters", ()) if not each.get("description") or "example" not in each
        ]
        content = described.get("requestBody", {}).get("content", {})
        fitting = [each for each in content.values() if "example" in each and fits(each)]
        if named or len(fitting) < len(content) or not described["description"] or len(described["summary"]) > 90:
            wanting.append(f"{method} {path}")
        used |= {json.dumps(each.get("example"), sort_keys=True) for each in content.values()}
    assert wanting == [], "give parameters and bodies a row in app/examples.py"
    assert [name for name, body in BODIES.items() if json.dumps(body, sort_keys=True) not in used] == [], "of no body"


def test_the_document_promises_the_id_header_on_every_answer_about_a_stream() -> None:
    promised = {
        f"{method} {path}"
        for method, path, described in operations(whole())
        if STREAM_ID_HEADER in described["responses"].get("200", {}).get("headers", {})
    }
    assert promised == {
        "POST /api/chat/sessions/{session_id}/stream",
        "POST /api/chat/sessions/{session_id}/messages",
        "GET /api/chat/streams/{stream_id}",
        "POST /api/chat/streams/{stream_id}/stop",
        "GET /api/chat/sessions/{session_id}/observe",
    }


def test_logs_know_every_word_of_every_path() -> None:
    """Whatever else stands in a path is left out of them."""
    segments = {part for path in whole()["paths"] for part in path.split("/") if part and not part.startswith("{")}
    words = words_of(surface(ALL))
    assert segments - words == set()
    stream = "/api/chat/streams/stream-1620847252-a1b2c3d4/stop"
    for path in (stream, f"/api/profile/{'0' * 32}"):
        assert loggable(path, words) == path
    for secret in ("hunter2", "a@b.example", "eyJx.y.z", "A" * 43, "0" * 31, "stream-1-x", "chat\n", "…" * 9):
        assert loggable(f"/api/{secret}/chat/{secret}", words) == "/api/…/chat/…"
    assert loggable("/x" * 4000, words).count("…") <= 16


def fits(content: dict[str, Any]) -> bool:
    schema = {**content["schema"], "components": whole()["components"]}
    return bool(jsonschema_rs.is_valid(schema, content["example"]))


def test_the_whole_collection_asks_each_service_for_what_it_answers() -> None:
    asked = {each["request"]["url"]["raw"] for each in items(collection(whole(), name="parshall"))}
    for service, part in parts().items():
        for each in items(collection(part, name=service.value)):
            where = each["request"]["url"]["raw"]
            is_chats = service is ServiceName.CHAT or where.removeprefix("{{baseUrl}}") in SHARED
            base = "baseUrl" if is_chats else f"{service.value}Url"
            assert where.replace("{{baseUrl}}", f"{{{{{base}}}}}") in asked


# ── The collection ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ran(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every request of the collection with its answer, as Newman ran it from top to bottom."""
    folder = node_folder(POSTMAN)
    report = tmp_path_factory.mktemp("newman") / "report.json"
    file = report.with_name("collection.json")
    file.write_text(json.dumps(collection(whole(), name="parshall")), encoding="utf-8")
    given = {"baseUrl": server.url, "username": "admin", "password": ADMIN_PASSWORD}
    given |= {APART[service]: url for service, url in server.services.items() if service in APART}
    given |= {"clientId": "tester", "clientSecret": secret(server)}
    command = ["node", str(folder / "node_modules" / "newman" / "bin" / "newman.js"), "run", str(file)]
    command += [word for name, value in given.items() for word in ("--env-var", f"{name}={value}")]
    command += ["--reporters", "json", "--reporter-json-export", str(report), "--timeout-request", "20000"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS_MAX)
    assert report.exists(), made.stdout + made.stderr
    executions: list[dict[str, Any]] = json.loads(report.read_text())["run"]["executions"]
    return executions


def secret(server: Server) -> str:
    """Of a service that may reserve and settle."""
    command = [str(PARSHALL), "services", "add", "tester"]
    told = quick.run(command, env=server.environment(), capture_output=True, text=True, check=True).stdout
    return max(told.split(), key=len)


def answers(ran: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(each["item"]["name"], each["request"]["method"], each.get("response", {}).get("code", 0)) for each in ran]


def test_every_variable_of_a_collection_is_one_that_it_declares_and_a_script_or_a_person_sets() -> None:
    made = collection(whole(), name="parshall")
    declared = {each["key"] for each in made["variable"]}
    used = set(re.findall(r"\{\{(\w+)\}\}", json.dumps(made)))
    kept = set(re.findall(r"collectionVariables\.set\('(\w+)'", json.dumps(made)))
    given = {"baseUrl", *APART.values(), "username", "password", "clientId", "clientSecret"}
    assert used <= declared
    assert kept | given == declared
    assert json.dumps(made) == json.dumps(collection(surface(ALL).openapi(), name="parshall")), "the same each time"


@pytest.mark.timeout(600)
def test_a_run_of_the_whole_collection_meets_no_error_of_the_server(ran: list[dict[str, Any]], server: Server) -> None:
    came = answers(ran)
    assert len(came) == len(operations(whole())) + len(FIRST_STEPS)
    assert [each for each in came if not 200 <= each[2] < 500] == []
    failed = [
        f"{each['item']['name']}: {test['assertion']}: {test['error'].get('message')}"
        for each in ran
        for test in each.get("assertions", ())
        if test.get("error")
    ]
    assert failed == []
    assert [line for line in server.output if "request_failed" in line] == []


@pytest.mark.timeout(600)
def test_the_first_steps_log_in_and_stream_with_the_id_in_both_places(ran: list[dict[str, Any]]) -> None:
    steps = ran[: len(FIRST_STEPS)]
    assert [each["response"]["code"] for each in steps] == [200, 200, 201, *[200] * 5]
    tests = [test["assertion"] for each in steps for test in each["assertions"]]
    assert tests.count("is answered") == len(FIRST_STEPS)
    assert tests.count("the id is in the header and in the first event") == 1


@pytest.mark.timeout(600)
def test_services_reserve_and_settle_from_the_collection(ran: list[dict[str, Any]]) -> None:
    came = {name: code for name, _, code in answers(ran)}
    assert came["Record a use that is no stream, of the user in X-User-ID or `userId`"] == 201
    assert came["Reserve credits for a stream of the user in X-User-ID"] == 201
    assert came["Charge what a stream used and return the rest"] == 200


@pytest.mark.timeout(600)
def test_hardly_anything_is_refused_to_whoever_runs_a_folder_from_top_to_bottom(ran: list[dict[str, Any]]) -> None:
    """What is: codes never mailed, no organisation or issuer of one's own, wrong passwords, what is over or deleted."""
    refused = [each for each in answers(ran) if each[2] >= 400]
    assert len(refused) <= 16, refused
