"""Another user's things on every method of every path that is offered: not found or forbidden, unseen and unchanged."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.hostile import Deployment, Operation, deployed
from tests.serving import Caller, Server, stream_id_of, text_of

MARK = "xq7mark"
"""In all that is the victim's; in no answer to anybody else."""

PUBLIC, OWN, OTHERS, SERVICE, SUPERVISOR, ADMIN = "public", "own", "others", "service", "supervisor", "admin"
"""Who may: anybody; each for themselves, where no path names whose; the owner of what is named; services; staff."""

PATHS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "/.well-known/jwks.json": (PUBLIC, None),
    "/.well-known/openid-configuration": (PUBLIC, None),
    "/api/auth/forgot-password": (PUBLIC, None),
    "/api/auth/resend-verification": (PUBLIC, None),
    "/api/auth/verify-email": (PUBLIC, None),
    "/api/auth/reset-password": (PUBLIC, None),
    "/api/auth/signup": (PUBLIC, None),
    "/api/auth/login": (PUBLIC, None),
    "/api/auth/refresh": (PUBLIC, None),
    "/api/auth/logout": (PUBLIC, None),
    "/api/auth/token": (PUBLIC, None),
    "/api/auth/oidc": (PUBLIC, None),
    "/api/auth/oidc/{name}/login": (PUBLIC, None),
    "/api/auth/oidc/{name}/callback": (PUBLIC, None),
    "/health": (PUBLIC, None),
    "/api/health": (PUBLIC, None),
    "/api/version": (PUBLIC, None),
    "/api/auth/logout-all": (OWN, None),
    "/api/auth/api-keys": (OWN, {"name": "of mallory"}),
    "/api/profile": (OWN, {"username": "mallory2", "currentPassword": "wrong"}),
    "/api/profile/export": (OWN, None),
    "/api/change-password": (OWN, {"currentPassword": "wrong", "newPassword": "long-enough"}),
    "/api/streaming-sessions/active": (OWN, None),
    "/api/usage/stats": (OWN, None),
    "/api/organisations/mine": (OWN, None),
    "/api/credits/balance": (OWN, None),
    "/api/credits/total-balance": (OWN, None),
    "/api/credits/check": (OWN, {"requiredCredits": 1}),
    "/api/credits/calculate": (OWN, {"modelId": "fake", "tokens": 1}),
    "/api/credits/statement": (OWN, None),
    "/api/credits/deduct": (OWN, {"credits": 1}),
    "/api/prices": (ADMIN, {"modelId": "fake", "input": 1, "output": 1}),
    "/api/chat/sessions": (OWN, {"title": "of mallory"}),
    "/api/models": (OWN, None),
    "/api/chat/streams/silence": (OWN, None),
    "/api/models/recommend": (OWN, {}),
    "/api/auth/api-keys/{key_id}": (OTHERS, None),
    "/api/streaming-sessions/{session_id}/receipt": (OTHERS, None),
    "/api/organisations/{organisation_id}": (OTHERS, {"name": "of mallory"}),
    "/api/organisations/{organisation_id}/balance": (OTHERS, None),
    "/api/organisations/{organisation_id}/statement": (OTHERS, None),
    "/api/organisations/{organisation_id}/members": (OTHERS, None),
    "/api/organisations/{organisation_id}/members/{user_id}": (OTHERS, {"role": "member", "limitTotal": 0}),
    "/api/chat/sessions/{session_id}": (OTHERS, {"title": "of mallory"}),
    "/api/chat/sessions/{session_id}/messages": (OTHERS, {"message": "fake-n1"}),
    "/api/chat/sessions/{session_id}/stream": (OTHERS, {"message": "fake-n1"}),
    "/api/chat/sessions/{session_id}/update-stream": (OTHERS, {"completeResponse": "x", "tokensUsed": 1}),
    "/api/chat/streams/{stream_id}": (OTHERS, None),
    "/api/chat/streams/{stream_id}/stop": (OTHERS, None),
    "/api/streaming-sessions/initialize": (SERVICE, {"modelId": "fake", "estimatedTokens": 1}),
    "/api/streaming-sessions/extend": (SERVICE, {"outputTokens": 1, "step": 1}),
    "/api/streaming-sessions/reprice": (SERVICE, {"modelId": "fake", "maxOutputTokens": 1}),
    "/api/streaming-sessions/finalize": (SERVICE, {"actualTokens": 1, "success": True}),
    "/api/streaming-sessions/abort": (SERVICE, {"tokensGenerated": 1}),
    "/api/streaming-sessions/void": (SERVICE, {}),
    "/api/usage/record": (SERVICE, {"service": "x", "operation": "y", "credits": 1}),
    "/api/usage/stats/{user_id}": (SUPERVISOR, None),
    "/api/usage/system-stats": (ADMIN, None),
    "/api/streaming-sessions/active/{user_id}": (SUPERVISOR, None),
    "/api/streaming-sessions/recent": (SUPERVISOR, None),
    "/api/streaming-sessions/recent/{user_id}": (SUPERVISOR, None),
    "/api/organisations": (SUPERVISOR, {"name": "of mallory"}),
    "/api/organisations/{organisation_id}/allocate": (SUPERVISOR, {"credits": 1}),
    "/api/organisations/{organisation_id}/set": (SUPERVISOR, {"credits": 1}),
    "/api/organisations/{organisation_id}/adjust": (SUPERVISOR, {"adjustment": 1}),
    "/api/organisations/{organisation_id}/remove": (SUPERVISOR, {"credits": 1}),
    "/api/credits/balance/{user_id}": (SUPERVISOR, None),
    "/api/credits/statement/{user_id}": (SUPERVISOR, None),
    "/api/credits/allocations/all": (SUPERVISOR, None),
    "/api/credits/allocate": (SUPERVISOR, {"credits": 1}),
    "/api/credits/allocate-by-email": (SUPERVISOR, {"credits": 1}),
    "/api/credits/set": (SUPERVISOR, {"credits": 1}),
    "/api/credits/adjust": (SUPERVISOR, {"adjustment": 1}),
    "/api/credits/remove": (SUPERVISOR, {"credits": 1}),
    "/api/chat/sessions/{session_id}/observe": (SUPERVISOR, None),
    "/api/chat/users/search": (SUPERVISOR, None),
    "/api/chat/users/{user_id}/sessions": (SUPERVISOR, None),
    "/api/chat/users/{user_id}/sessions/{session_id}": (SUPERVISOR, None),
    "/api/admin/removals": (ADMIN, None),
    "/api/admin/users": (ADMIN, {"username": "mallory3", "email": "m3@example.org", "password": "long-enough"}),
    "/api/admin/users/batch": (ADMIN, {"users": [{"username": "mallory4"}]}),
    "/api/admin/users/by-email/{email}": (ADMIN, None),
    "/api/admin/users/{user_id}": (ADMIN, None),
    "/api/admin/users/{user_id}/export": (ADMIN, None),
    "/api/admin/users/{user_id}/role": (ADMIN, {"role": "enduser"}),
    "/api/admin/users/{user_id}/reset-password": (ADMIN, {"newPassword": "long-enough"}),
    "/api/streaming-sessions/active/all": (ADMIN, None),
    "/api/chat/observations": (ADMIN, None),
    "/metrics": (ADMIN, None),
    "/api/debug/headers": (ADMIN, {"userId": "mallory", "minutes": 1}),
    "/api/debug/headers/token": (ADMIN, {"minutes": 1}),
    "/api/debug/headers/{stream_id}": (ADMIN, None),
}
"""Every path, who may, and a body that is in order. A path that is not here fails the test: say whose it is."""
ALSO = {"GET /api/prices": OWN}
"""Methods that differ from the rest of their path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Town:
    """A victim with one of everything, a neighbour with their own, and a supervisor."""

    server: Server
    at: Deployment
    victim: Caller
    mallory: Caller
    sue: Caller
    names: dict[str, str]
    """What paths and bodies name: all of it the victim's."""

    def snapshot(self) -> Any:
        """All of the victim's that can change."""
        session, organisation = self.names["session_id"], self.names["organisation_id"]
        found = {path: self.victim.get(path) for path in READ}
        found |= {path: self.victim.get(f"{path}") for path in (f"/api/chat/sessions/{session}",)}
        boss = self.server.user()
        for path in ("", "/balance", "/statement", "/members"):
            found[path] = boss.get(f"/api/organisations/{organisation}{path}")
        found["audit"] = boss.get("/api/chat/observations")
        return found

    def url_of(self, operation: Operation) -> str:
        """The address of the victim's thing."""
        names = self.names
        if "streaming-sessions" in operation.path:
            names = names | {"session_id": names["stream_id"]}
        return operation.url + re.sub(r"\{(\w+)\}", lambda found: names[found[1]], operation.path)

    def body_of(self, operation: Operation) -> dict[str, Any] | None:
        """A body in order that names the victim and their stream wherever something can be named."""
        if operation.body() is None:
            return None
        named = {"userId": self.names["user_id"], "sessionId": self.names["stream_id"]}
        fields = operation.body()["properties"]
        more = {name: value for name, value in named.items() if name in fields}
        if "streamingSessionId" in fields:
            more["streamingSessionId"] = self.names["stream_id"]
        return (PATHS[operation.path][1] or {}) | more


READ = (
    *("/api/profile", "/api/auth/api-keys", "/api/credits/balance", "/api/credits/statement", "/api/chat/sessions"),
    *("/api/usage/stats?startDate=2026-01-01T00:00:00Z&endDate=2026-12-31T00:00:00Z", "/api/organisations/mine"),
)


def who_may(operation: Operation) -> str:
    return ALSO.get(operation.name, PATHS[operation.path][0])


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with deployed(tmp_path_factory.mktemp("home")) as (server, at):
        victim = server.customer(f"v_{MARK}")
        mallory = server.customer("mallory")
        admin = server.user()
        body = {"username": "sue", "email": "sue@example.org", "password": "sue-password", "role": "supervisor"}
        admin.post("/api/admin/users", body, expect=201)
        names = {"user_id": victim.get("/api/profile")["user"]["id"], "email": f"v_{MARK}@example.org"}
        names["name"] = "nobody"
        for name, member in ((f"group {MARK}", f"v_{MARK}"), ("group of mallory", "mallory")):
            made = admin.post("/api/organisations", {"name": name}, expect=201)["id"]
            admin.post(f"/api/organisations/{made}/allocate", {"credits": 10, "notes": MARK}, expect=201)
            admin.request("PUT", f"/api/organisations/{made}/members/{member}", {"role": "manager"})
            names.setdefault("organisation_id", made)
        names["key_id"] = victim.post("/api/auth/api-keys", {"name": MARK}, expect=201)["id"]
        names["session_id"] = victim.session(title=MARK, initialMessage=f"hello {MARK}")
        names["stream_id"] = stream_id_of(victim.ask(names["session_id"], "fake-n2"))
        victim.ended(names["stream_id"])
        sue = server.user("sue", "sue-password")
        yield Town(server=server, at=at, victim=victim, mallory=mallory, sue=sue, names=names)


def test_every_path_that_is_offered_says_who_may(town: Town) -> None:
    offered = {operation.path for operation in town.at.operations()}
    assert offered - set(PATHS) == set(), "say in PATHS whose these are"
    assert set(PATHS) - offered == set(), "these are no more"
    wrong = [each.name for each in town.at.operations() if each.needs_token == (who_may(each) == PUBLIC)]
    assert wrong == []


def refused_to(town: Town, caller: Caller, kinds: tuple[str, ...]) -> list[str]:
    """The operations of these kinds that give the caller anything at all of the victim's."""
    wrong, before = [], town.snapshot()
    for operation in town.at.operations():
        if who_may(operation) in kinds:
            request = {"json": town.body_of(operation), "headers": caller.headers()}
            answer = town.mallory.http.request(operation.method, town.url_of(operation), **request)
            if answer.status_code not in (403, 404) or MARK in answer.text + str(answer.headers):
                wrong.append(f"{operation.name}: {answer.status_code} {answer.text[:150]}")
            if "streaming" in answer.headers.get("x-streaming-session-id", ""):
                wrong.append(f"{operation.name} names a stream")
    assert town.snapshot() == before
    return wrong


def test_a_neighbour_gets_nothing_of_what_is_anothers_on_any_method(town: Town) -> None:
    """The neighbour manages an organisation, owns sessions and streams, and names those of the victim."""
    assert refused_to(town, town.mallory, (OTHERS, SERVICE, SUPERVISOR, ADMIN)) == []


def test_an_api_key_opens_no_more_of_anothers_than_its_owner(town: Town) -> None:
    key = Caller(town.server.url)
    key.token = town.mallory.post("/api/auth/api-keys", {"name": "all"}, expect=201)["key"]
    assert refused_to(town, key, (OTHERS, SERVICE, SUPERVISOR, ADMIN)) == []
    key.close()


def test_a_supervisor_does_nothing_that_administrators_and_services_do(town: Town) -> None:
    assert refused_to(town, town.sue, (SERVICE, ADMIN)) == []


def test_nobody_acts_as_another_by_naming_them(town: Town) -> None:
    """X-User-ID is believed of services alone; a userId in a body or query of one's own path is not even read."""
    before = town.snapshot()
    for operation in town.at.operations():
        if who_may(operation) != OWN:
            continue
        for named in (town.names["user_id"], f"v_{MARK}", town.names["email"]):
            headers = town.mallory.headers({"X-User-ID": named})
            answer = town.mallory.http.request(
                operation.method, operation.url + operation.path, headers=headers, json={}
            )
            assert answer.status_code == 403, (operation.name, answer.text)
        query = {"userId": town.names["user_id"], "user_id": town.names["user_id"], "seconds": "1"}
        if operation.method == "GET":
            answer = town.mallory.http.get(operation.url + operation.path, headers=town.mallory.headers(), params=query)
            assert MARK not in answer.text, operation.name
    assert town.snapshot() == before


def test_anothers_stream_id_neither_attaches_nor_tells_that_it_is_there(town: Town) -> None:
    own = town.mallory.session()
    body, ours = {"message": "fake-n1"}, f"{town.at.chat}/api/chat/sessions/{own}"
    for path in ("/stream", "/messages"):
        headers = town.mallory.headers({"X-Streaming-Session-Id": town.names["stream_id"]})
        answer = town.mallory.http.post(ours + path, headers=headers, json=body)
        assert answer.status_code == 409
        assert MARK not in answer.text
        assert "w0" not in answer.text
    told = []
    nobodys = town.names["stream_id"][:-4] + "0000"  # as old as the other: how old an id says it is, is no secret
    for named in (town.names["stream_id"], nobodys):
        body = {"completeResponse": "", "streamingSessionId": named, "tokensUsed": 1}
        answer = town.mallory.http.post(f"{ours}/update-stream", headers=town.mallory.headers(), json=body)
        told.append((answer.status_code, answer.json()["code"], answer.json()["detail"].replace(named, "")))
    assert told[0] == told[1], "one that is another's is one that is not there"
    assert told[0][0] in (400, 404)


def test_a_stream_that_runs_is_neither_stopped_nor_read_by_a_neighbour(town: Town) -> None:
    session = town.victim.session()
    answers: list[Any] = []
    with town.victim.streaming("POST", f"/api/chat/sessions/{session}/stream", {"message": "fake-n30-ms50"}) as (
        _,
        events,
    ):
        first = next(events)
        stream_id = stream_id_of([first])
        reading = threading.Thread(target=lambda: answers.extend(events))
        reading.start()
        for method, path in (("GET", ""), ("POST", "/stop")):
            url = f"{town.at.chat}/api/chat/streams/{stream_id}{path}"
            answer = town.mallory.http.request(method, url, headers=town.mallory.headers())
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        url = f"{town.at.chat}/api/chat/sessions/{session}/observe"
        assert town.mallory.http.get(url, headers=town.mallory.headers()).status_code == 403
        reading.join()
    assert text_of(answers).count("w") == 30
    assert answers[-1].event == "done"
