"""Who calls: bearer tokens from a file of their hashes."""

import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path

import structlog

from service.errors import ServiceError

DEFAULT_CALLER = "default"
RECHECK_SECONDS = 1.0
SHA256_HEX_CHARACTERS = 64
CALLER_MAX_CHARACTERS = 64
VERIFIED_MAX = 10_000

# The caller of the call under way; the interceptor sets it.
current_caller: ContextVar[str] = ContextVar("current_caller")

log = structlog.get_logger()


class TokensFileError(ValueError):
    """A tokens file that cannot be used, by its line."""


class Callers:
    """Knows the caller by its token. Without a file, everybody is `default`."""

    def __init__(self, tokens_file: Path | None) -> None:
        self._file = tokens_file
        self._callers: Mapping[bytes, str] = {}
        self._verified: dict[str, str] = {}  # what such callers sent, as hashing it costs
        self._stamp: object = None
        self._checked = 0.0
        if tokens_file:
            self._stamp = _stamp(tokens_file)
            self._callers = read_tokens(tokens_file.read_text())

    def authenticate(self, authorization: str | None) -> str:
        """Return the caller's name.

        Raises:
            ServiceError: UNAUTHENTICATED.
        """
        if self._file is None:
            return DEFAULT_CALLER
        self._reread_if_changed(self._file)
        # Dictionaries find by a keyed hash of the whole: how long that takes tells nothing of it.
        return self._verified.get(authorization or "") or self._verify(authorization or "")

    def _verify(self, authorization: str) -> str:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise ServiceError("UNAUTHENTICATED", "send metadata `authorization: Bearer <token>`")
        caller = self._callers.get(sha256(token.strip().encode(errors="replace")).digest())
        if caller is None:
            raise ServiceError("UNAUTHENTICATED", "the token is not known")
        if len(self._verified) >= VERIFIED_MAX:  # one token may come with many blanks around it
            self._verified.clear()
        self._verified[authorization] = caller
        return caller

    def _reread_if_changed(self, file: Path) -> None:
        now = time.monotonic()
        if now - self._checked < RECHECK_SECONDS:
            return
        self._checked = now
        try:
            if (stamp := _stamp(file)) != self._stamp:
                self._callers = read_tokens(file.read_text())
                self._verified.clear()
                self._stamp = stamp
                log.info("tokens file read again", tokens=len(self._callers))
        except (OSError, ValueError) as error:
            log.warning("tokens file cannot be read, the old tokens stay", error=str(error))


def read_tokens(text: str) -> dict[bytes, str]:
    """Return the caller of each hash from lines of `name sha256-in-hex`.

    Raises:
        TokensFileError: A line is neither that, nor a comment, nor empty, or it gives the token of
            one caller to another.
    """
    callers: dict[bytes, str] = {}
    for number, digest, name in _entries(text.splitlines()):
        if callers.setdefault(digest, name) != name:
            raise TokensFileError(f"line {number}: the token is another caller's already")
    return callers


def _entries(lines: Iterable[str]) -> Iterable[tuple[int, bytes, str]]:
    for number, line in enumerate(lines, start=1):
        match line.partition("#")[0].split():
            case []:
                continue
            case [name, digest] if (
                len(digest) == SHA256_HEX_CHARACTERS and len(name) <= CALLER_MAX_CHARACTERS
            ):
                try:
                    yield number, bytes.fromhex(digest), name
                except ValueError:
                    raise TokensFileError(f"line {number}: the hash is not hexadecimal") from None
            case _:
                raise TokensFileError(f"line {number}: must be `name sha256-of-token-in-hex`")


def _stamp(file: Path) -> object:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
