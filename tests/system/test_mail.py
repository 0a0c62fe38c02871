"""Sign-up and letters on a running server: closed unless opened, and with a mailbox the whole way of a code."""

import email
import email.policy
import time
from pathlib import Path

import pytest
from tests.post import code_in
from tests.serving import serving, upstream

BODY = {"username": "ann", "email": "ann@example.org", "password": "correct horse"}


def letters(home: Path, count: int) -> list[str]:
    """What the letters in the mailbox say, oldest first, once there are so many."""
    deadline = time.monotonic() + 20
    while len(found := sorted((home / "mailbox").glob("*.eml"), key=lambda path: path.stat().st_mtime_ns)) < count:
        assert time.monotonic() < deadline, f"{len(found)} letters of {count}"
        time.sleep(0.02)
    bodies = [email.message_from_bytes(path.read_bytes(), policy=email.policy.default).get_body() for path in found]
    return [body.get_content() for body in bodies if body is not None]  # type: ignore[attr-defined]


def test_where_sign_up_is_closed_nobody_signs_up_and_by_default_no_mail_is_sent(tmp_path: Path) -> None:
    settings = {"SIGNUP": "off", "EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake"}
    with upstream() as url, serving(tmp_path, OPENAI_BASE_URL=url, **settings) as own:
        caller = own.caller()
        assert caller.post("/api/auth/signup", BODY, expect=403)["code"] == "signup_closed"
        for path in ("forgot-password", "resend-verification"):
            refused = caller.post(f"/api/auth/{path}", {"email": "admin@localhost"}, expect=403)
            assert refused["code"] == "mail_off"
        caller.close()


@pytest.mark.parametrize("pages", ["https://chat.example.org/app/", None])
def test_with_a_mailbox_people_sign_up_confirm_forget_and_come_back(tmp_path: Path, pages: str | None) -> None:
    settings = {"PAGES_URL": pages} if pages else {}
    settings |= {"MAIL_URL": "mailbox:", "MAIL_FROM": "Team <team@example.org>"}
    with (
        upstream() as url,
        serving(tmp_path, EMBEDDED_MODEL="off", OPENAI_BASE_URL=url, OPENAI_MODELS="fake", **settings) as own,
    ):
        caller = own.caller()
        caller.post("/api/auth/signup", BODY, expect=201)
        (welcome,) = letters(tmp_path, 1)
        assert ("https://chat.example.org/app/verify-email#token=" in welcome) == bool(pages)
        caller.post("/api/auth/verify-email", {"token": code_in(welcome)})
        assert caller.post("/api/auth/verify-email", {"token": code_in(welcome)}, expect=400)["code"] == "code_refused"
        answers = [
            caller.post("/api/auth/forgot-password", {"email": who}) for who in ("nobody@example.org", BODY["email"])
        ]
        assert answers[0] == answers[1]
        reset = letters(tmp_path, 2)[1]
        body = {"token": code_in(reset), "newPassword": "battery staple"}
        caller.post("/api/auth/reset-password", body)
        caller.post("/api/auth/login", {"username": "ann", "password": BODY["password"]}, expect=401)
        caller.login("ann", "battery staple")
        assert caller.get("/api/profile")["user"]["isVerified"]
        changed = caller.request("PUT", "/api/profile", {"email": "ann@elsewhere.example"})
        assert not changed["user"]["isVerified"]
        caller.post("/api/auth/verify-email", {"token": code_in(letters(tmp_path, 3)[2])})
        assert caller.get("/api/profile")["user"]["isVerified"]
        assert code_in(reset) not in "".join(own.output)
        caller.close()
