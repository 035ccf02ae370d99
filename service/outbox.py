"""Limit the responses that clients do not read: gRPC's core keeps each one until it is read."""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVarTuple

from service.calls import Call
from service.errors import ServiceError
from service.open_calls import ignore_refusal

COUNTED_FROM_BYTES = 4_096  # a smaller response, or request, takes less memory than its call
UNREAD_MAX_BYTES = 32 << 20
PATIENCE_SECONDS = 10.0  # of a stream that waits until others of its caller are read
LIMIT = "answers"

Content = TypeVarTuple("Content")


class Outbox:
    """The bytes of the responses that each caller has not read yet."""

    def __init__(
        self,
        max_bytes: int = UNREAD_MAX_BYTES,
        on_refusal: Callable[[str, str], None] = ignore_refusal,
    ) -> None:
        """Start with no response.

        Args:
            max_bytes: How many bytes a caller may leave unread.
            on_refusal: Called with the caller and the limit of each refused call.
        """
        self._on_refusal = on_refusal
        self._max_bytes = max_bytes
        self._unread: Counter[str] = Counter()

    def check(self, caller: str, size: int = 0) -> None:
        """Raise RATE_LIMITED if a caller has too many unread bytes for another response.

        Args:
            caller: Whose responses are counted.
            size: The bytes of the response, if they are known.
        """
        if self._unread[caller] + size <= self._max_bytes:
            return
        self._on_refusal(caller, LIMIT)
        raise _unread(self._unread[caller], self._max_bytes)

    def finisher(
        self, serialize: Callable[[Any], bytes], *, may_refuse: bool = True
    ) -> Callable[[Call, Any, Any], bytes | None]:
        """Return a function that serializes a response, and counts its bytes until the call ends.

        It returns None for None: a streaming call has written its responses already.

        Args:
            serialize: Returns the bytes of a response.
            may_refuse: Whether the function raises RATE_LIMITED if the caller has too many unread
                bytes. Not so if the call has had an effect: the caller would repeat it.
        """

        def finish(call: Call, answer: Any, context: Any) -> bytes | None:
            if answer is None:
                return None
            data = serialize(answer)
            if len(data) >= COUNTED_FROM_BYTES:
                if may_refuse:
                    self.check(call.caller, len(data))
                self._count(call.caller, len(data), context)
            return data

        return finish

    def _count(self, caller: str, size: int, context: Any) -> None:
        self._unread[caller] += size

        def taken(_: Any) -> None:
            self._unread[caller] -= size

        context.add_done_callback(taken)


class StreamOutbox:
    """The bytes that each caller's streams have written and their clients have not read yet.

    A stream waits while there are too many, as its client may well read. They are not counted with
    the answers of an Outbox: streams that nobody reads do not keep their caller from other calls.
    """

    def __init__(
        self,
        max_bytes: int = UNREAD_MAX_BYTES,
        on_refusal: Callable[[str, str], None] = ignore_refusal,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """Start with no message.

        Args:
            max_bytes: How many bytes a caller may leave unread.
            on_refusal: Called with the caller and the limit of each stream that is refused.
            patience_seconds: How long a stream waits; then it is refused.
        """
        self._max_bytes = max_bytes
        self._on_refusal = on_refusal
        self._patience_seconds = patience_seconds
        self._callers: defaultdict[str, _Unread] = defaultdict(_Unread)

    def write(
        self,
        caller: str,
        size: int,
        write: Callable[[*Content], Awaitable[None]],
        *content: *Content,
    ) -> Awaitable[None]:
        """Return what makes and writes a message, once there is room for it.

        Args:
            caller: Whose stream it is.
            size: The bytes of the message, more or less.
            write: Makes the message, and writes it.
            content: The arguments of `write`.

        Raises:
            ServiceError: RATE_LIMITED, when it is awaited.
        """
        if size < COUNTED_FROM_BYTES:
            return write(*content)
        return self._write_counted(caller, size, write, *content)

    async def _write_counted(
        self,
        caller: str,
        size: int,
        write: Callable[[*Content], Awaitable[None]],
        *content: *Content,
    ) -> None:
        unread = self._callers[caller]
        if unread.waiting or not self._has_room(unread, size):
            await self._wait(caller, unread, size)
        else:
            unread.size += size
        try:
            await write(*content)
        finally:
            self._end(unread, size)

    def _has_room(self, unread: "_Unread", size: int) -> bool:
        return not unread.size or unread.size + size <= self._max_bytes

    async def _wait(self, caller: str, unread: "_Unread", size: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        unread.waiting.append((turn, size))
        try:
            async with asyncio.timeout(self._patience_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._end(unread, size)  # it was granted at this moment
            turn.cancel()
            if isinstance(error, TimeoutError):
                self._on_refusal(caller, LIMIT)
                raise _unread(unread.size, self._max_bytes) from None
            raise

    def _end(self, unread: "_Unread", size: int) -> None:
        """Stop counting a message, and grant turns while there is room."""
        unread.size -= size
        while unread.waiting:
            turn, wanted = unread.waiting[0]
            if not turn.done():  # otherwise its stream has ended
                if not self._has_room(unread, wanted):
                    return
                unread.size += wanted
                turn.set_result(None)
            unread.waiting.popleft()


class _Unread:
    """What one caller has not read: how many bytes, and the messages that wait for room."""

    __slots__ = ("size", "waiting")

    def __init__(self) -> None:
        self.size = 0
        self.waiting: deque[tuple[asyncio.Future[None], int]] = deque()


def _unread(size: int, max_bytes: int) -> ServiceError:
    return ServiceError(
        "RATE_LIMITED",
        f"{size} bytes of answers to this caller have not been read;"
        " read them, or cancel their calls",
        metadata={"limit": LIMIT, "max": str(max_bytes), "scope": "caller"},
    )
