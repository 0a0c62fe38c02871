"""What the settings say of external issuers, and what is refused of it at the start."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic.alias_generators import to_camel

from parshall.auth.external import ALGORITHMS, ALGORITHMS_DEFAULT, ExternalIssuer
from parshall.kernel.addresses import is_private
from parshall.kernel.tokens import TOKEN_TYPE, Role

TOKEN_TYPES = frozenset({TOKEN_TYPE, "JWT"})
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")


def _named(value: str) -> str:
    if not _NAME.match(value):
        raise ValueError("a name has 1 to 31 lower-case letters, digits or hyphens")
    return value


def _issuer(value: str) -> str:
    if not is_private(value) or "?" in value or "@" in value:
        raise ValueError("give the issuer's https URL, exactly as its tokens name it")
    return value


class OidcIssuer(BaseModel):
    """One trusted OpenID provider: its tokens for `audience` are taken, and with `clientId` people log in there."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(_named)]
    issuer: Annotated[str, AfterValidator(_issuer)]
    audience: str = Field(min_length=1)
    client_id: str | None = None
    client_secret: SecretStr | None = None
    scopes: str = "openid profile email"
    roles_claim: str = "roles"
    roles: dict[str, Role] = Field(default_factory=dict)
    username_claim: str = "preferred_username"
    email_claim: str = "email"
    algorithms: frozenset[str] = ALGORITHMS_DEFAULT
    token_types: frozenset[str] = frozenset({TOKEN_TYPE})
    session_hours: float = Field(12, gt=0, le=720)

    @model_validator(mode="after")
    def _safe(self) -> "OidcIssuer":
        if not self.algorithms or not self.algorithms <= ALGORITHMS:
            raise ValueError(f"algorithms are some of {', '.join(sorted(ALGORITHMS))}")
        if not self.token_types or not self.token_types <= TOKEN_TYPES:
            raise ValueError(f"tokenTypes are some of {', '.join(sorted(TOKEN_TYPES))}")
        if "JWT" in self.token_types and self.audience == self.client_id:
            raise ValueError("with the token type JWT, audience must differ from clientId: else ID tokens would do")
        if self.client_id is not None and "openid" not in self.scopes.split():
            raise ValueError("scopes begin with openid")
        return self

    def external(self) -> ExternalIssuer:
        """The same for auth."""
        secret = self.client_secret
        return ExternalIssuer(
            name=self.name,
            issuer=self.issuer,
            audience=self.audience,
            client_id=self.client_id,
            client_secret=secret.get_secret_value() if secret else None,
            scopes=self.scopes,
            roles_claim=self.roles_claim,
            roles=self.roles,
            username_claim=self.username_claim,
            email_claim=self.email_claim,
            algorithms=self.algorithms,
            token_types=self.token_types,
            session_seconds=int(self.session_hours * 3600),
        )


def check_issuers(issuers: tuple[OidcIssuer, ...], *, own: str, public_url: str | None) -> None:
    """Refuse issuers that could be taken for each other or for us, and logins that could not come back.

    Raises ValueError.
    """
    names, urls = [each.name for each in issuers], [each.issuer for each in issuers]
    if len(set(names)) < len(names) or len(set(urls)) < len(urls):
        raise ValueError("OIDC_ISSUERS names an issuer twice")
    if own in urls:
        raise ValueError("OIDC_ISSUERS names ISSUER, which is the one of our own tokens")
    if public_url is None and any(each.client_id is not None for each in issuers):
        raise ValueError("OIDC_ISSUERS has a clientId and PUBLIC_URL is not set")
