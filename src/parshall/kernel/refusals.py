"""Refusals as RFC 9457 problem documents, whatever raised them."""

import json
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from parshall.kernel import headers as names
from parshall.kernel.bodies import BODY_BYTES_MAX
from parshall.kernel.errors import ParshallError
from parshall.kernel.problems import PROBLEM_JSON

TOO_LARGE = f"The body may have at most {BODY_BYTES_MAX} bytes; send less."
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}
_STATUS_DETAILS = {
    404: "There is no such path; /docs lists what there is.",
    405: "This path does not take this method; the Allow header names those it takes.",
    413: TOO_LARGE,
}


class ProblemDocument(JSONResponse):
    """ASCII-escaped, so that no text a client sent (a lone surrogate) can keep the refusal from being written."""

    media_type = PROBLEM_JSON

    def render(self, content: Any) -> bytes:
        """The document as bytes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def problem(
    request: Request,
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> JSONResponse:
    """An RFC 9457 problem document with the members that older clients read."""
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": f"urn:uuid:{uuid.uuid4()}",
        "message": detail,
        "code": code,
        "error": code.upper(),
        "requestId": request.scope.get("request_id", ""),
        **extra,
    }
    return ProblemDocument(body, status_code=status, headers=headers)


def _allowed(request: Request) -> str:
    """Every method that this path takes; the framework names only those of the first route that fits."""

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return ", ".join(method for method in names.METHODS if taken(method))


def install_errors(app: FastAPI) -> None:
    """Turn every exception into a problem document; none of them names a file or a line."""

    @app.exception_handler(ParshallError)
    async def refused(request: Request, error: ParshallError) -> JSONResponse:
        return problem(
            request,
            status=error.status,
            code=error.code,
            title=error.title,
            detail=error.detail,
            headers=error.headers,
            **error.extra,
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = [{"path": ".".join(str(part) for part in e["loc"]), "message": str(e["msg"])} for e in error.errors()]
        named = "; ".join(f"{e['path']}: {e['message']}" for e in found[:3])
        return problem(
            request,
            status=400,
            code="validation_failed",
            title="Validation failed",
            detail=f"The request is not valid ({named}); correct it and send it again.",
            errors=found,
        )

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        status = error.status_code
        return problem(
            request,
            status=status,
            code=_STATUS_CODES.get(status, f"http_{status}"),
            title=str(error.detail),
            detail=_STATUS_DETAILS.get(status, f"{error.detail}; see /docs."),
            headers={"Allow": _allowed(request)} if status == 405 else dict(error.headers or {}),
        )

    @app.exception_handler(Exception)
    async def broken(request: Request, _error: Exception) -> JSONResponse:
        cls = ParshallError
        return problem(request, status=cls.status, code=cls.code, title=cls.title, detail=cls.default)
