"""The types of the settings: what a value must look like, and what is wrong with one that does not.

A message completes the sentence "NAME: ...", and never contains the value.
"""

import re
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from providers.kie.catalogue.facts import bundled
from providers.kie.registry import TYPED_IDS
from providers.urls import is_visible, split_http_url
from service.caller_limits import read_limits
from service.callers import read_tokens_file
from service.files import read_file
from service.model_patterns import is_pattern
from service.results.places import place_of
from storage.errors import StorageConfigError
from storage.postgresql.connection import connection_params, is_postgres
from storage.sqlite import SQLITE_PREFIX, sqlite_path

PORT_MAX = 65_535
COPIES_MAX = 64
RESULT_MAX_BYTES = 50_000_000_000  # what object stores take in 10,000 parts of 5 MiB
CHANNEL_MAX = 1_000_000
# Above these, sums with the time of day leave what a database or a timestamp can hold: 31 years.
SECONDS_MAX = 1_000_000_000.0
COUNT_MAX = 1_000_000_000
BYTES_MAX = 1_000_000_000_000
RETENTION_MIN_SECONDS = 3_600.0
SECRET_FILE_MAX_BYTES = 64 << 10
ADDRESS = re.compile(r"(?:\[([^\[\]\s]+)\]|([^:\[\]\s]+)):([0-9]{1,5})")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
HOST = re.compile(r"[\w.-]+|\[?[0-9a-fA-F:.]+\]?")
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
        ip = ip_address(host)
    except ValueError:
        return host == "localhost"
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        return ip.ipv4_mapped.is_loopback
    return ip.is_loopback


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
    members = list(dict.fromkeys(TYPED_IDS.values()))
    if not all(map(is_pattern, names)):
        raise ValueError("must list names of models, or their beginnings followed by `*`")
    # A model with a newer id can only be guessed by its form. A typing error must not pass for one:
    # the model that was meant would stay enabled.
    if any(not ("/" in name or name.endswith("*")) for name in names - {*members, *bundled()}):
        raise ValueError(
            f"contains an unknown model; the models are {', '.join(members)} and those of"
            " ListModels; for one that came later, add `*` to its id"
        )
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
    read_tokens_file(path)
    return path


def _limits_file(path: Path) -> Path:
    read_limits(read_file(path))
    return path


def _header_token(secret: SecretStr) -> SecretStr:
    if not HEADER_TOKEN.fullmatch(secret.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces or newlines")
    return secret


def _visible(secret: SecretStr) -> SecretStr:
    if not is_visible(secret.get_secret_value()):
        raise ValueError("must not contain spaces, newlines or control characters")
    return secret


def _secrets(listed: SecretStr) -> SecretStr:
    for secret in listed.get_secret_value().split(","):
        if not secret or not is_visible(secret):
            raise ValueError(
                "must be secrets separated by commas; none may be empty, or contain spaces,"
                " newlines or control characters"
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


def secret_in(content: bytes) -> str:
    """Return the secret that a file contains: its text without the newlines at its end.

    Raises:
        ValueError: The content cannot be a secret; the message does not contain it.
    """
    if len(content) > SECRET_FILE_MAX_BYTES:
        raise ValueError(f"must not be larger than {SECRET_FILE_MAX_BYTES >> 10} KiB")
    try:
        secret = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("must be text in UTF-8") from None
    if not secret:
        raise ValueError("must not be empty")
    return secret


def read_secret(path: Path) -> str:
    """Return the secret in a file.

    Raises:
        ValueError: It cannot be read, or contains no secret.
    """
    try:
        with path.open("rb") as file:
            return secret_in(file.read(SECRET_FILE_MAX_BYTES + 1))
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None


def api_key_in(content: bytes) -> str:
    """Return the key in the content of KIE_API_KEY_FILE; ValueError if it is invalid."""
    return _header_token(SecretStr(secret_in(content))).get_secret_value()


def webhook_key_in(content: bytes) -> str:
    """Return the key in the content of KIE_WEBHOOK_KEY_FILE; ValueError if it is invalid."""
    return _visible(SecretStr(secret_in(content))).get_secret_value()


def _file_of(check: Callable[[SecretStr], SecretStr]) -> AfterValidator:
    """Return a validator of a file with a secret that has to pass a check."""

    def validate(path: Path) -> Path:
        check(SecretStr(read_secret(path)))
        return path

    return AfterValidator(validate)


def _retention(seconds: float) -> float:
    # A shorter time could delete a task before its watchers see its end.
    if seconds and not RETENTION_MIN_SECONDS <= seconds <= SECONDS_MAX:
        raise ValueError(f"must be 0, or {RETENTION_MIN_SECONDS:.0f} to {SECONDS_MAX:.0f}")
    return seconds


def _results_url(url: str) -> str:
    place_of(url)
    return url


def _hosts(hosts: frozenset[str]) -> frozenset[str]:
    for host in hosts:
        if not HOST.fullmatch(host):
            raise ValueError("must be names or addresses without ports, separated by commas")
    return frozenset(host.strip("[]").casefold() for host in hosts)


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
Secret = Annotated[SecretStr, AfterValidator(_visible)]
Secrets = Annotated[SecretStr, AfterValidator(_secrets)]

DatabaseUrlFile = Annotated[ReadableFile, _file_of(_database_url)]
HeaderTokenFile = Annotated[ReadableFile, _file_of(_header_token)]
SecretFile = Annotated[ReadableFile, _file_of(_visible)]
SecretsFile = Annotated[ReadableFile, _file_of(_secrets)]

Models = Annotated[frozenset[str], NoDecode, BeforeValidator(_names), AfterValidator(_known_models)]

ResultsUrl = Annotated[str, AfterValidator(_results_url)]
ResultBytes = Annotated[int, Field(ge=1, le=RESULT_MAX_BYTES)]
Copies = Annotated[int, Field(ge=1, le=COPIES_MAX)]
Hosts = Annotated[frozenset[str], NoDecode, BeforeValidator(_names), AfterValidator(_hosts)]

Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]
AtLeastOne = Annotated[int, Field(ge=1, le=COUNT_MAX)]
Bytes = Annotated[int, Field(ge=1, le=BYTES_MAX)]
# Options of gRPC's core, which are C integers.
Channel = Annotated[int, Field(ge=1, le=CHANNEL_MAX)]
ChannelOrZero = Annotated[int, Field(ge=0, le=CHANNEL_MAX)]
Seconds = Annotated[float, Field(ge=0, le=SECONDS_MAX, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, le=SECONDS_MAX, allow_inf_nan=False)]
Retention = Annotated[float, AfterValidator(_retention)]
