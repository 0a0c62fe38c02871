"""What browsers are told with every response, and what their cookies may not do for the page of another site."""

from urllib.parse import urlsplit

from starlette.requests import Request

from parshall.kernel.errors import Forbidden

SECURITY = (
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
"""On every response that does not say otherwise; a page names what it may load in a policy of its own."""


class CrossSite(Forbidden):
    """A cookie came along with a request that another site's page made."""

    code = "cross_site"
    title = "Cross-site request"
    default = "A cookie alone cannot do this from another site; send the token in the body or as a header."


def check_same_origin(request: Request) -> None:
    """Raises CrossSite for a request of a page elsewhere, unless its origin is allowed.

    Every browser names the origin of a page that posts (Fetch §3.2), and most say where it stands
    (`Sec-Fetch-Site`); what says neither is no browser, and nobody lures it.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin is not None and origin in getattr(request.app.state, "allowed_origins", ()):
        return
    if site is not None and site not in ("same-origin", "none"):
        raise CrossSite
    if origin is not None and _authority(origin) != request.headers.get("host", "").lower():
        raise CrossSite


def is_secure(request: Request) -> bool:
    """Whether the browser reached us by https, be it through a proxy that ends TLS: its page's origin tells."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
