"""Letters by e-mail: handed to an SMTP server, or laid into a folder where there is none."""

import os
import smtplib
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate, make_msgid, parseaddr
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from parshall.auth.model import MalformedEmail, check_email

SMTP_SECONDS_MAX = 20
MAILBOX_URL = "mailbox:"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {"smtp": 587, "smtps": 465}


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A letter to one address."""

    to: str
    subject: str
    text: str = field(repr=False)


class Post(Protocol):
    """What takes letters. Implemented by Smtp and Mailbox."""

    def send(self, letter: Letter) -> None:
        """Hand the letter over; it blocks. Raises OSError where that cannot be done now."""
        ...


class Smtp:
    """An SMTP server, spoken to over TLS unless it is on this machine."""

    def __init__(self, url: str, *, sender: str) -> None:
        """`url` is smtps://user:password@host:465 or smtp://user:password@host:587, `sender` the From header.

        Raises ValueError for any other.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError(f"give smtps://user:password@host, smtp://user:password@host:587 or {MAILBOX_URL}")
        self._implicit_tls = parts.scheme == "smtps"
        self._host, self._port = parts.hostname, parts.port or _PORTS[parts.scheme]
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        self._sender = sender

    def send(self, letter: Letter) -> None:
        """Hand the letter over. Raises OSError, also where the server offers no TLS."""
        with self._connected() as smtp:
            if not self._implicit_tls and self._host not in LOOPBACK:
                smtp.starttls(context=ssl.create_default_context())
            if self._user:
                smtp.login(self._user, self._password)
            smtp.send_message(_message(letter, self._sender))

    def _connected(self) -> smtplib.SMTP:
        if self._implicit_tls:
            context = ssl.create_default_context()
            return smtplib.SMTP_SSL(self._host, self._port, timeout=SMTP_SECONDS_MAX, context=context)
        return smtplib.SMTP(self._host, self._port, timeout=SMTP_SECONDS_MAX)


class Mailbox:
    """A folder of .eml files, for trying things out without a server."""

    def __init__(self, folder: Path, *, sender: str) -> None:
        """The folder is made with the first letter."""
        self._folder = folder
        self._sender = sender

    def send(self, letter: Letter) -> None:
        """Lay the letter into the folder, for its owner alone; what is there is whole. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = self._folder / f".{uuid4().hex}"
        with open(unfinished, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(_message(letter, self._sender).as_bytes())
        unfinished.rename(self._folder / f"{unfinished.name.removeprefix('.')}.eml")


def post_of(url: str, *, sender: str, home: Path) -> Post:
    """What takes letters at this address; a mailbox stands in the data folder. Raises ValueError."""
    check_sender(sender)
    return Mailbox(home / "mailbox", sender=sender) if url == MAILBOX_URL else Smtp(url, sender=sender)


def check_sender(sender: str) -> None:
    """Raises ValueError unless the From header is one address, with or without a name."""
    try:
        check_email(parseaddr(sender)[1] if sender.isprintable() else "")
    except MalformedEmail as error:
        raise ValueError("give an address, or a name with one: Parshall <no-reply@example.org>") from error


def _message(letter: Letter, sender: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = sender
    message["To"] = letter.to
    message["Subject"] = letter.subject
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain=parseaddr(sender)[1].rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(letter.text)
    return message
