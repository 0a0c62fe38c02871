"""What is mailed to people: codes that prove an address or replace a password, and the letters around them."""

from enum import StrEnum

from parshall.auth.mail import Letter
from parshall.auth.model import User
from parshall.kernel.errors import Forbidden, Invalid

VERIFY_SECONDS = 86_400
RESET_SECONDS = 3600


class Purpose(StrEnum):
    """What a mailed code is good for."""

    VERIFY = "verify"
    RESET = "reset"

    @property
    def seconds(self) -> int:
        """How long such a code lives."""
        return VERIFY_SECONDS if self is Purpose.VERIFY else RESET_SECONDS


class MailOff(Forbidden):
    """No mail server is configured."""

    code = "mail_off"
    title = "No e-mail here"
    default = "This deployment sends no e-mail; ask an administrator to set a new password or address."


class SignupClosed(Forbidden):
    """Users are made by administrators alone."""

    code = "signup_closed"
    title = "Sign-up closed"
    default = "Nobody can sign up here; ask an administrator to add you."


class CodeRefused(Invalid):
    """A mailed code that is unknown, used, expired, or was sent to an address that is no longer the user's."""

    code = "code_refused"
    title = "Code refused"
    default = "This code is not right, was used, or has expired; ask for another message."


def letter(purpose: Purpose, user: User, code: str, *, pages: str | None) -> Letter:
    """The letter that brings a code. `pages` is the address of the pages that take it, if there are any."""
    if purpose is Purpose.VERIFY:
        subject, path = "Confirm your e-mail address", "verify-email"
        why = f"this address was given for the user {user.username}. To confirm that it is yours, "
    else:
        subject, path = "Set a new password", "reset-password"
        why = f"somebody asked to set a new password for the user {user.username}. To do so, "
    way = f"open\n\n{pages.rstrip('/')}/{path}#token={code}\n\nor give this code:" if pages else "give this code:"
    hours = purpose.seconds // 3600
    end = f"It works once and for {hours} hour{'s' * (hours > 1)}. If you expected nothing of the kind, do nothing."
    return Letter(to=user.email, subject=subject, text=f"Hello,\n\n{why}{way}\n\n{code}\n\n{end}\n")
