"""Request bodies read strictly: JSON only where JSON is asked for, in one meaning only, and not nested without end."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from parshall.kernel.errors import Invalid, UnsupportedMediaType

BODY_BYTES_MAX = 1024 * 1024
JSON_DEPTH_MAX = 32
"""Objects and arrays within each other; clients need five."""


class MalformedJson(Invalid):
    """A body that is no JSON, or that two readers could understand differently (RFC 7493)."""

    code = "malformed_json"
    title = "Malformed JSON"
    default = "The body is not valid JSON in UTF-8; correct it and send it again."

    def __init__(self, detail: str | None = None, /) -> None:
        """Told like any other failure of validation, of the body as a whole."""
        super().__init__(detail, errors=[{"path": "body", "message": detail or self.default}])


class StrictRoute(APIRoute):
    """A route whose body is JSON of one meaning: no member twice, no NaN, at most JSON_DEPTH_MAX deep."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """The handler, which gets the body when it is known to be right."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def strict(request: Request) -> Response:
            try:
                body = await request.body()
            except ClientDisconnect as error:  # nobody is there to read this
                raise MalformedJson from error
            if not body:
                return await handler(request)
            if not _is_json(request.headers.get("content-type", "")):
                raise UnsupportedMediaType
            return await handler(_Parsed(request, body, parsed(body)))

        return strict


class _Parsed(Request):
    """A request whose body has been read."""

    def __init__(self, request: Request, body: bytes, document: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._body = body
        self._document = document

    async def json(self) -> Any:
        return self._document


def parsed(body: bytes) -> Any:
    """The value of a JSON text. Raises MalformedJson."""
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise MalformedJson from error
    if body.count(b"{") + body.count(b"[") > JSON_DEPTH_MAX:  # else it cannot be too deep
        _check_depth(document)
    return document


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(members)
    if len(document) < len(members):
        raise MalformedJson("A member of an object is there twice; send each once.")
    return document


def _no_number(name: str) -> None:
    raise MalformedJson(f"{name} is no number in JSON; leave the member out.")


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(JSON_DEPTH_MAX):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return
    raise _too_deep()


def _inner(value: Any) -> list[Any]:
    """What stands within a value, as far as something can stand within that."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inside if isinstance(each, dict | list)]


def _too_deep() -> MalformedJson:
    return MalformedJson(f"Objects and arrays may be nested {JSON_DEPTH_MAX} deep; send a flatter body.")
