"""The compose file: one command starts what is there, with secrets that a script makes and each process can read."""

import ipaddress
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.deployment import DEPLOY, check_command, check_options, compose, port_of_service, settings_of

from parshall.app.apart import ServiceName
from parshall.app.server import FINISH_SECONDS_MAX

COMPOSE = compose()
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if each["image"].startswith("parshall:")}
EVERY = pytest.mark.parametrize("name", SERVICES)
EVERY_OF_OURS = pytest.mark.parametrize("name", OURS)
UNITS = {"s": 1, "m": 60}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of secrets that the script makes."""
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(DEPLOY / "compose" / "secrets.sh", folder)
    for _ in range(2):
        subprocess.run(["sh", str(folder / "secrets.sh")], check=True, capture_output=True)
    return folder / "secrets"


def mounted(name: str) -> dict[str, str]:
    """The secrets of a service, by the file that it sees each in."""
    given = [{"source": each, "target": each} if isinstance(each, str) else each for each in OURS[name]["secrets"]]
    return {each["target"]: each["source"] for each in given}


def seconds(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1]]


@EVERY
def test_a_container_can_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])
    assert "privileged" not in service and ("ports" in service) == (name == "caddy")
    image, _, tag = service["image"].rpartition(":")
    assert image and tag != "latest" and tag[0].isdigit()


@EVERY_OF_OURS
def test_what_runs_is_a_command_with_options_that_exist(name: str) -> None:
    service = OURS[name]
    check_command(service["command"])
    check_options(service["environment"])
    assert service["build"] == {"context": "..", "dockerfile": "deploy/Containerfile", "args": {"MODEL": "off"}}
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


@EVERY_OF_OURS
def test_its_settings_are_right_with_the_secrets_that_the_script_makes(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target, source in mounted(name).items():
        shutil.copy(made / source, tmp_path / target)
    settings = settings_of(OURS[name]["environment"] | {"PARSHALL_SECRETS_DIR": str(tmp_path)}, monkeypatch)
    if name in ("accounting", "chat"):
        assert settings.service_secret is not None
        assert settings.service_secret.get_secret_value() == (made / f"{name}_service_secret").read_text()
    if name in tuple(ServiceName):
        url = getattr(settings, f"{name}_database_url")
        assert url.endswith(f"@postgres/{name}") and "postgres" in SERVICES and settings.limits_url is not None
    if name == "chat":
        assert not settings.lacking_to_share(["chat"]), "there may be several"
    command = OURS[name]["command"]
    if "--secret-file" in command:
        assert command[-1].removeprefix("/run/secrets/") in mounted(name)


def test_services_find_each_other_and_the_proxy_finds_them() -> None:
    front = SERVICES["caddy"]["environment"]
    for service in ServiceName:
        port = port_of_service(service)
        assert front[service.upper()] == f"{service}:{port}"
        assert OURS[service]["environment"]["HEALTH_URL"] == f"http://127.0.0.1:{port}/health"
        for name in OURS:
            if service != "chat":
                assert OURS[name]["environment"][f"PARSHALL_{service.upper()}_URL"] == f"http://{service}:{port}"
    (mount,) = [each for each in SERVICES["caddy"]["volumes"] if each.startswith("./")]
    text = (DEPLOY / mount.partition(":")[0]).read_text(encoding="utf-8")
    assert all("{$" + variable + ":" in text for variable in front)


def test_only_the_proxy_is_believed_and_nothing_else_can_have_its_address() -> None:
    inside = SERVICES["caddy"]["networks"]["inside"]["ipv4_address"]
    assert {each["environment"]["PARSHALL_TRUSTED_PROXIES"] for each in OURS.values()} == {inside}
    (network,) = COMPOSE["networks"]["inside"]["ipam"]["config"]
    assert ipaddress.ip_address(inside) in ipaddress.ip_network(network["subnet"])
    assert ipaddress.ip_address(inside) not in ipaddress.ip_network(network["ip_range"])
    assert COMPOSE["networks"]["inside"]["internal"] is True


@EVERY
def test_each_waits_for_what_it_needs_until_that_is_well(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        if needed.startswith("register-"):
            assert how == {"condition": "service_completed_successfully"} and SERVICES[needed]["restart"] == "no"
        else:
            assert how == {"condition": "service_healthy"}
            assert needed in OURS or "healthcheck" in SERVICES[needed]
    needs = {"caddy": {*ServiceName}, "chat": {"accounting", "postgres", "valkey", "register-chat"}}
    assert needs.get(name, set()) <= set(SERVICES[name].get("depends_on", {}))


@EVERY_OF_OURS
def test_it_is_killed_only_after_it_had_the_time_to_end(name: str) -> None:
    drain = float(OURS[name]["environment"].get("PARSHALL_DRAIN_SECONDS", 2.5))
    assert seconds(OURS[name]["stop_grace_period"]) >= drain + FINISH_SECONDS_MAX + 10


def test_the_script_that_makes_the_databases_runs_by_itself() -> None:
    """PostgreSQL's container reads a script that is not executable into its own shell, with all that it sets."""
    (mount,) = [each for each in SERVICES["postgres"]["volumes"] if each.startswith("./")]
    source, target, how = mount.split(":")
    assert os.access(DEPLOY / source, os.X_OK) and how == "ro" and target.startswith("/docker-entrypoint-initdb.d/")
    password = Path(SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD_FILE"])
    assert password.name in SERVICES["postgres"]["secrets"]


def test_every_secret_is_made_once_and_nobody_else_may_enter_their_folder(made: Path) -> None:
    assert {name: Path(each["file"]).name for name, each in COMPOSE["secrets"].items()} == {
        name: name for name in COMPOSE["secrets"]
    }
    assert set(COMPOSE["secrets"]) <= {file.name for file in made.iterdir()}
    used = {source for name in OURS for source in mounted(name).values()}
    used |= {secret for name in ("postgres", "valkey") for secret in SERVICES[name]["secrets"]}
    assert used == set(COMPOSE["secrets"])
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    subprocess.run(["sh", str(made.parent / "secrets.sh")], check=True, capture_output=True)
    assert {file.name: file.read_bytes() for file in made.iterdir()} == before
    own = [before[name] for name in before if name.endswith(("_password", "_service_secret"))]
    assert len(set(own)) == len(own) == 8 and all(len(each) == 64 for each in own)
    ignored = subprocess.run(
        ["git", "check-ignore", "--quiet", "deploy/compose/secrets/admin_password"], cwd=DEPLOY.parent, env=os.environ
    )
    assert ignored.returncode in (0, 128), "they are never committed"
