"""Starts that fail, each with one sentence, and what a server and commands beside it make of their settings."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import quick
from tests.scripted import Script
from tests.serving import ADMIN_PASSWORD, PARSHALL, Server, serving, text_of, upstream
from tests.system.test_process import settings

from parshall.kernel.credits import MICRO


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with upstream() as url:
        yield url


# ── Starts that fail ────────────────────────────────────────────────────────────────────────────────────────────────


def failing(server: Server, *words: str) -> str:
    """Start, expect exit code 1 and one sentence with these words; the sentence."""
    answer = quick.run(
        [str(PARSHALL), "up", *server.arguments],
        env=server.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = answer.stderr.strip()
    assert answer.returncode == 1, answer
    assert "Traceback" not in said and len(said.splitlines()) <= 3
    for word in words:
        assert word in said.replace("\n", " "), said
    return said


def test_a_busy_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        failing(Server(home=tmp_path, port=port), str(port), "PARSHALL_PORT")


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    failing(Server(home=file / "home"), "PARSHALL_HOME_DIR")


def test_a_second_server_on_one_folder_is_one_sentence(scripted: str, tmp_path: Path) -> None:
    with serving(tmp_path, **settings(scripted)):
        failing(Server(home=tmp_path, settings=settings(scripted)), "already")


def test_a_corrupt_configuration_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "parshall.toml"
    file.write_text("port = = 1")
    failing(Server(home=tmp_path, settings={"CONFIG": str(file)}), "TOML")
    file.write_text('lease_seconds = "many"')
    failing(Server(home=tmp_path, settings={"CONFIG": str(file)}), "PARSHALL_")
    failing(Server(home=tmp_path, settings={"PORT": "99999"}), "PARSHALL_PORT")


def test_a_corrupt_database_is_one_sentence_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "accounting.db").write_bytes(b"this is no database" * 100)
    failing(Server(home=tmp_path), "accounting.db")


def test_no_model_at_all_is_one_sentence(tmp_path: Path) -> None:
    failing(Server(home=tmp_path, settings={"EMBEDDED_MODEL": "off"}), "model")


def test_a_variable_that_is_no_option_is_named_at_the_start(scripted: str, tmp_path: Path) -> None:
    with serving(tmp_path, **settings(scripted, PROT="9000")) as server:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not any("PARSHALL_PROT" in line for line in server.output):
            time.sleep(0.05)
        assert any("PARSHALL_PROT" in line for line in server.output)


def test_the_life_of_an_access_token_is_the_configured_one(scripted: str, tmp_path: Path) -> None:
    with serving(tmp_path, **settings(scripted, ACCESS_TOKEN_SECONDS="77")) as server:
        caller = server.caller()
        answer = caller.post("/api/auth/login", {"username": "admin", "password": ADMIN_PASSWORD})
        assert answer["expiresIn"] == 77
        caller.close()


def test_commands_work_beside_a_running_server(scripted: str, tmp_path: Path) -> None:
    with serving(tmp_path, **settings(scripted)) as server:
        environment = server.environment() | {"PARSHALL_PASSWORD": "bobs-password"}

        def command(*words: str) -> str:
            answer = quick.run([str(PARSHALL), *words], env=environment, capture_output=True, text=True, timeout=60)
            assert answer.returncode == 0, answer.stderr
            return answer.stdout

        command("users", "add", "bob", "--email", "bob@example.org")
        command("credits", "grant", "bob", "12.5")
        caller = server.user("bob", "bobs-password")
        assert caller.balance()["availableCredits"] == 12.5
        events = caller.ask(caller.session(), "fake-n3")
        assert text_of(events) == Script(n=3).text()
        shown = json.loads(command("credits", "balance", "bob", "--json"))
        left = round(12.5 * MICRO - events[-1].json()["receipt"]["chargedCredits"] * MICRO)
        assert str(left / MICRO) in json.dumps(shown)
        caller.close()


def test_the_page_at_the_root_links_what_runs_here(scripted: str, tmp_path: Path) -> None:
    with serving(tmp_path, **settings(scripted)) as server:
        caller = server.caller()
        page = caller.http.get("/")
        assert page.status_code == 200 and "text/html" in page.headers["content-type"]
        for link in ("/docs", "/health", "/openapi.json", "/documentation/PROTOCOL.md"):
            assert f'href="{link}"' in page.text
            assert caller.http.get(link).status_code == 200
        assert caller.http.get("/documentation/..%2Fpyproject.toml").status_code == 404
        assert "//cdn" not in caller.http.get("/docs").text, "the documentation must work without a network"
        caller.close()
