"""Authentication: bearer tokens from a file of their hashes, or client certificates named there."""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import structlog

from service.errors import ServiceError
from service.files import RECHECK_SECONDS, WatchedFile, read_file, text_in

DEFAULT_CALLER = "default"
SHA256_HEX_CHARACTERS = 64
CALLER_MAX_CHARACTERS = 64
PROBLEMS_MAX = 20
SAN = b"san:"  # begins the key of a name in certificates; other keys are hashes
HOW_TO_AUTHENTICATE = "send metadata `authorization: Bearer <token>`"
NO_CLIENT_CERTIFICATES = "lines with `san:` need TLS_CLIENT_CA_FILE"

# The caller of the current call; the interceptor sets it.
current_caller: ContextVar[str] = ContextVar("current_caller")

log = structlog.get_logger()


class TokensFileError(ValueError):
    """A tokens file that cannot be used; the message names each bad line."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A caller, and the key of its line in the file; b"" without tokens."""

    caller: str
    key: bytes


WITHOUT_TOKENS = Credential(DEFAULT_CALLER, b"")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The content of a tokens file.

    Attributes:
        callers: The caller of each key: the hash of a token, or `san:` and a name in a certificate.
        problems: What is wrong with lines.
    """

    callers: Mapping[bytes, str]
    problems: tuple[str, ...]


class Callers:
    """Identifies callers by tokens or certificates. Without a file, every caller is `default`.

    Attributes:
        version: Increases whenever the set of valid tokens and certificates changes.
        problems: The problems of the current file, a sentence each.
    """

    def __init__(
        self,
        tokens_file: Path | None,
        recheck_seconds: float = RECHECK_SECONDS,
        *,
        client_certificates: bool = False,
    ) -> None:
        """Read the file.

        Args:
            tokens_file: The file, or None.
            recheck_seconds: The time between two checks for changes of it.
            client_certificates: Whether clients have certificates that may name callers.

        Raises:
            TokensFileError: A line is invalid. Later, while the service runs, only that line is
                ignored.
        """
        self._has_tokens = tokens_file is not None
        self._client_certificates = client_certificates
        self._file = WatchedFile(tokens_file, recheck_seconds)
        self._callers: Mapping[bytes, str] = {}
        self._verified: dict[str, Credential] = {}  # by token: hashing one is expensive
        self.version = 0
        self.problems: tuple[str, ...] = ()
        if tokens_file:
            self._callers = read_tokens_file(tokens_file)

    @property
    def names(self) -> frozenset[str]:
        """The callers that have a token; without a file only `default`."""
        return frozenset(self._callers.values() if self._has_tokens else {DEFAULT_CALLER})

    def authenticate(self, authorization: str | None) -> Credential:
        """Return the caller that a token identifies.

        Args:
            authorization: The value of the metadata key `authorization`.

        Raises:
            ServiceError: UNAUTHENTICATED.
        """
        if not self._has_tokens:
            return WITHOUT_TOKENS
        self.reread_if_changed()
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise ServiceError("UNAUTHENTICATED", HOW_TO_AUTHENTICATE)
        # A dict look-up hashes the whole token with a random key, so its timing reveals nothing.
        return self._verified.get(token) or self._verify(token)

    @property
    def named_by_certificates(self) -> bool:
        """Whether the certificate of a client may name its caller."""
        return self._client_certificates and self._has_tokens

    def of_certificate(self, names: Iterable[bytes]) -> Credential:
        """Return the caller that a client's certificate names.

        Args:
            names: The subject alternative names in the certificate.

        Raises:
            ServiceError: UNAUTHENTICATED.
        """
        self.reread_if_changed()
        keys = (SAN + name for name in names)
        found = [Credential(self._callers[key], key) for key in keys if key in self._callers]
        if not found:
            words = f"the certificate names no caller; {HOW_TO_AUTHENTICATE}"
            raise ServiceError("UNAUTHENTICATED", words)
        if len({credential.caller for credential in found}) > 1:
            raise ServiceError("UNAUTHENTICATED", "the certificate names several callers")
        return found[0]

    def is_valid(self, key: bytes) -> bool:
        """Return whether an accepted credential is still valid, by its key."""
        return not self._has_tokens or key in self._callers

    def _verify(self, token: str) -> Credential:
        digest = sha256(token.encode(errors="replace")).digest()
        caller = self._callers.get(digest)
        if caller is None:
            raise ServiceError("UNAUTHENTICATED", "the token is not valid")
        credential = self._verified[token] = Credential(caller, digest)
        return credential

    def reread_if_changed(self) -> None:
        """Apply changes of the file; check for them at most once a second.

        An invalid line is ignored and logged once. A file without any token is ignored: it is most
        likely being written.
        """
        if not self._has_tokens or not self._file.is_due():
            return
        try:
            content = self._file.changed()
            if content is not None:
                self._apply(self._usable(parse_tokens(text_in(content))))
        except (OSError, ValueError) as error:
            self._complain(f"the file cannot be read; the old tokens stay valid: {error}")

    def _apply(self, tokens: Tokens) -> None:
        if self._callers and not tokens.callers:
            self._complain("the file has no token; the old tokens stay valid", *tokens.problems)
            return
        self._callers = tokens.callers
        self._verified.clear()
        self.version += 1
        log.info("tokens file reloaded", tokens=len(tokens.callers))
        self._complain(*tokens.problems)

    def _usable(self, tokens: Tokens) -> Tokens:
        if self._client_certificates or not names_certificates(tokens.callers):
            return tokens
        callers = {key: name for key, name in tokens.callers.items() if not key.startswith(SAN)}
        return Tokens(callers, (*tokens.problems, NO_CLIENT_CERTIFICATES))

    def _complain(self, *problems: str) -> None:
        for problem in sorted({*problems} - {*self.problems}):
            log.warning("tokens file has a problem", problem=problem)
        self.problems = problems


def read_tokens_file(path: Path) -> Mapping[bytes, str]:
    """Return the caller of each key in a file.

    Raises:
        TokensFileError: A line is invalid, as `read_tokens` says.
        OSError: It cannot be read, is not a regular file, or is too large.
        UnicodeDecodeError: It is not UTF-8.
    """
    return read_tokens(text_in(read_file(path)))


def read_tokens(text: str) -> Mapping[bytes, str]:
    """Return the caller of each key from lines of `name sha256-in-hex` or `name san:VALUE`.

    Raises:
        TokensFileError: A line has neither form and is neither a comment nor empty; or it gives the
            token or the certificate of one caller to another.
    """
    tokens = parse_tokens(text)
    if tokens.problems:
        raise TokensFileError("; ".join(tokens.problems))
    return tokens.callers


def names_certificates(callers: Iterable[bytes]) -> bool:
    """Return whether a key is that of a certificate."""
    return any(key.startswith(SAN) for key in callers)


def parse_tokens(text: str) -> Tokens:
    """Read the valid lines of a tokens file, and report the others."""
    callers: dict[bytes, str] = {}
    problems: list[str] = []
    for number, words in _lines(text):
        try:
            name, key = _entry(words)
        except TokensFileError as error:
            problems.append(f"line {number}: {error}")
            continue
        if callers.setdefault(key, name) != name:
            what = "name in certificates" if key.startswith(SAN) else "token"
            problems.append(f"line {number}: the {what} already belongs to another caller")
    if len(problems) > PROBLEMS_MAX:  # another kind of file
        problems[PROBLEMS_MAX:] = [f"{len(problems) - PROBLEMS_MAX} more lines are invalid"]
    return Tokens(callers, tuple(problems))


def _lines(text: str) -> Iterable[tuple[int, list[str]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.partition("#")[0].split():
            yield number, words


def _entry(words: list[str]) -> tuple[str, bytes]:
    match words:
        case [name, key] if is_name(name) and _is_key(key):
            try:
                return name, key.encode() if key.startswith(SAN.decode()) else bytes.fromhex(key)
            except ValueError:
                raise TokensFileError("the hash is not hexadecimal") from None
        case _:
            raise TokensFileError("must be `name sha256-of-token-in-hex`")


def is_name(text: str) -> bool:
    """Return whether a word can be the name of a caller."""
    return len(text) <= CALLER_MAX_CHARACTERS and text.isprintable()


def _is_key(text: str) -> bool:
    if text.startswith(SAN.decode()):
        return len(text) > len(SAN)
    return len(text) == SHA256_HEX_CHARACTERS
