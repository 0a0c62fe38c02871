"""What stands in front of a deployment, as far as it names itself in the headers of an answer."""

from enum import StrEnum

from parshall.doctor.wire import Pairs


class Front(StrEnum):
    """Software that is known by its headers; the values are its names."""

    NGINX = "nginx"
    CADDY = "Caddy"
    ENVOY = "Envoy"
    CLOUDFLARE = "Cloudflare"
    AWS_ALB = "AWS load balancer"
    API_GATEWAY = "Amazon API Gateway"
    CLOUDFRONT = "Amazon CloudFront"
    AZURE = "Azure Front Door"
    GOOGLE = "Google load balancer"
    FASTLY = "Fastly"
    VARNISH = "Varnish"
    AKAMAI = "Akamai"
    APACHE = "Apache"
    KONG = "Kong"
    TRAEFIK = "Traefik"
    HAPROXY = "HAProxy"


_SIGNS: tuple[tuple[Front, str, str], ...] = (
    (Front.CLOUDFLARE, "cf-ray", ""),
    (Front.CLOUDFLARE, "cf-cache-status", ""),
    (Front.CLOUDFLARE, "server", "cloudflare"),
    (Front.CLOUDFRONT, "x-amz-cf-id", ""),
    (Front.CLOUDFRONT, "via", "cloudfront"),
    (Front.API_GATEWAY, "x-amz-apigw-id", ""),
    (Front.API_GATEWAY, "apigw-requestid", ""),
    (Front.AWS_ALB, "server", "awselb"),
    (Front.AWS_ALB, "set-cookie", "awsalb"),
    (Front.AZURE, "x-azure-ref", ""),
    (Front.GOOGLE, "via", "google"),
    (Front.FASTLY, "x-served-by", "cache-"),
    (Front.FASTLY, "x-fastly-request-id", ""),
    (Front.VARNISH, "x-varnish", ""),
    (Front.VARNISH, "via", "varnish"),
    (Front.AKAMAI, "server", "akamai"),
    (Front.AKAMAI, "x-akamai-transformed", ""),
    (Front.KONG, "via", "kong"),
    (Front.KONG, "x-kong-proxy-latency", ""),
    (Front.ENVOY, "server", "envoy"),
    (Front.ENVOY, "x-envoy-upstream-service-time", ""),
    (Front.ENVOY, "x-envoy-decorator-operation", ""),
    (Front.CADDY, "server", "caddy"),
    (Front.CADDY, "via", "caddy"),
    (Front.TRAEFIK, "server", "traefik"),
    (Front.HAPROXY, "server", "haproxy"),
    (Front.APACHE, "server", "apache"),
    (Front.NGINX, "server", "nginx"),
    (Front.NGINX, "server", "openresty"),
    (Front.NGINX, "x-nginx-proxy", ""),
)
"""A header and what its value contains, in lower case; the outermost first where several sign an answer."""


def recognised(headers: Pairs) -> list[Front]:
    """The software that signs an answer with these headers."""
    given = [(name.lower(), value.lower()) for name, value in headers]
    found = [front for front, header, word in _SIGNS if any(name == header and word in value for name, value in given)]
    return list(dict.fromkeys(found))


def intermediaries(headers: Pairs) -> list[str]:
    """What stands in front, in words: what is recognised, and what else names itself in Via or Server."""
    named: list[str] = [front.value for front in recognised(headers)]
    for name, value in headers:
        words = value.lower()
        if name.lower() in ("via", "server") and value and not any(known.lower() in words for known in named):
            named.append(f"{name}: {value}"[:100])
    return named
