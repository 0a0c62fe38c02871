"""Laws of redaction: equal secrets stay equal, no secret stays, and what is no secret can be read."""

import os
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parshall.kernel.errors import StartupError
from parshall.kernel.fingerprints import KEY_FILE, Fingerprints, deployment_secret

OURS = Fingerprints(b"of one deployment" * 2)
TOKEN = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"
ID = "stream-1620847252-a1b2c3d4e5f60718293a4b5c6d7e8f90"
SECRETS = st.text(string.ascii_letters + string.digits + "._~+-", min_size=12, max_size=60)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("Authorization", "Bearer {}"),
        ("authorization", "{}"),
        ("Authorization", "{} behind"),
        ("Proxy-Authorization", "Basic {}"),
        ("Cookie", "theme=dark; accessToken={}"),
        ("Cookie", "{}"),
        ("Set-Cookie", "refreshToken={}; Path=/; HttpOnly"),
        ("X-API-Key", "{}"),
        ("X-Debug-Headers", "{}"),
        ("X-CSRF-Token", "{}"),
        ("Referer", "https://chat.example.org/reset?token={}&x=1"),
        ("Location", "/reset?x=/y?code={}"),
        ("Refresh", "0;url=/reset?code={}#x"),
        ("Referer", "https://me:{}@chat.example.org/"),
        ("Ocp-Apim-Subscription-Key", "{}"),
        ("X-Session", "{}"),
        ("X-Anything", "Bearer {}"),
        ("X-Anything", "so it was parshall_{}"),
    ],
)
@settings(max_examples=20)
@given(secret=SECRETS)
def test_no_field_keeps_a_secret(name: str, form: str, secret: str) -> None:
    kept = OURS.field(name, form.format(secret))
    assert secret not in kept
    assert "redacted:" in kept


@given(secret=SECRETS, name=st.sampled_from(["token", "access_token", "api_key", "code", "%74oken", "X-Amz-Signature"]))
def test_no_query_keeps_a_secret(secret: str, name: str) -> None:
    kept = OURS.target(f"/api/chat/streams/{ID}?after=3&{name}={secret}&limit=2")
    assert secret not in kept
    assert kept.startswith(f"/api/chat/streams/{ID}?after=3&") and kept.endswith("&limit=2")


@given(one=SECRETS, other=SECRETS)
def test_equal_secrets_have_equal_fingerprints_wherever_they_stand(one: str, other: str) -> None:
    again = Fingerprints(b"of one deployment" * 2)
    bearer = OURS.field("Authorization", f"Bearer {one}").removeprefix("Bearer ")
    assert bearer == again.field("cookie", f"accessToken={one}").removeprefix("accessToken=")
    assert bearer == again.target(f"/?token={one}").removeprefix("/?token=")
    assert (bearer == OURS.of(other)) == (one == other)
    assert bearer != Fingerprints(b"of another deployment").of(one), "nobody can search for it without the key"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Streaming-Session-Id", ID),
        ("Idempotency-Key", "order-17"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("Set-Cookie2-Like", "Path=/; HttpOnly"),
        ("Cache-Control", "no-cache, no-transform"),
        ("WWW-Authenticate", 'Bearer error="invalid_token"'),
        ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
        ("Access-Control-Expose-Headers", "X-Streaming-Session-Id, X-Request-Id, Retry-After, RateLimit"),
        ("Referer", f"https://chat.example.org/streams/{ID}?after=3"),
    ],
)
def test_what_is_no_secret_can_be_read(name: str, value: str) -> None:
    assert OURS.field(name.replace("Set-Cookie2-Like", "X-Path"), value) == value


def test_the_scheme_and_the_attributes_stay() -> None:
    assert OURS.field("Authorization", f"bearer {TOKEN}").startswith("bearer redacted:")
    assert OURS.field("Set-Cookie", f"a={TOKEN}; Path=/; SameSite=lax").endswith("; Path=/; SameSite=lax")


@given(text=st.text(max_size=300))
def test_anything_can_be_redacted(text: str) -> None:
    for name in ("Authorization", "Cookie", "Set-Cookie", "Referer", "X-Any", text):
        assert isinstance(OURS.field(name, text), str)
    assert isinstance(OURS.target(text), str)


def test_a_long_chain_of_parameters_is_redacted_without_recursion() -> None:
    assert "hidden" not in OURS.target("/?" + "a=?" * 4000 + "token=hidden-secret")


# ── The secret of a deployment ──────────────────────────────────────────────────────────────────────────────────────


def test_processes_of_one_folder_agree_and_others_do_not(tmp_path: Path) -> None:
    first = deployment_secret(None, tmp_path)
    assert first == deployment_secret(None, tmp_path)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o077 == 0
    assert os.listdir(tmp_path) == [KEY_FILE]
    (elsewhere := tmp_path / "elsewhere").mkdir()
    assert first != deployment_secret(None, elsewhere)
    assert deployment_secret("as configured", tmp_path) == deployment_secret("as configured", elsewhere)


def test_a_folder_that_cannot_hold_a_secret_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="PARSHALL_FINGERPRINT_SECRET"):
        deployment_secret(None, tmp_path / "missing")
    (tmp_path / KEY_FILE).write_text("short")
    with pytest.raises(StartupError, match="holds no secret"):
        deployment_secret(None, tmp_path)
