"""Every string that breaks something somewhere, in every place of every operation; and no secret in any log."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from tests import quick
from tests.hostile import Deployment, Operation, deployed
from tests.naughty import FORGED, NAUGHTY
from tests.serving import ADMIN_PASSWORD, PARSHALL, Server

PROVIDER_KEY = "sk-provider-1f2e3d4c5b6a7988"
SHARE = 36
"""In the usual run each operation meets one in so many of the strings, and each string one in so many operations."""
KINDS = ("application/json", "application/problem+json", "text/event-stream")
OUR_IDS = ("x-streaming-session-id", "content-type")
UNREAD = ("/api/auth/logout-all",)
"""Takes nothing, and would end the session that the others are asked with."""


@dataclass(kw_only=True)
class Fuzz:
    """Who asks, what is there to be asked for, and what came of it."""

    server: Server
    at: Deployment
    token: str
    service: str
    there: dict[str, str]
    http: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=30))
    wrong: list[str] = field(default_factory=list)
    count: int = 0

    def send(self, operation: Operation, place: str, name: str, text: str) -> None:
        """One request with the string in one place, and what must hold of its answer."""
        paths = {each: self.there[each] for each in operation.parameters("path")}
        token = self.service if "/streaming-sessions/" in operation.path and operation.method == "POST" else self.token
        headers, query, body = {"Authorization": f"Bearer {token}"}, {}, None
        if (schema := operation.body()) is not None:
            body = operation.example(schema)
            headers["Content-Type"] = "application/json"
        match place:
            case "path":
                paths[name] = text
            case "query":
                query[name] = text
            case "header":
                headers[name] = text
            case "body":
                body = body | {name: text}
            case "body as a list":
                body = body | {name: [text, {text: text}]}
        path = re.sub(r"\{(\w+)\}", lambda found: quoted(paths[found[1]]), operation.path)
        url = operation.url + path + "?" + "&".join(f"{key}={quoted(value)}" for key, value in query.items())
        raw = [(key.encode(), value.encode("utf-8", "surrogatepass")) for key, value in headers.items()]
        content = None if body is None else json.dumps(body).encode()  # lone surrogates as escapes, which are ASCII
        answer = self.http.request(operation.method, url, headers=raw, content=content)
        self.count += 1
        if what := fault(answer, text):
            self.wrong.append(f"{operation.name}, {place} {name} = {text[:40]!r}: {what}")

    def places(self, operation: Operation) -> list[tuple[str, str]]:
        """Where an operation takes something."""
        found = [(place, name) for place in ("path", "query", "header") for name in operation.parameters(place)]
        for name in (operation.body() or {}).get("properties", ()):
            found += [("body", name), ("body as a list", name)]
        return found


def quoted(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")


def fits(place: str, text: str) -> bool:
    """Whether an HTTP client can say it there; what it cannot, a raw connection says elsewhere."""
    if place == "header":
        return text.isprintable() and text.strip() == text and text.isascii()
    return place != "path" or text not in ("", ".", "..")


def fault(answer: httpx2.Response, text: str) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if answer.status_code >= 500:
        return f"{answer.status_code} {answer.text[:200]}"
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind not in KINDS:
        return f"a body of {kind}"
    if kind != "text/event-stream":
        json.loads(answer.text)
    if len(text) > 3 and any(text in value for key, value in answer.headers.items() if key not in OUR_IDS):
        return "reflected in a header"
    return ""


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    settings = {"LOG_FORMAT": "json", "LOG_LEVEL": "debug", "OPENAI_API_KEY": PROVIDER_KEY}
    with deployed(tmp_path_factory.mktemp("home"), **settings) as (server, at):
        body = {"username": "fuzzer", "email": "fuzzer@example.org", "password": "fuzzer-password", "role": "admin"}
        server.user().post("/api/admin/users", body, expect=201)
        server.customer("fuzzed").close()
        admin = server.user("fuzzer", "fuzzer-password")  # who may find that they have another name and address
        admin.post("/api/credits/allocate", {"userId": "admin", "credits": 1000}, expect=201)
        organisation = admin.post("/api/organisations", {"name": "group"}, expect=201)["id"]
        session = admin.session()
        there = {"user_id": "fuzzed", "organisation_id": organisation, "session_id": session, "email": "a@b.example"}
        there |= {"stream_id": "stream-1620847252-a1b2c3d4", "key_id": "0" * 16, "name": "nobody"}
        secret = added_service(server)
        form = {"grant_type": "client_credentials", "client_id": "tester", "client_secret": secret}
        service = httpx2.post(f"{at.auth}/api/auth/token", data=form).json()["access_token"]
        made = Fuzz(server=server, at=at, token=admin.token, service=service, there=there)
        yield made
        made.http.close()


def added_service(server: Server) -> str:
    command = [str(PARSHALL), "services", "add", "tester"]
    told = quick.run(command, env=server.environment(), capture_output=True, text=True, check=True).stdout
    found = re.search(r"[A-Za-z0-9_-]{43}", told)
    assert found, told
    return found[0]


def lines_of(server: Server) -> list[dict[str, Any]]:
    """The log from the first request on; each line is one JSON document, whatever it is about."""
    listens = re.compile(r"(\w+: )?(Parshall|Auth|Accounting)( \w+)? listens on http://127\.0\.0\.1:\d+( \(chat\))?\n")
    return [json.loads(line) for line in server.output if not listens.fullmatch(line)]


def run(fuzz: Fuzz, share: int) -> None:
    turn = itertools.count()
    for operation in fuzz.at.operations():
        if operation.path in UNREAD:
            continue
        for (place, name), text in itertools.product(fuzz.places(operation), NAUGHTY):
            if next(turn) % share == 0 and fits(place, text):
                fuzz.send(operation, place, name, text)
    assert fuzz.wrong == []
    logged = lines_of(fuzz.server)
    assert [line for line in logged if line["event"] in ("FORGED", "request_failed") or "exception" in line] == []
    assert sum(line["event"] == "request" for line in logged) >= fuzz.count


def test_no_string_in_any_place_breaks_anything_or_forges_a_line_of_the_log(fuzz: Fuzz) -> None:
    run(fuzz, SHARE)
    assert fuzz.count > 500


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_all_strings_in_all_places(fuzz: Fuzz) -> None:
    run(fuzz, 1)


def test_a_member_twice_is_refused_at_every_operation_with_a_body(fuzz: Fuzz) -> None:
    """RFC 8259 §4 leaves open which of the two counts; two readers must not choose differently."""
    bodies = {
        b'{"a": 1, "a": 1}': "twice",
        b'{"a": [{"b": 1, "b": 2}]}': "twice",
        b'{"a": NaN}': "NaN",
        b'{"a": -Infinity}': "Infinity",
        b"[" * 100 + b"]" * 100: "deep",
        b'{"a":' * 40 + b"1" + b"}" * 40: "deep",
        b"[" * 200_000: "deep",
        b'{"a": "\xff"}': "UTF-8",
        b'\xef\xbb\xbf{"a": 1}': "JSON",
        '{"a": 1}'.encode("utf-16"): "UTF-8",
        b'{"a": 1} x': "JSON",
        b'{"a": ' + b"9" * 5000 + b"}": "JSON",
    }
    for operation in fuzz.at.operations():
        if operation.body() is None:
            continue
        path = re.sub(r"\{(\w+)\}", lambda found: fuzz.there[found[1]], operation.path)
        for body, word in bodies.items():
            headers = {"Authorization": f"Bearer {fuzz.token}", "Content-Type": "application/json"}
            answer = fuzz.http.request(operation.method, operation.url + path, content=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json"), (operation.name, body[:20])
            assert word in answer.json()["detail"] or word in ("deep", "JSON"), answer.text
        for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "application/jsonx", ""):
            headers = {"Authorization": f"Bearer {fuzz.token}", "Content-Type": kind}
            answer = fuzz.http.request(operation.method, operation.url + path, content=b"{}", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type"), operation.name


def test_no_secret_is_in_any_line_that_the_server_wrote(fuzz: Fuzz, tmp_path: Path) -> None:
    """Put where clients put secrets by mistake too: in a path, a query, a body that is not asked for, a header."""
    caller = fuzz.server.customer("keeper")
    login = caller.post("/api/auth/login", {"username": "keeper", "password": "keeper-password"})
    key = caller.post("/api/auth/api-keys", {"name": "ci"}, expect=201)["key"]
    again = caller.post("/api/auth/refresh", {"refreshToken": login["refreshToken"]})
    caller.post("/api/auth/refresh", {"refreshToken": login["refreshToken"]}, expect=401)  # replayed, and logged
    kid, pem = fuzz.at.signing_key()
    del kid
    secrets = {
        *(ADMIN_PASSWORD, "keeper-password", PROVIDER_KEY, fuzz.token, fuzz.service, key),
        *(login["accessToken"], login["refreshToken"], again["accessToken"], again["refreshToken"]),
        *pem.strip().splitlines()[1:-1],
    }
    for secret, operation in itertools.product(sorted(secrets), fuzz.at.operations()[::16]):
        for place, name in fuzz.places(operation):
            if place != "path" or len(secret) == 43 or secret.startswith(("eyJ", "parshall_")):
                fuzz.send(operation, place, name, secret)
    for secret in sorted(secrets):
        for url in fuzz.at.urls:
            fuzz.http.get(f"{url}/api/profile", headers={"Authorization": f"Bearer {secret}x", "Cookie": f"a={secret}"})
            fuzz.http.get(f"{url}/api/nowhere", params={"access_token": secret})
    hashes = re.compile(r"\$argon2id\$")
    written = "".join(fuzz.server.output)
    assert [secret[:12] for secret in secrets if secret in written] == []
    assert not hashes.search(written)
    assert FORGED not in fuzz.server.output
