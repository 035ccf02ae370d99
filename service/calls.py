"""The current call: what the interceptor knows about it, for handlers and log lines."""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Protocol
from urllib.parse import unquote

REQUEST_ID = "x-request-id"
USED_LATER = frozenset({REQUEST_ID, "traceparent", "tracestate"})
USED_MAX_CHARACTERS = 512  # as long as a tracestate may be
VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

Metadata = Iterable[tuple[str, str | bytes]]


class Peer(Protocol):
    """The part of grpc's context that describes the client."""

    def peer(self) -> str:
        """Return its address, such as `ipv4:127.0.0.1:50000`."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the properties of its connection, including those of its certificate."""


class Call:
    """One call, from its headers to its status.

    Attributes:
        metadata: The metadata that the caller sent; after `identify`, what is used later.
        caller: The caller; "" for a method that needs no token.
        credential_key: Identifies what named the caller; b"" without tokens.
        context: grpc's context; None before `begin`.
        end_error: The error passed to `end`.
    """

    __slots__ = (
        "_request_id",
        "_task",
        "caller",
        "context",
        "credential_key",
        "end_error",
        "metadata",
    )

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.caller = ""
        self.credential_key = b""
        self.context: Peer | None = None
        self.end_error: Exception | None = None
        self._task: asyncio.Task[Any] | None = None
        self._request_id = ""

    def identify(self, caller: str, credential_key: bytes) -> None:
        """Set the caller, and drop the metadata that is not used any more.

        It may take 50 KiB, and some streams are open for long.
        """
        self.caller = caller
        self.credential_key = credential_key
        self.metadata = [
            (name, value)
            for name, value in self.metadata
            if name in USED_LATER and len(value) <= USED_MAX_CHARACTERS
        ]

    def begin(self, context: Peer) -> None:
        """Remember the asyncio task that handles the call: the current one."""
        self.context = context
        self._task = asyncio.current_task()

    def finish(self) -> None:
        """Forget the asyncio task: it refers to its context variables, and so to this call."""
        self._task = None

    def end(self, error: Exception) -> None:
        """End the call from another task; its caller gets the error."""
        if self.end_error is None and self._task is not None:
            self.end_error = error
            self._task.cancel()

    @property
    def request_id(self) -> str:
        """The id in all log lines of this call: the one that the caller sent, if it is valid."""
        if not self._request_id:
            given = one_value(self.metadata, REQUEST_ID) or ""
            self._request_id = given if VALID_REQUEST_ID.fullmatch(given) else _new_id()
        return self._request_id


# What a call does between its start and its end: called with grpc's requests and its context.
CallWork = Callable[[Call, Any, Any], Awaitable[Any]]


class CallsInProgress:
    """The calls whose handlers are running."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._idle: asyncio.Event | None = None

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def add(self, call: Call) -> None:
        """Add a call that begins."""
        self._calls.add(call)

    def discard(self, call: Call) -> None:
        """Remove a call that is over."""
        self._calls.discard(call)
        if self._idle and not self._calls:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until there is no call."""
        if self._calls:
            self._idle = asyncio.Event()
            await self._idle.wait()


def _new_id() -> str:
    """Return an id that distinguishes calls. It need not be secret, but cheap."""
    return f"{random.getrandbits(64):016x}"


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


def has_key(metadata: Metadata, key: str) -> bool:
    """Return whether a metadata key is present."""
    return any(name == key for name, _ in metadata)


def one_value(metadata: Metadata, key: str) -> str | None:
    """Return the value of a metadata key; None if it is missing, or present twice."""
    found: str | bytes | None = None
    for name, value in metadata:
        if name == key:
            if found is not None:
                return None
            found = value
    return found.decode(errors="replace") if isinstance(found, bytes) else found


def add_call(
    logger: object, method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the call to a log line: a structlog processor, so that only logged calls pay for it."""
    del logger, method
    if (call := current_call.get()) is not None:
        if call.caller:
            line.setdefault("caller", call.caller)
        if call.context is not None:
            line.setdefault("peer", unquote(call.context.peer()))  # ipv6:%5B::1%5D:50000
        line.setdefault("request_id", call.request_id)
    return line
