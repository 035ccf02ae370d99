"""Limits on the number of open calls of a kind."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import rate_limited


def ignore_refusal(caller: str, limit: str) -> None:
    """Do nothing when a call is refused."""
    del caller, limit


def _ignore_change(number: int) -> None:
    del number


class OpenCalls:
    """Counts the open calls of one kind in this process, and refuses those beyond a limit."""

    def __init__(
        self,
        limit: str,
        *,
        service_max: float,
        caller_max: Callable[[str], float],
        on_refusal: Callable[[str, str], None] = ignore_refusal,
        on_change: Callable[[int], None] = _ignore_change,
    ) -> None:
        """Start with no open call.

        Args:
            limit: The name of the limit: `watches`, `uploads` or `lists`.
            service_max: How many calls may be open in all; infinity means no limit.
            caller_max: Returns how many of them may be a caller's.
            on_refusal: Called with the caller and the limit of each refused call.
            on_change: Called with the number of open calls whenever it changes.
        """
        self._limit = limit
        self._service_max = service_max
        self._caller_max = caller_max
        self._on_refusal = on_refusal
        self._on_change = on_change
        self._callers: Counter[str] = Counter()
        self._open = 0

    def counted(self, caller: str) -> "CountedCall":
        """Return a context in which a call of a caller is counted."""
        return CountedCall(self, caller)

    def begin(self, caller: str) -> None:
        """Count a call.

        Raises:
            ServiceError: RATE_LIMITED.
        """
        self._check(caller)
        self._add(caller, 1)

    def end(self, caller: str) -> None:
        """Stop counting a call."""
        self._add(caller, -1)

    def _add(self, caller: str, number: int) -> None:
        self._open += number
        self._callers[caller] += number
        if not self._callers[caller]:
            del self._callers[caller]
        self._on_change(self._open)

    def _check(self, caller: str) -> None:
        caller_max = self._caller_max(caller)
        if self._callers[caller] >= caller_max:
            self._on_refusal(caller, self._limit)
            raise rate_limited(self._limit, int(caller_max), caller=caller)
        if self._open >= self._service_max:
            self._on_refusal(caller, self._limit)
            raise rate_limited(self._limit, int(self._service_max))


class CountedCall:
    """Counts a call while the context lasts. Not a generator, as each open watch holds one."""

    __slots__ = ("_caller", "_calls")

    def __init__(self, calls: OpenCalls, caller: str) -> None:
        self._calls = calls
        self._caller = caller

    def __enter__(self) -> None:
        self._calls.begin(self._caller)

    def __exit__(self, *error: object) -> None:
        self._calls.end(self._caller)


@dataclass(frozen=True, slots=True)
class LimitedCalls:
    """The kinds of calls whose number is limited."""

    watches: OpenCalls
    uploads: OpenCalls
    lists: OpenCalls
