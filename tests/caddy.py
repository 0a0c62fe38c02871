"""A real Caddy with a committed configuration, over TLS with a certificate of its own."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.clients.programs import had
from tests.nginx import certificate, free_ports, wait_for_port

FOLDER = Path(__file__).parents[1] / "deploy" / "caddy"
SITE = "chat.example.org"
_TRIED: list[str | None] = []


def binary() -> str | None:
    """The program; installed from the distribution's packages where that is possible and it is not there yet."""
    if not _TRIED:
        _TRIED.append(had(("caddy",), ("caddy",)))
    return _TRIED[0]


@contextlib.contextmanager
def caddy(folder: Path, configuration: str, addresses: Mapping[str, str]) -> Iterator[str]:
    """The URL of a running one; `addresses` are servers' by those that stand for them in the configuration."""
    certificate(folder)
    (port,) = free_ports(1)
    file = folder / "Caddyfile"
    file.write_text(_local(configuration, addresses, port, folder), encoding="utf-8")
    with running(folder, file, port):
        yield f"https://127.0.0.1:{port}"


@contextlib.contextmanager
def running(folder: Path, file: Path, port: int, **variables: str) -> Iterator[None]:
    """A Caddy with that file, which has these variables to fill it in with, once it listens on that port."""
    program = binary()
    assert program is not None
    own = os.environ | {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "HOME": str(folder)} | variables
    with (folder / "caddy.log").open("w", encoding="utf-8") as log:
        command = [program, "run", "--adapter", "caddyfile", "--config", str(file)]
        process = subprocess.Popen(command, env=own, stderr=log, cwd=folder)
        try:
            wait_for_port(process, port, folder / "caddy.log")
            yield
        finally:
            process.terminate()
            process.wait(10)


def _local(configuration: str, addresses: Mapping[str, str], port: int, folder: Path) -> str:
    """The committed file with a site, a certificate and servers of this machine, and nothing else changed."""
    text = (FOLDER / configuration).read_text(encoding="utf-8")
    for named, real in addresses.items():
        assert named in text
        text = text.replace(named, real.removeprefix("http://"))
    options = "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n"
    certified = f"https://127.0.0.1:{port} {{\n\ttls {folder}/fullchain.pem {folder}/privkey.pem\n"
    site = next(line for line in text.splitlines() if SITE in line and line.endswith("{"))
    return options + text.replace(site + "\n", certified)
