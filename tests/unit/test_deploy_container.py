"""The image as its file describes it: what goes in, who runs, what it runs, and how it says that it is well."""

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.deployment import ROOT, USER, Instruction, check_command, check_options, instructions, port_of_service

from parshall.app.apart import ServiceName
from parshall.app.config import Settings

ALL = instructions()
LAST = max(each.stage for each in ALL)


def named(name: str, stage: int | None = None) -> list[str]:
    return [each.text for each in ALL if each.name == name and stage in (None, each.stage)]


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for word in " ".join(named("ENV", LAST)).split())


def is_sent(path: str) -> bool:
    """Whether the builder gets to see it."""
    lines = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    return "*" in lines and any(path == each or path.startswith(each + "/") for each in kept)


def test_whatever_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sources = [word for text in named("COPY") if "--from" not in text for word in text.split()[:-1]]
    assert sources and all((ROOT / source).exists() and is_sent(source) for source in sources)
    assert not any(is_sent(secret) for secret in ("deploy/compose/secrets/admin_password", ".git/config", ".env"))
    assert (ROOT / ".dockerignore").read_bytes() == (ROOT / ".containerignore").read_bytes()


def test_what_is_installed_is_what_is_locked_and_nothing_is_compiled() -> None:
    (installing,) = [text for text in named("RUN") if "pip" in text and " install " in text and "apt-get" not in text]
    assert {"--require-hashes", "--no-deps", "--only-binary", "/build/run.txt"} <= set(installing.split())
    assert "requirements/run.txt /build/run.txt" in named("COPY", 0)


def test_the_image_that_runs_holds_no_tools_to_build_with_and_no_cache() -> None:
    (running,) = named("RUN", LAST)
    assert (
        "uninstall --quiet --yes --root-user-action=ignore pip" in running and "rm -rf /var/lib/apt/lists/*" in running
    )
    packages = re.search(r"apt-get install --yes --no-install-recommends ([\w. -]+?) &&", running)
    assert packages and packages[1].split() == ["libgomp1"]
    assert named("COPY", LAST) == ["--from=build /opt/parshall /opt/parshall"] and not named("ADD")


def test_the_images_are_named_by_a_version() -> None:
    (python,) = named("ARG", -1)
    assert re.fullmatch(r"PYTHON=3\.\d+-slim-\w+", python)
    assert {text.split()[0] for text in named("FROM")} == {"docker.io/library/python:${PYTHON}"}


def test_it_runs_as_nobody_in_particular_and_writes_to_one_folder() -> None:
    assert named("USER") == [f"{USER}:{USER}"]
    (home,) = named("VOLUME")
    assert environment()["PARSHALL_HOME_DIR"] == environment()["HOME"] == home
    assert f"install -d -o {USER} -g {USER} -m 0700 {home}" in named("RUN", LAST)[0]
    assert environment()["PYTHONDONTWRITEBYTECODE"] == "1"
    last = [each.name for each in ALL if each.stage == LAST]
    assert not {"RUN", "COPY"} & set(last[last.index("USER") :]), "nothing is made after root has gone"


def test_what_it_runs_is_the_program() -> None:
    (entry,), (default,) = named("ENTRYPOINT"), named("CMD")
    assert json.loads(entry) == ["parshall"]
    check_command(json.loads(default))
    for service in ServiceName:
        check_command(["serve", service])
    assert "python -m parshall" in next(text for text in named("RUN", 0) if "printf" in text)
    assert named("STOPSIGNAL") == ["SIGTERM"]


def test_its_options_exist_and_its_ports_are_those_of_the_program() -> None:
    check_options(environment())
    ports = {Settings.model_fields["port"].default, *(port_of_service(service) for service in ServiceName)}
    assert set(map(int, named("EXPOSE")[0].split())) == ports
    assert environment()["HEALTH_URL"] == f"http://127.0.0.1:{Settings.model_fields['port'].default}/health"


@contextmanager
def answering(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/health"
    server.shutdown()
    server.server_close()
    thread.join()


def healthy(url: str) -> bool:
    """What the image's own check says, of whatever a proxy in the environment may want to hear."""
    (check,) = named("HEALTHCHECK")
    _, *words = json.loads(check[check.index("[") :])
    own = {"HEALTH_URL": url, "http_proxy": "http://127.0.0.1:1"}
    return subprocess.run([sys.executable, *words], env=own, capture_output=True, timeout=30).returncode == 0


def test_it_is_well_where_the_server_says_so_and_not_while_it_drains_or_is_away() -> None:
    with answering(200) as url:
        assert healthy(url)
    assert not healthy(url)
    with answering(503) as url:
        assert not healthy(url)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_steps_of_the_build_give_a_program_that_serves(tmp_path: Path) -> None:
    """Each RUN of the build's stage as it stands, in a folder in place of the image's root."""
    image = tmp_path / "image"
    (image / "build").mkdir(parents=True)

    def local(text: str) -> str:
        return text.replace("/opt/parshall", str(image / "parshall")).replace("/build", str(image / "build"))

    def run(step: Instruction) -> None:
        if step.name == "COPY":
            source, target = local(step.text).split()
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", str(ROOT / source), target], check=True)
        elif step.name == "RUN":
            subprocess.run(["sh", "-c", local(step.text)], check=True, env=own)

    folder = str(Path(sys.executable).resolve().parent)
    own = {"PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin", "MODEL": "off", "HOME": str(tmp_path)}
    for step in (each for each in ALL if each.stage == 0):
        run(step)
    own |= {"PYTHONPATH": str(image / "parshall" / "app"), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run([str(image / "parshall/bin/parshall"), "config", "--json"], env=own, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert not (image / "parshall/bin/pip").exists() and list((image / "parshall/app").rglob("*.pyc"))
