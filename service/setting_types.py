"""The types of the settings: what a value must look like, and what is wrong with one that does not.

A message completes the sentence "NAME: ...", and never contains the value.
"""

import math
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from providers.kie.registry import ADAPTERS
from providers.urls import split_http_url
from service.caller_limits import read_limits
from service.callers import read_tokens
from storage.errors import StorageConfigError
from storage.postgresql.connection import connection_params, is_postgres
from storage.sqlite import SQLITE_PREFIX, sqlite_path

PORT_MAX = 65_535
CHANNEL_MAX = 1_000_000
RETENTION_MIN_SECONDS = 3_600.0
ADDRESS = re.compile(r"(?:\[([^\[\]\s]+)\]|([^:\[\]\s]+)):([0-9]{1,5})")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
HEADER_TOKEN = re.compile(r"[\x21-\x7e]+")


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`.

    Raises:
        ValueError: The address has neither form.
    """
    parts = ADDRESS.fullmatch(address)
    if parts is None or int(parts[3]) > PORT_MAX:
        raise ValueError("must look like 127.0.0.1:50051 or [::1]:50051")
    return parts[1] or parts[2], int(parts[3])


def is_loopback(address: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    host, _ = split_address(address)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(address: str) -> str:
    split_address(address)
    return address


def _address_or_empty(address: str) -> str:
    return address and _address(address)


def _names(listed: Any) -> Any:
    if not isinstance(listed, str):
        return listed
    return frozenset(filter(None, (name.strip() for name in listed.split(","))))


def _known_models(names: frozenset[str]) -> frozenset[str]:
    if names - set(ADAPTERS):
        raise ValueError(f"contains an unknown model; the models are {', '.join(ADAPTERS)}")
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
        raise ValueError("must be printable ASCII without spaces or newlines")
    return secret


def _trimmed(secret: SecretStr) -> SecretStr:
    if (value := secret.get_secret_value()) != value.strip():
        raise ValueError("must not begin or end with a space or newline")
    return secret


def _secrets(listed: SecretStr) -> SecretStr:
    for secret in listed.get_secret_value().split(","):
        if not secret or secret != secret.strip() or len(secret.splitlines()) > 1:
            raise ValueError(
                "must be secrets separated by commas; none may be empty, contain newlines,"
                " or begin or end with a space"
            )
    return listed


def _database_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    # In a file name they would silently create a new, empty database.
    name = text.removeprefix(SQLITE_PREFIX)
    inside = is_postgres(text) and len(text.split()) > 1
    if inside or CONTROL.search(text) or text != text.strip() or name != name.strip():
        raise ValueError("must not contain newlines or control characters, or spaces around it")
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
    # A shorter time could delete a task before its watchers see its end.
    if seconds and not RETENTION_MIN_SECONDS <= seconds < math.inf:
        raise ValueError(f"must be 0, or at least {RETENTION_MIN_SECONDS:g}")
    return seconds


def _http_url(url: str) -> str:
    if split_http_url(url) is None or "?" in url or "#" in url:
        raise ValueError("must be an http or https URL without a query")
    return url.rstrip("/")


Address = Annotated[str, AfterValidator(_address)]
AddressOrEmpty = Annotated[str, AfterValidator(_address_or_empty)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]

ReadableFile = Annotated[Path, AfterValidator(_readable)]
TokensFile = Annotated[ReadableFile, AfterValidator(_tokens_file)]
LimitsFile = Annotated[ReadableFile, AfterValidator(_limits_file)]

HeaderToken = Annotated[SecretStr, AfterValidator(_header_token)]
TrimmedSecret = Annotated[SecretStr, AfterValidator(_trimmed)]
Secrets = Annotated[SecretStr, AfterValidator(_secrets)]

Models = Annotated[frozenset[str], NoDecode, BeforeValidator(_names), AfterValidator(_known_models)]

Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
# Options of gRPC's core, which are C integers.
Channel = Annotated[int, Field(ge=1, le=CHANNEL_MAX)]
ChannelOrZero = Annotated[int, Field(ge=0, le=CHANNEL_MAX)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Retention = Annotated[float, AfterValidator(_retention)]
