"""The database's clock: all processes share it, so due times of different machines compare."""

import time

from peewee import Database

READ_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"
COMPARE_SECONDS = 60.0  # clocks of machines drift apart


class DatabaseClock:
    """The time at the database, by this machine's monotonic clock and an offset."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._compared = -COMPARE_SECONDS

    def now(self) -> float:
        """Return the time in unix seconds."""
        return _monotonic_seconds() + self._offset

    def compare(self, db: Database) -> None:
        """Compare the clocks, if that was not done within the last minute."""
        started = time.monotonic()
        if started - self._compared < COMPARE_SECONDS:
            return
        (there,) = db.execute_sql(READ_CLOCK).fetchone()
        half_trip = (time.monotonic() - started) / 2
        self._offset = there + half_trip - _monotonic_seconds()
        self._compared = started


def _monotonic_seconds() -> float:
    """Return a monotonic time.

    CLOCK_BOOTTIME where available, because it also counts time spent suspended.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
