"""The outages of the database: a log line at the beginning and at the end, and when to retry."""

import time

import structlog

from storage.errors import StorageUnavailableError

RETRY_SECONDS = 1.0  # between two attempts to reach the database
QUIET_SECONDS = 5.0  # without a failure, until an outage is over: longer than several attempts take
CALLERS_RETRY_SECONDS = 1.0  # for calls that fail when an outage begins
CALLERS_RETRY_MAX_SECONDS = 30.0

log = structlog.get_logger()


class OutageLog:
    """Logs an outage once, however many attempts fail while it lasts."""

    def __init__(self) -> None:
        self._start_time: float | None = None
        self._failure_time = 0.0

    def failed(self, event: str, error: StorageUnavailableError) -> None:
        """Log the first failed attempt of an outage."""
        self._failure_time = time.monotonic()
        if self._start_time is None:
            self._start_time = self._failure_time
            log.warning(event, error=str(error))

    def retry_seconds(self) -> float:
        """Return after how long a caller should retry: later, the longer the outage lasts.

        So not all callers return at once to a database that has just recovered.
        """
        if self._start_time is None:
            return CALLERS_RETRY_SECONDS
        half = round(time.monotonic() - self._start_time) / 2
        return min(CALLERS_RETRY_SECONDS + half, CALLERS_RETRY_MAX_SECONDS)

    def worked(self) -> None:
        """Log the end of an outage, once nothing has failed for a while.

        Something else may still fail: a full disk can be read from.
        """
        if self._start_time is None or time.monotonic() - self._failure_time < QUIET_SECONDS:
            return
        seconds = round(self._failure_time - self._start_time, 1)
        self._start_time = None
        log.info("storage available again", outage_seconds=seconds)
