"""Configuration: environment variables with the prefix PARSHALL_, then files of secrets, one TOML file, defaults."""

import os
import sys
import tomllib
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from pydantic_settings import TomlConfigSettingsSource as TomlSource

from parshall.accounting.signing import read_secrets
from parshall.app.apart import Apart
from parshall.app.arrival import BODY_SECONDS, HEAD_SECONDS
from parshall.app.front import Front
from parshall.app.oidc import OidcIssuer, check_issuers
from parshall.app.secrets import FOLDER_VARIABLE, secret_names, secrets_folder, secrets_of
from parshall.app.urls import check_password_is_apart, check_store
from parshall.auth.mail import check_sender, post_of
from parshall.chat.streams.address import Address
from parshall.kernel.addresses import is_private
from parshall.kernel.errors import StartupError

PREFIX = "PARSHALL_"
FILE_VARIABLE = "PARSHALL_CONFIG"
PASSWORD_VARIABLE = "PARSHALL_PASSWORD"  # noqa: S105 - the name that commands read a password from
FILE_NAME = "parshall.toml"
SQLITE_URL = "sqlite:///"
POSTGRES_URLS = ("postgresql://", "postgres://")
WebhookEvent = Literal["balance.low", "grant.expiring", "stream.settled"]
DATABASES = ("database_url", "auth_database_url", "accounting_database_url", "chat_database_url")


def default_home() -> Path:
    """The per-user data folder of this platform (XDG base directories, or Application Support on macOS)."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "parshall"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "parshall"


class Settings(Apart, Front, BaseSettings):
    """Every option, with its unit. A file may hold the same names in lower case."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    home_dir: Path = Field(default_factory=default_home, description="Data folder: databases and the stream log.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port of `parshall up`; 0 takes a free one.")
    admin_password: SecretStr | None = Field(
        None, description="Password of the user admin, used on the very first start only; generated when absent."
    )
    database_url: str | None = Field(
        None,
        description="One PostgreSQL database for all services, as postgresql://user:password@host/name; "
        "by default each has a SQLite file in HOME_DIR.",
    )
    auth_database_url: str | None = Field(None, description="Database of auth: postgresql://… or sqlite:///path.")
    accounting_database_url: str | None = Field(None, description="Database of accounting, likewise.")
    chat_database_url: str | None = Field(None, description="Database of chat, likewise.")
    stream_log_url: str | None = Field(
        None,
        description="Valkey or Redis for the stream log, as valkey://user:password@host:port/database, or valkeys:// "
        "for TLS; by default it is a file in HOME_DIR.",
    )
    database_connections: int = Field(
        8, ge=2, le=500, description="Most connections that each service of this process holds to PostgreSQL."
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins whose pages may call the API with credentials, comma-separated."
    )
    issuer: str = Field("parshall", description="Issuer named in access tokens.")
    access_token_seconds: int = Field(900, ge=30, le=43_200, description="Life of an access token, in seconds.")
    signup: bool = Field(True, description="Let anybody become a user (on or off); else administrators add users.")
    mail_url: SecretStr | None = Field(
        None,
        description="Mail server: smtps://user:password@host, smtp://…, or mailbox: for files in HOME_DIR/mailbox.",
    )
    mail_from: str = Field(
        "Parshall <parshall@localhost>", description="Sender of mail: an address, or a name with one."
    )
    pages_url: str | None = Field(
        None, description="Where your pages are that mail leads to: URL/verify-email and URL/reset-password."
    )
    oidc_issuers: tuple[OidcIssuer, ...] = Field(
        (), description="OpenID providers whose tokens are taken, as a JSON list of objects (docs/CONFIGURATION.md)."
    )
    public_url: str | None = Field(
        None, description="Where browsers reach auth, such as https://chat.example.org; issuers send them back there."
    )
    openai_base_url: str | None = Field(
        None, description="Base URL of an OpenAI-compatible server, such as http://127.0.0.1:11434/v1."
    )
    openai_api_key: SecretStr | None = Field(None, description="API key for that server.")
    openai_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Model ids to offer from that server, comma-separated; * takes any id."
    )
    embedded_model: bool = Field(True, description="Offer the embedded model (on or off).")
    fallback_model: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None,
        description="Models that answer for unknown or failing ones, comma-separated, tried in this order; empty turns "
        "this off; default: the embedded model where on.",
    )
    first_token_seconds: float = Field(
        60, gt=0, le=3600, description="How long the server's model may take to begin its answer, in seconds."
    )
    idle_seconds: float = Field(
        30, gt=0, le=3600, description="How long it may then be silent before the answer counts as failed, in seconds."
    )
    provider_retries: int = Field(
        2, ge=0, le=10, description="How often a model that is away or busy is asked again before its first token."
    )
    provider_retry_seconds_max: float = Field(
        10, ge=0, le=300, description="Longest pause before that, in seconds; a longer Retry-After is not waited for."
    )
    max_output_tokens: int = Field(1024, ge=1, le=1_000_000, description="Most output tokens of one answer.")
    slice_tokens: int = Field(256, ge=1, le=100_000, description="Output tokens reserved at a time.")
    stream_timeout: float = Field(300, gt=0, le=86_400, description="Longest life of one stream, in seconds.")
    lease_seconds: float = Field(
        10, ge=1, le=300, description="Within how long the streams of a process that died are adopted, in seconds."
    )
    disconnect_grace_seconds: float = Field(
        30, ge=0, le=3600, description="How long a stream with onDisconnect=stop waits for a reader, in seconds."
    )
    on_disconnect: Literal["continue", "stop"] = Field(
        "continue", description="What happens to a stream without readers, unless the request says otherwise."
    )
    reader_stall_seconds: float = Field(
        30, gt=0, le=3600, description="How long a connection may take less than READER_BUFFER_BYTES, in seconds."
    )
    reader_buffer_bytes: int = Field(
        65_536, ge=4096, le=16_777_216, description="Most bytes that wait in memory for a reader that is behind."
    )
    request_head_seconds: float = Field(
        HEAD_SECONDS, gt=0, le=3600, description="How long the header of a request may take to arrive, in seconds."
    )
    request_body_seconds: float = Field(
        BODY_SECONDS, gt=0, le=3600, description="How long its body may take after that, in seconds."
    )
    stream_retention_hours: float = Field(
        24, gt=0, description="How long the log of an ended stream is kept, in hours."
    )
    max_streams_per_user: int = Field(100, ge=1, le=100_000, description="Most streams of one user at once.")
    max_streams: int = Field(1000, ge=1, le=100_000, description="Most streams at once, of all processes.")
    requests_per_minute: int = Field(
        3000, ge=0, le=1_000_000, description="Most requests of one user within any 60 seconds; 0: any number."
    )
    anonymous_requests_per_minute: int = Field(
        3000, ge=0, le=1_000_000, description="Most requests without a valid token from one address, likewise."
    )
    limits_url: str | None = Field(
        None,
        description="Valkey or Redis that counts requests for all replicas, as "
        "valkey://user:password@host:port/database, or valkeys:// for TLS; by default each process counts its own.",
    )
    drain_seconds: float = Field(
        2.5, ge=0, le=600, description="How long running answers may finish after SIGTERM, in seconds."
    )
    webhook_url: str | None = Field(
        None, description="Where events are posted: an https URL, or http on loopback; without it none are recorded."
    )
    webhook_secret: SecretStr | None = Field(
        None, description="Secret that signs them: whsec_ and base64, or any text; two with a comma for a change."
    )
    webhook_events: Annotated[tuple[WebhookEvent, ...], NoDecode] = Field(
        ("balance.low", "grant.expiring", "stream.settled"), description="Which events, comma-separated."
    )
    low_balance_credits: Decimal = Field(
        Decimal(0), ge=0, le=1_000_000_000, decimal_places=6, description="A balance is low below so much; 0: never."
    )
    expiry_notice_hours: float = Field(
        72, gt=0, le=87_600, description="How long before its expiry a grant is announced, in hours."
    )
    metrics_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="Token that scrapes /metrics, 16 characters or more; administrators always may.",
    )
    header_trace: Literal["off", "on", "development"] = Field(
        "off", description="Trace the headers of every request; development also notes lines of code and logs faults."
    )
    fingerprint_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Secret under which secrets in traces become fingerprints, the same for all machines of a "
        "deployment; by default one is made in HOME_DIR.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Log lines as JSON or text; auto takes text on a terminal."
    )

    @field_validator("allowed_origins", "openai_models", "fallback_model", "webhook_events", mode="before")
    @classmethod
    def _comma_list(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _exact_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin == "*" or not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise ValueError(f"{origin!r} is not an origin such as https://chat.example.org")
        return value

    @field_validator(*DATABASES)
    @classmethod
    def _known_engine(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith((SQLITE_URL, *POSTGRES_URLS)):
            raise ValueError(f"give {SQLITE_URL}path or {POSTGRES_URLS[0]}user:password@host/name")
        if value is not None and value.startswith(POSTGRES_URLS):
            check_password_is_apart(value)
        return value

    @field_validator("limits_url")
    @classmethod
    def _known_store(cls, value: str | None) -> str | None:
        if value is not None:
            check_password_is_apart(value)
            check_store(value)
        return value

    @field_validator("stream_log_url")
    @classmethod
    def _known_place(cls, value: str | None) -> str | None:
        if value is not None:
            Address.parse(value)
            check_password_is_apart(value)
        return value

    @field_validator("mail_url")
    @classmethod
    def _known_mail(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            post_of(value.get_secret_value(), sender="parshall@localhost", home=Path())
        return value

    @field_validator("mail_from")
    @classmethod
    def _one_sender(cls, value: str) -> str:
        check_sender(value)
        return value

    @field_validator("pages_url")
    @classmethod
    def _web_pages(cls, value: str | None) -> str | None:
        if value is not None and not (
            value.startswith(("http://", "https://")) and value.isascii() and " " not in value
        ):
            raise ValueError("give a URL such as https://chat.example.org")
        return value

    @field_validator("webhook_url", "public_url")
    @classmethod
    def _private_way(cls, value: str | None) -> str | None:
        if value is not None and not is_private(value):
            raise ValueError("give an https URL, or an http one of this machine such as http://127.0.0.1:9000/hook")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _readable_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            read_secrets(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _signed_webhook(self) -> "Settings":
        if self.webhook_url is not None and self.webhook_secret is None:
            raise ValueError("WEBHOOK_URL is set and WEBHOOK_SECRET is not")
        return self

    @model_validator(mode="after")
    def _known_issuers(self) -> "Settings":
        check_issuers(self.oidc_issuers, own=self.issuer, public_url=self.public_url)
        return self

    @model_validator(mode="after")
    def _some_model(self) -> "Settings":
        if self.openai_models and not self.openai_base_url:
            raise ValueError("OPENAI_MODELS is set and OPENAI_BASE_URL is not")
        return self

    def lacking_to_share(self, services: Iterable[str]) -> list[str]:
        """Options that would have to be set for several processes to serve these together; empty where they can."""
        lacking = []
        places = (getattr(self, f"{service}_database_url") or self.database_url or "" for service in services)
        if not all(place.startswith(POSTGRES_URLS) for place in places):
            lacking.append(f"{PREFIX}DATABASE_URL=postgresql://…")
        if self.stream_log_url is None:
            lacking.append(f"{PREFIX}STREAM_LOG_URL=valkey://…")
        return lacking

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over files of secrets over the configuration file; no .env file is read."""
        file = config_file()
        toml = [TomlSource(settings_cls, file)] if file else []
        return (init_settings, env_settings, *secrets_of(settings_cls), *toml)


def config_file() -> Path | None:
    """The configuration file in force: PARSHALL_CONFIG, else parshall.toml in the current folder, else none."""
    named = os.environ.get(FILE_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise StartupError(f"{FILE_VARIABLE} names {named}, which is not a file; correct or unset it.")
        return Path(named)
    return Path(FILE_NAME) if Path(FILE_NAME).is_file() else None


def load(**overrides: object) -> Settings:
    """The settings in force; `overrides` (command line) win. Raises StartupError naming each wrong option."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = "; ".join(f"{_option(e['loc'])}: {e['msg']}" for e in error.errors())
        raise StartupError(f"The configuration is wrong: {wrong}. `parshall config` lists every option.") from error
    except tomllib.TOMLDecodeError as error:
        raise StartupError(f"The configuration file {config_file()} is not valid TOML: {error}.") from error
    except SettingsError as error:
        raise StartupError(f"A file in {secrets_folder()} cannot be read: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"The configuration file {config_file()} cannot be read: {error}.") from error


def unknown_variables() -> list[str]:
    """What looks like an option and is none, in the environment or as a file of a secret: a typing error, perhaps."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    known |= {FILE_VARIABLE, FOLDER_VARIABLE, PASSWORD_VARIABLE}
    given = {name for name in os.environ if name.startswith(PREFIX)} | set(secret_names(PREFIX))
    return sorted(given - known)


def _option(location: tuple[int | str, ...]) -> str:
    return f"{PREFIX}{str(location[0]).upper()}" if location else "configuration"
