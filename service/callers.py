"""Who calls: bearer tokens from a file of their hashes."""

import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import structlog

from service.errors import ServiceError
from service.files import stamp_of

DEFAULT_CALLER = "default"
RECHECK_SECONDS = 1.0
SHA256_HEX_CHARACTERS = 64
CALLER_MAX_CHARACTERS = 64

# The caller of the call under way; the interceptor sets it.
current_caller: ContextVar[str] = ContextVar("current_caller")

log = structlog.get_logger()


class TokensFileError(ValueError):
    """A tokens file that cannot be used; the message names each bad line."""


@dataclass(frozen=True, slots=True)
class Credential:
    """The caller that a token identifies. `digest` is its SHA-256, b"" without tokens."""

    caller: str
    digest: bytes


NOBODY_IN_PARTICULAR = Credential(DEFAULT_CALLER, b"")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokens file as it was read: the caller of each token's hash, and what is wrong by line."""

    callers: Mapping[bytes, str]
    problems: tuple[str, ...]


class Callers:
    """Knows the caller by its token. Without a file, everybody is `default`.

    Attributes:
        version: Grows whenever other tokens are valid than before.
        problems: What is wrong with the file as it is now, a sentence each.
    """

    def __init__(self, tokens_file: Path | None) -> None:
        """Read the file.

        Raises:
            TokensFileError: A line cannot be used. Later, while the service runs, only that line
                is left out.
        """
        self._file = tokens_file
        self._callers: Mapping[bytes, str] = {}
        self._verified: dict[str, Credential] = {}  # by token, as hashing one costs
        self._stamp: object = None
        self._checked = 0.0
        self.version = 0
        self.problems: tuple[str, ...] = ()
        if tokens_file:
            self._stamp = stamp_of(tokens_file)
            self._callers = read_tokens(tokens_file.read_text())

    @property
    def names(self) -> frozenset[str]:
        """The callers that have a token; without a file only `default`."""
        return frozenset(self._callers.values()) if self._file else frozenset({DEFAULT_CALLER})

    def authenticate(self, authorization: str | None) -> Credential:
        """Return who calls.

        Args:
            authorization: The value of the metadata of this name.

        Raises:
            ServiceError: UNAUTHENTICATED.
        """
        if self._file is None:
            return NOBODY_IN_PARTICULAR
        self.reread_if_changed()
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise ServiceError("UNAUTHENTICATED", "send metadata `authorization: Bearer <token>`")
        # A dict look-up hashes the whole token with a random key, so its timing reveals nothing.
        return self._verified.get(token) or self._verify(token)

    def is_valid(self, digest: bytes) -> bool:
        """Whether a token that was accepted before still is; b"" is no token, where none exist."""
        return self._file is None or digest in self._callers

    def _verify(self, token: str) -> Credential:
        digest = sha256(token.encode(errors="replace")).digest()
        caller = self._callers.get(digest)
        if caller is None:
            raise ServiceError("UNAUTHENTICATED", "the token is not known")
        credential = self._verified[token] = Credential(caller, digest)
        return credential

    def reread_if_changed(self) -> None:
        """Apply changes of the file; check for them at most once a second.

        An invalid line is ignored and logged once. A file without any token is ignored: it is most
        likely being written.
        """
        now = time.monotonic()
        if self._file is None or now - self._checked < RECHECK_SECONDS:
            return
        self._checked = now
        try:
            if (stamp := stamp_of(self._file)) == self._stamp:
                return
            self._stamp = stamp
            self._take_over(parse_tokens(self._file.read_text()))
        except (OSError, ValueError) as error:
            self._complain(f"the file cannot be read, the old tokens stay valid: {error}")

    def _take_over(self, tokens: Tokens) -> None:
        if self._callers and not tokens.callers:
            self._complain("the file holds no token, the old tokens stay valid", *tokens.problems)
            return
        self._callers = tokens.callers
        self._verified.clear()
        self.version += 1
        log.info("tokens file read again", tokens=len(tokens.callers))
        self._complain(*tokens.problems)

    def _complain(self, *problems: str) -> None:
        for problem in sorted({*problems} - {*self.problems}):
            log.warning("tokens file", problem=problem)
        self.problems = problems


def read_tokens(text: str) -> Mapping[bytes, str]:
    """Return the caller of each hash from lines of `name sha256-in-hex`.

    Raises:
        TokensFileError: A line is neither that, nor a comment, nor empty, or it gives the token of
            one caller to another.
    """
    tokens = parse_tokens(text)
    if tokens.problems:
        raise TokensFileError("; ".join(tokens.problems))
    return tokens.callers


def parse_tokens(text: str) -> Tokens:
    """Read the lines of a tokens file that can be used, and name the others."""
    callers: dict[bytes, str] = {}
    problems: list[str] = []
    for number, words in _lines(text):
        try:
            name, digest = _entry(words)
        except TokensFileError as error:
            problems.append(f"line {number}: {error}")
            continue
        if callers.setdefault(digest, name) != name:
            problems.append(f"line {number}: the token is another caller's already")
    return Tokens(callers, tuple(problems))


def _lines(text: str) -> Iterable[tuple[int, list[str]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.partition("#")[0].split():
            yield number, words


def _entry(words: list[str]) -> tuple[str, bytes]:
    match words:
        case [name, digest] if (
            len(digest) == SHA256_HEX_CHARACTERS and len(name) <= CALLER_MAX_CHARACTERS
        ):
            try:
                return name, bytes.fromhex(digest)
            except ValueError:
                raise TokensFileError("the hash is not hexadecimal") from None
        case _:
            raise TokensFileError("must be `name sha256-of-token-in-hex`")
