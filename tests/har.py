"""The structure of HTTP Archives, version 1.2, as the W3C's draft describes it and browsers' tools import it."""

from typing import Any

import jsonschema_rs

TEXT = {"type": "string"}
NUMBER = {"type": "number"}
TIME = {"type": "number", "minimum": 0}
SIZE = {"type": "integer", "minimum": -1}
MOMENT = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}


def members(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with these members and a comment, and no others."""
    known = required | (optional or {}) | {"comment": TEXT}
    return {"type": "object", "required": list(required), "properties": known, "additionalProperties": False}


def listed(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


PAIR = members({"name": TEXT, "value": TEXT})
COOKIE = members({"name": TEXT, "value": TEXT}, {"path": TEXT, "domain": TEXT, "httpOnly": {"type": "boolean"}})
MESSAGE = {"httpVersion": {"type": "string", "pattern": "^HTTP/"}, "cookies": listed(COOKIE), "headers": listed(PAIR)}
SIZES = {"headersSize": SIZE, "bodySize": SIZE}
REQUEST = members(
    {"method": TEXT, "url": {"type": "string", "pattern": "^https?://[^/]+/"}, "queryString": listed(PAIR)}
    | MESSAGE
    | SIZES
)
CONTENT = members({"size": {"type": "integer", "minimum": 0}, "mimeType": TEXT})
RESPONSE = members(
    {"status": {"type": "integer"}, "statusText": TEXT, "content": CONTENT, "redirectURL": TEXT} | MESSAGE | SIZES
)
TIMINGS = members({"send": TIME, "wait": TIME, "receive": TIME}, {"blocked": NUMBER, "dns": NUMBER, "connect": NUMBER})
ENTRY = members(
    {
        "startedDateTime": MOMENT,
        "time": TIME,
        "request": REQUEST,
        "response": RESPONSE,
        "cache": members({}),
        "timings": TIMINGS,
    }
)
LOG = members(
    {"version": {"const": "1.2"}, "creator": members({"name": TEXT, "version": TEXT}), "entries": listed(ENTRY)},
    {"pages": listed({"type": "object"})},
)
_ARCHIVE = jsonschema_rs.validator_for({**members({"log": LOG}), "additionalProperties": False})


def check_har(archive: Any) -> None:
    """An archive that a tool would take."""
    assert [f"{error.instance_path}: {error.message}" for error in _ARCHIVE.iter_errors(archive)] == []
    for entry in archive["log"]["entries"]:
        timings = entry["timings"]
        took = sum(timings[name] for name in ("send", "wait", "receive"))
        assert abs(entry["time"] - took) < 0.01 or took >= entry["time"], entry["timings"]
