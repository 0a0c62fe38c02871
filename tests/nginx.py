"""A real nginx with the committed configuration, right and wrong: one process, a port for each variant."""

import contextlib
import datetime
import ipaddress
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.clients.programs import had

FOLDER = Path(__file__).parents[1] / "deploy" / "nginx"
ONE = "parshall.conf"
APART = "apart.conf"
START_SECONDS_MAX = 10
DAYS = 90
_TRIED: list[str | None] = []


def binary() -> str | None:
    """The program; installed from the distribution's packages where that is possible and it is not there yet."""
    if not _TRIED:
        _TRIED.append(had(("nginx",), ("nginx-light",)))
    return _TRIED[0]


@dataclass(frozen=True, kw_only=True)
class Nginx:
    """A running one: the URL of each variant, and whom to trust for the right one."""

    urls: Mapping[str, str]
    ca_file: str


@contextlib.contextmanager
def nginx(
    folder: Path, upstream: str | Mapping[str, str], wrong: Mapping[str, str], *, inner: int | None = None
) -> Iterator[Nginx]:
    """nginx in front of a server: `right` as it is committed, over TLS, and each of `wrong` over plain HTTP.

    For services apart `upstream` gives their addresses by those that stand for them in the configuration.
    What is wrong is written as directives of the location; they replace those of the same name. `INNER` in them is
    another nginx, a right one without TLS, for faults that take two; `inner` is its port, if that is known before.
    """
    program = binary()
    assert program is not None
    addresses = {"127.0.0.1:8000": upstream} if isinstance(upstream, str) else upstream
    committed = (FOLDER / (ONE if isinstance(upstream, str) else APART)).read_text(encoding="utf-8")
    for named, real in addresses.items():
        assert named in committed
        committed = committed.replace(named, real.removeprefix("http://"))
    certificate(folder)
    head, _, server = committed.partition("\nserver {")
    ports = dict(zip(["right", "inner", *wrong], free_ports(len(wrong) + 2), strict=True))
    ports["inner"] = inner or ports["inner"]
    blocks = [_secure("server {" + server, ports["right"], folder)]
    for name, directives in {"inner": "", **wrong}.items():
        blocks.append(
            _plain("server {" + server, ports[name], directives.replace("INNER", f"127.0.0.1:{ports['inner']}"))
        )
    file = folder / "nginx.conf"
    file.write_text(_main(folder, head + "\n" + "\n".join(blocks)), encoding="utf-8")
    log = folder / "start.log"
    with log.open("w", encoding="utf-8") as told:
        process = subprocess.Popen([program, "-c", str(file), "-p", str(folder)], stderr=told)
    try:
        wait_for_port(process, ports["right"], log)
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        urls["right"] = urls["right"].replace("http:", "https:")
        yield Nginx(urls=urls, ca_file=str(folder / "fullchain.pem"))
    finally:
        process.terminate()
        process.wait(10)


def _main(folder: Path, servers: str) -> str:
    who = "user root;" if os.geteuid() == 0 else ""
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""{who} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{ access_log off; {paths} proxy_cache_path {folder}/cache keys_zone=kept:1m;
{servers}
}}
"""


def _secure(server: str, port: int, folder: Path) -> str:
    own = server.replace("/etc/ssl/parshall", str(folder))
    return own.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")


def _plain(server: str, port: int, directives: str) -> str:
    """The same without TLS, with other directives in the location."""
    names = {line.split()[0] for line in directives.split(";") if line.strip()}
    repeatable = {"proxy_set_header", "proxy_hide_header", "add_header", "location"}
    kept = [
        line
        for line in server.splitlines()
        if not line.strip().startswith("ssl_") and (line.split() or [""])[0] not in names - repeatable
    ]
    text = re.sub(r"listen 443 [^;]*;", f"listen 127.0.0.1:{port};", "\n".join(kept))
    return text.replace("location / {", f"location / {{ {directives}")


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return once the process listens there."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"it did not start: {log.read_text(encoding='utf-8')}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nobody listens on {port}: {log.read_text(encoding='utf-8')}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def certificate(folder: Path) -> None:
    """A certificate of its own authority for this machine, under the names of the committed configuration."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([address, x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "fullchain.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "privkey.pem").write_bytes(pem)
