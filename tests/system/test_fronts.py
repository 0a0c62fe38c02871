"""The committed configurations of nginx and Caddy before real servers, over TLS: one process, and services apart."""

import asyncio
import contextlib
import http.server
import json
import os
import shutil
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from tests import caddy, nginx, quick
from tests.front import SERVICES, addresses
from tests.scripted import Script
from tests.serving import PARSHALL, PATHS, Server, serving, upstream

from parshall.doctor.examine import examine
from parshall.doctor.model import Check, Plan, Report, Status
from parshall.kernel.peer import Peer

ORIGIN = "https://page.example.org"
CLIENT = "127.0.0.2"
"""An address of this machine that is not the proxies'."""
SETTINGS = {
    "EMBEDDED_MODEL": "off",
    "OPENAI_MODELS": "fake,*",
    "ALLOWED_ORIGINS": ORIGIN,
    "TRUSTED_PROXIES": "127.0.0.1",
}
MESSAGE = "fake-n40-ms30"
SILENCE_SECONDS = 2.0
ONE, APART = "one", "apart"
BINARIES = {"nginx": nginx.binary(), "Caddy": caddy.binary()}
for _name, _found in BINARIES.items():
    if _found is None:
        warnings.warn(f"{_name} is not there and could not be installed: it is NOT tested", stacklevel=1)
NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(found is None, reason=f"{name} is not there"))
    for name, found in BINARIES.items()
]
LOGIN = {"username": "nobody", "password": "no-password-at-all"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """A proxy that runs, and whom to trust for it."""

    name: str
    url: str
    ca_file: str

    def http(self) -> httpx2.Client:
        """A client elsewhere, as far as that goes on one machine."""
        trust = ssl.create_default_context(cafile=self.ca_file)
        transport = httpx2.HTTPTransport(verify=trust, local_address=CLIENT)
        return httpx2.Client(base_url=self.url, timeout=20, transport=transport)


@contextlib.contextmanager
def front(name: str, folder: Path, behind: str | Mapping[str, str]) -> Iterator[Front]:
    """The proxy of that name with the file for one server, or for services apart."""
    folder.mkdir(parents=True)
    ca_file = str(folder / "fullchain.pem")
    if name == "nginx":
        with nginx.nginx(folder, behind, {}) as running:
            yield Front(name=name, url=running.urls["right"], ca_file=ca_file)
        return
    file = "Caddyfile" if isinstance(behind, str) else "apart.Caddyfile"
    given = {"127.0.0.1:8000": behind} if isinstance(behind, str) else behind
    with caddy.caddy(folder, file, given) as url:
        yield Front(name=name, url=url, ca_file=ca_file)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The servers, and the proxies before them by their name and the way in which they serve."""

    servers: dict[str, Server]
    fronts: dict[tuple[str, str], Front]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("world")
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(upstream())
        servers = {
            kind: stack.enter_context(serving(home / kind, split=kind == APART, OPENAI_BASE_URL=model, **SETTINGS))
            for kind in (ONE, APART)
        }
        ways = {kind: addresses(server) for kind, server in servers.items()}
        fronts = {
            (name, kind): stack.enter_context(front(name, home / name / kind, way))
            for name, found in BINARIES.items()
            for kind, way in ways.items()
            if found is not None
        }
        yield World(servers=servers, fronts=fronts)


@pytest.fixture(scope="module")
def reports(world: World) -> dict[tuple[str, str], Report]:
    """All examinations at once."""

    def plan(key: tuple[str, str]) -> Plan:
        name, kind = key
        caller = world.servers[kind].customer(f"patient-{name}".lower(), credits=1000)
        url, ca_file = world.fronts[key].url, world.fronts[key].ca_file
        how = {"origins": [ORIGIN], "message": MESSAGE, "silence_seconds": SILENCE_SECONDS}
        return Plan(url=url, ca_file=ca_file, token=caller.token, **how)  # type: ignore[arg-type]

    async def run(plans: dict[tuple[str, str], Plan]) -> dict[tuple[str, str], Report]:
        return dict(zip(plans, await asyncio.gather(*map(examine, plans.values())), strict=True))

    return asyncio.run(run({key: plan(key) for key in world.fronts}))


@pytest.mark.parametrize("kind", [APART, ONE])
@pytest.mark.parametrize("name", NAMES)
def test_the_doctor_finds_nothing_behind_a_committed_file(
    name: str, kind: str, reports: dict[tuple[str, str], Report]
) -> None:
    report = reports[name, kind]
    assert {finding.check: finding.evidence for finding in report.findings if finding.status is not Status.OK} == {}
    assert {finding.check for finding in report.findings} == set(Check), "HTTP/2 and TLS are among them"
    assert report.front == [name]


@pytest.mark.parametrize("name", NAMES)
def test_parshall_chat_knows_one_address_and_talks_to_three_services(name: str, world: World) -> None:
    user = f"talker-{name}".lower()
    behind = world.fronts[name, APART]
    world.servers[APART].customer(user)
    own = {name: value for name, value in os.environ.items() if not name.startswith("PARSHALL_")}
    own |= {"PARSHALL_PASSWORD": f"{user}-password", "SSL_CERT_FILE": behind.ca_file}
    command = [str(PARSHALL), "chat", "--url", behind.url, "--username", user, "fake-n20"]
    ran = quick.run(command, env=own, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert Script(n=20).text().strip() in ran.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_path_of_a_service_leads_to_it_and_to_no_other(name: str, world: World) -> None:
    services = world.servers[APART].services
    with world.fronts[name, APART].http() as http:
        for service, url in services.items():
            for path in httpx2.get(f"{url}/openapi.json").json()["paths"]:
                expected = next((each for each, paths in PATHS.items() if path.startswith(paths)), "chat")
                if path in ("/health", "/api/health", "/api/version", "/metrics"):
                    continue  # of each service; a client meets chat's, or none
                assert expected == service, path
                wrong = path.replace("{", "").replace("}", "")
                assert http.patch(wrong).status_code != 404 or "{" in path, path
        assert http.get("/health").json()["service"] == "chat"
        assert http.get("/api/creditsabc").status_code == http.get("/api/authority").status_code == 404


@pytest.mark.parametrize("kind", [ONE, APART])
@pytest.mark.parametrize("name", NAMES)
def test_the_server_sees_the_client_whatever_the_client_says_of_itself(name: str, kind: str, world: World) -> None:
    request_id = f"who-{name}-{kind}"
    told = {"X-Forwarded-For": "198.51.100.9", "X-Real-IP": "198.51.100.9", "Forwarded": "for=198.51.100.9"}
    with world.fronts[name, kind].http() as http:
        answer = http.post("/api/auth/login", json=LOGIN, headers=told | {"X-Request-Id": request_id})
    assert answer.status_code == 401
    assert logged_client(world.servers[kind], request_id) == CLIENT


def logged_client(server: Server, request_id: str) -> str | None:
    """The client of a request as the log has it, which may be a moment behind the answer."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for line in server.output:
            if f'"{request_id}"' in line and (record := json.loads(line[line.index("{") :]))["event"] == "request":
                found: str | None = record["client"]
                return found
        time.sleep(0.01)
    raise AssertionError(f"the request {request_id} is not in the log")


@pytest.mark.parametrize("kind", [ONE, APART])
@pytest.mark.parametrize("name", NAMES)
def test_a_login_by_cookie_is_renewed_by_a_page_of_the_proxys_origin_and_by_no_other(
    name: str, kind: str, world: World
) -> None:
    user = f"renewer-{name}-{kind}".lower()
    world.servers[kind].customer(user)
    behind = world.fronts[name, kind]
    with behind.http() as http:
        body = {"username": user, "password": f"{user}-password"}
        assert http.post("/api/auth/login", json=body).status_code == 200
        for origin, status in (("https://evil.example.org", 403), (f"{behind.url}0", 403), (behind.url, 200)):
            asked = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
            assert http.post("/api/auth/refresh", headers=asked).status_code == status, origin


# ── What must not get through ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Open:
    """A server that answers everything, and remembers what it was asked."""

    url: str = ""
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def willing() -> Iterator[Open]:
    seen = Open()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield seen
    server.shutdown()
    server.server_close()
    thread.join()


WAYS_TO_METRICS = (
    *("/metrics", "/metrics/", "/metrics?a=b", "/%6detrics", "/%6D%65trics", "//metrics", "/./metrics"),
    *("/api/../metrics", "/api/%2e%2e/metrics", "/metrics/all", "/api/auth/../../metrics"),
)


@pytest.mark.parametrize("kind", [ONE, APART])
@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_not_to_be_had_from_outside(name: str, kind: str, willing: Open, tmp_path: Path) -> None:
    """The server behind would give them to anybody: it is the proxy that does not ask it."""
    ways = willing.url if kind == ONE else dict.fromkeys(SERVICES.values(), willing.url)
    with front(name, tmp_path / "front", ways) as behind:
        trust = ssl.create_default_context(cafile=behind.ca_file)
        willing.asked.clear()
        for way in WAYS_TO_METRICS:
            assert status_of(behind, trust, way) in (400, 404), way
        assert willing.asked == []
        assert status_of(behind, trust, "/api/metrics-of-mine") == 200 and len(willing.asked) == 1


def status_of(behind: Front, trust: ssl.SSLContext, target: str) -> int:
    """The status of a request whose target is sent as it stands, which no client does."""
    host, _, port = behind.url.removeprefix("https://").partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        trust.wrap_socket(plain, server_hostname=host) as line,
    ):
        line.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        return int(line.recv(100).split()[1])


# ── Between services ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [NAMES[list(BINARIES).index("Caddy")]])
async def test_services_reach_each_other_by_certificates_and_nobody_else_does(
    name: str, world: World, tmp_path: Path
) -> None:
    """One Caddy is both sides: what stands before auth, and what stands beside the service that asks it."""
    outside, inside = nginx.free_ports(2)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        nginx.certificate(folder)
        for made, named in {"fullchain.pem": "service.pem", "privkey.pem": "service.key"}.items():
            shutil.move(folder / made, folder / named)
        shutil.copy(folder / "service.pem", folder / "ca.pem")
    variables = {
        "CERTIFICATES": str(ours),
        "OUTSIDE": f"https://localhost:{outside}",
        "INSIDE": f"http://127.0.0.1:{inside}",
        "OTHER": f"https://localhost:{outside}",
        "SERVICE": world.servers[APART].services["auth"].removeprefix("http://"),
    }
    with caddy.running(tmp_path, caddy.FOLDER / "between.Caddyfile", outside, **variables):
        peer = Peer("auth", variables["INSIDE"])
        assert (await peer.call("GET", "/.well-known/jwks.json", dict))["keys"]
        await peer.close()
        for who, shown in (("nobody", None), ("a stranger", theirs), ("a service", ours)):
            assert gets_in(variables["OUTSIDE"], ours / "ca.pem", shown) is (who == "a service"), who


def gets_in(url: str, ca_file: Path, shown: Path | None) -> bool:
    """Whether who shows that certificate is answered."""
    trust = ssl.create_default_context(cafile=ca_file)
    if shown is not None:
        trust.load_cert_chain(shown / "service.pem", shown / "service.key")
    try:
        return httpx2.get(f"{url}/health", verify=trust).status_code == 200
    except httpx2.TransportError:
        return False


# ── Silence ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_ninety_seconds_of_silence_survive_services_apart(name: str, world: World) -> None:
    caller = world.servers[APART].customer(f"silent-{name}".lower(), credits=1000)
    behind = world.fronts[name, APART]
    plan = Plan(url=behind.url, ca_file=behind.ca_file, token=caller.token, message=MESSAGE)
    report = asyncio.run(examine(plan))
    idle = next(finding for finding in report.findings if finding.check is Check.IDLE)
    assert idle.evidence == "90 s of silence survived, 5 pings seen"
