"""Services served apart: which there are, where each listens, and how they find and know each other."""

from enum import StrEnum
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator


class ServiceName(StrEnum):
    """A service that can be served by a process of its own."""

    AUTH = "auth"
    ACCOUNTING = "accounting"
    CHAT = "chat"


ALL = frozenset(ServiceName)


class Apart(BaseModel):
    """The options that say where services are which this process does not serve itself."""

    auth_port: int = Field(3000, ge=0, le=65535, description="Port of auth where it is served apart; 0: a free one.")
    accounting_port: int = Field(3001, ge=0, le=65535, description="Port of accounting, likewise.")
    chat_port: int = Field(3002, ge=0, le=65535, description="Port of chat, likewise.")
    auth_url: str = Field("http://127.0.0.1:3000", description="Where auth is found by services served apart from it.")
    accounting_url: str = Field("http://127.0.0.1:3001", description="Where accounting is found, likewise.")
    chat_url: str = Field(
        "http://127.0.0.1:3002", description="Where auth finds chat, for the export of what is kept of a user."
    )
    service_name: str | None = Field(
        None, description="This service's client id at auth; by default auth, accounting or chat, as it serves."
    )
    service_secret: SecretStr | None = Field(
        None, description="Its secret, as `parshall services add NAME` prints one; for a service apart from auth."
    )

    @field_validator("auth_url", "accounting_url", "chat_url")
    @classmethod
    def _base_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in value:
            raise ValueError("give a URL such as http://127.0.0.1:3000")
        return value


def port_of(options: Apart, service: ServiceName) -> int:
    """The port that a service listens on where it is served apart."""
    port: int = getattr(options, f"{service}_port")
    return port
