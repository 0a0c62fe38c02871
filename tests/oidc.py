"""A small OpenID provider on a real port, with the faults that issuers have: rotation, silence, wrong documents."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

AUDIENCE = "https://parshall.example.org"
CLIENT = "parshall-pages"
SECRET = "s3cret/of:the client"
LEFT_OUT = "left out"


class OpenIdProvider:
    """The issuer: what it says, and what it has been asked."""

    def __init__(self, *, algorithm: str = "RS256", now: Callable[[], float] = time.time) -> None:
        """Listens on a free port at once; `now` is its clock, in seconds since the epoch."""
        self.algorithm = algorithm
        self.now = now
        self.keys: dict[str, Key] = {}
        self.documents: dict[str, Any] = {}
        """Members of the metadata that differ from what is right."""
        self.listed: list[dict[str, Any]] = []
        """Keys published beside its own."""
        self.down = threading.Event()
        self.pause = 0.0
        self.asked: list[str] = []
        self.claims: dict[str, Any] = {}
        """What ID tokens say beside the usual; LEFT_OUT takes a claim away."""
        self.codes: dict[str, dict[str, str]] = {}
        self.typ: str | None = "JWT"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.rotate()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def rotate(self) -> None:
        """Another key, published at once; the old one is gone."""
        kid = f"key-{secrets.token_hex(4)}"
        made: Key
        if self.algorithm.startswith("ES"):
            made = ECKey.generate_key("P-256")
        elif self.algorithm.startswith("Ed"):
            made = OKPKey.generate_key("Ed25519")
        else:
            made = RSAKey.generate_key(2048)
        self.keys = {kid: made}

    @property
    def kid(self) -> str:
        """The id of the key that signs."""
        return next(iter(self.keys))

    def token(self, subject: str, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """An access token (RFC 9068), which says what it is told to."""
        now = int(self.now())
        said = {
            "iss": self.url,
            "sub": subject,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + 600,
            "jti": secrets.token_hex(8),
            "client_id": "some-app",
        }
        return self.sign(without(said | claims), {"typ": "at+jwt", **(header or {})})

    def sign(self, claims: dict[str, Any], header: dict[str, Any]) -> str:
        """A token with these claims, by the key that signs."""
        whole = without({"alg": self.algorithm, "kid": self.kid, **header})
        return jwt.encode(whole, claims, self.keys[self.kid], algorithms=[whole["alg"]])

    def id_token(self, nonce: str) -> str:
        """What the token endpoint gives."""
        now = int(self.now())
        said = {"iss": self.url, "sub": "anna", "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": nonce}
        return self.sign(without(said | self.claims), {"typ": self.typ or LEFT_OUT})

    def answer(
        self, method: str, path: str, query: dict[str, str], form: dict[str, str], basic: str
    ) -> tuple[int, Any]:
        """Status and body, or where the browser goes."""
        self.asked.append(path)
        time.sleep(self.pause)
        if self.down.is_set():
            return 503, {"error": "down"}
        match path:
            case "/.well-known/openid-configuration":
                return 200, self._metadata()
            case "/keys":
                own = [{**key.as_dict(private=False), "kid": kid, "use": "sig"} for kid, key in self.keys.items()]
                return 200, {"keys": [*self.listed, *own]}
            case "/authorize":
                return 302, self._authorized(query)
            case "/token" if method == "POST":
                return self._redeemed(form, basic)
        return 404, {}

    def _metadata(self) -> dict[str, Any]:
        said = {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/authorize?tenant=1",
            "token_endpoint": f"{self.url}/token",
            "authorization_response_iss_parameter_supported": True,
        }
        return without(said | self.documents)

    def _authorized(self, query: dict[str, str]) -> str:
        """Everybody is logged in at once; what was asked must be in order."""
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        assert query["tenant"] == "1"
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state'], 'iss': self.url})}"

    def _redeemed(self, form: dict[str, str], basic: str) -> tuple[int, Any]:
        expected = base64.b64encode(f"{CLIENT}:{'s3cret%2Fof%3Athe+client'}".encode()).decode()
        if basic != f"Basic {expected}":
            return 401, {"error": "invalid_client"}
        query = self.codes.pop(form.get("code", ""), None)
        if query is None or form.get("redirect_uri") != query["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        proved = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if base64.urlsafe_b64encode(proved).rstrip(b"=").decode() != query["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        return 200, {"access_token": "opaque", "token_type": "Bearer", "id_token": self.id_token(query["nonce"])}


def without(members: dict[str, Any]) -> dict[str, Any]:
    """Those members that are not left out."""
    return {name: value for name, value in members.items() if value is not LEFT_OUT}


@contextmanager
def provider(*, algorithm: str = "RS256", now: Callable[[], float] = time.time) -> Iterator[OpenIdProvider]:
    """A provider that stops at the end."""
    made = OpenIdProvider(algorithm=algorithm, now=now)
    try:
        yield made
    finally:
        made.close()


def _handler(owner: OpenIdProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("GET", {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
            self._answer("POST", {name: values[0] for name, values in parse_qs(body).items()})

        def _answer(self, method: str, form: dict[str, str]) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, said = owner.answer(method, parts.path, query, form, self.headers.get("authorization", ""))
            body = b"" if status == 302 else said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", said)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    return Handler
