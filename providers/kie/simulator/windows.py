"""Sliding windows: how many events a limit has seen in the last seconds."""

import time
from collections import OrderedDict, deque
from typing import Final

EVENTS_MAX: Final = 100_000
KEYS_MAX: Final = 1_000


class SlidingWindow:
    """The events of the last `seconds`: a window that slides, not one that restarts."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=EVENTS_MAX)
        self.peak = 0

    def count(self, now: float, seconds: float) -> int:
        """Return how many events happened in the `seconds` before `now`."""
        while self._times and self._times[0] <= now - seconds:
            self._times.popleft()
        return len(self._times)

    def add(self, now: float, seconds: float) -> None:
        """Count one event at `now`."""
        self._times.append(now)
        self.peak = max(self.peak, self.count(now, seconds))

    def admit(self, now: float, seconds: float, limit: int) -> bool:
        """Count one event unless `limit` of them are in the window already; 0 = no limit."""
        if limit and self.count(now, seconds) >= limit:
            return False
        self.add(now, seconds)
        return True


class KeyedWindows:
    """A window for each key, of a bounded number of keys."""

    def __init__(self) -> None:
        self._windows: OrderedDict[str, SlidingWindow] = OrderedDict()

    def of(self, key: str) -> SlidingWindow:
        """Return the window of `key`, which becomes the most recently used one."""
        window = self._windows.setdefault(key, SlidingWindow())
        self._windows.move_to_end(key)
        if len(self._windows) > KEYS_MAX:
            self._windows.popitem(last=False)
        return window


class Traffic:
    """The requests of one kind: all of them, and those of each key, to which a limit applies."""

    def __init__(self) -> None:
        self._all = SlidingWindow()
        self._by_key = KeyedWindows()

    @property
    def peak(self) -> int:
        """The most requests in any window, those that were refused included."""
        return self._all.peak

    def note(self, seconds: float) -> None:
        """Count a request, whatever its outcome, in a window of `seconds`."""
        self._all.add(time.monotonic(), seconds)

    def admit(self, key: str, seconds: float, limit: int) -> bool:
        """Count a request against the limit of its key, unless that is reached; 0 = no limit."""
        return self._by_key.of(key).admit(time.monotonic(), seconds, limit)
