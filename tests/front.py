"""The one address of a deployment, for what is about one: where services are apart, nginx's by the committed file."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests import nginx
from tests.serving import Server

SERVICES = {"auth": "127.0.0.1:3000", "accounting": "127.0.0.1:3001", "chat": "127.0.0.1:3002"}
"""The addresses that stand for the services in the committed files."""


def addresses(server: Server) -> str | Mapping[str, str]:
    """Where a server answers; of services apart, by what stands for each in the committed files."""
    if not server.split:
        return server.url
    return {named: server.services[service] for service, named in SERVICES.items()}


@contextlib.contextmanager
def one_address(server: Server, folder: Path, *, port: int | None = None) -> Iterator[str]:
    """Its URL over plain HTTP, nginx's at that port; skips the test where nginx is needed and cannot be had."""
    if not server.split:
        yield server.url
        return
    if nginx.binary() is None:
        pytest.skip("nginx is not there: services apart are NOT tested behind one address")
    folder.mkdir()
    with nginx.nginx(folder, addresses(server), {}, inner=port) as running:
        yield running.urls["inner"]
