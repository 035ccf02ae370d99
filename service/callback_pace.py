"""How often callbacks cause polls: at most once a second for each task."""

CALLBACK_SECONDS = 1.0


class CallbackPace:
    """The polls that callbacks caused in the last second: when, and with what content."""

    def __init__(self) -> None:
        self._polls: dict[str, tuple[float, int | None]] = {}  # the oldest first

    def is_repeated(self, task_id: str, content: int | None, now: float) -> bool:
        """Return whether a callback repeats the last one of its task within a second."""
        self._forget(now)
        last = self._polls.get(task_id)
        return last is not None and content is not None and last[1] == content

    def next_time(self, task_id: str, now: float) -> float:
        """Return when a callback may cause a poll of its task."""
        last = self._polls.get(task_id)
        # If the clock was set back, the last poll is in the future, and must not delay this one.
        return now if last is None else max(now, min(last[0], now) + CALLBACK_SECONDS)

    def remember(self, task_id: str, due_time: float, content: int | None) -> None:
        """Remember the poll and the content of a callback, unless a recent one is remembered."""
        if task_id not in self._polls:
            self._polls[task_id] = due_time, content

    def _forget(self, now: float) -> None:
        while self._polls:
            oldest = next(iter(self._polls))
            if 0 <= now - self._polls[oldest][0] < CALLBACK_SECONDS:
                break
            del self._polls[oldest]  # also one from before the clock was set back
