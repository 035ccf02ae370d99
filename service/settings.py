"""The settings: environment variables, read once at start, each bad value named."""

import math
import re
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from providers.kie.registry import ADAPTERS
from service.caller_limits import read_limits
from service.callers import read_tokens
from storage.errors import StorageConfigError
from storage.postgres import connection_params, is_postgres
from storage.sqlite import SQLITE_PREFIX, sqlite_path

PORT_MAX = 65_535
CHANNEL_MAX = 1_000_000
MAY_BE_EMPTY = frozenset({"admin_address", "http_address"})
UNKNOWN_WAIT_SECONDS = 900.0
RETENTION_MIN_SECONDS = 3_600.0
ADDRESS = re.compile(r"(?:\[([^\[\]\s]+)\]|([^:\[\]\s]+)):([0-9]{1,5})")
HTTP_URL = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
HEADER_TOKEN = re.compile(r"[\x21-\x7e]+")


class SettingsError(Exception):
    """Settings that cannot be used; one line for each, by its name, without its value."""


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`.

    Raises:
        ValueError: It is neither.
    """
    parts = ADDRESS.fullmatch(address)
    if parts is None or int(parts[3]) > PORT_MAX:
        raise ValueError("must look like 127.0.0.1:50051 or [::1]:50051")
    return parts[1] or parts[2], int(parts[3])


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    host, _ = split_address(address)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(address: str) -> str:
    split_address(address)
    return address


def _models(names: Any) -> Any:
    return (
        frozenset(filter(None, (n.strip() for n in names.split(","))))
        if isinstance(names, str)
        else names
    )


def _known_models(names: frozenset[str]) -> frozenset[str]:
    if names - set(ADAPTERS):
        raise ValueError(f"names an unknown model; there are {', '.join(ADAPTERS)}")
    return names


def _readable(path: Path) -> Path:
    if path.exists() and not path.is_file():
        raise ValueError("must be a file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    return path


def _tokens_file(path: Path) -> Path:
    read_tokens(path.read_text())
    return path


def _limits_file(path: Path) -> Path:
    read_limits(path.read_bytes())
    return path


def _header_token(secret: SecretStr) -> SecretStr:
    if not HEADER_TOKEN.fullmatch(secret.get_secret_value()):
        raise ValueError("must be visible ASCII, without blanks or line ends")
    return secret


def _trimmed(secret: SecretStr) -> SecretStr:
    if (value := secret.get_secret_value()) != value.strip():
        raise ValueError("must not begin or end with a space or a line break")
    return secret


def _secrets(listed: SecretStr) -> SecretStr:
    for secret in listed.get_secret_value().split(","):
        if not secret or secret != secret.strip() or len(secret.splitlines()) > 1:
            raise ValueError(
                "must be secrets separated by commas; none may be empty, contain line breaks,"
                " or have spaces around it"
            )
    return listed


def _database_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    # In a file name they would silently create a new, empty database.
    name = text.removeprefix(SQLITE_PREFIX)
    inside = is_postgres(text) and len(text.split()) > 1
    if inside or CONTROL.search(text) or text != text.strip() or name != name.strip():
        raise ValueError("must not contain line breaks or control characters, or spaces around it")
    try:
        usable = (
            bool(connection_params(text)) if is_postgres(text) else sqlite_path(text) is not None
        )
    except StorageConfigError:
        usable = False
    if not usable:
        raise ValueError(f"must look like {SQLITE_PREFIX}generation.db or postgresql://host/name")
    return url


def _retention(seconds: float) -> float:
    """Whoever watches a task that is purged would never learn of its end."""
    if seconds and not RETENTION_MIN_SECONDS <= seconds < math.inf:
        raise ValueError(f"must be 0, or at least {RETENTION_MIN_SECONDS:g}")
    return seconds


def _http_url(url: str) -> str:
    if not HTTP_URL.fullmatch(url):
        raise ValueError("must be an http or https URL")
    return url.rstrip("/")


Address = Annotated[str, AfterValidator(_address)]
ReadableFile = Annotated[Path, AfterValidator(_readable)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
# Options of gRPC's core, which are integers of C.
Channel = Annotated[int, Field(ge=1, le=CHANNEL_MAX)]
ChannelOrZero = Annotated[int, Field(ge=0, le=CHANNEL_MAX)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """What the environment says; README.md has the table.

    An empty variable counts as unset, but for ADMIN_ADDRESS and HTTP_ADDRESS, where it means off.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    listen_address: Address = "127.0.0.1:50051"
    allow_unauthenticated: bool = False
    auth_tokens_file: Annotated[ReadableFile, AfterValidator(_tokens_file)] | None = None
    caller_limits_file: Annotated[ReadableFile, AfterValidator(_limits_file)] | None = None
    tls_cert_file: ReadableFile | None = None
    tls_key_file: ReadableFile | None = None
    tls_client_ca_file: ReadableFile | None = None
    http_address: Annotated[str, AfterValidator(lambda a: a and _address(a))] = "127.0.0.1:8080"
    public_url: HttpUrl | None = None
    admin_address: Annotated[str, AfterValidator(lambda a: a and _address(a))] = "127.0.0.1:9090"

    database_url: Annotated[SecretStr, AfterValidator(_database_url)] = SecretStr(
        "sqlite:///generation.db"
    )
    database_hints: bool = True
    task_retention_seconds: Annotated[float, AfterValidator(_retention)] = 0  # 0 = for ever

    kie_api_key: Annotated[SecretStr, AfterValidator(_header_token)] | None = None
    kie_api_url: HttpUrl = "https://api.kie.ai"
    kie_upload_url: HttpUrl = "https://kieai.redpandaai.co"
    kie_webhook_key: Annotated[SecretStr, AfterValidator(_trimmed)] | None = None
    callback_secret: Annotated[SecretStr, AfterValidator(_secrets)] | None = None
    kie_creates_per_10_seconds: Count = 20
    kie_status_per_second: Count = 10
    kie_running_max: Count = 100
    kie_creates_in_flight_max: Count = 20
    disabled_models: Annotated[
        frozenset[str], NoDecode, BeforeValidator(_models), AfterValidator(_known_models)
    ] = frozenset()

    queue_max_tasks: AtLeastOne = 10_000
    create_wait_seconds: Seconds = 10
    poll_interval_seconds: SomeSeconds = 2
    task_max_age_seconds: SomeSeconds = 3_600
    unknown_wait_seconds: Seconds | None = None  # 900, or 0 where no callback can come

    max_streams_per_connection: Channel = 1_000
    max_connections: ChannelOrZero = 0  # 0 = the limit of descriptors less 1,000, or half
    max_pending_calls: Channel = 3_000
    connection_idle_seconds: Seconds = 3_600  # 0 = no limit, as for the age
    connection_age_seconds: Seconds = 7_200

    watch_max_streams: AtLeastOne = 20_000
    watch_heartbeat_seconds: SomeSeconds = 20
    watch_max_age_seconds: SomeSeconds = 1_800

    uploads_max: AtLeastOne = 64
    upload_max_bytes: AtLeastOne = 104_857_600
    upload_retention_seconds: SomeSeconds = 86_400

    metrics_per_caller: bool = False
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in given.items() if v != "" or k in MAY_BE_EMPTY}

    @model_validator(mode="after")
    def _together(self) -> Self:
        if broken := [*self._caller_rules(), *self._tls_rules(), *self._provider_rules()]:
            raise ValueError("\n".join(broken))
        return self

    @property
    def effective_unknown_wait_seconds(self) -> float:
        """How long an unknown create waits for its callback."""
        if self.unknown_wait_seconds is not None:
            return self.unknown_wait_seconds
        return UNKNOWN_WAIT_SECONDS if self.public_url else 0

    @property
    def callback_secrets(self) -> tuple[bytes, ...]:
        """The secrets of CALLBACK_SECRET: the first makes callback URLs, all of them verify."""
        listed = self.callback_secret.get_secret_value() if self.callback_secret else ""
        return tuple(secret.encode() for secret in listed.split(",") if secret)

    def _caller_rules(self) -> Iterator[str]:
        authenticated = self.auth_tokens_file or self.allow_unauthenticated
        if not authenticated and not is_loopback(self.listen_address):
            yield (
                "LISTEN_ADDRESS: beyond loopback set AUTH_TOKENS_FILE or ALLOW_UNAUTHENTICATED=true"
            )

    def _tls_rules(self) -> Iterator[str]:
        cert, key, ca = self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file
        if (cert is None) != (key is None):
            yield "TLS_CERT_FILE, TLS_KEY_FILE: must be set together"
        if cert and key and not _is_certificate_with_key(cert, key):
            yield (
                "TLS_CERT_FILE, TLS_KEY_FILE: must be a certificate and its key,"
                " in PEM and without a passphrase"
            )
        if ca and not cert:
            yield "TLS_CLIENT_CA_FILE: needs TLS_CERT_FILE and TLS_KEY_FILE"
        if ca and not _holds_certificates(ca):
            yield "TLS_CLIENT_CA_FILE: must hold certificates in PEM"

    def _provider_rules(self) -> Iterator[str]:
        if self.kie_api_key is None and {"kie_api_url", "kie_upload_url"} & self.model_fields_set:
            yield "KIE_API_KEY: must be set with KIE_API_URL or KIE_UPLOAD_URL"
        if self.public_url and not self.http_address:
            yield "HTTP_ADDRESS: must be set with PUBLIC_URL"


def _is_certificate_with_key(cert: Path, key: Path) -> bool:
    try:
        # Without a password of our own it would ask the terminal for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except (OSError, ValueError):  # ssl's errors are of both kinds
        return False
    return True


def _holds_certificates(ca: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(ca)
    except (OSError, ValueError):
        return False
    return True


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: Naming every bad value.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("\n".join(map(_line, error.errors(include_input=False)))) from None


def _line(error: Any) -> str:
    words = error["msg"].removeprefix("Value error, ")
    return f"{str(error['loc'][0]).upper()}: {words}" if error["loc"] else words
