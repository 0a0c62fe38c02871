"""The options of what faces the network, and options out of a folder of secrets."""

import resource
from ipaddress import ip_network
from pathlib import Path

import pytest

from parshall.app import front
from parshall.app.config import load, unknown_variables
from parshall.kernel.errors import StartupError


def test_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARSHALL_TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8,fd00::/8,")
    found = load().trusted_proxies
    assert found == (ip_network("127.0.0.1"), ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def test_nobody_is_trusted_unless_named() -> None:
    assert load().trusted_proxies == ()


@pytest.mark.parametrize("wrong", ["*", "proxy", "10.0.0.1/8", "10.0.0.0/33", "0.0.0.0/0", "::/0", "1.2.3.4 5.6.7.8"])
def test_what_is_no_proxy_stops_the_start_and_so_does_trusting_everybody(wrong: str) -> None:
    with pytest.raises(StartupError, match="PARSHALL_TRUSTED_PROXIES"):
        load(trusted_proxies=wrong)


@pytest.mark.parametrize("wrong", [0, -1, "many", 1.5])
def test_a_number_of_connections_that_cannot_be_stops_the_start(wrong: object) -> None:
    with pytest.raises(StartupError, match="PARSHALL_MAX_CONNECTIONS"):
        load(max_connections=wrong)


@pytest.mark.parametrize(("soft", "connections"), [(1024, 448), (65_536, 32_704), (64, 16), (-1, 32_704)])
def test_connections_are_as_many_as_open_files_leave_room_for(
    soft: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, soft))
    assert front.connections_max(load()) == connections
    assert front.connections_max(load(max_connections=7)) == 7


@pytest.mark.parametrize(
    ("limits", "asked"),
    [((1024, 524_288), (65_536, 524_288)), ((1024, 4096), (4096, 4096)), ((1024, -1), (65_536, -1))],
)
def test_a_process_asks_for_the_open_files_that_it_may_have(
    limits: tuple[int, int], asked: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _which, wanted: told.append(wanted))
    front.raise_descriptor_limit()
    assert told == [asked]


def test_a_process_that_may_open_enough_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (200_000, 200_000))
    monkeypatch.setattr(resource, "setrlimit", lambda *wanted: told.append(wanted))
    front.raise_descriptor_limit()
    assert told == []


# ── Secrets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARSHALL_SECRETS_DIR", str(tmp_path / "secrets"))
    (tmp_path / "secrets").mkdir()
    return tmp_path / "secrets"


def test_a_secret_is_read_from_a_file_of_its_options_name(folder: Path) -> None:
    (folder / "parshall_service_secret").write_text("quiet\n", encoding="utf-8")
    (folder / "PARSHALL_DATABASE_URL").write_text("postgresql://a:b@host/name\n", encoding="utf-8")
    (folder / "..data").mkdir()  # as Kubernetes mounts them
    settings = load()
    assert settings.service_secret is not None and settings.service_secret.get_secret_value() == "quiet"
    assert settings.database_url == "postgresql://a:b@host/name"


def test_the_environment_comes_before_a_secret_and_a_secret_before_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "parshall_issuer").write_text("secret", encoding="utf-8")
    (folder.parent / "parshall.toml").write_text('issuer = "file"\nport = 1234\n', encoding="utf-8")
    assert (load().issuer, load().port) == ("secret", 1234)
    monkeypatch.setenv("PARSHALL_ISSUER", "environment")
    assert load().issuer == "environment"


def test_a_file_that_is_no_option_is_told(folder: Path) -> None:
    (folder / "parshall_service_sekret").write_text("quiet", encoding="utf-8")
    (folder / "postgres_password").write_text("somebody else's", encoding="utf-8")
    assert "PARSHALL_SERVICE_SEKRET" in unknown_variables()
    assert not {"POSTGRES_PASSWORD", "PARSHALL_SECRETS_DIR"} & set(unknown_variables())


def test_a_folder_or_a_file_that_cannot_be_read_stops_the_start_with_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "parshall_service_secret").write_bytes(b"\xff\xfe hidden")
    with pytest.raises(StartupError, match="cannot be read") as refused:
        load()
    assert "service_secret" in str(refused.value) and "hidden" not in str(refused.value)
    monkeypatch.setenv("PARSHALL_SECRETS_DIR", str(folder / "missing"))
    with pytest.raises(StartupError, match="PARSHALL_SECRETS_DIR names"):
        load()
