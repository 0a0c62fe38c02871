"""All that is offered over HTTP, with nothing behind it yet: what a process serves, and what documents describe."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi_swagger import patch_fastapi
from starlette.routing import BaseRoute

from parshall import __version__
from parshall.accounting.http import router as accounting_router
from parshall.app.apart import ALL, ServiceName
from parshall.app.openapi import describe
from parshall.app.page import DOCTOR_HEADERS, DOCTOR_PAGE, HOME_POLICY, api_page, browser_file, guide, home_page
from parshall.app.postman import collection
from parshall.app.scrape import router as metrics_router
from parshall.auth.http import router as auth_router
from parshall.auth.http import wellknown as wellknown_router
from parshall.chat.http import router as chat_router
from parshall.chat.http_debug import router as debug_router
from parshall.chat.http_supervision import router as supervision_router
from parshall.kernel import clock
from parshall.kernel.errors import NotFound
from parshall.kernel.problems import PROBLEMS
from parshall.kernel.requests import HEALTH_PATHS

ROUTERS: dict[ServiceName, tuple[APIRouter, ...]] = {
    ServiceName.CHAT: (chat_router, supervision_router, debug_router),
    ServiceName.ACCOUNTING: (accounting_router,),
    ServiceName.AUTH: (auth_router, wellknown_router),
}
"""Those that are asked most often first: the framework tries one route after the other."""


def name_of(services: frozenset[ServiceName]) -> str:
    """What a process that serves these is called: by its one service, or by all."""
    return "parshall" if services == ALL else min(services).value


def surface(services: frozenset[ServiceName] = ALL) -> FastAPI:
    """The routes of these services; `state` has what they need before the first request, `down` and `service` too."""
    name = name_of(services)
    app = FastAPI(
        title="Parshall" if name == "parshall" else f"Parshall {name}",
        version=__version__,
        summary="Metered AI streams: login, chat, Server-Sent Events and prepaid credits that never drift.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        responses=PROBLEMS,
        redirect_slashes=False,  # a redirect says what Host said, and over plain HTTP
    )
    for service, routers in ROUTERS.items():
        for router in routers if service in services else ():
            app.include_router(router)
    _add_pages(app, services)
    patch_fastapi(app, redirect_from_root_to_docs=False)  # its files for /docs: it must work offline
    _add_guides(app)
    app.include_router(metrics_router)
    _add_operations(app)
    describe(app)
    return app


def words_of(app: FastAPI) -> frozenset[str]:
    """The fixed parts of its paths: what logs may show of a path."""
    paths = (*_paths(app.routes), auth_router.prefix)
    return frozenset(part for path in paths for part in path.split("/") if part and not part.startswith("{"))


def _paths(routes: Iterable[BaseRoute]) -> Iterator[str]:
    """Those of routers that were included too, which the framework resolves when a request comes."""
    for route in routes:
        included = getattr(route, "original_router", None)
        yield from [str(getattr(route, "path", ""))] if included is None else _paths(included.routes)


def _add_pages(app: FastAPI, services: frozenset[ServiceName]) -> None:
    page, policy = api_page()

    @app.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(home_page(version=__version__), headers={"Content-Security-Policy": HOME_POLICY})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @cache
    def requests() -> bytes:
        return bytes(JSONResponse(collection(app.openapi(), name=name_of(services))).body)

    @app.get("/postman.json", include_in_schema=False)
    async def postman() -> Response:
        return Response(requests(), media_type="application/json")


def _add_guides(app: FastAPI) -> None:
    @app.get("/documentation/{name}", response_class=PlainTextResponse, include_in_schema=False)
    async def documentation(name: str) -> str:
        text = guide(name)
        if text is None:
            raise NotFound("There is no such guide; the page at / lists them.")
        return text

    @app.get("/doctor", include_in_schema=False)
    @app.get("/doctor/{name}", include_in_schema=False)
    async def doctor(name: str = DOCTOR_PAGE) -> Response:
        found = browser_file(name)
        if found is None:
            raise NotFound("There is no such file; the page is at /doctor.")
        content, media_type = found
        return Response(content, media_type=media_type, headers=DOCTOR_HEADERS)


def _add_operations(app: FastAPI) -> None:
    async def health(request: Request) -> JSONResponse:
        """Whether this process can serve; 503 names what is down."""
        down = await request.app.state.down()
        body: dict[str, Any] = {
            "status": "unavailable" if down else "ok",
            "service": request.app.state.service,
            "version": request.app.version,
            "timestamp": clock.rfc3339(clock.now()),
        }
        return JSONResponse(body | ({"down": down} if down else {}), status_code=503 if down else 200)

    for path in HEALTH_PATHS:
        app.get(path, tags=["operations"])(health)

    @app.get("/api/version", tags=["operations"])
    async def version(request: Request) -> dict[str, str]:
        """The version that runs."""
        return {"service": request.app.state.service, "version": __version__}
