"""A stream's trace as an HTTP Archive (HAR 1.2), which the developer tools of browsers import; pure."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from parshall import __version__
from parshall.kernel.clock import rfc3339
from parshall.kernel.exchange import Document

UNKNOWN = -1
"""What HAR 1.2 wants for sizes that were not measured."""


def har_of(documents: Sequence[Document]) -> Document:
    """An archive with an entry for each request and each call. Secrets are fingerprints; bodies are not recorded."""
    return {
        "log": {
            "version": "1.2",
            "creator": {"name": "parshall", "version": __version__},
            "entries": [_entry(each) for each in documents],
        }
    }


def _entry(document: Document) -> Document:
    wait, ended = _waited(document), document["endedMilliseconds"]
    return {
        "startedDateTime": rfc3339(document["at"]),
        "time": ended,
        "request": _request(document),
        "response": _response(document["response"]),
        "cache": {},
        "timings": {"send": 0, "wait": wait, "receive": round(max(0.0, ended - wait), 3)},
        "comment": " ".join([_whose(document), *document["notes"]]),
    }


def _whose(document: Document) -> str:
    if document["kind"] == "request":
        return f"request to {document['service']}"
    return f"{document['kind']} from {document['service']} to {document['to']}"


def _waited(document: Document) -> float:
    """Milliseconds until the first byte of the response's body, or its head where none came."""
    response = document["response"]
    known = document.get("firstByteMilliseconds")
    begun = document["endedMilliseconds"] if response is None else response["milliseconds"]
    return float(begun if known is None else known)


def _request(document: Document) -> Document:
    request = document["request"]
    headers = _headers(request["headers"])
    url = request["target"]
    if document["kind"] == "request":
        host = next((each["value"] for each in headers if each["name"].lower() == "host"), "localhost")
        url = f"{request['scheme']}://{host}{url}"
    return {
        "method": request["method"],
        "url": url,
        "httpVersion": f"HTTP/{request.get('httpVersion', '1.1')}",
        "cookies": _cookies(headers, "cookie"),
        "headers": headers,
        "queryString": [
            {"name": name, "value": value} for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True)
        ],
        "headersSize": UNKNOWN,
        "bodySize": UNKNOWN,
    }


def _response(response: Document | None) -> Document:
    """The response; with the status 0 where there was none, as browsers write it."""
    fields = [] if response is None else sorted(response["headers"], key=lambda each: each.get("position", 0))
    headers = _headers(fields)
    status = 0 if response is None else response["status"]
    return {
        "status": status,
        "statusText": HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "",
        "httpVersion": "HTTP/1.1",
        "cookies": _cookies(headers, "set-cookie"),
        "headers": headers,
        "content": {"size": 0, "mimeType": _first(headers, "content-type")},
        "redirectURL": _first(headers, "location"),
        "headersSize": UNKNOWN,
        "bodySize": UNKNOWN,
    }


def _headers(fields: Sequence[Document]) -> list[dict[str, str]]:
    """Name and value; the place in the code as a comment, where it is known."""
    return [
        {"name": each["name"], "value": each["value"], **({"comment": each["place"]} if each.get("place") else {})}
        for each in fields
    ]


def _first(headers: Sequence[dict[str, str]], name: str) -> str:
    return next((each["value"] for each in headers if each["name"].lower() == name), "")


def _cookies(headers: Sequence[dict[str, str]], name: str) -> list[dict[str, Any]]:
    """The cookies that a list of headers holds, each with the fingerprint of its value."""
    values = [each["value"] for each in headers if each["name"].lower() == name]
    pairs = [pair for value in values for pair in (value.split(";") if name == "cookie" else value.split(";")[:1])]
    split = [pair.partition("=") for pair in pairs if "=" in pair]
    return [{"name": own.strip(), "value": value.strip()} for own, _, value in split]
