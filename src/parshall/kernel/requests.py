"""What one HTTP request adds to the metrics and to its trace: the route as a template, never the path."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

from starlette.types import Scope

from parshall.kernel import metrics, trace
from parshall.kernel.headers import METHODS

HEALTH_PATHS = ("/health", "/api/health")
WATCHED_PATHS = (*HEALTH_PATHS, "/metrics")
"""Asked every few seconds by machines: never limited, and never traced, which would bury what people ask."""
TEMPLATE = "parshall.route"
"""Where the ASGI scope names the route of a request that the framework does not see."""
NO_ROUTE = "none"
"""The route of a request that was refused before it was looked for, or that leads nowhere."""
NO_STATUS = "none"
"""The status of a request whose client went before there was one."""


class Answered(Protocol):
    """A request, and its answer as far as it came."""

    scope: Scope
    status: int | None
    answered_at: float | None
    """When the status line went out, by the performance counter."""


@contextmanager
def counted(exchange: Answered, *, service: str) -> Iterator[None]:
    """Count the request that the block serves, and make a span of it."""
    began, scope = time.perf_counter(), exchange.scope
    method = scope["method"] if scope["method"] in (*METHODS, "HEAD") else metrics.OTHER
    watching = scope["path"] in WATCHED_PATHS
    with nullcontext() if watching else trace.span(method, "server", attributes={"http.request.method": method}):
        try:
            yield
        finally:
            route, status = route_of(scope), exchange.status
            metrics.http_requests.labels(service, route, method, NO_STATUS if status is None else status).inc()
            seconds = (exchange.answered_at or time.perf_counter()) - began
            metrics.http_request_seconds.labels(route).observe(seconds)
            _tell(method, route, status)


def route_of(scope: Scope) -> str:
    """The template of the route that served a request, such as /api/chat/sessions/{session_id}."""
    named = scope.get(TEMPLATE)
    if named is None:
        found: Any = scope.get("fastapi", {}).get(
            "effective_route_context"
        )  # a route below a router knows only its end
        named = getattr(found, "path_format", None) or getattr(scope.get("route"), "path", NO_ROUTE)
    return str(named)


def _tell(method: str, route: str, status: int | None) -> None:
    span = trace.running()
    if span is None:
        return
    span.name(f"{method} {route}")
    span.set("http.route", route)
    if status is not None:
        span.set("http.response.status_code", status)
    if status is not None and status >= 500:
        span.fail(str(status))
