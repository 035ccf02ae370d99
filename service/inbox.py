"""Receive the messages of calls, within limits on their number and their time.

gRPC's core buffers an incomplete message until the rest arrives, so a caller that sends half a
message and stops occupies that memory. Every message that is not part of an upload is received
here, within limits for all callers together and for each caller.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from service.calls import Call
from service.errors import ServiceError
from service.open_calls import ignore_refusal


@dataclass(frozen=True, slots=True)
class InboxLimits:
    """How many messages may be arriving at a time, and how long each may take.

    Attributes:
        requests: Requests that are received at a time, for all callers together.
        requests_per_caller: The same for one caller; its other calls wait for their turn.
        waiting_per_caller: Calls that may wait while the caller's requests are stalled.
        stall_seconds: A caller's requests count as stalled if none arrives for this long.
        patience_seconds: How long a request may take to arrive; then its call ends.
        request_max_bytes: The longest request that is parsed.
        open_requests: Requests to open methods that are received at a time. They have no caller, so
            one more ends the oldest: a flood cannot keep others out.
        streams_per_caller: Request streams of one caller, such as reflection's, that may wait for a
            message; one more ends the oldest.
        stream_message_max_bytes: The longest message of such a stream.
    """

    requests: int = 64
    requests_per_caller: int = 8
    waiting_per_caller: int = 64
    stall_seconds: float = 0.25
    patience_seconds: float = 10.0
    request_max_bytes: int = 1 << 20
    open_requests: int = 16
    streams_per_caller: int = 8
    stream_message_max_bytes: int = 4_096


_Receiving = dict[Call, float]  # when each began, by the monotonic clock; oldest first


class _Caller:
    """The requests of one caller: those being received, and those waiting for a turn."""

    __slots__ = ("granted", "quiet_checks", "receiving", "turns", "waiting")

    def __init__(self) -> None:
        self.granted = 0
        self.quiet_checks = 0  # since one of its requests arrived
        self.waiting = 0
        self.receiving: _Receiving = {}
        self.turns: deque[asyncio.Future[None]] = deque()

    @property
    def stalled(self) -> bool:
        """Whether nothing arrives. One check is not enough: it may be late itself."""
        return self.quiet_checks > 1


class Inbox:
    """Receives messages."""

    def __init__(
        self,
        limits: InboxLimits | None = None,
        on_refusal: Callable[[str, str], None] = ignore_refusal,
    ) -> None:
        """Start with no message.

        Args:
            limits: How much is received at a time.
            on_refusal: Called with the caller and the limit of each refused call.
        """
        self._on_refusal = on_refusal
        self._limits = limits or InboxLimits()
        self._callers: dict[str, _Caller] = {}
        self._granted = 0
        self._waiting: OrderedDict[str, _Caller] = OrderedDict()  # the next one is first
        self._open: _Receiving = {}
        self._streams: dict[str, _Receiving] = {}

    async def receive(self, call: Call, context: Any) -> bytes:
        """Receive the request of a call.

        The call ends with STREAM_EXPIRED if the request does not arrive in time.

        Raises:
            ServiceError: INVALID_PARAMS if the request is missing or too long; RATE_LIMITED if too
                many requests of the caller are stalled.
        """
        caller = self._callers.get(call.caller)
        if caller is None:
            caller = self._callers[call.caller] = _Caller()
        if caller.turns or not self._has_room(caller):
            await self._wait_for_turn(call.caller, caller)
        else:
            self._grant(caller)
        caller.receiving[call] = time.monotonic()
        try:
            message = await context.read()
        finally:
            del caller.receiving[call]
            self._end_turn(caller)
        return self._request(message)

    async def receive_open(self, call: Call, context: Any) -> bytes:
        """Receive the request of a call that needs no caller; errors are those of `receive`."""
        _make_room(self._open, self._limits.open_requests)
        return self._request(await _receive(self._open, call, context))

    async def receive_stream(self, call: Call, context: Any) -> AsyncIterator[bytes]:
        """Receive the messages of a request stream; errors are those of `receive`."""
        receiving = self._streams.setdefault(call.caller, {})
        while True:
            _make_room(receiving, self._limits.streams_per_caller)
            message = await _receive(receiving, call, context)
            if message is grpc.aio.EOF:
                return
            yield _bounded(message, self._limits.stream_message_max_bytes)

    @property
    def check_seconds(self) -> float:
        """How often to call `check`."""
        return self._limits.stall_seconds

    def check(self) -> None:
        """End calls whose request is overdue, and calls that wait behind stalled requests."""
        self._give_up_overdue()
        for name, caller in self._callers.items():
            caller.quiet_checks = caller.quiet_checks + 1 if caller.receiving else 0
            if caller.stalled:
                self._refuse_waiting(name, caller)

    def _give_up_overdue(self) -> None:
        overdue = time.monotonic() - self._limits.patience_seconds
        for receiving in (self._open, *(caller.receiving for caller in self._callers.values())):
            for call, started in receiving.items():
                if started > overdue:
                    break
                _give_up(call)

    def _request(self, message: Any) -> bytes:
        if message is grpc.aio.EOF:
            raise ServiceError("INVALID_PARAMS", "the call ended without a request")
        return _bounded(message, self._limits.request_max_bytes)

    # --- turns ---

    def _has_room(self, caller: _Caller) -> bool:
        limits = self._limits
        return self._granted < limits.requests and caller.granted < limits.requests_per_caller

    def _grant(self, caller: _Caller) -> None:
        self._granted += 1
        caller.granted += 1

    def _refuse_waiting(self, name: str, caller: _Caller) -> None:
        """Refuse waiting calls beyond the number that may wait behind stalled requests."""
        while len(caller.turns) > self._limits.waiting_per_caller:
            turn = caller.turns.pop()
            if not turn.done():
                turn.set_exception(self._stalled(name))

    def _end_turn(self, caller: _Caller) -> None:
        caller.quiet_checks = 0
        self._granted -= 1
        caller.granted -= 1
        if self._waiting:
            self._grant_turns()

    def _grant_turns(self) -> None:
        """Grant turns while there is room; callers take turns."""
        for name, caller in list(self._waiting.items()):
            while caller.turns and self._has_room(caller):
                turn = caller.turns.popleft()
                if not turn.done():  # otherwise its call has ended
                    self._grant(caller)
                    turn.set_result(None)
                    self._waiting.move_to_end(name)
            if not caller.turns:
                del self._waiting[name]

    async def _wait_for_turn(self, name: str, caller: _Caller) -> None:
        if caller.waiting >= self._limits.waiting_per_caller and caller.stalled:
            raise self._stalled(name)
        turn = asyncio.get_running_loop().create_future()
        caller.turns.append(turn)
        caller.waiting += 1
        self._waiting.setdefault(name, caller)
        try:
            async with asyncio.timeout(self._limits.patience_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and not turn.exception():
                self._end_turn(caller)  # it was granted at this moment
            turn.cancel()
            if isinstance(error, TimeoutError):
                raise self._stalled(name) from None
            raise
        finally:
            caller.waiting -= 1

    def _stalled(self, caller: str) -> ServiceError:
        self._on_refusal(caller, "requests")
        most = self._limits.requests_per_caller
        return ServiceError(
            "RATE_LIMITED",
            f"{most} requests of this caller were started but have not arrived;"
            " finish or cancel them",
            metadata={"limit": "requests", "max": str(most), "scope": "caller"},
        )


def _make_room(receiving: _Receiving, most: int) -> None:
    if len(receiving) >= most:
        _give_up(next(iter(receiving)))


def _give_up(call: Call) -> None:
    call.end(ServiceError("STREAM_EXPIRED", "the message did not arrive in time; send it again"))


async def _receive(receiving: _Receiving, call: Call, context: Any) -> Any:
    receiving[call] = time.monotonic()
    try:
        return await context.read()
    finally:
        del receiving[call]


def _bounded(message: bytes, most_bytes: int) -> bytes:
    if len(message) > most_bytes:
        raise ServiceError(
            "INVALID_PARAMS",
            f"the request has {len(message)} bytes; the limit is {most_bytes}",
        )
    return message
