"""No secret in any log, database or error answer, wherever clients put it by mistake: thousands of seeded requests."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from tests.hostile import Deployment, Line, Operation, deployed
from tests.leaks import Mistake, Mistakes, forms, met
from tests.serving import ADMIN_PASSWORD, Server
from tests.system.test_hostile_text import PROVIDER_KEY, added_service

COUNT = 1_500
COUNT_SOAK = 20_000
SEED = int(os.environ.get("SEED", "20261125"))
PASSWORDS = ("Tr0ub4dor&3 Correct/Horse+Staple", "pässwörd=Ünïcode%41?#7", "keeper-password")
ENDS_WHAT_OTHERS_NEED = ("/api/auth/logout", "/api/auth/logout-all", "/api/chat/streams/silence")
"""Or lasts for a minute and a half."""


@dataclass(kw_only=True)
class Site:
    """A deployment with somebody in it, all of their secrets, and what was seen."""

    server: Server
    at: Deployment
    secrets: tuple[str, ...]
    token: str
    service: str
    there: dict[str, str]
    http: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=30))

    def token_for(self, operation: Operation) -> str:
        """Who may ask for it."""
        is_services = operation.path.startswith("/api/streaming-sessions/") and operation.method == "POST"
        return self.service if is_services or operation.path == "/api/usage/record" else self.token

    def mistakes(self, seed: int) -> Mistakes:
        """Those of that seed."""
        chosen = [each for each in self.at.operations() if each.path not in ENDS_WHAT_OTHERS_NEED]
        return Mistakes(seed=seed, operations=chosen, secrets=self.secrets, there=self.there, token_for=self.token_for)

    def send(self, mistake: Mistake) -> str:
        """Make it; what is wrong with the answer, empty where nothing is."""
        request = {"headers": mistake.headers, "content": mistake.content}
        answer = self.http.request(mistake.method, mistake.operation.url + mistake.path, **request)
        what = (
            f"{mistake.method} {mistake.operation.path}, {mistake.place}, {mistake.secret[:12]}: {answer.status_code}"
        )
        if answer.status_code >= 500:
            return f"{what} {answer.text[:200]}"
        shown = str(answer.headers) + (answer.text if answer.status_code >= 400 else "")
        return f"{what} shows it: {answer.text[:400]}" if met((mistake.secret,), shown) else ""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = {"LOG_FORMAT": "json", "LOG_LEVEL": "debug", "OPENAI_API_KEY": PROVIDER_KEY, "MAIL_URL": "mailbox:"}
    with deployed(tmp_path_factory.mktemp("home"), FALLBACK_MODEL="", **settings) as (server, at):
        admin = server.user()
        for name, password in zip(("fuzzer", "ann"), PASSWORDS, strict=False):
            body = {"username": name, "email": f"{name}@example.org", "password": password, "role": "admin"}
            admin.post("/api/admin/users", body, expect=201)
        admin.post("/api/credits/allocate", {"userId": "fuzzer", "credits": 1000}, expect=201)
        keeper = server.customer("keeper")
        login = keeper.post("/api/auth/login", {"username": "keeper", "password": PASSWORDS[2]})
        key = keeper.post("/api/auth/api-keys", {"name": "ci"}, expect=201)["key"]
        secret = added_service(server)
        form = {"grant_type": "client_credentials", "client_id": "tester", "client_secret": secret}
        service = httpx2.post(f"{at.auth}/api/auth/token", data=form).json()["access_token"]
        fuzzer = server.user("fuzzer", PASSWORDS[0])
        organisation = fuzzer.post("/api/organisations", {"name": "group"}, expect=201)["id"]
        there = {"user_id": "keeper", "organisation_id": organisation, "session_id": fuzzer.session()}
        there |= {"email": "a@b.example", "stream_id": "stream-1620847252-a1b2c3d4", "key_id": "0" * 16, "name": "corp"}
        _, pem = at.signing_key()
        made = Site(
            server=server,
            at=at,
            token=fuzzer.token,
            service=service,
            there=there,
            secrets=(
                *(*PASSWORDS, ADMIN_PASSWORD, PROVIDER_KEY, key, secret, login["accessToken"], login["refreshToken"]),
                *(fuzzer.token, service, pem.strip().splitlines()[1]),
            ),
        )
        yield made
        made.http.close()


def run(site: Site, count: int, seed: int) -> None:
    wrong = [what for mistake in site.mistakes(seed).drawn(count) if (what := site.send(mistake))]
    assert wrong == [], f"SEED={seed}"
    written = "".join(site.server.output)
    lines = sum('"event": "request"' in line or '"event":"request"' in line for line in site.server.output)
    assert lines >= count, "every request has left a line"
    assert met(site.secrets, written) == [], f"SEED={seed}"
    assert not [line for line in site.server.output if "request_failed" in line or "Traceback" in line]


def kept(home: Path) -> dict[str, str]:
    """All that lies in the data folder, by file."""
    found = {path: path.read_bytes().decode("latin-1") for path in home.rglob("*") if path.is_file()}
    return {str(path.relative_to(home)): text for path, text in found.items()}


def test_no_secret_in_any_wrong_place_gets_into_a_log_or_an_error(site: Site) -> None:
    run(site, COUNT, SEED)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_secret_gets_into_a_log_or_an_error_in_twenty_thousand_requests(site: Site) -> None:
    run(site, COUNT_SOAK, SEED + 1)


def test_no_database_and_no_file_holds_what_a_request_had_in_a_wrong_place(site: Site) -> None:
    """But for the signing key, which is kept to sign with; passwords and tokens are kept as hashes."""
    run(site, 200, SEED + 2)
    files = kept(site.at.home)
    assert {"auth.db", "accounting.db", "chat.db", "streams.db"} <= set(files)
    pem = site.secrets[-1]
    secrets = [secret.encode().decode("latin-1") for secret in site.secrets if secret != pem]
    assert {name: shown for name, text in files.items() if (shown := met(secrets, text))} == {}
    assert [name for name, text in files.items() if pem in text and not name.startswith("auth.db")] == []


def test_what_is_no_http_leaves_no_secret_behind(site: Site) -> None:
    before = len(site.server.output)
    for secret in (PASSWORDS[0], PROVIDER_KEY, site.token):
        text = secret.encode()
        for raw in (
            b"GET /?token=" + text + b" HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            text + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nConnection: close\r\nHost: " + text + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n" + text + b"\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: a\r\nAuthorization: Bearer " + text + b"\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + text + b"\r\n\r\n",
            b"GET http://ann:" + text + b"@a/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        ):
            line = Line(site.at.auth)
            line.say(raw)
            assert met((secret,), line.to_end().decode("latin-1")) == []
            line.close()
    assert met(site.secrets, "".join(site.server.output)) == []
    assert len(site.server.output) > before


def test_a_leak_would_be_found_in_every_form(site: Site) -> None:
    for secret in site.secrets:
        for form in forms(secret):
            assert met(site.secrets, f'{{"path": "/x/{form}/y"}}') != []
