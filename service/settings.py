"""The settings: environment variables, read once at start, each bad value named."""

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

PORT_MAX = 65_535


class SettingsError(Exception):
    """Settings that cannot be used; one line for each, by its name, without its value."""


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`.

    Raises:
        ValueError: It is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > PORT_MAX:
        raise ValueError("must look like 127.0.0.1:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


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
    if unknown := names - set(ADAPTERS):
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no such model; there are {', '.join(ADAPTERS)}"
        )
    return names


def _readable(path: Path) -> Path:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    return path


def _http_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must be an http or https URL")
    return url.rstrip("/")


Address = Annotated[str, AfterValidator(_address)]
ReadableFile = Annotated[Path, AfterValidator(_readable)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """What the environment says; README.md has the table.

    An empty variable counts as unset, but for ADMIN_ADDRESS.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    listen_address: Address = "127.0.0.1:50051"
    allow_unauthenticated: bool = False
    auth_tokens_file: ReadableFile | None = None
    tls_cert_file: ReadableFile | None = None
    tls_key_file: ReadableFile | None = None
    tls_client_ca_file: ReadableFile | None = None
    admin_address: Annotated[str, AfterValidator(lambda a: a and _address(a))] = "127.0.0.1:9090"

    database_url: SecretStr = SecretStr("sqlite:///generation.db")

    kie_api_key: SecretStr | None = None
    kie_api_url: HttpUrl = "https://api.kie.ai"
    kie_upload_url: HttpUrl = "https://kieai.redpandaai.co"
    kie_creates_per_10_seconds: Count = 20
    kie_status_per_second: Count = 10
    kie_running_max: Count = 100
    disabled_models: Annotated[
        frozenset[str], NoDecode, BeforeValidator(_models), AfterValidator(_known_models)
    ] = frozenset()

    queue_max_tasks: AtLeastOne = 10_000
    create_wait_seconds: Seconds = 10
    poll_interval_seconds: SomeSeconds = 2
    task_max_age_seconds: SomeSeconds = 3_600

    watch_max_streams: AtLeastOne = 20_000
    watch_heartbeat_seconds: SomeSeconds = 20
    watch_max_age_seconds: SomeSeconds = 1_800

    upload_max_bytes: AtLeastOne = 104_857_600
    upload_retention_seconds: SomeSeconds = 259_200

    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in given.items() if v != "" or k == "admin_address"}

    @model_validator(mode="after")
    def _together(self) -> Self:
        if not is_loopback(self.listen_address) and not (
            self.auth_tokens_file or self.allow_unauthenticated
        ):
            raise ValueError(
                "LISTEN_ADDRESS: beyond loopback set AUTH_TOKENS_FILE or ALLOW_UNAUTHENTICATED=true"
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS_CERT_FILE, TLS_KEY_FILE: must be set together")
        if self.tls_client_ca_file and not self.tls_cert_file:
            raise ValueError("TLS_CLIENT_CA_FILE: needs TLS_CERT_FILE and TLS_KEY_FILE")
        if self.kie_api_key is None and {"kie_api_url", "kie_upload_url"} & self.model_fields_set:
            raise ValueError("KIE_API_KEY: must be set with KIE_API_URL or KIE_UPLOAD_URL")
        return self


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
