"""Laws of letters, on both engines: who gets a code, what it is good for, and that asking tells nothing."""

import asyncio
import email
import email.policy
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.identities import HERE, ISSUER, PASSWORD, Hands, alice
from tests.post import Basket, code_in, smtp_server
from tests.postgres import Engine

from parshall.auth import correspondence, model
from parshall.auth.apikey import ApiKeyRefused
from parshall.auth.mail import Letter, Mailbox, Smtp, check_sender, post_of
from parshall.auth.mailed import RESET_SECONDS, VERIFY_SECONDS, CodeRefused, MailOff, Purpose, SignupClosed
from parshall.auth.passwords import PasswordHasher
from parshall.auth.service import Auth
from parshall.kernel.errors import TooManyRequests, Unavailable

NEW = "battery staple"
SENDER = "Parshall <no-reply@example.org>"


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def basket() -> Basket:
    return Basket()


@pytest_asyncio.fixture
async def auth(engine: Engine, clock: Hands, basket: Basket) -> AsyncIterator[Auth]:
    """Auth whose letters go into the basket."""
    database, hasher = engine.open("parshall.auth"), PasswordHasher(passes=1, memory_kib=8, lanes=1)
    made = Auth(database, issuer=ISSUER, clock=clock, hasher=hasher, signup_open=True, post=basket)
    await made.start()
    task = asyncio.create_task(made.correspondence.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await made.close()


async def arrived(basket: Basket, count: int = 1) -> list[Letter]:
    """The letters once there are so many."""
    async with asyncio.timeout(20):
        while len(basket.letters) < count:
            await asyncio.sleep(0.01)
    return basket.letters


async def asked(auth: Auth, basket: Basket, purpose: Purpose, who: str = "alice@example.org") -> str:
    """A code as it arrives."""
    before = len(basket.letters)
    auth.correspondence.ask(purpose, who, HERE)
    return code_in((await arrived(basket, before + 1))[-1].text)


# ── Codes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_who_signs_up_confirms_the_address_by_the_code_that_comes(auth: Auth, basket: Basket) -> None:
    user = await auth.sign_up("alice", "Alice@example.org", PASSWORD, HERE)
    (letter,) = await arrived(basket)
    assert letter.to == "Alice@example.org"
    assert not (await auth.find_user("alice")).is_verified
    await auth.correspondence.verify(code_in(letter.text))
    assert (await auth.find_user(user.id)).is_verified
    with pytest.raises(CodeRefused):
        await auth.correspondence.verify(code_in(letter.text))


async def test_a_forgotten_password_is_replaced_once_by_whoever_reads_the_letter(auth: Auth, basket: Basket) -> None:
    user = await alice(auth)
    session = await auth.login("alice", PASSWORD, HERE)
    made = await auth.api_keys.create(user.id, "ci")
    codes = [await asked(auth, basket, Purpose.RESET) for _ in range(2)]
    with pytest.raises(model.UnfitPassword):
        await auth.correspondence.reset(codes[0], "short")
    await auth.correspondence.reset(codes[0], NEW)
    with pytest.raises(model.RefreshRefused):
        await auth.refresh(session.refresh_token)
    with pytest.raises(ApiKeyRefused):
        await auth.api_keys.exchange(made.text, HERE)
    for code in codes:
        with pytest.raises(CodeRefused):
            await auth.correspondence.reset(code, "purple monkey")
    assert (await auth.login("alice", NEW, HERE)).user.is_verified, "whoever reads the letter has the address"


async def test_of_many_who_use_a_code_at_once_one_succeeds(auth: Auth, basket: Basket) -> None:
    await alice(auth)
    code = await asked(auth, basket, Purpose.RESET)
    attempts = (auth.correspondence.reset(code, f"{NEW} {number}") for number in range(6))
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["CodeRefused"] * 5 + ["NoneType"]


@pytest.mark.parametrize(("purpose", "seconds"), [(Purpose.VERIFY, VERIFY_SECONDS), (Purpose.RESET, RESET_SECONDS)])
async def test_a_code_lives_for_its_time_and_is_good_for_its_purpose_alone(
    auth: Auth, basket: Basket, clock: Hands, purpose: Purpose, seconds: int
) -> None:
    await alice(auth)
    early = await asked(auth, basket, purpose)
    clock.turn(1)
    late = await asked(auth, basket, purpose)
    clock.turn(seconds - 1)
    uses = {Purpose.VERIFY: auth.correspondence.verify, Purpose.RESET: lambda c: auth.correspondence.reset(c, NEW)}
    right = uses.pop(purpose)
    (wrong,) = uses.values()
    for use, code in ((right, early), (wrong, late)):
        with pytest.raises(CodeRefused):
            await use(code)
    await right(late)


@pytest.mark.parametrize("cause", ["change", "set", "address", "delete"])
async def test_a_code_ends_with_what_it_was_asked_for(auth: Auth, basket: Basket, cause: str) -> None:
    user = await alice(auth)
    code = await asked(auth, basket, Purpose.RESET)
    if cause == "change":
        await auth.change_password(user.id, PASSWORD, "purple monkey", HERE)
    elif cause == "set":
        await auth.set_password(user.id, "purple monkey")
    elif cause == "address":
        await auth.update_profile(user.id, username=None, email="other@example.org")
    else:
        await auth.delete_user(user.id)
    with pytest.raises(CodeRefused):
        await auth.correspondence.reset(code, NEW)


@pytest.mark.parametrize("code", ["", "wrong", "\ud800", "\x00", "x" * 100_000])
async def test_any_other_code_is_refused_in_the_same_words(auth: Auth, code: str) -> None:
    said = set()
    for use in (auth.correspondence.verify(code), auth.correspondence.reset(code, NEW)):
        with pytest.raises(CodeRefused) as refusal:
            await use
        said.add(refusal.value.detail)
    assert len(said) == 1


async def test_codes_are_kept_as_digests_alone(auth: Auth, basket: Basket) -> None:
    await alice(auth)
    code = await asked(auth, basket, Purpose.RESET)
    kept = await auth._database.read(lambda c: repr(c.exec_driver_sql("SELECT * FROM mailed_codes").all()))
    assert "alice@example.org" in kept and code not in kept
    assert code not in repr(basket.letters)
    assert [purpose for purpose, _ in (await auth.export("alice")).mailed_codes] == [Purpose.RESET]


# ── Asking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_asking_looks_nobody_up_and_mails_those_alone_who_are_there(auth: Auth, basket: Basket) -> None:
    user = await alice(auth)
    looked = []
    find, read = auth._database.write, auth._database.read
    auth._database.write = auth._database.read = lambda work: looked.append(work)  # type: ignore[method-assign, assignment]
    for who in ("nobody@example.org", "alice@example.org"):
        auth.correspondence.ask(Purpose.RESET, who, HERE)
    assert looked == []
    auth._database.write, auth._database.read = find, read  # type: ignore[method-assign]
    (letter,) = await arrived(basket)
    assert (letter.to, len(basket.letters)) == (user.email, 1)


async def test_an_address_that_is_confirmed_gets_no_further_code(auth: Auth, basket: Basket) -> None:
    await alice(auth)
    await auth.correspondence.verify(await asked(auth, basket, Purpose.VERIFY))
    auth.correspondence.ask(Purpose.VERIFY, "alice@example.org", HERE)
    await asked(auth, basket, Purpose.RESET)
    assert [letter.subject for letter in basket.letters] == ["Confirm your e-mail address", "Set a new password"]


async def test_asking_is_throttled_alike_whether_there_is_a_user_or_not(auth: Auth) -> None:
    await alice(auth)
    for who in ("alice@example.org", "nobody@example.org"):
        for number in range(3):
            auth.correspondence.ask(Purpose.RESET, who, f"192.0.2.{number}")
        with pytest.raises(TooManyRequests) as refusal:
            auth.correspondence.ask(Purpose.RESET, who.upper(), "192.0.2.9")
        assert "messages" in refusal.value.detail
    for number in range(20):
        auth.correspondence.ask(Purpose.RESET, f"n{number}@example.org", "192.0.2.50")
    with pytest.raises(TooManyRequests):
        auth.correspondence.ask(Purpose.RESET, "n99@example.org", "192.0.2.50")


async def test_a_mail_server_that_is_away_is_tried_again(
    auth: Auth, basket: Basket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correspondence, "RETRY_SECONDS", (0.01, 0.01))
    await alice(auth)
    basket.failures = 2
    assert await asked(auth, basket, Purpose.RESET)
    basket.failures = 3
    auth.correspondence.ask(Purpose.RESET, "alice@example.org", HERE)
    code = await asked(auth, basket, Purpose.VERIFY)
    assert len(basket.letters) == 2, "one letter was given up, and those behind it were not"
    await auth.correspondence.verify(code)


async def test_more_than_can_wait_are_put_off(engine: Engine, clock: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correspondence, "WAITING_MAX", 1)
    database, hasher = engine.open("parshall.auth"), PasswordHasher(passes=1, memory_kib=8, lanes=1)
    auth = Auth(database, issuer=ISSUER, clock=clock, hasher=hasher, post=Basket())
    auth.correspondence.ask(Purpose.RESET, "a@example.org", HERE)
    with pytest.raises(Unavailable):
        auth.correspondence.ask(Purpose.RESET, "b@example.org", HERE)
    await auth.close()


async def test_without_mail_and_sign_up_nobody_asks_and_nobody_signs_up(engine: Engine, clock: Hands) -> None:
    database, hasher = engine.open("parshall.auth"), PasswordHasher(passes=1, memory_kib=8, lanes=1)
    auth = Auth(database, issuer=ISSUER, clock=clock, hasher=hasher)
    with pytest.raises(MailOff):
        auth.correspondence.ask(Purpose.RESET, "a@example.org", HERE)
    with pytest.raises(SignupClosed):
        await auth.sign_up("alice", "a@example.org", PASSWORD, HERE)
    assert await auth.users() == []
    await auth.close()


# ── Posts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


LETTER = Letter(to="ann@example.org", subject="Größe", text="Ein Wort: Äpfel.\n.\nEnde\n")


def check_message(raw: bytes) -> None:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert (message["From"], message["To"], message["Subject"]) == (SENDER, LETTER.to, LETTER.subject)
    assert message["Date"] and message["Message-ID"].endswith("@example.org>")
    body = message.get_body()
    assert body is not None and body.get_content().replace("\r\n", "\n") == LETTER.text  # type: ignore[attr-defined]


async def test_an_smtp_server_gets_the_letter_as_it_was_written() -> None:
    async with smtp_server() as server:
        post = Smtp(f"smtp://ann:p%40ss@127.0.0.1:{server.port}", sender=SENDER)
        await asyncio.to_thread(post.send, LETTER)
    assert any(said.startswith("AUTH PLAIN") for said in server.said)
    (raw,) = server.messages
    check_message(raw.removesuffix("\r\n.\r\n").replace("\r\n..", "\r\n.").encode() + b"\r\n")


async def test_a_server_elsewhere_that_offers_no_tls_gets_neither_password_nor_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parshall.auth.mail.LOOPBACK", ())
    async with smtp_server() as server:
        post = Smtp(f"smtp://ann:secret@127.0.0.1:{server.port}", sender=SENDER)
        with pytest.raises(OSError, match="STARTTLS"):
            await asyncio.to_thread(post.send, LETTER)
    assert server.messages == [] and not any("AUTH" in said for said in server.said)


def test_a_mailbox_holds_whole_letters_for_its_owner_alone(tmp_path: Path) -> None:
    post = post_of("mailbox:", sender=SENDER, home=tmp_path)
    assert isinstance(post, Mailbox)
    for _ in range(2):
        post.send(LETTER)
    kept = list((tmp_path / "mailbox").iterdir())
    assert [path.suffix for path in kept] == [".eml"] * 2
    for path in kept:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        check_message(path.read_bytes())


WRONG = ["", "smtp://", "http://example.org", "mailbox:/elsewhere", "smtp://host/path", "smtp://host:port"]


@pytest.mark.parametrize("url", WRONG)
def test_any_other_address_of_a_mail_server_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".+"):
        post_of(url, sender=SENDER, home=tmp_path)


@pytest.mark.parametrize("sender", ["", "nobody", "a@example.org\nBcc: b@example.org", "A\x00 <a@example.org>"])
def test_a_sender_is_one_address(sender: str) -> None:
    with pytest.raises(ValueError, match="give an address"):
        check_sender(sender)
