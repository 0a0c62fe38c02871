"""A running server whose signing key is rotated beside it: every request under way and after it is answered."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests import quick
from tests.serving import PARSHALL, Server, serving, upstream

CALLERS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with (
        upstream() as url,
        serving(tmp_path_factory.mktemp("home"), EMBEDDED_MODEL="off", OPENAI_BASE_URL=url, OPENAI_MODELS="fake") as up,
    ):
        yield up


def published(server: Server) -> set[str]:
    return {key["kid"] for key in httpx2.get(server.at("/.well-known/jwks.json")).json()["keys"]}


def rotated(server: Server, *arguments: str) -> None:
    command = [str(PARSHALL), "signing-keys", "rotate", *arguments]
    quick.run(command, env=server.environment(), check=True, capture_output=True)


def calling(server: Server, until: threading.Event, statuses: list[int], signed: set[str]) -> None:
    """Go on calling every service, and refresh for each round."""
    with httpx2.Client(timeout=30) as http:
        body = {"username": "admin", "password": "admin-password"}
        session = http.post(server.at("/api/auth/login"), json=body).json()
        while not until.is_set():
            headers = {"Authorization": f"Bearer {session['accessToken']}"}
            signed.add(session["accessToken"].partition(".")[0])
            for path in ("/api/profile", "/api/credits/balance", "/api/chat/sessions", "/api/admin/users"):
                statuses.append(http.get(server.at(path), headers=headers).status_code)
            answer = http.post(server.at("/api/auth/refresh"), json={"refreshToken": session["refreshToken"]})
            statuses.append(answer.status_code)
            session = answer.json()
            time.sleep(0.05)


def watch(server: Server, seconds: float) -> tuple[list[int], set[str]]:
    """The statuses of everything called around a rotation, and the headers of the tokens that were issued."""
    until, statuses, signed = threading.Event(), list[int](), set[str]()
    arguments = (server, until, statuses, signed)
    threads = [threading.Thread(target=calling, args=arguments) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    rotated(server)
    time.sleep(seconds)
    until.set()
    for thread in threads:
        thread.join(30)
    return statuses, signed


def test_a_rotation_beside_a_running_server_is_published_at_once_and_fails_no_request(server: Server) -> None:
    before = published(server)
    statuses, signed = watch(server, 1)
    assert len(statuses) > 50 and set(statuses) == {200}
    assert before < published(server) and len(published(server)) == len(before) + 1
    assert len(signed) == 1, "a key is published before it signs"


@pytest.mark.soak
def test_a_running_server_changes_over_to_the_new_key_without_a_failed_request(server: Server) -> None:
    statuses, signed = watch(server, 75)
    assert set(statuses) == {200}
    assert len(signed) >= 2


def test_keys_that_leaked_are_thrown_away_beside_a_running_server(tmp_path: Path) -> None:
    with upstream() as url, serving(tmp_path, EMBEDDED_MODEL="off", OPENAI_BASE_URL=url, OPENAI_MODELS="fake") as own:
        before, caller = published(own), own.user()
        rotated(own, "--leaked", "--yes")
        assert len(published(own)) == 1 and not before & published(own)
        caller.close()
