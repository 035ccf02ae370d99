"""Clocks that tests set: the database's, and the machine's as a process sees it."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest

from tests.support.databases import change

HOUR = 3_600.0
# The columns that hold times.
TIMES = {
    "tasks": (
        *("create_time", "update_time", "due_time", "complete_time"),
        *("submit_time", "accept_time", "unknown_time"),
    ),
    "slots": ("free_time",),
    "holds": ("since", "refused_time"),
}
# Found before PostgreSQL's own function of this name, as the schema comes first in the search_path.
OWN_CLOCK = """
CREATE TABLE time_set (seconds float8 NOT NULL);
INSERT INTO time_set VALUES (0);
CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
$$ SELECT pg_catalog.clock_timestamp() + make_interval(secs => (SELECT seconds FROM time_set)) $$;
"""


FAKETIME = "*/faketime/libfaketimeMT.so.1"
FOLLOWED_SECONDS = 1  # how long a process uses a clock until it reads it again


class MachineClock:
    """The clock of the machine, as processes with libfaketime see it.

    Attributes:
        environment: The variables of such a process.
    """

    def __init__(self, folder: Path) -> None:
        library = next(iter(sorted(Path("/usr/lib").glob(FAKETIME))), None)
        if library is None:
            pytest.skip("NO PROCESS WITH A SET CLOCK WAS TESTED: `apt-get install faketime`")
        self._file = folder / "clock"
        self._seconds = 0.0
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": str(FOLLOWED_SECONDS),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.jump(0)

    def jump(self, seconds: float) -> None:
        """Set the clock forward, or back."""
        self._seconds += seconds
        new = self._file.with_name("new")
        new.write_text(f"{self._seconds:+.0f}\n")
        new.chmod(0o644)
        new.replace(self._file)


@contextmanager
def machine_clock() -> Iterator[MachineClock]:
    """Yield a clock that any user's processes can read."""
    with tempfile.TemporaryDirectory(prefix="clock-") as folder:
        Path(folder).chmod(0o755)
        yield MachineClock(Path(folder))


def set_while_stopped(database_url: str, seconds: float) -> None:
    """Let a clock be set forward, or back, as a service sees it that is started afterwards."""
    for table, columns in TIMES.items():
        moved = ", ".join(f"{column} = {column} - {seconds}" for column in columns)
        change(database_url, f"UPDATE {table} SET {moved}")  # noqa: S608 - our own names


class DatabaseTime:
    """The clock of a PostgreSQL, in one schema of it.

    Attributes:
        url: Of the database with this clock.
    """

    def __init__(self, schema_url: str) -> None:
        self._schema_url = schema_url
        self._schema = schema_url.rpartition("%3D")[2]
        self.url = f"{schema_url}%2Cpg_catalog&application_name={self._schema}"
        self._execute(OWN_CLOCK)

    def jump(self, seconds: float) -> None:
        """Set the clock forward, or back."""
        self._execute("UPDATE time_set SET seconds = seconds + %s", seconds)

    def disconnect_all(self) -> None:
        """Cut the connections of the services, as a fail-over does."""
        self._execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
            self._schema,
        )

    def _execute(self, sql: str, *params: object) -> None:
        with closing(psycopg2.connect(self._schema_url)) as connection, connection:
            connection.cursor().execute(sql, params or None)
