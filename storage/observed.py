"""What is measured of the store's operations."""

import time
from collections.abc import Callable

from storage.errors import translated

Observe = Callable[[str, float], None]


def unobserved(operation: str, seconds: float) -> None:
    """Ignore an operation and its seconds."""
    del operation, seconds


class Observed:
    """An operation: its seconds are reported, and its driver's errors translated."""

    __slots__ = ("_observe", "_operation", "_started")

    def __init__(self, observe: Observe, operation: str) -> None:
        self._observe = observe
        self._operation = operation
        self._started = time.perf_counter()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._observe(self._operation, time.perf_counter() - self._started)
        if error is not None and (unavailable := translated(error)):
            raise unavailable from error
