"""The database's clock: all processes share it, so due times of all machines are comparable."""

import logging
import time

from storage.clock import Clock, monotonic_seconds
from storage.postgresql.connection import ConnectionSocket, PostgresDatabase

READ_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"
# Leases last several times as long: after a jump every process can renew its own in time.
COMPARE_SECONDS = 2.0
JUMP_SECONDS = 5.0  # a larger difference is a jump; a smaller one does not harm leases

logger = logging.getLogger(__name__)


class DatabaseClock(Clock):
    """The time at the database, by this machine's monotonic clock and an offset.

    If the database's clock is set, or a standby with another clock takes over, all processes follow
    it: a process that starts later knows no other time.
    """

    def __init__(self, db: PostgresDatabase) -> None:
        """Compare the clocks for the first time, on an open connection."""
        super().__init__()
        self._db = db
        self._offset, _ = self._measured()
        self._compared = time.monotonic()
        self._socket: ConnectionSocket | None = db.socket

    def compare(self) -> None:
        """Compare the clocks, unless that was done just now on the same connection."""
        is_recent = time.monotonic() - self._compared < COMPARE_SECONDS
        if is_recent and self._socket is self._db.socket:
            return
        offset, uncertain_seconds = self._measured()
        self._compared, self._socket = time.monotonic(), self._db.socket
        difference = offset - self._offset
        if abs(difference) > JUMP_SECONDS + uncertain_seconds:
            logger.warning("the clock of the database has jumped by %.1f s", difference)
            self._jump_to(offset)
        elif abs(difference) > uncertain_seconds:  # clocks of machines drift apart
            self._offset = offset

    def _measured(self) -> tuple[float, float]:
        """Return the offset of the database's clock, and how far it may be off."""
        started = monotonic_seconds()
        cursor = self._db.execute_sql(READ_CLOCK)  # type: ignore[no-untyped-call] # peewee's stub
        ((there,),) = cursor.fetchall()
        half_trip = (monotonic_seconds() - started) / 2
        return there - started - half_trip, half_trip
