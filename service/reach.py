"""Whether the provider responds at all: distinguishes an outage from one unreadable task."""

import math

from providers.base import Inconclusive, Poll, Unavailable, UnknownState

OUTAGE_POLLS = 3  # unanswered polls in a row, of tasks whose polls had been answered before


class Reach:
    """What this process knows about the provider's responses. Times are unix seconds."""

    def __init__(self, interval_seconds: float) -> None:
        """Start without any response.

        Args:
            interval_seconds: The shortest time between two polls of a task. A shorter silence is no
                outage.
        """
        self._interval_seconds = interval_seconds
        self._answered_time = -math.inf
        self._silent_since = math.inf
        self._unanswered = 0

    def silent_seconds(self, now: float) -> float:
        """Return how long no poll has been answered; 0 after a response."""
        return max(0.0, now - self._silent_since)

    def answered_since(self, since: float, now: float) -> bool:
        """Return whether a poll was answered since a time.

        A response from the future was received before the clock was set back.
        """
        return since < self._answered_time <= now

    def learn(self, outcome: Poll, setbacks: int, now: float) -> bool:
        """Learn from a poll of a task that had `setbacks`; return whether an outage is over."""
        if isinstance(outcome, Inconclusive) and not isinstance(outcome, UnknownState):
            if isinstance(outcome, Unavailable):
                self._silent_since = min(self._silent_since, now)
                self._unanswered += setbacks <= 1  # tasks with more were failing before
            return False
        was_outage = (
            self._unanswered >= OUTAGE_POLLS and self.silent_seconds(now) >= self._interval_seconds
        )
        self._answered_time = now
        self._silent_since = math.inf
        self._unanswered = 0
        return was_outage
