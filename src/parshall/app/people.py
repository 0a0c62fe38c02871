"""Who is who for chat, which does not know auth."""

from parshall.auth.model import User
from parshall.auth.remote import RemoteAuth
from parshall.auth.service import Auth
from parshall.chat.supervision import Person
from parshall.kernel.errors import NotFound
from parshall.kernel.ids import UserId


class Users:
    """chat.supervision.People over auth, wherever it is served."""

    def __init__(self, auth: Auth | RemoteAuth) -> None:
        """Asks that service."""
        self._auth = auth

    async def find(self, who: str) -> Person | None:
        """The user with this id, username or e-mail address as auth knows them now."""
        try:
            return _person(await self._auth.find_user(who))
        except NotFound:
            return None

    async def search(self, text: str, *, limit: int) -> list[Person]:
        """Users whose name or address contains the text, eldest first."""
        found, _total = await self._auth.users_page(query=text, limit=limit)
        return [_person(each) for each in found]


def _person(user: User) -> Person:
    return Person(id=UserId(user.id), username=user.username, email=user.email, role=user.role)
