"""The pages for people: `/` with what runs here, the API at `/docs`, the doctor in a browser; what each may load."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi.openapi.docs import get_swagger_ui_html

HOME_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)

_ORDER = (
    "RECORDING.md",
    "PROTOCOL.md",
    "SESSIONS.md",
    "CLIENTS.md",
    "EVENTS.md",
    "CONFIGURATION.md",
    "OPERATIONS.md",
    "OBSERVABILITY.md",
    "DOCTOR.md",
    "TROUBLESHOOTING.md",
    "ARCHITECTURE.md",
)

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Parshall</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 42rem; margin: 4rem auto; padding: 0 1.2rem; }}
  h1 {{ font-weight: 600; margin-bottom: 0; }}
  .version {{ color: GrayText; margin-top: 0; }}
  li {{ margin: .3rem 0; }}
  code {{ font-size: .92em; }}
</style>
<h1>Parshall</h1>
<p class="version">version {version}</p>
<p>Metered AI streams: this server keeps users, chat sessions and prepaid credits, streams answers as
Server-Sent Events, and charges exactly what was used.</p>
<ul>
  <li><a href="/docs">API documentation</a>, and the <a href="/openapi.json">OpenAPI document</a> behind it; the same as
  <a href="/postman.json">a collection for Postman</a></li>
  <li><a href="/health">Health</a> of this server</li>
  <li><a href="/doctor">Doctor</a>: what a script in this browser can send and read, through whatever is in front</li>
  <li>Documentation: {guides}</li>
  <li>A chat in the terminal: <code>parshall chat</code></li>
</ul>
</html>
"""

DOCTOR_PAGE = "doctor.html"
DOCTOR_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src http: https:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
"""The page loads nothing from elsewhere; it may call any deployment, whose answers to this origin it looks at."""
_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}


def home_page(*, version: str) -> str:
    """The page as HTML."""
    guides = ", ".join(
        f'<a href="/documentation/{name}">{name.removesuffix(".md").lower()}</a>' for name in guides_here()
    )
    return _PAGE.format(version=version, guides=guides)


def api_page() -> tuple[str, str]:
    """The API documentation as HTML, and its policy: scripts of this server alone, and the one in the page.

    Its addresses are paths, so that it says nothing that the request's Host said.
    """
    page = bytes(
        get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Parshall: the API",
            swagger_js_url="/swagger/swagger-ui-bundle.js",
            swagger_css_url="/swagger/swagger-ui.css",
            swagger_favicon_url="/swagger/favicon-32x32.png",
            swagger_ui_parameters={"tryItOutEnabled": True, "filter": True, "displayRequestDuration": True},
        ).body
    ).decode()
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in _INLINE.findall(page))
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    return page, (
        f"default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def guides_here() -> list[str]:
    """File names of the guides that came with this installation, the first to read first."""
    found = {path.name for path in _folder().glob("*.md")}
    return [name for name in _ORDER if name in found] + sorted(found.difference(_ORDER))


def guide(name: str) -> str | None:
    """The text of a guide, None where there is none of that name."""
    return (_folder() / name).read_text("utf-8") if name in guides_here() else None


def browser_file(name: str) -> tuple[bytes, str] | None:
    """A file of the doctor's page and its media type; None where there is none of that name."""
    files = {path.name: path for path in (Path(__file__).parent / "browser").iterdir()}
    path = files.get(name)
    return None if path is None else (path.read_bytes(), _TYPES[path.suffix])


def _folder() -> Path:
    """In a package the guides lie beside the code, in a checkout in docs/."""
    packaged = Path(__file__).parent.parent / "docs"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "docs"
