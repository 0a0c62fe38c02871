"""A Postman collection (format 2.1) made of the OpenAPI document: every operation, ready to be sent."""

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from parshall.app.apart import ServiceName, port_of
from parshall.app.config import Settings
from parshall.app.openapi import operations
from parshall.kernel.headers import STREAM_ID_HEADER

Json = dict[str, Any]

FORMAT = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
_JSON = "application/json"
FIRST_STEPS = (
    ("POST", "/api/auth/login"),
    ("GET", "/api/credits/balance"),
    ("POST", "/api/chat/sessions"),
    ("POST", "/api/chat/sessions/{session_id}/stream"),
    ("GET", "/api/chat/streams/{stream_id}"),
    ("POST", "/api/chat/sessions/{session_id}/update-stream"),
    ("GET", "/api/streaming-sessions/{session_id}/receipt"),
    ("GET", "/api/credits/statement"),
)
"""What a person does first, in this order."""

_STREAM = f"pm.response.headers.get('{STREAM_ID_HEADER}')"
_TOKENS = {
    "accessToken": "body.accessToken",
    "refreshToken": "body.refreshToken",
    "userId": "body.user.id",
    "email": "body.user.email",
}
KEPT: dict[tuple[str, str], dict[str, str]] = {
    FIRST_STEPS[0]: _TOKENS,
    ("POST", "/api/auth/refresh"): _TOKENS,
    FIRST_STEPS[2]: {"sessionId": "body.sessionId"},
    FIRST_STEPS[3]: {"streamingSessionId": _STREAM},
    ("POST", "/api/auth/token"): {"serviceToken": "body.access_token"},
    ("POST", "/api/auth/signup"): {"otherUserId": "body.userId"},
    ("POST", "/api/admin/users"): {"otherUserId": "body.userId"},
    ("DELETE", "/api/admin/users/{user_id}"): {"otherUserId": "pm.collectionVariables.get('userId')"},
    ("POST", "/api/auth/api-keys"): {"keyId": "body.id"},
    ("POST", "/api/organisations"): {"organisationId": "body.id"},
}
"""What a script keeps of an answer for the requests that follow: variable to where it stands."""

APART = {"auth": "authUrl", "accounting": "accountingUrl"}
"""Variables for those who serve these elsewhere than chat, which answers at `baseUrl`: by the tag of an operation."""

VARIABLES = {
    "username": "demo",
    "password": "demo-password",
    "clientId": "chat",
    **dict.fromkeys(("clientSecret", "accessToken", "refreshToken", "serviceToken", "userId", "email"), ""),
    **dict.fromkeys(("sessionId", "streamingSessionId", "reservationId", "otherUserId"), ""),
    **dict.fromkeys(("organisationId", "keyId"), ""),
}
HOW = "Set `baseUrl`, `username` and `password`, send *Log in*, then what you like."
HOW_APART = " Services apart: `baseUrl` is chat's, `authUrl` and `accountingUrl` are the others'."
_NAMES = {
    "session_id": "sessionId",
    "stream_id": "streamingSessionId",
    "user_id": "otherUserId",
    "email": "email",
    "key_id": "keyId",
    "organisation_id": "organisationId",
}
_MEMBERS = {
    "refreshToken": "refreshToken",
    "streamingSessionId": "streamingSessionId",
    "sessionId": "reservationId",
    "userId": "otherUserId",
    "client_id": "clientId",
    "client_secret": "clientSecret",
}
_MEMBERS_OF = {
    FIRST_STEPS[0]: {"username": "username", "password": "password"},
    ("PUT", "/api/profile"): {"email": "email"},  # pressing Send changes nothing
}
_ID_IN_BOTH_PLACES = (
    "pm.test('the id is in the header and in the first event', () => {",
    '  const first = pm.response.text().match(/data: .*"streamingSessionId":"([^"]+)"/)',
    f"  pm.expect({_STREAM}).to.equal(first[1])",
    "})",
)
_PROPOSE = (
    "const digits = pm.variables.replaceIn('{{$guid}}').replace(/-/g, '')",
    "pm.collectionVariables.set('reservationId', `stream-${Math.floor(Date.now() / 1000)}-${digits}`)",
)
_SENT_ALWAYS = ("Idempotency-Key", "seconds")
_RESERVATION = re.compile(r"/api/streaming-sessions/(initialize|extend|reprice|finalize|abort|void)|/api/usage/record")


def collection(document: Json, *, name: str) -> Json:
    """The collection of what `name` serves: folders by tag, and one of first steps where all is served."""
    found = {(method, path): described for method, path, described in operations(document)}
    folders: dict[str, list[Json]] = {}
    places = APART if name == "parshall" else {}
    bases = {"baseUrl": _base_url(name), **dict.fromkeys(places.values(), "{{baseUrl}}")}
    if set(FIRST_STEPS) <= found.keys():
        folders["First steps"] = [_item(step, found[step], places, is_step=True) for step in FIRST_STEPS]
    for operation, described in sorted(found.items(), key=_is_late):
        folders.setdefault(described["tags"][-1].capitalize(), []).append(_item(operation, described, places))
    title = document["info"]["title"]
    return {
        "info": {
            "_postman_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"parshall/{name}")),
            "name": f"{title} {document['info']['version']}",
            "description": HOW + (HOW_APART if places else ""),
            "schema": FORMAT,
        },
        "auth": _bearer("accessToken"),
        "event": [_script("test", ["pm.test('no error of the server', () => pm.expect(pm.response.code).below(500))"])],
        "variable": [{"key": key, "value": value} for key, value in (bases | VARIABLES).items()],
        "item": [{"name": folder, "item": items} for folder, items in folders.items()],
    }


def _is_late(entry: tuple[tuple[str, str], Json]) -> int:
    """What takes away comes after what needs it, so that a folder can be run from top to bottom."""
    method, path = entry[0]
    return 2 if "/logout" in path else int(method == "DELETE")


def _base_url(name: str) -> str:
    """Where a deployment listens that has set nothing."""
    standard = Settings.model_construct()
    port = standard.port if name == "parshall" else port_of(standard, ServiceName(name))
    return f"http://{standard.host}:{port}"


def _item(operation: tuple[str, str], described: Json, places: Mapping[str, str], *, is_step: bool = False) -> Json:
    method, path = operation
    request: Json = {
        "method": method,
        "header": _headers(path, described),
        "url": _url(path, described, base=f"{{{{{_base(described, places)}}}}}"),
        "description": described.get("description", ""),
    }
    if (body := _body(operation, described)) is not None:
        request["body"] = body
    if auth := _auth(path, described):
        request["auth"] = auth
    return {"name": described["summary"], "request": request, "response": [], "event": _events(operation, is_step)}


def _auth(path: str, described: Json) -> Json | None:
    if not described.get("security"):
        return {"type": "noauth"}
    return _bearer("serviceToken") if _RESERVATION.fullmatch(path) else None


def _bearer(variable: str) -> Json:
    return {"type": "bearer", "bearer": [{"key": "token", "value": f"{{{{{variable}}}}}", "type": "string"}]}


def _base(described: Json, places: Mapping[str, str]) -> str:
    """The variable of the address at which an operation is asked for."""
    return next((places[tag] for tag in described["tags"] if tag in places), "baseUrl")


def _url(path: str, described: Json, *, base: str) -> Json:
    segments = re.sub(r"\{(\w+)\}", r":\1", path).strip("/").split("/")
    query = [_pair(each) for each in _parameters(described, "query")]
    raw = f"{base}/" + "/".join(segments)
    sent = "&".join(f"{each['key']}={each['value']}" for each in query if not each["disabled"])
    return {
        "raw": raw + (f"?{sent}" if sent else ""),
        "host": [base],
        "path": segments,
        "query": query,
        "variable": [
            {"key": each["name"], "value": _path_value(path, each), "description": each.get("description", "")}
            for each in _parameters(described, "path")
        ],
    }


def _path_value(path: str, parameter: Json) -> str:
    name = "stream_id" if path.startswith("/api/streaming-sessions/") and parameter["name"] == "session_id" else None
    variable = _NAMES.get(name or parameter["name"])
    return f"{{{{{variable}}}}}" if variable else str(parameter.get("example", ""))


def _headers(path: str, described: Json) -> list[Json]:
    found = [_pair(each) for each in _parameters(described, "header")]
    if _JSON in described.get("requestBody", {}).get("content", {}):
        found.insert(0, {"key": "Content-Type", "value": _JSON})
    for each in found:
        if each["key"] == "Idempotency-Key":
            each["value"] = "{{$guid}}"
        if each["key"] == "X-User-ID":
            each["value"], each["disabled"] = "{{userId}}", not _RESERVATION.fullmatch(path)
    return found


def _pair(parameter: Json) -> Json:
    is_sent = parameter.get("required", False) or parameter["name"] in _SENT_ALWAYS
    return {
        "key": parameter["name"],
        "value": str(parameter.get("example", "")),
        "description": parameter.get("description", ""),
        "disabled": not is_sent,
    }


def _parameters(described: Json, place: str) -> list[Json]:
    return [each for each in described.get("parameters", ()) if each["in"] == place]


def _body(operation: tuple[str, str], described: Json) -> Json | None:
    for media_type, content in described.get("requestBody", {}).get("content", {}).items():
        example = _filled(operation, content.get("example", {}))
        if media_type == _JSON:
            written = json.dumps(example, indent=2, ensure_ascii=False)
            return {"mode": "raw", "raw": written, "options": {"raw": {"language": "json"}}}
        return {"mode": "urlencoded", "urlencoded": [{"key": key, "value": value} for key, value in example.items()]}
    return None


def _filled(operation: tuple[str, str], example: Json) -> Json:
    """The example with variables where the collection knows better."""
    known = _MEMBERS | _MEMBERS_OF.get(operation, {})
    return {key: f"{{{{{known[key]}}}}}" if key in known else value for key, value in example.items()}


def _events(operation: tuple[str, str], is_step: bool) -> list[Json]:
    kept, lines, found = KEPT.get(operation, {}), [], []
    if kept:
        reads = any(where.startswith("body") for where in kept.values())
        lines = ["if (pm.response.code < 300) {", *(["  const body = pm.response.json()"] if reads else [])]
        lines += [f"  pm.collectionVariables.set('{variable}', {where})" for variable, where in kept.items()] + ["}"]
    if is_step:
        lines.append("pm.test('is answered', () => pm.expect(pm.response.code).below(300))")
        lines += _ID_IN_BOTH_PLACES if operation == FIRST_STEPS[3] else ()
    if operation[1] == "/api/streaming-sessions/initialize":
        found.append(_script("prerequest", list(_PROPOSE)))
    return [*found, *([_script("test", lines)] if lines else [])]


def _script(listen: str, lines: list[str]) -> Json:
    return {"listen": listen, "script": {"type": "text/javascript", "exec": lines}}
