"""The use cases of e-mail: codes are asked for, sent by a task of the serving process, and taken once."""

import asyncio
import secrets

from sqlalchemy import Connection

from parshall.auth import apikey_store, external_store, mailed_store, model, store
from parshall.auth.issuer import digest
from parshall.auth.mail import Letter, Post
from parshall.auth.mailed import CodeRefused, MailOff, Purpose, letter
from parshall.auth.model import User
from parshall.auth.passwords import MailThrottle, PasswordHasher
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.database import Database
from parshall.kernel.errors import TooManyRequests, Unavailable
from parshall.kernel.telemetry import log

WAITING_MAX = 1000
RETRY_SECONDS = (2.0, 15.0)
_logger = log("mail")


class Correspondence:
    """Letters to users. `post` takes them; without one nothing is sent and nothing can be asked for."""

    def __init__(
        self, database: Database, *, clock: Clock, hasher: PasswordHasher, post: Post | None, pages: str | None
    ) -> None:
        """`pages` is the address of the pages that the letters lead to, if there are any."""
        self._database = database
        self._clock = clock
        self._hasher = hasher
        self._post = post
        self._pages = pages
        self._throttle = MailThrottle()
        self._waiting: asyncio.Queue[tuple[Purpose, str]] = asyncio.Queue(WAITING_MAX)

    @property
    def is_on(self) -> bool:
        """Whether anything is sent."""
        return self._post is not None

    def ask(self, purpose: Purpose, email: str, address: str) -> None:
        """Have a code sent to whoever has this e-mail address, if anybody. `address` is the caller's network address.

        Nothing is looked up before the answer, so that neither its words nor its time tell whether there is a user.
        Raises MailOff, MalformedEmail, TooManyRequests or Unavailable.
        """
        if self._post is None:
            raise MailOff
        model.check_email(email)
        self._throttle.check(email, address)
        try:
            self._waiting.put_nowait((purpose, email))
        except asyncio.QueueFull as error:
            raise Unavailable("Too many messages are waiting; try again in a minute.", retry_after=60) from error
        self._throttle.failed(email, address)

    def offer(self, purpose: Purpose, email: str, address: str) -> None:
        """The same where nobody has asked: what cannot be sent is left out."""
        try:
            self.ask(purpose, email, address)
        except (MailOff, TooManyRequests, Unavailable):
            _logger.info("mail_left_out", purpose=purpose.value)

    async def run(self) -> None:
        """Send what is asked for, one after the other, for ever. What waits when the process ends is not sent."""
        while True:
            purpose, email = await self._waiting.get()
            try:
                await self._answer(purpose, email)
            except (Unavailable, OSError) as error:  # by its name alone: a mail server's words may hold the address
                _logger.error("mail_failed", purpose=purpose.value, reason=type(error).__name__)
            except Exception:
                _logger.exception("mail_failed", purpose=purpose.value)

    async def verify(self, code: str) -> None:
        """Mark the address that this code was sent to as its user's. Raises CodeRefused."""

        def mark(connection: Connection) -> None:
            user = self._consume(connection, code, Purpose.VERIFY)
            store.mark_verified(connection, user.id)

        await self._database.write(mark)

    async def reset(self, code: str, password: str) -> None:
        """Replace the password of the user whom this code was sent to; every session and API key ends.

        Whoever reads the letters of an address has proved it. Raises UnfitPassword or CodeRefused.
        """
        model.check_password(password)
        at = self._clock()
        if not await self._database.read(lambda c: mailed_store.code_lives(c, digest(code), Purpose.RESET, at=at)):
            raise CodeRefused  # before the hash, which is dear
        hashed = await self._hasher.hash(password)

        def replace(connection: Connection) -> None:
            user = self._consume(connection, code, Purpose.RESET)
            apikey_store.delete_keys(connection, user.id)
            if not store.update_password(connection, user.id, hashed, replacing=None):
                raise CodeRefused
            store.mark_verified(connection, user.id)

        await self._database.write(replace)

    def _consume(self, connection: Connection, code: str, purpose: Purpose) -> User:
        """The user of a code, which is used up with all others for the purpose. Raises CodeRefused."""
        consumed = mailed_store.consume_code(connection, digest(code), purpose, at=self._clock())
        user = store.find_user(connection, consumed[0]) if consumed else None
        if consumed is None or user is None or user.email.lower() != consumed[1]:
            raise CodeRefused
        mailed_store.delete_codes(connection, user.id, purpose)
        return user

    async def _answer(self, purpose: Purpose, email: str) -> None:
        code, at = secrets.token_urlsafe(32), self._clock()

        def keep(connection: Connection) -> User | None:
            user = store.find_user(connection, email)
            if user is None or (purpose is Purpose.VERIFY and user.is_verified):
                return None
            if purpose is Purpose.RESET and external_store.is_external(connection, user.id):
                return None
            expires_at = at + purpose.seconds * SECOND
            mailed_store.insert_code(connection, digest(code), purpose, user, at=at, expires_at=expires_at)
            return user

        user = await self._database.write(keep)
        if user is not None:
            await self._send(purpose, letter(purpose, user, code, pages=self._pages))
            _logger.info("mail_sent", purpose=purpose.value, user=user.id)

    async def _send(self, purpose: Purpose, written: Letter) -> None:
        assert self._post is not None, "nothing is asked for without a post"
        for pause in RETRY_SECONDS:
            try:
                return await asyncio.to_thread(self._post.send, written)
            except OSError as error:
                _logger.warning("mail_delayed", purpose=purpose.value, reason=type(error).__name__)
                await asyncio.sleep(pause)
        return await asyncio.to_thread(self._post.send, written)
