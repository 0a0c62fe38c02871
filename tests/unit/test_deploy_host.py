"""The unit of systemd and the configurations of proxies, as far as their text alone can be wrong."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.deployment import DEPLOY, check_command, check_options, settings_of
from tests.serving import PATHS

from parshall.app.server import FINISH_SECONDS_MAX

UNIT = DEPLOY / "systemd" / "parshall.service"
PARTS = {"127.0.0.1:3000": "auth", "127.0.0.1:3001": "accounting", "127.0.0.1:3002": "chat"}


def directives() -> dict[str, list[str]]:
    """Every directive of the unit with its values in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def text_of(path: str) -> str:
    return (DEPLOY / path).read_text(encoding="utf-8")


def test_the_unit_runs_the_program_with_options_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, *words = directives()["ExecStart"][0].split()
    check_command(words)
    given = dict(word.split("=", 1) for word in directives()["Environment"][0].split())
    check_options(given)
    assert given["PARSHALL_SECRETS_DIR"] == "%d" and directives()["LoadCredential"] == [
        "parshall:/etc/parshall/secrets"
    ]
    (tmp_path / "parshall_admin_password").write_text("as systemd names it", encoding="utf-8")
    settings = settings_of(given | {"PARSHALL_SECRETS_DIR": str(tmp_path)}, monkeypatch)
    assert settings.admin_password is not None
    assert float(directives()["TimeoutStopSec"][0]) >= settings.drain_seconds + FINISH_SECONDS_MAX + 10
    assert directives()["KillMode"] == ["mixed"], "its own processes are its own to end"
    assert given["PARSHALL_HOME_DIR"] == "%S/" + directives()["StateDirectory"][0]


def test_systemd_takes_the_unit_and_finds_little_that_it_may_do() -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    verified = subprocess.run([analyze, "verify", str(UNIT)], capture_output=True, text=True, timeout=60)
    complaints = [line for line in verified.stderr.splitlines() if UNIT.name in line]
    assert [line for line in complaints if "is not executable" not in line] == []
    judged = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", str(UNIT)], capture_output=True, text=True, timeout=60
    )
    assert judged.returncode == 0, judged.stdout[-200:]


def test_nginx_does_the_same_before_one_server_and_before_three() -> None:
    one, apart = (text_of(f"nginx/{name}.conf").partition("\nserver {")[2] for name in ("parshall", "apart"))
    assert one.replace("proxy_pass http://parshall;", "proxy_pass http://$parshall_service;") == apart


def test_caddy_does_the_same_before_one_server_and_before_three() -> None:
    one = text_of("caddy/Caddyfile").partition("reverse_proxy 127.0.0.1:8000 {\n")[2].partition("\n\t}\n")[0]
    apart = text_of("caddy/apart.Caddyfile").partition("(passing) {\n")[2].partition("\n}\n")[0]
    assert [line.strip() for line in one.splitlines()] == [line.strip() for line in apart.splitlines()]
    within = "\t@within path /metrics /metrics/*\n"
    assert within in text_of("caddy/Caddyfile") and within in text_of("caddy/apart.Caddyfile")


def test_every_path_of_the_protocol_is_in_the_files_that_go_by_it() -> None:
    caddy, nginx = text_of("caddy/apart.Caddyfile"), text_of("nginx/apart.conf")
    for service, paths in PATHS.items():
        (matcher,) = re.findall(rf"@{service} path (.*)", caddy)
        assert {path.removesuffix("/*") for path in matcher.split()} == set(paths)
        (expression,) = re.findall(rf'"~(\S+)" parshall_{service};', nginx)
        assert all(re.search(expression, path + rest) for path in paths for rest in ("", "/x"))
        assert not any(re.search(expression, path + "x") for path in paths)
    for address, service in PARTS.items():
        assert re.search(rf"{service.upper()}:{address}\}}", caddy)
        assert re.search(rf"upstream parshall_{service} {{[^}}]*server {address};", nginx)
