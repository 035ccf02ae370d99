"""Limit the responses that clients do not read: gRPC's core keeps each one until it is read."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from service.calls import Call
from service.errors import ServiceError
from service.open_calls import ignore_refusal

COUNTED_FROM_BYTES = 4_096  # a smaller response, or request, takes less memory than its call
UNREAD_MAX_BYTES = 32 << 20


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
        self._on_refusal(caller, "answers")
        raise ServiceError(
            "RATE_LIMITED",
            f"{self._unread[caller]} bytes of answers to this caller have not been read;"
            " read them, or cancel their calls",
            metadata={"limit": "answers", "max": str(self._max_bytes), "scope": "caller"},
        )

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
