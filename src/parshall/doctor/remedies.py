"""What to do about what is wrong: for the software that is in front where that is known, else in general."""

from collections.abc import Sequence

from parshall.doctor.front import Front
from parshall.doctor.model import Check

_GENERAL: dict[Check, str] = {
    Check.TLS: "Renew the certificate by a timer (ACME) and allow TLS 1.2 and 1.3 only.",
    Check.CLOCK: "Keep the clocks of all servers by NTP (chrony, systemd-timesyncd).",
    Check.HTTP_VERSION: "Have what stands in front speak HTTP/1.1 or newer to clients and to the server.",
    Check.CONNECTION: "Let what stands in front keep connections: take out what sets Connection: close.",
    Check.HTTP2: "Have what stands in front drop the headers of a connection (Connection, Keep-Alive) for HTTP/2.",
    Check.ID_PRESENT: "Find the rule that removes or renames response headers and let X-Streaming-Session-Id pass; "
    "until then clients take the id from the `session` event.",
    Check.ID_BEFORE_BODY: "Set the header before the first byte of the body.",
    Check.ID_FIRST: "No client depends on it; see what reorders headers if you want to know.",
    Check.ID_ONCE: "Two hops set the header; let the server alone set it.",
    Check.ID_FORMAT: "Let the server make the id, or propose one of the documented form.",
    Check.ID_UNCHANGED: "Find the rule that rewrites X-Streaming-Session-Id (a trace or request id policy) and take it "
    "out.",
    Check.ID_PROPOSED: "Let the request header X-Streaming-Session-Id pass to the server.",
    Check.CONTENT_TYPE: "Let the server's Content-Type pass; take out default types and error pages for this path.",
    Check.CACHE_CONTROL: "Let the server's Cache-Control pass; take out rules that set expiry for this path.",
    Check.COMPRESSION: "Take text/event-stream out of what is compressed, and honour no-transform.",
    Check.BUFFERING: "Turn response buffering off for /api/ and honour X-Accel-Buffering: no.",
    Check.COMPLETE: "Raise the limits on the duration of a response above PARSHALL_STREAM_TIMEOUT.",
    Check.IDLE: "Raise the idle and read timeouts above 60 s: the server pings every 15 s.",
    Check.LAST_EVENT_ID: "Let the request header Last-Event-ID pass; until then clients resume with ?after=.",
    Check.RESUME: "Clients lose or repeat text; see whether a cache or a second deployment answers.",
    Check.CHARGED_ONCE: "Run `parshall audit`, and compare with the account's statement.",
    Check.UPDATE_RIGHT: "See the message, and TROUBLESHOOTING for its reason.",
    Check.UPDATE_WRONG: "Let the bodies of errors pass: clients need the details to recover.",
    Check.NOT_CACHED: "Take /api/ out of the cache, and honour Cache-Control: no-store and no-cache.",
    Check.PREFLIGHT: "Let OPTIONS pass to the server without a login, and name the origin in PARSHALL_ALLOWED_ORIGINS.",
    Check.CORS: "Put the origin, exactly as browsers send it, into PARSHALL_ALLOWED_ORIGINS, and take CORS rules out "
    "of what stands in front.",
    Check.CORS_CREDENTIALS: "Answer with the origin itself instead of *; let the server alone set CORS headers, "
    "cookies pass.",
    Check.CORS_EXPOSE: "Let the server's Access-Control-Expose-Headers pass: it names X-Streaming-Session-Id.",
    Check.CORS_VARY: "Let the server's Vary: Origin pass.",
    Check.CORS_FOREIGN: "Name the origins that may call in PARSHALL_ALLOWED_ORIGINS, and repeat none that is not among "
    "them.",
}

_NGINX_HEADERS = "nginx: take out proxy_hide_header and add_header for it (`add_header` adds, it does not replace)."
_SPECIAL: dict[Front, dict[Check, str]] = {
    Front.NGINX: {
        Check.HTTP_VERSION: 'nginx: chunked_transfer_encoding on; proxy_http_version 1.1; and Connection "".',
        Check.ID_PRESENT: "nginx: take out proxy_hide_header X-Streaming-Session-Id, or proxy_pass_header it.",
        Check.ID_ONCE: _NGINX_HEADERS,
        Check.ID_UNCHANGED: _NGINX_HEADERS,
        Check.ID_PROPOSED: "nginx: take out proxy_set_header X-Streaming-Session-Id, and proxy_pass_request_headers "
        "off.",
        Check.CONTENT_TYPE: "nginx: take out default_type and proxy_intercept_errors for this location.",
        Check.CACHE_CONTROL: "nginx: take out `expires` and add_header Cache-Control for this location.",
        Check.COMPRESSION: "nginx: gzip off; in this location, or take text/event-stream (and *) out of gzip_types.",
        Check.BUFFERING: "nginx: proxy_buffering off; and take X-Accel-Buffering out of proxy_ignore_headers.",
        Check.COMPLETE: "nginx: proxy_read_timeout 300s; and raise send_timeout.",
        Check.IDLE: "nginx: proxy_read_timeout 300s; in this location (the default of 60s is enough for pings every 15 "
        "s).",
        Check.LAST_EVENT_ID: "nginx: take out proxy_set_header Last-Event-ID, and proxy_pass_request_headers off.",
        Check.UPDATE_WRONG: "nginx: proxy_intercept_errors off;",
        Check.NOT_CACHED: "nginx: proxy_cache off; in this location, and take Cache-Control out of "
        "proxy_ignore_headers.",
        Check.PREFLIGHT: "nginx: take out `if ($request_method = OPTIONS)`, proxy_hide_header and auth_request for "
        "OPTIONS.",
        Check.CORS: "nginx: take out proxy_hide_header and add_header for Access-Control-*; the server sets them.",
        Check.CORS_CREDENTIALS: "nginx: take out add_header Access-Control-Allow-Origin *; the server sets the origin "
        "itself.",
        Check.CORS_EXPOSE: "nginx: take out proxy_hide_header Access-Control-Expose-Headers; the server sets it.",
    },
    Front.CADDY: {
        Check.COMPRESSION: "Caddy: `encode` with a matcher that leaves Content-Type text/event-stream out.",
        Check.BUFFERING: "Caddy: reverse_proxy { flush_interval -1 } and no response_buffers.",
        Check.IDLE: "Caddy: take out read_timeout and write_timeout of the transport and the server's idle timeout.",
        Check.ID_PRESENT: "Caddy: take out `header -X-Streaming-Session-Id` and header_down of it.",
        Check.ID_ONCE: "Caddy: use `header_down >X-…` or none; `header +X-…` adds a second one.",
        Check.CORS: "Caddy: take out `header Access-Control-*`; the server sets them.",
    },
    Front.ENVOY: {
        Check.COMPRESSION: "Envoy: take text/event-stream out of the compressor's content_type, or disable it for the "
        "route.",
        Check.BUFFERING: "Envoy: take the buffer filter and ext_proc in BUFFERED mode off this route.",
        Check.COMPLETE: "Envoy: route timeout: 0s and max_stream_duration above PARSHALL_STREAM_TIMEOUT (the default "
        "is 15 s).",
        Check.IDLE: "Envoy: raise stream_idle_timeout and the route's idle_timeout above 60s.",
        Check.ID_PRESENT: "Envoy: take X-Streaming-Session-Id out of response_headers_to_remove.",
        Check.ID_ONCE: "Envoy: append_action OVERWRITE_IF_EXISTS_OR_ADD, or do not add the header at all.",
        Check.CORS: "Envoy: take the cors policy off this route, or allow the origin and expose the header in it.",
        Check.PREFLIGHT: "Envoy: the cors filter answers preflights itself; name the origin, methods and headers in "
        "its policy.",
    },
    Front.CLOUDFLARE: {
        Check.COMPRESSION: "Cloudflare: keep Cache-Control: no-transform, and a Compression Rule without /api/.",
        Check.BUFFERING: "Cloudflare: turn Response Buffering off (Enterprise) and take Workers that read the body off "
        "/api/.",
        Check.COMPLETE: "Cloudflare: more than 120 s without a byte from the server end a response (error 524).",
        Check.IDLE: "Cloudflare: let the server's pings pass; it cuts after 120 s without a byte from the server.",
        Check.NOT_CACHED: "Cloudflare: a Cache Rule for /api/* with Bypass cache, before any Cache Everything.",
        Check.ID_PRESENT: "Cloudflare: take X-Streaming-Session-Id out of Transform Rules that remove headers.",
        Check.CORS: "Cloudflare: take Transform Rules and Workers that set Access-Control-* off /api/.",
    },
    Front.AWS_ALB: {
        Check.IDLE: "AWS load balancer: idle_timeout.timeout_seconds of at least 60 (a target's keep-alive must be "
        "longer).",
        Check.COMPLETE: "AWS load balancer: raise idle_timeout.timeout_seconds and the deregistration delay.",
        Check.HTTP_VERSION: "AWS load balancer: protocol version HTTP1 (1.1) for the target group; not a classic TCP "
        "listener.",
        Check.CORS: "AWS load balancer: take CORS out of the listener's header modification; the server sets it.",
    },
    Front.API_GATEWAY: {
        Check.BUFFERING: "API Gateway: HTTP APIs hold whole answers; use a REST API with response transfer mode "
        "STREAM, or put the load balancer in front instead.",
        Check.COMPLETE: "API Gateway: the integration timeout (29 or 30 s by default) cuts longer answers; raise or "
        "avoid it.",
        Check.IDLE: "API Gateway: idle connections are cut after 30 s (edge) to 5 min; use a regional endpoint.",
        Check.ID_PRESENT: "API Gateway: use a proxy integration, which passes the server's headers.",
        Check.CORS: "API Gateway: its own CORS setting replaces the server's; name origins, methods, and the headers "
        "to expose.",
        Check.PREFLIGHT: "API Gateway: OPTIONS must not need an authorizer; name Last-Event-ID among the allowed "
        "headers.",
    },
    Front.CLOUDFRONT: {
        Check.COMPRESSION: "CloudFront: turn Compress objects automatically off for /api/*.",
        Check.NOT_CACHED: "CloudFront: the policy CachingDisabled for /api/*.",
        Check.LAST_EVENT_ID: "CloudFront: the origin request policy AllViewerExceptHostHeader for /api/*.",
        Check.ID_PROPOSED: "CloudFront: the origin request policy AllViewerExceptHostHeader for /api/*.",
        Check.IDLE: "CloudFront: raise the origin response timeout; it counts between packets.",
        Check.CORS: "CloudFront: the origin request policy must forward Origin; take the response headers policy off.",
    },
    Front.APACHE: {
        Check.COMPRESSION: "Apache: SetEnvIf Request_URI ^/api/ no-gzip=1 (mod_deflate).",
        Check.BUFFERING: "Apache: ProxyPass … flushpackets=on",
        Check.IDLE: "Apache: ProxyPass … timeout=300, and raise Timeout.",
    },
    Front.HAPROXY: {
        Check.IDLE: "HAProxy: raise timeout server and timeout client above 60s.",
        Check.BUFFERING: "HAProxy: take `option http-buffer-response` (and filters that wait for bodies) out.",
        Check.COMPRESSION: "HAProxy: take text/event-stream out of `compression type`.",
    },
    Front.TRAEFIK: {
        Check.COMPRESSION: "Traefik: excludedContentTypes: text/event-stream in the compress middleware.",
        Check.BUFFERING: "Traefik: take the buffering middleware off this router.",
        Check.IDLE: "Traefik: raise respondingTimeouts.writeTimeout and idleTimeout.",
    },
}


def remedy(check: Check, fronts: Sequence[Front]) -> str:
    """What to do about a check that failed behind this software, the outermost first."""
    special = [_SPECIAL[front][check] for front in fronts if check in _SPECIAL.get(front, {})]
    return " ".join(dict.fromkeys(special)) or _GENERAL[check]
