"""What services apart need to know, and who refuses to start without it."""

from pathlib import Path

import pytest

from parshall.app.apart import ServiceName, port_of
from parshall.app.config import Settings, load
from parshall.app.parts import parts_of
from parshall.app.split import SCOPES
from parshall.auth.model import READ_SCOPE
from parshall.auth.model import SCOPES as ALL_SCOPES
from parshall.kernel.errors import StartupError


@pytest.mark.parametrize("service", [ServiceName.ACCOUNTING, ServiceName.CHAT])
async def test_a_service_apart_needs_its_secret_and_says_where_to_get_it(tmp_path: Path, service: ServiceName) -> None:
    with pytest.raises(StartupError, match=f"PARSHALL_SERVICE_SECRET: `parshall services add {service}` prints"):
        async with parts_of(Settings(home_dir=tmp_path), frozenset({service})):
            pass
    assert list(tmp_path.iterdir()) == [], "nothing is begun that cannot be finished"


async def test_auth_needs_nobody(tmp_path: Path) -> None:
    async with parts_of(Settings(home_dir=tmp_path), frozenset({ServiceName.AUTH})) as parts:
        assert parts.local_auth is not None and parts.accounting is None
    assert not (tmp_path / "accounting.db").exists()


def test_ports_are_those_of_the_original_platform() -> None:
    assert [port_of(Settings(), service) for service in ServiceName] == [3000, 3001, 3002]


@pytest.mark.parametrize("url", ["", "auth:3000", "ftp://auth", "http://", "http://u:p@auth", "http://auth?x=1"])
def test_only_a_plain_address_is_taken(url: str) -> None:
    with pytest.raises(StartupError, match="PARSHALL_AUTH_URL"):
        load(auth_url=url)


def test_no_service_but_chat_moves_credits() -> None:
    assert SCOPES[ServiceName.ACCOUNTING] == (READ_SCOPE,) and set(SCOPES[ServiceName.CHAT]) == ALL_SCOPES
